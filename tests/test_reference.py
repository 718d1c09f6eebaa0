"""The specification itself, against values and gradients worked out by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastlif.ops import reference
from fastlif.ops.connection import conv_connection, dense_connection
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState, surrogate_scale

MEM, SYN = 0.75, 0.5  # exact in binary: expected values are computed without rounding


def one_neuron(kind: str = "lif", **options) -> LayerPlan:
    link = dense_connection((1,), 1)
    return LayerPlan(kind, (1,), link, decay_mem=MEM, decay_syn=SYN, **options)


def one_spike(at: int, n_steps: int) -> Tensor:
    spikes = torch.zeros(n_steps, 1, 1, dtype=torch.float64)
    spikes[at] = 1.0
    return spikes


def run_one(
    plan: LayerPlan, input: Tensor, weight: float, state: LIFState | None = None
) -> reference.StackTrace:
    tensors = LayerTensors(torch.tensor([[weight]], dtype=torch.float64), state=state)
    return reference.stack_trace(input, [plan], [tensors])


def state_of(membrane: float, current: float = 0.0, pending: float = 0.0) -> LIFState:
    values = (membrane, current, pending)
    return LIFState(*(torch.tensor([[v]], dtype=torch.float64, requires_grad=True) for v in values))


@pytest.mark.parametrize("delay", [0, 1])
def test_an_input_spike_reaches_the_membrane_two_steps_later(delay):
    trace = run_one(one_neuron(delay=delay), one_spike(2, 8), weight=2.0)
    # I[3] = w, then halves; U[4] = (1 - m) w; U[5] = m U[4] + (1 - m) s w; ...
    expected = [0.0] * (4 + delay) + [0.5, 0.625, 0.59375, 0.5078125]
    assert trace.membranes[0].flatten().tolist() == expected[:8]
    assert trace.spikes[0].sum() == 0


def test_final_state_is_the_state_after_the_last_step():
    membrane, current, pending = run_one(one_neuron(), one_spike(2, 4), 2.0).result.states[0][:3]
    assert (float(membrane), float(current), pending) == (0.5, 1.0, None)  # U[4], I[4]
    state = run_one(one_neuron(delay=1), one_spike(2, 3), weight=2.0).result.states[0]
    assert [float(x) for x in state[:3]] == [0.0, 0.0, 2.0]  # U[3], I[3], J[2]
    assert state[3:] == (None, None)


def test_reset_takes_one_step_to_exactly_zero():
    trace = run_one(one_neuron(), one_spike(0, 6), weight=16.0)
    # I = 0 16 8 4 2 1. U[2] = 4 spikes; U[4] = I[3] / 4 = 1 is at the threshold and silent;
    # U[5] = 0.75 U[4] + 0.25 I[4] spikes.
    assert trace.spikes[0].flatten().tolist() == [0, 0, 1, 0, 0, 1]
    assert trace.membranes[0].flatten().tolist() == [0.0, 0.0, 4.0, 0.0, 1.0, 1.25]


def test_spikes_are_strictly_above_the_threshold():
    silent = run_one(one_neuron(threshold=0.5), one_spike(0, 1), 0.0, state_of(0.5))
    firing = run_one(one_neuron(threshold=0.5), one_spike(0, 1), 0.0, state_of(0.5 + 1e-12))
    assert silent.spikes[0].item() == 0.0 and firing.spikes[0].item() == 1.0


def test_nothing_spikes_at_the_first_step_without_a_state():
    current = torch.full((5, 2, 3), 1e6, dtype=torch.float64)
    plan = LayerPlan("lif", (3,), decay_mem=MEM, decay_syn=SYN)
    spikes = reference.stack(current, [plan], [LayerTensors()]).output
    assert spikes[:2].sum() == 0 and spikes[2].min() == 1  # the earliest is n = 2
    assert spikes[3].sum() == 0


def test_initial_pending_current_arrives_only_with_delay():
    for delay, expected in ((0, 0.0), (1, 3.0)):
        trace = run_one(one_neuron(delay=delay), one_spike(0, 1), 0.0, state_of(0, 0, 3.0))
        assert trace.result.states[0].synaptic_current.item() == expected


def test_bias_is_a_current_of_every_step():
    bias = torch.tensor([0.25], dtype=torch.float64)
    tensors = LayerTensors(torch.zeros(1, 1, dtype=torch.float64), bias)
    input = torch.zeros(3, 1, 1, dtype=torch.float64)
    result = reference.stack(input, [one_neuron("readout_trace")], [tensors])
    assert result.output.flatten().tolist() == [0.0, 0.0, 0.0625]
    assert float(result.states[0].synaptic_current) == 0.25 * (1 + 0.5 + 0.25)


@pytest.mark.parametrize("membrane", [0.75, 1.25])  # silent, firing
@pytest.mark.parametrize("rescale", [False, True])
def test_gradient_through_the_reset(membrane, rescale):
    slope, current = 20.0, 2.0
    scale = surrogate_scale(1.0, slope, rescale=rescale)
    surrogate = scale / (slope * abs(membrane - 1.0) + 1.0) ** 2
    stays = 1.0 if membrane < 1.0 else 0.0
    free = MEM * membrane + (1 - MEM) * current
    for detach, expected in ((True, MEM * stays), (False, MEM * stays - free * surrogate)):
        plan = one_neuron(detach_reset=detach, surrogate_slope=slope, surrogate_scale=scale)
        state = state_of(membrane, current)
        final = run_one(plan, one_spike(0, 1), 0.0, state).result.states[0]
        final.membrane.sum().backward()
        assert final.membrane.item() == free * stays
        assert float(state.membrane.grad) == pytest.approx(expected, rel=1e-12)
        assert float(state.synaptic_current.grad) == (1 - MEM) * stays


def test_rescaled_surrogate_is_one_at_rest():
    plan = one_neuron(surrogate_scale=surrogate_scale(1.0, 20.0, rescale=True))
    state = state_of(0.0)
    run_one(plan, one_spike(0, 1), 0.0, state).result.output.sum().backward()
    assert float(state.membrane.grad) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("delay", [0, 1])
def test_gradients_follow_the_adjoint_equations(detach_reset, delay):
    """Backward in time by hand: gU, gI and gJ of a recurrent layer, then its weights' gradients."""
    torch.manual_seed(3)
    n_steps, n_in, n = 40, 6, 5
    double = {"dtype": torch.float64}
    plan = LayerPlan(
        "lif",
        (n,),
        dense_connection((n_in,), n),
        (1, 1),
        decay_mem=0.9,
        decay_syn=0.8,
        detach_reset=detach_reset,
        delay=delay,
    )
    weight = (torch.randn(n, n_in, **double) * 3).requires_grad_()
    recurrent = torch.randn(n, n, **double).requires_grad_()
    bias = torch.full((n,), 0.1, requires_grad=True, **double)
    input = (torch.rand(n_steps, 2, n_in, **double) < 0.2).double().requires_grad_()
    trace = reference.stack_trace(input, [plan], [LayerTensors(weight, bias, recurrent)])
    membrane, spikes = trace.membranes[0].detach(), trace.spikes[0].detach()
    assert 0.02 < spikes.mean() < 0.5
    grad_output = torch.randn_like(spikes)
    (trace.result.output * grad_output).sum().backward()

    injected = F.linear(input.detach(), weight.detach(), bias.detach())
    injected = injected + F.linear(spikes, recurrent.detach())
    current = torch.zeros(n_steps + 1, 2, n, **double)
    for step in range(n_steps):
        arriving = injected[step - delay] if step >= delay else 0.0
        current[step + 1] = 0.8 * current[step] + arriving
    grad_u = torch.zeros(n_steps + 1, 2, n, **double)
    grad_i = torch.zeros(n_steps + 2, 2, n, **double)
    grad_j = torch.zeros(n_steps, 2, n, **double)
    for step in reversed(range(n_steps)):
        grad_j[step] = grad_i[step + 1 + delay]
        grad_s = grad_output[step] + grad_j[step] @ recurrent.detach()
        if not detach_reset:
            grad_s = grad_s - grad_u[step + 1] * (0.9 * membrane[step] + 0.1 * current[step])
        surrogate = 1.0 / (20.0 * (membrane[step] - 1.0).abs() + 1.0) ** 2
        stays = 1.0 - spikes[step]
        grad_u[step] = 0.9 * stays * grad_u[step + 1] + surrogate * grad_s
        grad_i[step] = 0.8 * grad_i[step + 1] + 0.1 * stays * grad_u[step + 1]
    expected = {
        "weight": torch.einsum("tbi,tbj->ij", grad_j, input.detach()),
        "recurrent": torch.einsum("tbi,tbj->ij", grad_j, spikes),
        "bias": grad_j.sum((0, 1)),
        "input": grad_j @ weight.detach(),
    }
    for name, tensor in (
        ("weight", weight),
        ("recurrent", recurrent),
        ("bias", bias),
        ("input", input),
    ):
        assert tensor.grad.norm() > 1e-3
        torch.testing.assert_close(tensor.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_max_readout_gives_the_first_maximum_and_its_gradient():
    plan, trace_plan = one_neuron("readout_max"), one_neuron("readout_trace")
    result = run_one(plan, one_spike(1, 9), 2.0).result
    trace = run_one(trace_plan, one_spike(1, 9), 2.0).result.output
    assert result.output.shape == (1, 1) and trace.shape == (9, 1, 1)
    assert float(result.output) == float(trace.max()) == 0.625  # at n = 4, one step after 0.5
    # No input at all: U decays from its start, so the first step is the maximum ...
    state = state_of(0.5)
    run_one(plan, torch.zeros(4, 1, 1, dtype=torch.float64), 2.0, state).result.output.backward()
    assert float(state.membrane.grad) == 1.0
    # ... a tie of all steps at 0 still counts for the first alone ...
    state = state_of(0.0)
    run_one(plan, torch.zeros(4, 1, 1, dtype=torch.float64), 2.0, state).result.output.backward()
    assert float(state.membrane.grad) == 1.0
    # ... and from below 0 it is the last one.
    state = state_of(-0.5)
    run_one(plan, torch.zeros(4, 1, 1, dtype=torch.float64), 2.0, state).result.output.backward()
    assert float(state.membrane.grad) == MEM**3


def conv_stack(delay: int) -> tuple[list[LayerPlan], list[LayerTensors]]:
    """Recurrent conv1d, dense recurrent, readout; seeded double parameters."""
    torch.manual_seed(0)
    options = {"decay_mem": 0.9, "decay_syn": 0.8, "delay": delay}
    link, features = conv_connection(
        (1, 23), 3, kernel=(5,), stride=(2,), padding=(1,), dilation=(1,)
    )
    plans = [
        LayerPlan("lif", features, link, (1, 5), **options),
        LayerPlan("lif", (7,), dense_connection(features, 7), (1, 1), **options),
        LayerPlan("readout_trace", (4,), dense_connection((7,), 4), **options),
    ]
    double = {"dtype": torch.float64}
    tensors = [
        LayerTensors(torch.randn(3, 1, 5, **double) * 4, None, torch.randn(3, 3, 5, **double)),
        LayerTensors(torch.randn(7, 33, **double), None, torch.randn(7, 7, **double)),
        LayerTensors(torch.randn(4, 7, **double)),
    ]
    return plans, tensors


def random_spikes(n_steps: int, batch: int, *features: int) -> Tensor:
    return (torch.rand(n_steps, batch, *features) < 0.15).double()


@pytest.mark.parametrize("delay", [0, 1])
def test_a_run_in_chunks_equals_the_whole(delay):
    plans, tensors = conv_stack(delay)
    input = random_spikes(50, 3, 1, 23)
    whole = reference.stack_trace(input, plans, tensors)
    assert all(0.01 < spikes.mean() < 0.5 for spikes in whole.spikes)
    states: tuple[LIFState | None, ...] = (None, None, None)
    outputs, counts = [], []
    for chunk in input.split([17, 1, 32]):
        chunk_tensors = [t._replace(state=s) for t, s in zip(tensors, states, strict=True)]
        result = reference.stack(chunk, plans, chunk_tensors)
        states = result.states
        outputs.append(result.output)
        counts.append(result.spike_counts)
    assert torch.equal(torch.cat(outputs), whole.result.output)
    for chunked, expected in zip(states, whole.result.states, strict=True):
        assert torch.equal(chunked.membrane, expected.membrane)
        assert torch.equal(chunked.synaptic_current, expected.synaptic_current)
        if delay == 1:
            assert torch.equal(chunked.pending_current, expected.pending_current)
    for chunked, expected in zip(zip(*counts, strict=True), whole.result.spike_counts, strict=True):
        assert torch.equal(sum(chunked), expected)


def test_counts_are_spikes_summed_and_differentiable():
    plans, tensors = conv_stack(0)
    weight = tensors[0].weight.requires_grad_()
    trace = reference.stack_trace(random_spikes(30, 2, 1, 23), plans, tensors)
    for counts, spikes in zip(trace.result.spike_counts, trace.spikes, strict=True):
        assert torch.equal(counts, spikes.sum(0)) and counts.sum() > 0
    from_counts = torch.autograd.grad(
        trace.result.spike_counts[0].sum(), weight, retain_graph=True
    )[0]
    from_spikes = torch.autograd.grad(trace.spikes[0].sum(), weight)[0]
    assert from_counts.norm() > 0
    torch.testing.assert_close(from_counts, from_spikes)


def test_synapses_are_torch_s_own():
    torch.manual_seed(1)
    x = torch.randn(3, 2, 2, 7, 6, dtype=torch.float64)
    weight, bias = torch.randn(4, 2, 3, 2, dtype=torch.float64), torch.randn(4).double()
    sizes = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    link, features = conv_connection((2, 7, 6), 4, kernel=(3, 2), **sizes)
    plan = LayerPlan("current", features, link)
    result = reference.stack(x, [plan], [LayerTensors(weight, bias)])
    expected = F.conv2d(x.flatten(0, 1), weight, bias, **sizes).unflatten(0, (3, 2))
    torch.testing.assert_close(result.output, expected)
    assert result.spike_counts == () and result.states == (LIFState(),)
    dense = torch.randn(5, 84, dtype=torch.float64)
    plan = LayerPlan("current", (5,), dense_connection((2, 7, 6), 5))
    current = reference.stack(x, [plan], [LayerTensors(dense)]).output
    torch.testing.assert_close(current, F.linear(x.flatten(2), dense))


def test_conv_recurrence_is_a_same_convolution_of_the_layer_s_spikes():
    torch.manual_seed(2)
    recurrent = torch.randn(2, 2, 3, 5, dtype=torch.float64)
    plan = LayerPlan("lif", (2, 4, 6), None, (3, 5), decay_mem=MEM, decay_syn=SYN, delay=1)
    forced = random_spikes(3, 2, 2, 4, 6)
    trace = reference.stack_trace(
        torch.zeros_like(forced),
        [plan],
        [LayerTensors(recurrent_weight=recurrent)],
        replay_spikes=[forced],
    )
    expected = F.conv2d(forced[2], recurrent, padding=(1, 2))
    torch.testing.assert_close(trace.result.states[0].pending_current, expected)
    assert expected.abs().max() > 0.1


def test_replayed_spikes_are_used_everywhere_and_the_surrogate_stays_at_this_runs_membrane():
    plan = one_neuron()
    forced = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    state = state_of(1.25, 0.5)  # would spike at n = 0
    tensors = LayerTensors(torch.zeros(1, 1, dtype=torch.float64), state=state)
    trace = reference.stack_trace(
        torch.zeros(2, 1, 1, dtype=torch.float64), [plan], [tensors], replay_spikes=[forced]
    )
    membrane = MEM * 1.25 + (1 - MEM) * 0.5  # 1.0625: no reset, as none was forced at n = 0
    assert trace.membranes[0][1].item() == membrane
    assert torch.equal(trace.result.output, forced) and trace.result.spike_counts[0].item() == 1.0
    assert trace.result.states[0].membrane.item() == 0.0  # reset by the forced spike
    trace.result.output[1].backward()
    surrogate = 1.0 / (20.0 * abs(membrane - 1.0) + 1.0) ** 2
    assert float(state.membrane.grad) == pytest.approx(MEM * surrogate, rel=1e-12)
    with pytest.raises(ValueError, match="one tensor per 'lif' layer, 1, got 2"):
        reference.stack(forced, [plan], [tensors], replay_spikes=[forced, forced])


def test_replaying_its_own_spikes_changes_nothing():
    plans, tensors = conv_stack(0)
    input = random_spikes(40, 2, 1, 23)
    first = reference.stack_trace(input, plans, tensors)
    second = reference.stack_trace(input, plans, tensors, replay_spikes=first.spikes)
    assert torch.equal(first.result.output, second.result.output)
    silent = [torch.zeros_like(spikes) for spikes in first.spikes]
    third = reference.stack_trace(input, plans, tensors, replay_spikes=silent)
    assert third.result.output.abs().max() == 0 and first.result.output.abs().max() > 0


def test_spiking_switched_off_leaves_free_membranes():
    plans, tensors = conv_stack(0)
    input = random_spikes(40, 2, 1, 23)
    plan, layer_tensors = plans[:1], tensors[:1]
    free = reference.stack_trace(input, plan, layer_tensors, spiking=False)
    assert free.spikes[0].sum() == 0 and (free.membranes[0] > 1.0).any()
    # Linear in its input: twice the input, twice the membrane.
    double = reference.stack_trace(2.0 * input, plan, layer_tensors, spiking=False)
    torch.testing.assert_close(double.membranes[0], 2.0 * free.membranes[0])
    # Forced spikes drive the recurrence, and only that.
    own = random_spikes(40, 2, *plans[0].features)
    driven = reference.stack_trace(input, plan, layer_tensors, replay_spikes=[own], spiking=False)
    current = F.conv1d(own.flatten(0, 1), tensors[0].recurrent_weight, padding=2)
    lateral = reference.stack_trace(
        current.unflatten(0, (40, 2)),
        [LayerPlan("readout_trace", plans[0].features, decay_mem=0.9, decay_syn=0.8)],
        [LayerTensors()],
    )
    torch.testing.assert_close(driven.membranes[0], free.membranes[0] + lateral.membranes[0])
