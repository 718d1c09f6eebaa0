"""The CPU kernel of SMORMS3: the numbers of the operations on lists, whatever the sizes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlif import extension, optim, optim_cpu
from fastlif.optim import SMORMS3

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
        assert all(optim_cpu.suits(own, optimizer._state_of(own)) for own in ours)
        optimizer.step()
        step_with_lists(reference)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)
        for name in ("g1", "g2", "m"):
            found, expected = optimizer.state[own][name], reference.state[other][name]
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


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
        assert optim_cpu.suits(parameter, optimizer._state_of(parameter)) == (parameter is small)
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
    assert not optim_cpu.suits(large, optimizer.state[large])
    with pytest.raises(RuntimeError, match="size of tensor"):
        optimizer.step()


def test_the_default_device_of_torch_does_not_matter() -> None:
    parameter = torch.ones(3, requires_grad=True)
    parameter.grad = torch.ones(3)
    with torch.device("meta"):
        SMORMS3([parameter], lr=0.1).step()
    torch.testing.assert_close(parameter, torch.full((3,), 1.0 - 0.1 * 2.0**0.5))
