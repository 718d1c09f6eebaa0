"""The kernels of SMORMS3: the numbers of the operations on lists, whatever the sizes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlif import extension, optim, optim_kernels
from fastlif.optim import SMORMS3

from .emulation import emulated_cuda, order_of_threads

pytestmark = pytest.mark.skipif(not extension.is_available(), reason=extension.reason())

SHAPES = [
    (3, 4),
    (),
    (40_000,),
    (0, 2),
    (300, 250),
]  # of several items of work, the last one ragged
VARIANTS = [
    {"lr": lr, "maximize": maximize, "minimum": minimum}
    for lr, maximize, minimum in itertools.product(
        (5e-3, 0.5, torch.tensor(0.02)), (False, True), (None, -0.25)
    )
]


def numbers(generator: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    """Of all shapes; a third of them zero."""
    drawn = [torch.randn(shape, dtype=dtype, generator=generator) for shape in SHAPES]
    return [tensor * (torch.rand(tensor.shape, generator=generator) < 0.67) for tensor in drawn]


def step_with_lists(optimizer: SMORMS3) -> None:
    (group,) = optimizer.param_groups
    parameters = group["params"]
    states = [optimizer._state_of(parameter) for parameter in parameters]
    with torch.no_grad():
        optim._update_with_lists(parameters, states, [group["lr"]] * len(parameters), group)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-14)])
def test_equals_the_operations_on_lists(
    options: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    ours = [tensor.requires_grad_() for tensor in numbers(generator, dtype)]
    theirs = copy.deepcopy(ours)
    optimizer, reference = SMORMS3(ours, **options), SMORMS3(theirs, **options)
    for _ in range(10):
        for own, other, gradient in zip(ours, theirs, numbers(generator, dtype), strict=True):
            other.grad = gradient
            own.grad = torch.stack([gradient, gradient], dim=-1)[..., 0]  # need not be contiguous
        assert all(optim_kernels.suits(own, optimizer._state_of(own)) for own in ours)
        optimizer.step()
        step_with_lists(reference)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)
        for name in ("g1", "g2", "m"):
            found, expected = optimizer.state[own][name], reference.state[other][name]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("minimum", [None, -0.25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emulated_it_has_the_bits_of_the_cpu_kernel(
    dtype: torch.dtype, minimum: float | None, maximize: bool
) -> None:
    """More parameters than a launch takes, of different sizes; rates as numbers and on a device."""
    kernels = emulated_cuda(find_races=True)
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 4), (), (0, 2), (2500,)] * 15  # of several blocks, the last one ragged
    rates: list[float | Tensor] = [
        0.5, 0.02, 5e-3, torch.tensor(0.02), torch.tensor([0.4], dtype=torch.float64),
        torch.tensor(0.25, dtype=torch.bfloat16),
    ] * 10  # fmt: skip
    options = {"eps": 1e-16, "maximize": maximize, "minimum": minimum}

    def drawn() -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]

    ours = drawn()
    theirs = [own.clone() for own in ours]
    states = [
        {"g1": torch.zeros_like(own), "g2": torch.zeros_like(own), "m": torch.ones_like(own)}
        for own in ours
    ]
    expected = copy.deepcopy(states)
    for seed in range(3):
        gradients = drawn()
        for other, gradient in zip(theirs, gradients, strict=True):
            other.grad = gradient
        optim_kernels.update(theirs, expected, rates, options)
        state_lists = ([state[name] for state in states] for name in ("g1", "g2", "m"))
        # Gradients need not be contiguous.
        wide = [torch.stack([gradient, gradient], dim=-1)[..., 0] for gradient in gradients]
        with order_of_threads(kernels, seed):
            lists = (ours, wide, *state_lists)
            optim_kernels.launch(kernels, lists, rates, (1e-16, maximize, minimum), stream=0)
    for own, other, state, wanted in zip(ours, theirs, states, expected, strict=True):
        assert torch.equal(own, other)
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and extension.serves(torch.device("cuda"))),
    reason="needs a GPU and the CUDA kernels",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_on_a_gpu(dtype: torch.dtype, options: dict[str, Any]) -> None:
    """One launch for all."""
    generator = torch.Generator().manual_seed(4)
    ours = [tensor.cuda().requires_grad_() for tensor in numbers(generator, dtype)]
    theirs = [tensor.detach().cpu().clone().requires_grad_() for tensor in ours]
    rate = options["lr"]
    on_gpu = options | {"lr": rate.cuda() if isinstance(rate, Tensor) else rate}
    optimizer, reference = SMORMS3(ours, **on_gpu), SMORMS3(theirs, **options)
    for _ in range(10):
        for own, other, gradient in zip(ours, theirs, numbers(generator, dtype), strict=True):
            own.grad, other.grad = gradient.cuda(), gradient
        assert all(optim_kernels.suits(own, optimizer._state_of(own)) for own in ours)
        optimizer.step()
        reference.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.cpu(), other, rtol=1e-6, atol=1e-12)


def test_bits_depend_neither_on_threads_nor_on_the_place_in_memory() -> None:
    def trained(n_threads: int, sizes: list[int]) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        whole = torch.randn(70_001, generator=generator)
        parts = [part.clone().requires_grad_() for part in whole.split(sizes)]
        optimizer = SMORMS3(parts)
        torch.set_num_threads(n_threads)
        for _ in range(5):
            gradient = torch.randn(whole.shape, generator=generator)
            for part, own in zip(parts, gradient.split(sizes), strict=True):
                part.grad = own
            optimizer.step()
        return torch.cat([part.detach() for part in parts])

    before = torch.get_num_threads()
    try:
        expected = trained(1, [70_001])
        assert torch.equal(trained(2, [70_001]), expected)
        assert torch.equal(trained(2, [5, 13, 50_000, 19_983]), expected)
    finally:
        torch.set_num_threads(before)


def test_autograd_sees_that_a_parameter_was_overwritten() -> None:
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    squares = parameter * parameter
    SMORMS3([parameter]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squares.sum().backward()


def test_other_parameters_are_updated_with_lists() -> None:
    half = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    turned = torch.ones(4, 3).t().requires_grad_()
    small = torch.ones(3, requires_grad=True)
    optimizer = SMORMS3([half, turned, small], lr=0.1)
    for parameter in (half, turned, small):
        parameter.grad = torch.ones_like(parameter)
        assert optim_kernels.suits(parameter, optimizer._state_of(parameter)) == (
            parameter is small
        )
    optimizer.step()
    # r = 1/2, g1 = g2 = 1/2, share = 1/2: the step is 0.1 / sqrt(1/2).
    for parameter in (half, turned, small):
        expected = torch.full_like(parameter, 1.0 - 0.1 * 2.0**0.5)
        torch.testing.assert_close(parameter, expected)


def test_a_state_of_another_shape_is_refused_as_ever() -> None:
    small, large = torch.ones(3, requires_grad=True), torch.ones(70, requires_grad=True)
    saved, optimizer = SMORMS3([small]), SMORMS3([large])
    for parameter in (small, large):
        parameter.grad = torch.ones_like(parameter)
    saved.step()
    optimizer.load_state_dict(saved.state_dict())
    assert not optim_kernels.suits(large, optimizer.state[large])
    with pytest.raises(RuntimeError, match="size of tensor"):
        optimizer.step()


def test_the_default_device_of_torch_does_not_matter() -> None:
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    with torch.device("meta"):
        SMORMS3([parameter], lr=0.1).step()
    torch.testing.assert_close(parameter, torch.full((3,), 1.0 - 0.1 * 2.0**0.5))
