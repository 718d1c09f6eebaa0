"""The kernel of SMORMS3: the numbers of the operations on lists, and what it takes of a GPU."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlif import optim_kernels
from fastlif.optim import SMORMS3

SHAPES = [(3, 4), (), (1300,), (0, 2)]  # 1300: three blocks, the last one ragged
VARIANTS = [
    {"lr": lr, "maximize": maximize, "minimum": minimum}
    for lr, maximize, minimum in itertools.product(
        (5e-3, 0.5, "tensor"), (False, True), (None, -0.25)
    )
]

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")


def compare(dtype: torch.dtype, device: str, options: dict[str, Any]) -> None:
    """Ten steps of the kernel and of the operations on lists, from the same numbers."""
    from fastlif import optim_triton

    generator = torch.Generator().manual_seed(1)

    def numbers() -> list[Tensor]:
        return [torch.randn(shape, dtype=dtype, generator=generator) for shape in SHAPES]

    if options["lr"] == "tensor":
        options = options | {"lr": torch.tensor(5e-3, dtype=dtype)}
    ours = [tensor.clone().to(device).requires_grad_() for tensor in numbers()]
    theirs = [tensor.detach().cpu().clone().requires_grad_() for tensor in ours]
    start = [tensor.detach().clone() for tensor in theirs]
    optimizer, reference = SMORMS3(ours, **options), SMORMS3(theirs, **options)
    (group,) = optimizer.param_groups
    if isinstance(group["lr"], Tensor):
        group["lr"] = group["lr"].to(device)
    for _ in range(10):
        for own, other, gradient in zip(ours, theirs, numbers(), strict=True):
            other.grad = gradient
            # Gradients need not be contiguous.
            wide = torch.stack([gradient, gradient], dim=-1).to(device)
            own.grad = wide[..., 0]
        if device == "cpu":
            for own in ours:
                optim_triton.update(own, optimizer._state_of(own), group)
        else:  # where there are no CUDA kernels
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(optim_kernels, "suits", lambda parameter, state: False)
                optimizer.step()
        reference.step()
    # The interpreter rounds the numbers among the arguments to float32.
    tight = dtype == torch.float64 and device != "cpu"
    close = {"rtol": 1e-12, "atol": 1e-14} if tight else {"rtol": 2e-6, "atol": 1e-6}
    for own, other, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(own.detach().cpu(), other.detach(), **close)
        for name, value in reference.state[other].items():
            torch.testing.assert_close(optimizer.state[own][name].cpu(), value, **close)
        assert before.numel() == 0 or not torch.equal(own.detach().cpu(), before)


def interpreted() -> None:
    """All variants in this process, whose kernels are interpreted."""
    for dtype, options in itertools.product((torch.float32, torch.float64), VARIANTS):
        compare(dtype, "cpu", options)
    not_finite()


def not_finite() -> None:
    """NaN and infinity go where they go in torch's operations."""
    from fastlif import optim_triton

    gradient = torch.tensor([float("nan"), float("inf"), 0.0, 1e-30, 1e30])
    ours, theirs = (torch.ones(5, requires_grad=True) for _ in range(2))
    optimizer, reference = SMORMS3([ours], minimum=0.0), SMORMS3([theirs], minimum=0.0)
    ours.grad, theirs.grad = gradient.clone(), gradient.clone()
    for _ in range(2):
        optim_triton.update(ours, optimizer._state_of(ours), optimizer.param_groups[0])
        reference.step()
        torch.testing.assert_close(ours.detach(), theirs.detach(), equal_nan=True)


def compiled() -> None:
    """Every variant for two generations of GPUs: no spills, no contraction."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastlif.optim_triton import BLOCK, WARPS, smorms3
    from tests.triton_signatures import resource_usage

    pointers = ("parameter", "gradient", "mean", "mean_square", "window")
    for arch, double, rate in itertools.product((80, 90), (False, True), (False, True)):
        number = "fp64" if double else "fp32"
        constants: dict[str, Any] = {
            "maximize": True, "has_minimum": True, "double": double, "block": BLOCK,
        }  # fmt: skip
        constants |= {} if rate else {"lr_tensor": None}
        kinds = {name: f"*{number}" for name in pointers} | {"lr_tensor": f"*{number}"}
        kinds |= {"lr": "fp64", "eps": "fp64", "minimum": "fp64", "n_elements": "i32"}
        kinds |= dict.fromkeys(constants, "constexpr")
        names = smorms3.arg_names
        source = ASTSource(
            fn=smorms3,
            signature={name: kinds[name] for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in pointers},
        )
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
        kernel = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        registers, stack = resource_usage(kernel.asm["cubin"])
        print(f"smorms3 {number} sm_{arch} lr_tensor={rate}: {registers} registers, {stack} stack")
        assert stack == 0 and registers <= 128
        assert "fma.rn" not in kernel.asm["ptx"] and "div.full" not in kernel.asm["ptx"]


def run(call: str, **environment: str) -> str:
    """Run a function of this module in a process of its own."""
    root = Path(__file__).resolve().parent.parent
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", f"from tests import test_optim_triton as t; t.{call}()"],
        cwd=root,
        env=kept | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@needs_triton
def test_interpreted_it_gives_the_numbers_of_the_operations_on_lists() -> None:
    run("interpreted", TRITON_INTERPRET="1")


@needs_triton
def test_compiled_ahead_of_time_it_spills_nothing() -> None:
    print(run("compiled"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_on_a_gpu(dtype: torch.dtype, options: dict[str, Any]) -> None:
    compare(dtype, "cuda", options)
