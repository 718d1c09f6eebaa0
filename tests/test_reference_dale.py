"""The reference's inhibition, pooling and skips, against the equations written out once more."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fastlif.ops import LayerPlan, LayerTensors
from fastlif.ops.connection import Connection
from fastlif.ops.encoding import decode, encode
from fastlif.ops.plan import Inhibition, check_stack
from fastlif.ops.reference import stack_trace

from .cases import INHIBITION, POOLING, SKIPS, build, layer_tensors


def dense_dalian(delay: int = 0):
    """A layer of 6 excitatory and 3 inhibitory neurons for 4 inputs, and its input."""
    generator = torch.Generator().manual_seed(0)
    plan = LayerPlan(
        "lif", (9,), Connection((4, 1, 1), (9, 1, 1), (1, 1)), (1, 1),
        decay_mem=0.9, decay_syn=0.8, delay=delay,
        inhibition=Inhibition(3, (1, 1), 0.85, 0.92, 0.75, 0.7),
    )  # fmt: skip
    shapes = ((9, 4), (9, 6), (9, 3))
    weights = [torch.rand(*s, generator=generator, dtype=torch.float64) * 4 for s in shapes]
    spikes = (torch.rand(40, 2, 4, generator=generator) < 0.3).double()
    return plan, weights, spikes


@pytest.mark.parametrize("delay", [0, 1])
def test_inhibition_is_equations_12_to_19(delay):
    plan, (feedforward, excitatory, inhibitory), spikes = dense_dalian(delay)
    w_fe, w_fi = feedforward[:6], feedforward[6:]
    v_ee, v_ei = excitatory[:6], excitatory[6:]
    v_ie, v_ii = inhibitory[:6], inhibitory[6:]
    tensors = LayerTensors(feedforward, None, excitatory, None, inhibitory)
    trace = stack_trace(spikes, [plan], [tensors])

    def zeros(n: int) -> torch.Tensor:
        return torch.zeros(2, n, dtype=torch.float64)

    u_e, u_i = zeros(6), zeros(3)
    fe, re, ie, fi, ri, ii = zeros(6), zeros(6), zeros(6), zeros(3), zeros(3), zeros(3)
    before = [zeros(6), zeros(6), zeros(6), zeros(3), zeros(3), zeros(3)]
    for step, x in enumerate(spikes):
        assert torch.allclose(trace.membranes[0][step], torch.cat((u_e, u_i), 1), atol=1e-12)
        s_e, s_i = (u_e > 1).double(), (u_i > 1).double()
        u_e = (0.9 * u_e + 0.1 * (fe + re - ie)) * (1 - s_e)
        u_i = (0.92 * u_i + 0.08 * (fi + ri - ii)) * (1 - s_i)
        sent = [x @ w_fe.T, s_e @ v_ee.T, s_i @ v_ie.T, x @ w_fi.T, s_e @ v_ei.T, s_i @ v_ii.T]
        arriving = before if delay else sent
        fe, re, ie = 0.8 * fe + arriving[0], 0.8 * re + arriving[1], 0.85 * ie + arriving[2]
        fi, ri, ii = 0.75 * fi + arriving[3], 0.75 * ri + arriving[4], 0.7 * ii + arriving[5]
        before = sent
    counts = trace.result.spike_counts[0]
    assert counts[:, :6].min() > 0 and counts[:, 6:].min() > 0
    assert trace.result.output.shape == (40, 2, 6)
    assert torch.equal(trace.result.output.sum(0), counts[:, :6])
    state = trace.result.states[0]
    assert torch.allclose(state.inhibitory_current, torch.cat((ie, ii), 1), atol=1e-12)
    assert (state.pending_inhibitory is None) == (delay == 0)


def test_without_excitatory_recurrence_only_inhibition_is_recurrent():
    plan, (feedforward, excitatory, inhibitory), spikes = dense_dalian()
    from dataclasses import replace

    silent = LayerTensors(feedforward, None, torch.zeros_like(excitatory), None, inhibitory)
    absent = LayerTensors(feedforward, None, None, None, inhibitory)
    with_zeros = stack_trace(spikes, [plan], [silent])
    without = stack_trace(spikes, [replace(plan, recurrent_kernel=None)], [absent])
    assert torch.equal(with_zeros.membranes[0], without.membranes[0])


def test_pooling_is_that_of_torch_on_spikes():
    case = build(POOLING[1])
    tensors = layer_tensors(case, torch.float64, torch.float64, state=False)
    trace = stack_trace(case.input, case.plans, tensors)
    pool = case.plans[1].feedforward
    spikes = trace.spikes[0].detach().flatten(0, 1)
    pooled = F.max_pool2d(spikes, pool.kernel, pool.stride, pool.padding)
    alone = stack_trace(case.input, case.plans[:2], tensors[:2]).result.output
    assert 0.05 < float(pooled.mean()) < 0.95
    assert torch.equal(alone.flatten(0, 1), pooled)


def test_a_skip_is_a_second_synapse_onto_the_readout():
    case = build(SKIPS[1])
    tensors = layer_tensors(case, torch.float64, torch.float64, state=False)
    trace = stack_trace(case.input, case.plans, tensors)
    assert case.plans[-1].skips == (0, 1)
    sources = [trace.spikes[2], trace.spikes[0], trace.spikes[1]]
    current = torch.cat([s.flatten(2) for s in sources], 2) @ tensors[-1].weight.T
    current = current + tensors[-1].bias
    readout = LayerPlan("readout_trace", (5,), decay_mem=0.99, decay_syn=math.exp(-0.2))
    expected = stack_trace(current, [readout], [LayerTensors()]).result.output
    assert torch.allclose(trace.result.output, expected, atol=1e-12)


@pytest.mark.parametrize("case", INHIBITION + POOLING + SKIPS, ids=lambda case: case.name)
def test_cases_fire_and_their_plans_survive_encoding(case):
    stack = build(case, delay=1)
    assert decode(*encode(stack.plans)) == stack.plans
    stack = build(case)
    tensors = layer_tensors(stack, torch.float64, torch.float64, state=True)
    with torch.no_grad():
        trace = stack_trace(stack.input, stack.plans, tensors)
    spiking = [plan for plan in stack.plans if plan.kind == "lif"]
    for plan, spikes in zip(spiking, trace.spikes, strict=True):
        assert 0.01 < float(spikes.mean()) < 0.5
        if plan.inhibition:
            assert float(spikes[:, :, -plan.inhibition.channels :].mean()) > 0.005


def test_what_cannot_be_is_refused():
    link = Connection((4, 1, 1), (9, 1, 1), (1, 1))
    inhibition = Inhibition(3, (1, 1), 0.85, 0.92, 0.75, 0.7)
    with pytest.raises(ValueError, match="inhibition.channels must leave some of the 3 channels"):
        LayerPlan("lif", (3,), inhibition=inhibition)
    with pytest.raises(ValueError, match="only a 'lif' layer can have inhibition.kernel"):
        LayerPlan("readout_max", (9,), link, inhibition=inhibition)
    with pytest.raises(ValueError, match="neuron_decay_mem must be finite, >= 0 and < 1, got 1.0"):
        Inhibition(3, (1, 1), 0.8, 1.0, 0.7, 0.7)
    with pytest.raises(ValueError, match="max_pool must keep the channels, got 4 to 9"):
        LayerPlan("max_pool", (9,), link)
    with pytest.raises(ValueError, match="padding of max_pool must be at most half the kernel"):
        LayerPlan("max_pool", (4, 3, 3), Connection((4, 1, 1), (4, 3, 3), (1, 1), padding=(1, 1)))
    empty = Connection((4, 1, 3), (4, 1, 1), (1, 2), padding=(0, 1), dilation=(1, 4))
    with pytest.raises(ValueError, match="max_pool must have a source in every window"):
        LayerPlan("max_pool", (4, 1), empty)
    with pytest.raises(ValueError, match="only a readout with synapses can have skips"):
        LayerPlan("lif", (9,), link, skips=(0,))
    with pytest.raises(ValueError, match="skips must be ascending layer numbers"):
        LayerPlan("readout_max", (9,), link, skips=(1, 0))
    pool = LayerPlan("max_pool", (4, 2), Connection((4, 1, 4), (4, 1, 2), (1, 2), (1, 2)))
    with pytest.raises(ValueError, match="a stack must not begin with a 'max_pool' layer"):
        check_stack([pool])
    first, last = LayerPlan("lif", (4,)), LayerPlan("readout_max", (9,), link, skips=(0,))
    with pytest.raises(ValueError, match="skips of layer 1 must be layers before layer 0"):
        check_stack([first, last])
    hidden = LayerPlan("lif", (9,), link, inhibition=inhibition)
    with pytest.raises(
        ValueError, match=r"layer 1 expects input of shape \(9, 1, 1\).*\(6, 1, 1\)"
    ):
        check_stack([hidden, LayerPlan("lif", (2,), Connection((9, 1, 1), (2, 1, 1), (1, 1)))])
