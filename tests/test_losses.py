"""Losses against their formulas written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound


def counts(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(0, 12, shape, generator=generator).double()
    return drawn.requires_grad_()


def test_cross_entropy_of_scores_is_minus_log_softmax() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    targets = torch.tensor([0, 2])
    expected = 0.0
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        expected -= math.log(math.exp(row[target]) / sum(map(math.exp, row))) / 2
    assert max_over_time_cross_entropy(scores, targets).item() == pytest.approx(expected, rel=1e-12)


def test_trace_is_reduced_to_its_maximum_and_the_first_one_gets_the_gradient() -> None:
    trace = torch.zeros(4, 1, 2, dtype=torch.float64)
    trace[:, 0, 0] = torch.tensor([0.0, 2.0, 2.0, 1.0])
    trace.requires_grad_()
    targets = torch.tensor([0])
    loss = max_over_time_cross_entropy(trace, targets)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)), rel=1e-12)
    slope = 1.0 / (1.0 + math.exp(2.0))
    assert trace.grad is not None
    assert trace.grad[:, 0, 0].tolist() == pytest.approx([0.0, -slope, 0.0, 0.0])
    assert trace.grad[:, 0, 1].tolist() == pytest.approx([slope, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("shape", [(3, 7), (3, 4, 5), (2, 3, 2, 4)])
def test_upper_bound_per_layer_is_on_the_mean_over_all_neurons(shape: tuple[int, ...]) -> None:
    layer = counts(*shape)
    expected = 0.0
    for sample in layer.tolist():
        flat = torch.tensor(sample).flatten().tolist()
        expected += max(sum(flat) / len(flat) - 4.0, 0.0) ** 2 / shape[0]
    assert expected > 0
    result = upper_bound([layer, layer], 4.0, 0.5)
    assert result.item() == pytest.approx(2 * 0.5 * expected, rel=1e-6)


def test_upper_bound_per_channel_is_on_the_mean_over_positions() -> None:
    layer = counts(3, 4, 5)
    expected = 0.0
    for sample in layer.tolist():
        for channel in sample:
            expected += max(sum(channel) / 5 - 6.0, 0.0) ** 2 / (3 * 4)
    assert expected > 0
    result = upper_bound([layer], 6.0, 0.5, per="channel")
    assert result.item() == pytest.approx(0.5 * expected, rel=1e-12)
    assert result.item() != pytest.approx(upper_bound([layer], 6.0, 0.5).item(), rel=1e-3)


def test_upper_bound_per_channel_equals_per_layer_when_dense() -> None:
    layer = counts(3, 7)
    assert upper_bound([layer], 4.0, 1.0, per="channel") == upper_bound([layer], 4.0, 1.0)


def test_lower_bound_is_on_every_neuron() -> None:
    layer = counts(3, 4, 5)
    flat = layer.flatten().tolist()
    expected = sum(max(5.0 - count, 0.0) ** 2 for count in flat) / len(flat)
    assert lower_bound([layer], 5.0, 2.0).item() == pytest.approx(2.0 * expected, rel=1e-12)


def test_bounds_are_zero_inside_and_push_outside() -> None:
    low = torch.full((2, 3), 1.0, dtype=torch.float64, requires_grad=True)
    assert upper_bound([low], 2.0, 1.0).item() == 0.0
    assert lower_bound([low], 1.0, 1.0).item() == 0.0
    upper_bound([low], 0.5, 1.0).backward()
    assert low.grad is not None and bool((low.grad > 0).all())
    low.grad = None
    lower_bound([low], 4.0, 1.0).backward()
    assert low.grad is not None and bool((low.grad < 0).all())


def test_bounds_have_the_gradient_of_their_value() -> None:
    layers = [counts(3, 4, 5), counts(3, 6)]
    assert torch.autograd.gradcheck(lambda a, b: upper_bound([a, b], 5.3, 0.7, "channel"), layers)
    assert torch.autograd.gradcheck(lambda a, b: lower_bound([a, b], 5.3, 0.7), layers)


def test_bad_input_is_named() -> None:
    scores, targets = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"scores must be .* got shape \(4,\)"):
        max_over_time_cross_entropy(scores[:, 0], targets)
    with pytest.raises(ValueError, match=r"targets must have shape \(4,\).*got \(3,\)"):
        max_over_time_cross_entropy(scores, targets[:3])
    with pytest.raises(TypeError, match="targets must be int64"):
        max_over_time_cross_entropy(scores, targets.float())
    with pytest.raises(ValueError, match="spike_counts must hold one tensor per spiking layer"):
        upper_bound([], 1.0, 1.0)
    with pytest.raises(TypeError, match="sequence of tensors"):
        upper_bound(scores, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"spike_counts\[0\] must be \(batch, \*features\)"):
        lower_bound([scores[:, 0]], 1.0, 1.0)
    with pytest.raises(ValueError, match="v_upper must be finite and >= 0, got nan"):
        upper_bound([scores], math.nan, 1.0)
    with pytest.raises(ValueError, match="strength must be finite and >= 0, got -1.0"):
        lower_bound([scores], 1.0, -1.0)
    with pytest.raises(ValueError, match="per must be 'layer' or 'channel', got 'map'"):
        upper_bound([scores], 1.0, 1.0, per="map")  # type: ignore[arg-type]


@pytest.mark.parametrize("networks", [None, 2])
def test_every_sample_has_a_class(networks: int | None) -> None:
    """None is left out of the mean, not even that which torch leaves out by default."""
    with pytest.raises(IndexError, match="-100 is out of bounds"):
        max_over_time_cross_entropy(
            torch.zeros(4, 3), torch.tensor([0, 1, 2, -100]), networks=networks
        )
