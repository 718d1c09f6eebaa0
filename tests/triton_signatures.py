"""Every Triton kernel, compiled ahead of time for GPUs that need not be here.

The engine runs on tensors of the CPU with a launcher that compiles in place of launching: the
arguments, their divisibility and the constants are those of real launches. Needs a process in which
Triton is not interpreted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastlif.ops.connection import conv_connection, dense_connection
from fastlif.ops.encoding import encode
from fastlif.ops.layout import TENSORS_PER_LAYER, StackShapes
from fastlif.ops.plan import Inhibition, LayerPlan
from fastlif.ops.triton import backward, forward, launch
from fastlif.spikes import n_words

ARCHITECTURES = (80, 90)
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10}  # bytes of a block
REGISTER_FILE = 1 << 16  # registers of a multiprocessor
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Row:
    """What a compiled kernel takes of a multiprocessor."""

    name: str
    variant: str  # what distinguishes it from others of the name
    arch: int  # 80, 90
    warps: int
    registers: int  # of a thread
    shared: int  # bytes of a block
    stack: int  # bytes of a thread: spills and arrays in local memory

    @property
    def over_budget(self) -> str:
        """What is wrong with it; "" when nothing is."""
        if self.stack:
            return f"spills {self.stack} bytes"
        if self.shared > SHARED_LIMIT[self.arch]:
            return f"needs {self.shared} bytes of shared memory"
        if self.registers * 32 * self.warps > REGISTER_FILE:
            return f"needs {self.registers} registers in {self.warps} warps"
        return ""


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments and its constants."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    divisible: tuple[str, ...]  # arguments that are multiples of 16
    options: tuple[tuple[str, Any], ...]

    def describe(self) -> str:
        """Types of the numbers, and constants in capitals."""
        floats = {kind[1:] for _, kind in self.signature if kind in ("*fp32", "*fp64")}
        halves = {kind[1:] for name, kind in self.signature if kind == "*fp16" and name == "kept"}
        flags = [f"{name}={value}" for name, value in self.constants if name.isupper()]
        return " ".join([*sorted(floats), *(f"kept {h}" for h in halves), *flags])

    def compile(self, arch: int) -> Row:
        """Compile it and read the registers off the machine code."""
        names = self.kernel.arg_names
        source = ASTSource(
            fn=self.kernel,
            signature=dict(self.signature),
            constexprs={(names.index(name),): value for name, value in self.constants},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in self.divisible},
        )
        target = GPUTarget("cuda", arch, 32)
        compiled = triton.compile(source, target=target, options=dict(self.options))
        registers, stack = resource_usage(compiled.asm["cubin"])
        return Row(
            self.kernel.fn.__name__,
            self.describe(),
            arch,
            compiled.metadata.num_warps,
            registers,
            compiled.metadata.shared,
            stack,
        )


def resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return used["REG"], used["STACK"] + used["LOCAL"]


def launch_of(kernel: Any, args: Sequence[Any], options: dict[str, Any]) -> Launch:
    """The types and properties of arguments that Triton's launcher specializes on."""
    signature, constants, divisible = [], [], []
    for parameter, value in zip(kernel.params, args, strict=False):
        name, fixed = parameter.name, not parameter.do_not_specialize
        if isinstance(value, Tensor):
            signature.append((name, TYPES[value.dtype]))
            if value.data_ptr() % 16 == 0:
                divisible.append(name)
        elif value is None or (value == 1 and fixed):
            signature.append((name, "constexpr"))
            constants.append((name, value))
        else:
            signature.append((name, "i32" if abs(value) < 1 << 31 else "i64"))
            if value % 16 == 0 and fixed:
                divisible.append(name)
    for parameter in kernel.params[len(args) :]:
        signature.append((parameter.name, "constexpr"))
        constants.append((parameter.name, options[parameter.name]))
    rest = {k: v for k, v in options.items() if k not in kernel.arg_names}
    return Launch(
        kernel, tuple(signature), tuple(constants), tuple(divisible), tuple(sorted(rest.items()))
    )


