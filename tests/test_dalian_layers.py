"""Dalian layers: what they compute, their parameters, names of blocks, saving, bad options."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastlif import LIFDalianConv1d, LIFDalianLinear, LIReadout, Sequential, init
from fastlif.ops import Connection, Inhibition, LayerPlan, LayerTensors
from fastlif.ops.reference import stack_trace

from .init_helpers import poisson

backends = pytest.mark.parametrize("backend", ["reference", None])
TAUS = {"tau_mem": (20e-3, 15e-3), "tau_syn": (10e-3, 8e-3), "tau_inhibitory": (18e-3, 12e-3)}


def decay(tau: float) -> float:
    return math.exp(-2e-3 / tau)


def inhibition(channels: int, width: int) -> Inhibition:
    own = (decay(15e-3), decay(8e-3), decay(12e-3))
    return Inhibition(channels, (1, width), decay(18e-3), *own)


def build(case: str, **options) -> tuple[nn.Module, LayerPlan, Tensor]:
    """A layer, the plan it should have, and input for it."""
    torch.manual_seed(0)
    decays = {"decay_mem": decay(20e-3), "decay_syn": decay(10e-3)}
    if case == "dense":
        layer = LIFDalianLinear(30, 12, dtype=torch.float64, **TAUS, **options)
        link, kernel = Connection((30, 1, 1), (15, 1, 1), (1, 1)), (1, 1)
        plan = LayerPlan("lif", (15,), link, kernel, inhibition=inhibition(3, 1), **decays)
        return layer, plan, poisson(60.0, (60, 3, 30), 1).double()
    layer = LIFDalianConv1d(5, 8, 3, 2, 1, 1, 4, dtype=torch.float64, **TAUS, **options)
    link = Connection((5, 1, 21), (12, 1, 11), (1, 3), (1, 2), (0, 1))
    plan = LayerPlan("lif", (12, 11), link, (1, 5), inhibition=inhibition(4, 3), **decays)
    return layer, plan, poisson(60.0, (60, 3, 5, 21), 1).double()


@backends
@pytest.mark.parametrize("case", ["dense", "conv"])
def test_a_layer_computes_its_plan(case, backend):
    layer, plan, input = build(case, backend=backend)
    assert layer.plan(tuple(input.shape[2:]), 60) == plan
    tensors = LayerTensors(
        layer.weight, None, layer.recurrent_weight, None, layer.inhibitory_weight
    )
    output = layer(input, return_state=True, return_spike_counts=True)
    expected = stack_trace(input, [plan], [tensors]).result
    assert torch.equal(output.output, expected.output)
    assert torch.equal(output.spike_counts, expected.spike_counts[0])
    torch.testing.assert_close(
        output.state.inhibitory_current, expected.states[0].inhibitory_current
    )
    n = layer.n_excitatory
    assert output.output.shape[2] == n and output.spike_counts.shape[1] == plan.features[0]
    assert torch.equal(output.output.sum(0), output.spike_counts[:, :n])
    assert output.spike_counts[:, :n].mean() > 0.5 and output.spike_counts[:, n:].mean() > 0.5
    weights = torch.randn_like(output.output)
    grads = [
        torch.autograd.grad((run.output * weights).sum(), layer.non_negative_parameters())
        for run in (output, expected)
    ]
    for grad, expected_grad in zip(*grads, strict=True):
        assert expected_grad.norm() > 0
        if backend == "reference":
            torch.testing.assert_close(grad, expected_grad)
        else:  # kernels keep membranes in float16 for the backward pass
            assert (grad - expected_grad).norm() < 1e-2 * expected_grad.norm()


def test_parameters_and_blocks():
    layer = LIFDalianConv1d(3, 8, 5)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (10, 3, 5),
        "recurrent_weight": (10, 8, 5),
        "inhibitory_weight": (10, 2, 3),
    }
    assert (layer.fan_in, layer.recurrent_fan_in, layer.inhibitory_fan_in) == (15, 40, 6)
    blocks = layer.blocks()
    assert {name: tuple(block.shape) for name, block in blocks.items()} == {
        "W_FE": (8, 3, 5),
        "W_FI": (2, 3, 5),
        "V_EE": (8, 8, 5),
        "V_EI": (2, 8, 5),
        "V_IE": (8, 2, 3),
        "V_II": (2, 2, 3),
    }
    with torch.no_grad():
        blocks["V_II"].fill_(7.0)  # views
    assert bool((layer.inhibitory_weight[8:] == 7.0).all())
    layer = LIFDalianLinear(700, 128, recurrent_excitation=False)
    assert list(layer.state_dict()) == ["weight", "inhibitory_weight"]
    assert list(layer.blocks()) == ["W_FE", "W_FI", "V_IE", "V_II"]
    assert (layer.n_excitatory, layer.n_inhibitory, layer.recurrent_fan_in) == (128, 32, 0)
    assert layer.inhibitory_weight.shape == (160, 32)
    assert layer.plan((700,), 5).recurrent_kernel is None
    assert "inhibitory_features=32" in repr(layer) and "bias" not in repr(layer)
    assert "inhibitory_taus=(0.01, 0.01, 0.02)" in repr(LIFDalianLinear(4, 4, tau_mem=(0.02, 0.01)))


def test_the_next_layer_and_the_readout_hear_excitation_only():
    torch.manual_seed(0)
    model = Sequential(
        LIFDalianConv1d(1, 8, 5, 3), nn.Flatten(2), LIFDalianLinear(48, 12), LIReadout(12, 3)
    )
    input = poisson(60.0, (50, 4, 1, 20), 2)
    result = model(input, return_spike_counts=True, return_states=True)
    assert [tuple(count.shape[1:]) for count in result.spike_counts] == [(10, 6), (15,)]
    assert all(count.mean() > 0.2 for count in result.spike_counts)
    torch.testing.assert_close(result.output, nn.Sequential(*model)(input))
    chunks, states = [], None
    model[3].reduction, model[3].tau_mem = "none", 0.1
    for chunk in input.split([31, 19]):
        output, states, _ = model(chunk, states, return_states=True)
        chunks.append(output)
    torch.testing.assert_close(torch.cat(chunks), model(input))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(input), model(input))


def test_negative_weights_are_not_loaded():
    model = Sequential(LIFDalianLinear(5, 8), LIReadout(8, 2))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    twin = Sequential(LIFDalianLinear(5, 8), LIReadout(8, 2))
    twin.load_state_dict(state)
    assert torch.equal(twin[0].inhibitory_weight, model[0].inhibitory_weight)
    before = twin[0].weight.detach().clone()
    state["0.recurrent_weight"][3, 2] = -0.25
    state["0.weight"].fill_(1.0)
    with pytest.raises(RuntimeError, match=r"0\.recurrent_weight of a Dalian layer must not be n"):
        twin.load_state_dict(state)
    assert torch.equal(twin[0].weight, before)
    state["0.recurrent_weight"].fill_(1.0)[3, 2] = math.nan
    with pytest.raises(RuntimeError, match=r"0\.recurrent_weight .* NaN, got values down to nan"):
        twin.load_state_dict(state)
    assert torch.equal(twin[0].weight, before)


@pytest.mark.parametrize("kind", [tuple, list, np.array, torch.tensor, iter])
def test_time_constants_are_any_two_numbers(kind):
    layer = LIFDalianLinear(5, 8, tau_mem=kind([0.5, 0.25]))
    assert (layer.tau_mem, layer.inhibitory_taus.tau_mem) == (0.5, 0.25)
    assert type(layer.tau_mem) is float
    layer = LIFDalianLinear(5, 8, tau_syn=np.float64(0.5), tau_inhibitory=torch.tensor(0.25))
    assert (layer.tau_syn, layer.inhibitory_taus.tau_syn) == (0.5, 0.5)
    assert layer.excitatory_taus.tau_inhibitory == layer.inhibitory_taus.tau_inhibitory == 0.25


def test_without_recurrent_excitation_its_kernel_is_of_no_concern():
    layer = LIFDalianConv1d(5, 8, 3, recurrent_excitation=False, recurrent_kernel_size=4)
    assert layer(torch.zeros(2, 3, 5, 9)).shape == (2, 3, 8, 7)
    with pytest.raises(ValueError, match="recurrent_kernel_size must be odd"):
        LIFDalianConv1d(5, 8, 3, recurrent_kernel_size=4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIFDalianLinear(5, 3), "inhibitory_features must be given where a quarter"),
        (lambda: LIFDalianLinear(5, 8, 0), "inhibitory_features must be an integer >= 1, got 0"),
        (lambda: LIFDalianLinear(0, 8), "in_features must be an integer >= 1"),
        (lambda: LIFDalianLinear(5, 8, tau_mem=(1.0, 2.0, 3.0)), "tau_mem must be one number or"),
        (lambda: LIFDalianLinear(5, 8, tau_mem=np.ones(3)), "tau_mem must be one number or"),
        (lambda: LIFDalianLinear(5, 8, tau_syn=None), "tau_syn must be one number .* got None"),
        (lambda: LIFDalianLinear(5, 8, tau_syn="ab"), "tau_syn must be one number .* got 'ab'"),
        (
            lambda: LIFDalianLinear(5, 8, tau_syn=(0.01, 0.0)),
            "tau_syn of the inhibitory neurons must be finite and > 0",
        ),
        (lambda: LIFDalianLinear(5, 8, tau_inhibitory=-1.0), "tau_inhibitory must be finite"),
        (
            lambda: LIFDalianConv1d(5, 8, 3, inhibitory_kernel_size=4),
            "inhibitory_kernel_size must be odd",
        ),
        (lambda: LIFDalianConv1d(5, 3, 3), "inhibitory_channels must be given"),
        (lambda: LIFDalianConv1d(5, 8, 3, -1), "stride must be >= 1"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("distribution", ["exponential", "lognormal"])
def test_weights_are_drawn_from_the_blocks_of_the_prediction(distribution):
    layer = LIFDalianConv1d(40, 200, 5, tau_mem=(20e-3, 10e-3), tau_inhibitory=(20e-3, 30e-3))
    (prediction,) = init.fluctuation_driven_(
        layer, rate=15.0, distribution=distribution, generator=torch.Generator().manual_seed(0)
    )
    assert prediction.mu_u == 0.0 and prediction.sigma_u == 1.0
    assert prediction.mu_w == prediction.blocks["W_FE"].mean
    assert prediction.sigma_v == prediction.blocks["V_EE"].std
    assert list(prediction.blocks) == list(layer.blocks())
    for name, block in layer.blocks().items():
        block = block.detach()
        expected = prediction.blocks[name]
        assert block.min() > 0.0
        assert float(block.mean()) == pytest.approx(expected.mean, rel=0.05)
        assert float(block.std()) == pytest.approx(expected.std, rel=0.15)
        # Quantiles tell the two distributions apart.
        median = math.log(2.0) if distribution == "exponential" else math.exp(-0.5)
        assert float(block.median()) == pytest.approx(expected.mean * median, rel=0.06)
    assert prediction.blocks["W_FI"] != prediction.blocks["W_FE"]  # other time constants


def test_initializers_name_what_a_dalian_layer_cannot_have():
    model = Sequential(LIFDalianLinear(5, 8), LIReadout(8, 2))
    with pytest.raises(ValueError, match="mu_u of the Dalian layer '0' must be 0"):
        init.fluctuation_driven_(model, rate=5.0, mu_u=0.1)
    with pytest.raises(ValueError, match='distribution must be "exponential" or "lognormal"'):
        init.fluctuation_driven_(model, rate=5.0, distribution="normal")
    for draw in (init.kaiming_, lambda module: init.normal_(module, 0.0, 0.1)):
        with pytest.raises(ValueError, match="Dalian layer '0' must not have"):
            draw(model)
