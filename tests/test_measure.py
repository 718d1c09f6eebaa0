"""`fastlif.init.measure`: known membranes, the reference, deep models, slices, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastlif import init, layers
from fastlif.init import measurement
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

from .init_helpers import DT, generator, poisson, small_model


def test_membrane_of_a_constant_current_is_measured_exactly():
    layer = layers.LIFLinear(3, 5)
    layer.weight.data.zero_()
    layer.bias.data.copy_(torch.linspace(-0.1, 0.3, 5))
    (result,) = init.measure(layer, torch.zeros(400, 2, 3), warmup=300)
    # I settles at b / (1 - decay_syn) and U at I; above the threshold too, as nothing spikes.
    expected = 0.1 / (1.0 - math.exp(-0.2))
    assert result.mu_u == pytest.approx(expected, rel=1e-4)
    assert result.sigma_u == pytest.approx(0.0, abs=1e-3)
    assert (result.name, result.n_neurons, result.input_rate) == ("LIFLinear", 5, 0.0)
    above = 2 / 5  # biases 0.2 and 0.3 lead above the threshold, 0.1 does not
    assert 10.0 * above < result.firing_rate < 250.0 * above


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("delay", [0, 1])
def test_measure_is_the_statistics_of_the_reference(spiking, delay, monkeypatch):
    layer = layers.LIFConv1d(3, 4, 3, recurrent=True, delay=delay, dtype=torch.float64)
    init.fluctuation_driven_(layer, rate=40.0, sigma_u=1.5, generator=generator())
    layer.bias.data.copy_(torch.linspace(-0.05, 0.05, 4))
    input = poisson(40.0, (70, 5, 3, 8), 1).double()
    own = None if spiking else poisson(40.0, (70, 5, 4, 6), 2).double()
    plan, tensors = layer.plan((3, 8), 70), layer.tensors(None)
    trace = stack_trace(
        input, [plan], [tensors], replay_spikes=None if own is None else [own], spiking=spiking
    )
    membrane = trace.membranes[0][9:].detach().numpy()
    emitted = layer(input)[9:]
    assert 0.01 < emitted.mean() < 0.5
    for slice_numbers in (1 << 22, 300):  # all at once; single samples, few steps at a time
        monkeypatch.setattr(measurement, "SLICE_NUMBERS", slice_numbers)
        (result,) = init.measure(layer, input, spiking=spiking, recurrent_input=own, warmup=9)
        assert result.mu_u == pytest.approx(membrane.mean(), rel=1e-9)
        assert result.sigma_u == pytest.approx(math.sqrt(membrane.var(axis=0).mean()), rel=1e-9)
        assert result.firing_rate == pytest.approx(emitted.mean().item() / DT, rel=1e-9)
        assert result.input_rate == pytest.approx(float(input[9:].mean()) / DT, rel=1e-9)
        assert result.n_neurons == 24


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("recurrent_excitation", [False, True])
def test_both_populations_of_a_dalian_layer_are_measured(
    spiking, delay, recurrent_excitation, monkeypatch
):
    layer = layers.LIFDalianConv1d(
        3,
        4,
        3,
        inhibitory_channels=2,
        recurrent_excitation=recurrent_excitation,
        tau_mem=(20e-3, 15e-3),
        tau_syn=(10e-3, 8e-3),
        tau_inhibitory=(20e-3, 12e-3),
        delay=delay,
        dtype=torch.float64,
    )
    init.fluctuation_driven_(layer, rate=40.0, sigma_u=1.5, generator=generator())
    input = poisson(40.0, (70, 5, 3, 8), 1).double()
    own = None if spiking else poisson(40.0, (70, 5, 6, 6), 2).double()
    plan, tensors = layer.plan((3, 8), 70), layer.tensors(None)
    trace = stack_trace(
        input, [plan], [tensors], replay_spikes=None if own is None else [own], spiking=spiking
    )
    spikes = stack_trace(input, [plan], [tensors]).spikes[0][9:]
    for slice_numbers in (1 << 22, 300):
        monkeypatch.setattr(measurement, "SLICE_NUMBERS", slice_numbers)
        (result,) = init.measure(layer, input, spiking=spiking, recurrent_input=own, warmup=9)
        for population, channels in ((result, slice(4)), (result.inhibitory, slice(4, None))):
            membrane = trace.membranes[0][9:, :, channels].detach().numpy()
            rate = spikes[:, :, channels].detach().mean().item() / DT
            assert rate > 5.0
            assert population.mu_u == pytest.approx(membrane.mean(), rel=1e-9)
            sigma_u = math.sqrt(membrane.var(axis=0).mean())
            assert population.sigma_u == pytest.approx(sigma_u, rel=1e-9)
            assert population.firing_rate == pytest.approx(rate, rel=1e-9)
        assert (result.n_neurons, result.inhibitory.n_neurons) == (24, 12)


@pytest.mark.parametrize("spiking", [False, True])
def test_deep_layers_are_measured_on_the_spikes_of_the_layers_below(spiking):
    model = small_model()
    init.fluctuation_driven_(model, rate=20.0, generator=generator())
    data = poisson(20.0, (300, 6, 40), 4)
    first, second = init.measure(model, data, spiking=spiking, warmup=20)
    assert (first.name, second.name) == ("0", "1")
    below = model[0](data)
    assert second.input_rate == pytest.approx(first.firing_rate, rel=1e-6)
    assert second.input_rate == pytest.approx(below[20:].mean().item() / DT, rel=1e-5)
    assert 1.0 < second.firing_rate < 100.0
    (alone,) = init.measure(model[1], below, spiking=spiking, warmup=20)
    assert (alone.mu_u, alone.sigma_u) == pytest.approx((second.mu_u, second.sigma_u), rel=1e-5)


def test_reset_lowers_the_fluctuations():
    layer = layers.LIFLinear(100, 200)
    init.fluctuation_driven_(layer, rate=10.0, generator=generator())
    input = poisson(10.0, (500, 4, 100), 5)
    (free,), (reset,) = (init.measure(layer, input, spiking=s) for s in (False, True))
    assert free.firing_rate == reset.firing_rate > 1.0
    assert reset.sigma_u < 0.95 * free.sigma_u


def test_order_and_packing_of_the_input_do_not_matter():
    layer = layers.LIFLinear(40, 30, recurrent=True)
    init.fluctuation_driven_(layer, rate=30.0, generator=generator())
    data = poisson(30.0, (80, 5, 40), 6)
    own = poisson(30.0, (80, 5, 30), 7)
    expected = init.measure(layer, data, recurrent_input=own)
    assert expected[0].firing_rate > 1.0
    assert init.measure(layer, PackedSpikes.pack(data), recurrent_input=own) == expected
    layer.batch_first = True
    assert init.measure(layer, data.transpose(0, 1), recurrent_input=[own]) == expected


def test_measure_refuses_what_does_not_fit():
    layer, model = layers.LIFLinear(40, 30), small_model()
    data, own = poisson(30.0, (80, 5, 40), 6), poisson(30.0, (80, 5, 60), 7)
    with pytest.raises(ValueError, match="warmup must be between 0 and 79 steps, got 80"):
        init.measure(layer, data, warmup=80)
    with pytest.raises(ValueError, match="layer 'LIFLinear', which is not recurrent"):
        init.measure(layer, data, recurrent_input=own)
    with pytest.raises(ValueError, match=r"one tensor or None per spiking layer \(2\), got 1"):
        init.measure(model, data, recurrent_input=own)
    with pytest.raises(ValueError, match="recurrent_input is for spiking=False"):
        init.measure(model, data, spiking=True, recurrent_input=[own, None])
    with pytest.raises(ValueError, match=r"must be \(time, batch, \*\(60,\)\), got \(80, 5, 30\)"):
        init.measure(model, data, recurrent_input=[own[..., :30], None])
    with pytest.raises(ValueError, match="Linear contains no spiking fastlif layer"):
        init.measure(nn.Linear(3, 3), data)
    with pytest.raises(ValueError, match="at least one sample"):
        init.measure(layer, data[:, :0])


class Twice(nn.Module):
    """Runs its only layer on the input and again on half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layers.LIFLinear(40, 30)

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(input) + self.layer(0.5 * input)


def test_a_layer_that_runs_twice_is_measured_on_its_first_input():
    model = Twice()
    data = poisson(30.0, (60, 3, 40), 8)
    (result,) = init.measure(model, data)
    (alone,) = init.measure(model.layer, data)
    assert result.name == "layer"
    assert (result.mu_u, result.sigma_u) == (alone.mu_u, alone.sigma_u)
    assert result.input_rate == pytest.approx(data.mean().item() / DT)
    (prediction,) = init.fluctuation_driven_(model, data=data)
    assert prediction.rate == pytest.approx(data.mean().item() / DT)
