"""A few tiny stacks forward and backward, losses and updates, to be run under compute-sanitizer.

    compute-sanitizer --tool racecheck python -m bench.gpu.sanitize

Every kernel of a backend runs at least once: events and dense input, recurrence dense and
convolutional, all readouts, the differentiated reset, a delay, initial states, double precision, a
layer by itself. Inputs are drawn and results compared on the CPU, so that few kernels but
fastlif's run. The exit status is 1 when a forward result is not close to the CPU kernels' or a
gradient is not finite.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from fastlif import PackedSpikes, extension
from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.ops import LayerTensors, LIFState, StackResult, stack
from fastlif.optim import SMORMS3
from tests.cases import CONV, DENSE, NETWORKS, Case, Stack, build, layer_tensors
from tests.compare import relative

STEPS = 5  # one exchange of two steps more than twice, and an odd one
TOLERANCE = 1e-4


def small(case: Case) -> Case:
    """The same layers with few steps and samples."""
    return dataclasses.replace(case, n_steps=min(case.n_steps, STEPS), batch=min(case.batch, 3))


def cases() -> list[tuple[str, Stack, torch.dtype, bool]]:
    """Name, stack, dtype and whether its input is given packed."""
    float32, float64 = torch.float32, torch.float64
    by_name = {case.name: small(case) for case in (*DENSE, *CONV)}
    packs = [small(case) for case in NETWORKS]
    dense, conv = by_name["dense-70-steps"], by_name["conv1d-shd"]
    trace, ragged = by_name["dense-33-steps"], by_name["conv1d-ragged"]
    plane = by_name["conv2d"]
    long = dataclasses.replace(dense, n_steps=35)  # a second word of steps
    layer = Stack((build(dense).plans[0],), (build(dense).parameters[0],), build(dense).input)
    return [
        ("dense", build(dense), float32, True),
        ("dense, 35 steps", build(long), float32, True),
        ("dense, trace, reset differentiated", build(trace, detach_reset=False), float32, True),
        ("dense, delay, double", build(dense, delay=1), float64, True),
        ("dense, numbers", build(dense, binary=False), float32, False),
        ("convolutions", build(conv), float32, True),
        ("convolutions, float input", build(ragged, detach_reset=False, delay=1), float32, False),
        ("planes", build(plane), float32, True),
        ("one layer", layer, float32, True),
        *((f"networks, {case.name}", build(case), float32, True) for case in packs),
    ]


def run(case: Stack, dtype: torch.dtype, packed: bool, device: str, backend: str | None) -> Tensor:
    """All forward outputs in a row, on the CPU; ValueError if a gradient is not finite."""
    leaves = layer_tensors(case, dtype, dtype, state=True)
    moved = [_to(tensors, device) for tensors in leaves]
    input = case.input.to(dtype)
    given: Tensor | PackedSpikes = input.to(device).requires_grad_(not packed)
    if packed:
        given = PackedSpikes.pack(input).to(device)
    result = stack(given, case.plans, moved, backend=backend)
    outputs = _outputs(result)
    grads = [torch.randn(t.shape, dtype=t.dtype).to(device) for t in outputs]
    torch.autograd.backward(outputs, grads)
    with torch.no_grad():
        without_keeping = _outputs(stack(given, case.plans, moved, backend=backend))
    for tensors in leaves:
        for leaf in (*tensors[:3], *(tensors.state or ())):
            if leaf is not None and not bool(leaf.grad.isfinite().all()):
                raise ValueError("a gradient is not finite")
    flat = torch.cat([t.detach().cpu().flatten() for t in outputs])
    again = torch.cat([t.cpu().flatten() for t in without_keeping])
    if not torch.equal(flat, again):
        raise ValueError("two runs of the same forward pass differ")
    return flat


def train(device: str) -> Tensor:
    """Parameters, on the CPU, after steps that lower the losses of them as scores and counts."""
    generator = torch.Generator().manual_seed(1)
    shapes = (6, 5), (6, 40), (6, 2, 1100)  # rows for a warp and for a block
    drawn = [torch.rand(shape, generator=generator) * 9 for shape in shapes]
    scores, *counts = leaves = [x.to(device).requires_grad_() for x in drawn]
    targets = torch.tensor([0, 1, 2, 3, 4, 0]).to(device)
    optimizer = SMORMS3([{"params": [leaf], "lr": 0.1} for leaf in leaves], minimum=0.0)
    for _ in range(2):
        losses = max_over_time_cross_entropy(scores, targets, networks=2)
        losses = losses + upper_bound(counts, 4.0, 1.0, networks=2)
        losses = losses + lower_bound(counts, 5.0, 1.0, networks=2)
        losses.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([leaf.detach().cpu().flatten() for leaf in leaves])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitize", description=__doc__)
    parser.add_argument("--backend", default="cuda", help="cuda, triton, or cpu for a rehearsal")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device", file=sys.stderr)
        return 1
    failures = 0
    for name, case, dtype, packed in cases():
        torch.manual_seed(0)
        ours = run(case, dtype, packed, options.device, options.backend)
        error: float | str = "not compared"
        if extension.is_available():
            error = relative(ours, run(case, dtype, packed, "cpu", None))
            failures += not error < TOLERANCE
        print(f"{name}: difference from the CPU kernels {error}", flush=True)
    if options.backend != "triton":  # losses and updates have kernels of their own in CUDA alone
        served = extension.serves(torch.device(options.device))
        error = relative(train(options.device), train("cpu"))
        failures += not (served and error < TOLERANCE)
        kernels = "compiled kernels" if served else "NO kernels"
        print(f"losses and SMORMS3, {kernels}: difference from the CPU {error}", flush=True)
    return int(failures > 0)


def _outputs(result: StackResult) -> list[Tensor]:
    states = [tensor for state in result.states for tensor in state if tensor is not None]
    return [result.output, *result.spike_counts, *states]


def _to(tensors: LayerTensors, device: str) -> LayerTensors:
    moved = LIFState(*(None if t is None else t.to(device) for t in tensors.state or ()))
    weights = tensors._replace(state=None)
    on_device = LayerTensors(*(None if t is None else t.to(device) for t in weights))
    return on_device._replace(state=moved)


if __name__ == "__main__":
    sys.exit(main())
