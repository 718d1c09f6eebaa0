"""Layers under torch.autocast: half input is taken, the computation stays in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastlif import LIF, LIFLinear, LIReadout, PackedSpikes, Sequential
from fastlif.ops import Inhibition, LayerPlan, LayerTensors, stack

BACKENDS = ["reference", None]
HALVES = [torch.bfloat16, torch.float16]


def network(backend: str | None) -> Sequential:
    torch.manual_seed(2)
    return Sequential(
        LIFLinear(20, 16, recurrent=True, backend=backend), LIReadout(16, 4, backend=backend)
    )


def spikes() -> Tensor:
    return (torch.rand(40, 3, 20) < 0.3).float()


def gradients(model: nn.Module, scores: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(scores.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("half", HALVES)
def test_the_computation_is_that_without_autocast(backend: str | None, half: torch.dtype) -> None:
    model, input = network(backend), spikes()
    expected, _, counts = model(input, return_spike_counts=True)
    assert 0.3 < counts[0].mean() < 20.0
    expected_gradients = gradients(model, expected)
    for given in (input, input.to(half), PackedSpikes.pack(input)):
        with torch.autocast("cpu", half):
            scores = model(given)
            found = gradients(model, scores)  # backward inside, as some do
        assert scores.dtype == torch.float32
        assert torch.equal(scores, expected)
        assert all(map(torch.equal, found, expected_gradients))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_follow_an_ordinary_one(backend: str | None) -> None:
    torch.manual_seed(1)
    synapses, neurons = nn.Linear(20, 8), LIF(backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        current = 20.0 * synapses(spikes())
        assert current.dtype == torch.bfloat16
        output = neurons(current)
    assert output.dtype == torch.float32 and 0.01 < output.mean() < 0.5
    assert torch.equal(output, neurons(current.float()))
    output.mean().backward()
    assert synapses.weight.grad is not None and synapses.weight.grad.abs().sum() > 0


def test_input_takes_the_dtype_of_the_parameters() -> None:
    model, input = network(None).double(), spikes()
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(input.bfloat16())
    assert scores.dtype == torch.float64
    assert torch.equal(scores, model(input.double()))


@pytest.mark.parametrize("half", HALVES)
def test_without_autocast_half_precision_is_refused(half: torch.dtype) -> None:
    model, input = network(None), spikes()
    with pytest.raises(TypeError, match="input must have dtype torch.float32"):
        model(input.to(half))
    with torch.autocast("cpu", half), pytest.raises(TypeError, match="must have dtype"):
        model(input.double())


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_inhibitory_weight_alone_gives_the_dtype(backend: str | None) -> None:
    inhibition = Inhibition(2, (1, 1), 0.9, 0.9, 0.8, 0.9)
    plan = LayerPlan("lif", (6,), decay_mem=0.9, decay_syn=0.8, inhibition=inhibition)
    tensors = LayerTensors(inhibitory_weight=torch.full((6, 2), 0.5, dtype=torch.float64))
    current = torch.ones(40, 3, 6)
    expected = stack(current.double(), (plan,), (tensors,), backend=backend).output
    with torch.autocast("cpu", torch.bfloat16):
        output = stack(current.bfloat16(), (plan,), (tensors,), backend=backend).output
    assert output.mean() > 0.01 and output.dtype == torch.float64
    assert torch.equal(output, expected)