@contextmanager
def recorded() -> Iterator[dict[Launch, None]]:
    """Inside, launches are recorded, each kind once, and not made."""
    seen: dict[Launch, None] = {}

    def record(kernel: Any, grid: Sequence[int], *args: Any, **options: Any) -> None:
        seen[launch_of(kernel, args, options)] = None

    run, launch.run = launch.run, record
    try:
        yield seen
    finally:
        launch.run = run


OPTIONS = {"decay_mem": 0.9, "decay_syn": 0.8}


@dataclass(frozen=True)
class Problem:
    """A stack whose launches are compiled, small in time and batch."""

    name: str
    plans: tuple[LayerPlan, ...]
    features: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    exact: bool = False
    unpacked: bool = False  # the input as numbers too
    n_steps: int = 64
    batch: int = 16


def dense(name: str, widths: Sequence[int], *, recurrent: bool, **options: Any) -> Problem:
    """Dense layers of these widths on 704 inputs, and 20 readout neurons."""
    plans, features = [], (704,)
    kinds = {k: options.pop(k) for k in ("detach_reset", "delay") if k in options}
    for width in widths:
        link = dense_connection(features, width)
        own = (1, 1) if recurrent else None
        plans.append(LayerPlan("lif", (width,), link, own, **OPTIONS, **kinds))
        features = (width,)
    link = dense_connection(features, 20)
    plans.append(LayerPlan("readout_max", (20,), link, **OPTIONS, delay=kinds.get("delay", 0)))
    return Problem(name, tuple(plans), (704,), **options)


def dalian(name: str, *, recurrent: bool = True, **options: Any) -> Problem:
    """A dense layer of 128 excitatory and 32 inhibitory neurons."""
    inhibition = Inhibition(32, (1, 1), 0.9, 0.8, 0.7, 0.6)
    kinds = {k: options.pop(k) for k in ("detach_reset", "delay") if k in options}
    own = (1, 1) if recurrent else None
    link = dense_connection((704,), 160)
    plan = LayerPlan("lif", (160,), link, own, **OPTIONS, **kinds, inhibition=inhibition)
    return Problem(name, (plan,), (704,), **options)


def conv(name: str, *, recurrent: tuple[int, int] | None) -> Problem:
    """Three one-dimensional convolutions on 700 inputs, and 20 readout neurons."""
    plans, features = [], (1, 700)
    for channels, kernel, stride in ((16, 21, 10), (32, 7, 1), (64, 7, 1)):
        link, features = conv_connection(
            features, channels, kernel=(kernel,), stride=(stride,), padding=(0,), dilation=(1,)
        )
        plans.append(LayerPlan("lif", features, link, recurrent, **OPTIONS))
    link = dense_connection(features, 20)
    plans.append(LayerPlan("readout_trace", (20,), link, **OPTIONS))
    return Problem(name, tuple(plans), (1, 700))


def pooled(name: str, **options: Any) -> Problem:
    """A two-dimensional convolution with pooling by 2, and one with windows that overlap."""
    plans, features = [], (3, 32, 32)
    for stride in (2, 1):
        link, features = conv_connection(
            features, 32, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
        )
        plans.append(LayerPlan("lif", features, link, **OPTIONS))
        link, features = conv_connection(
            features, 32, kernel=(2, 2), stride=(stride, 2), padding=(0, 0), dilation=(1, 1)
        )
        plans.append(LayerPlan("max_pool", features, link))
    return Problem(name, tuple(plans), (3, 32, 32), batch=1, **options)


