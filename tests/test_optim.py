"""SMORMS3 against its equations, element by element in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastlif.optim import SMORMS3

SHAPES = [(3, 4), (5,), (), (2, 3, 2)]


def one_element(
    gradients: list[float], start: float, lr: float, eps: float = 1e-16
) -> tuple[float, dict[str, float]]:
    """Eqs 30-33 for a single number."""
    parameter, g1, g2, m = start, 0.0, 0.0, 1.0
    for g in gradients:
        r = 1.0 / (m + 1.0)
        g1 = (1.0 - r) * g1 + r * g
        g2 = (1.0 - r) * g2 + r * g * g
        share = g1 * g1 / (g2 + eps)
        m = 1.0 + m * (1.0 - share)
        parameter -= g * min(lr, share) / (math.sqrt(g2) + eps)
    return parameter, {"g1": g1, "g2": g2, "m": m}


def parameters() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in SHAPES
    ]


def gradients(n_steps: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in SHAPES]
        for _ in range(n_steps)
    ]


@pytest.mark.parametrize("lr", [5e-3, 0.5])
@pytest.mark.parametrize("maximize", [False, True])
def test_equals_the_equations_element_by_element(lr: float, maximize: bool) -> None:
    params, steps = parameters(), gradients(20)
    starts = [p.detach().clone() for p in params]
    optimizer = SMORMS3(params, lr=lr, maximize=maximize)
    for step in steps:
        for parameter, gradient in zip(params, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    sign = -1.0 if maximize else 1.0
    for index, (parameter, start) in enumerate(zip(params, starts, strict=True)):
        state = optimizer.state[parameter]
        assert set(state) == {"g1", "g2", "m"}
        for element in range(parameter.numel()):
            series = [sign * step[index].flatten()[element].item() for step in steps]
            expected, expected_state = one_element(series, start.flatten()[element].item(), lr)
            assert parameter.flatten()[element].item() == pytest.approx(expected, rel=1e-11)
            for name, value in expected_state.items():
                assert state[name].flatten()[element].item() == pytest.approx(value, rel=1e-9)


def test_first_step_by_hand() -> None:
    # r = 1/2, g1 = 1, g2 = 2, share = 1/2: the step is 2 * min(lr, 1/2) / sqrt(2).
    parameter = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.tensor([2.0], dtype=torch.float64)
    SMORMS3([parameter], lr=0.1).step()
    assert parameter.item() == pytest.approx(10.0 - 0.2 / math.sqrt(2.0), rel=1e-14)


def test_zero_gradient_moves_nothing() -> None:
    parameter = torch.ones(3, requires_grad=True)
    optimizer = SMORMS3([parameter])
    for _ in range(3):
        parameter.grad = torch.zeros(3)
        optimizer.step()
    assert parameter.tolist() == [1.0, 1.0, 1.0]


def test_parameters_without_gradient_are_left_alone() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = SMORMS3([used, unused])
    used.grad = torch.ones(2)
    optimizer.step()
    assert used[0].item() < 1.0
    assert unused.tolist() == [1.0, 1.0] and unused not in optimizer.state


def test_groups_have_their_own_rate_and_closures_run() -> None:
    slow, fast = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = SMORMS3([{"params": [slow], "lr": 1e-3}, {"params": [fast]}], lr=1e-1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (slow * 3).sum() + (fast * 3).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == pytest.approx(12.0)
    moved_slow, moved_fast = (1.0 - p[0].item() for p in (slow, fast))
    assert moved_fast == pytest.approx(100.0 * moved_slow, rel=1e-9)


def test_state_survives_saving_bit_for_bit() -> None:
    steps = gradients(9)
    whole, first, second = parameters(), parameters(), parameters()

    def run(params: list[Tensor], optimizer: SMORMS3, part: list[list[Tensor]]) -> None:
        for step in part:
            for parameter, gradient in zip(params, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()

    run(whole, SMORMS3(whole), steps)
    before = SMORMS3(first)
    run(first, before, steps[:5])
    with torch.no_grad():
        for source, target in zip(first, second, strict=True):
            target.copy_(source)
    after = SMORMS3(second)
    after.load_state_dict(before.state_dict())
    run(second, after, steps[5:])
    for expected, result in zip(whole, second, strict=True):
        assert torch.equal(expected, result)


def test_finds_a_minimum() -> None:
    target = torch.linspace(-2.0, 2.0, 7)
    parameter = torch.zeros(7, requires_grad=True)
    optimizer = SMORMS3([parameter], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        (parameter - target).square().sum().backward()
        optimizer.step()
    assert torch.allclose(parameter, target, atol=1e-3)


@pytest.mark.parametrize("as_tensor", [False, True])
def test_groups_with_a_minimum_keep_it_after_every_step(as_tensor: bool) -> None:
    lr = torch.tensor(0.3, dtype=torch.float64) if as_tensor else 0.3
    bounded, free = parameters(), parameters()
    optimizer = SMORMS3([{"params": bounded, "minimum": 0.0}, {"params": free}], lr=lr)
    reference = SMORMS3(reference_params := parameters(), lr=0.3)
    for step in gradients(10):
        for group in (bounded, free, reference_params):
            for parameter, gradient in zip(group, step, strict=True):
                parameter.grad = gradient.clone()
        with torch.no_grad():  # from the same place, the step is that of a free parameter, bounded
            for parameter, own in zip(bounded, reference_params, strict=True):
                own.copy_(parameter)
        optimizer.step()
        reference.step()
        for parameter, own in zip(bounded, reference_params, strict=True):
            assert torch.equal(parameter, own.clamp(min=0.0))
    assert min(p.min().item() for p in bounded) == 0.0
    assert min(p.min().item() for p in free) < -0.1


def test_a_tensor_as_rate_gives_the_same_steps_and_can_change() -> None:
    rate = torch.tensor(5e-3, dtype=torch.float64)
    ours, theirs = parameters(), parameters()
    with_tensor, with_number = SMORMS3(ours, lr=rate), SMORMS3(theirs, lr=5e-3)
    for index, step in enumerate(gradients(6)):
        rate.fill_(5e-3 / (1 + index))
        with_number.param_groups[0]["lr"] = 5e-3 / (1 + index)
        for group, optimizer in ((ours, with_tensor), (theirs, with_number)):
            for parameter, gradient in zip(group, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    assert with_tensor.param_groups[0]["lr"] is rate
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_state_saved_before_there_was_a_minimum_is_taken() -> None:
    (parameter,) = params = [torch.ones(2, requires_grad=True)]
    optimizer = SMORMS3(params)
    parameter.grad = torch.ones(2)
    optimizer.step()
    saved = optimizer.state_dict()
    for name in ("minimum", "capturable"):
        del saved["param_groups"][0][name]
    other = SMORMS3(params)
    other.load_state_dict(saved)
    other.step()
    assert other.param_groups[0]["minimum"] is None and other.param_groups[0]["capturable"]


@pytest.mark.parametrize(("name", "value"), [("lr", 0.0), ("lr", math.nan), ("eps", -1e-16)])
def test_bad_numbers_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got"):
        SMORMS3([torch.ones(1, requires_grad=True)], **{name: value})
    with pytest.raises(ValueError, match=f"{name} must be finite and > 0, got"):
        SMORMS3([{"params": [torch.ones(1, requires_grad=True)], name: value}])


def test_other_bad_options_are_named() -> None:
    params = [torch.ones(1, requires_grad=True)]
    with pytest.raises(ValueError, match="minimum must be finite or None, got nan"):
        SMORMS3(params, minimum=math.nan)
    with pytest.raises(ValueError, match=r"lr must have one element, got shape \(2,\)"):
        SMORMS3(params, lr=torch.ones(2))


def test_sparse_gradients_are_refused() -> None:
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = SMORMS3(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="dense gradients"):
        optimizer.step()