def problems() -> list[Problem]:
    """Stacks that between them launch every kernel, as wide as they come in practice."""
    resident = dense("recurrent", (128, 32), recurrent=True)
    return [
        dense("dense", (512, 20), recurrent=False, unpacked=True),
        dense("dense, exact, reset", (128,), recurrent=False, exact=True, detach_reset=False),
        dense("dense, delayed", (128,), recurrent=False, delay=1),
        dense("dense, float64", (128,), recurrent=False, dtype=torch.float64, unpacked=True),
        resident,
        dense("recurrent, odd", (50,), recurrent=True, exact=True),
        dense("recurrent, exact", (128,), recurrent=True, exact=True),
        dense("recurrent, delayed", (128,), recurrent=True, delay=1),
        dense("recurrent, reset", (64,), recurrent=True, detach_reset=False),
        dense("recurrent, delayed, reset", (50,), recurrent=True, delay=1, detach_reset=False),
        dense("recurrent, large", (256,), recurrent=True, detach_reset=False),
        dense("recurrent, float64", (128,), recurrent=True, dtype=torch.float64, delay=1),
        dalian("dalian"),
        dalian("dalian, delayed, reset", delay=1, detach_reset=False, exact=True),
        dalian("dalian, inhibition only, reset", recurrent=False, detach_reset=False),
        dalian("dalian, float64", dtype=torch.float64, delay=1),
        conv("conv1d", recurrent=(1, 5)),
        pooled("pooled"),
        pooled("pooled, float64", dtype=torch.float64),
    ]


def launches(problem: Problem) -> list[Launch]:
    """What forward and backward of a problem launch, for packed and for dense input."""
    ints, floats = encode(problem.plans)
    shape = (problem.n_steps, problem.batch, *problem.features)
    shapes = StackShapes(ints, floats, *shape[:2], shape, problem.dtype, steps_outermost=True)
    tensors = [t for plan in problem.plans for t in layer_tensors(plan, problem)]
    link = problem.plans[0].feedforward
    assert link is not None
    neurons = link.in_shape[0] * link.in_shape[1] * link.in_shape[2]
    words = torch.zeros(n_words(problem.n_steps), problem.batch, neurons, dtype=torch.int32)
    with recorded() as seen:
        if problem.unpacked:
            input = torch.zeros(shape, dtype=problem.dtype)
            forward(input, tensors, shapes, exact=True, keep=False)
        outputs = forward(words, tensors, shapes, exact=problem.exact, keep=True)
        grads = [torch.zeros_like(t) for out in outputs.layers for t in out[2:]]
        backward(
            torch.zeros_like(outputs.output), grads, words, tensors, outputs.saved(), shapes,
            exact=problem.exact, needs=[True] * (1 + len(tensors)),
        )  # fmt: skip
    return list(seen)


def layer_tensors(plan: LayerPlan, problem: Problem) -> list[Tensor]:
    """Parameters and initial state of a layer, all there but a pending current without delay."""

    def zeros(shape: Sequence[int] | None) -> Tensor:
        return torch.zeros((0,) if shape is None else tuple(shape), dtype=problem.dtype)

    def own(shape: tuple[int, int, int, int] | None) -> Tensor:
        return zeros(shape and (shape if len(plan.features) > 1 else shape[:2]))

    link = plan.feedforward
    state = (problem.batch, *plan.features)
    if plan.kind == "max_pool":
        return [zeros(None)] * TENSORS_PER_LAYER
    inhibitory = state if plan.inhibition else None
    return [
        zeros(link and link.weight_shape),
        zeros(plan.shape[:1]),
        own(plan.recurrent_weight_shape),
        own(plan.inhibitory_weight_shape),
        zeros(state),
        zeros(state),
        zeros(state if plan.delay else None),
        zeros(inhibitory),
        zeros(inhibitory if plan.delay else None),
    ]


def rows(
    architectures: Sequence[int] = ARCHITECTURES,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Every kernel of `problems`, compiled; takes a minute or two."""
    kinds = dict.fromkeys(one for problem in problems() for one in launches(problem))
    found = []
    for kind in kinds:
        for arch in architectures:
            found.append(kind.compile(arch))
            if progress:
                progress(found[-1])
    return found
