"""The specification of every operation: a loop over time in plain PyTorch, one equation a line.

Layers of current-based LIF neurons, Rossbroich et al. 2022, eqs 10 and 11. At step n = 0 .. T-1, in
this order:

    S[n]   = 1 if U[n] > threshold, else 0     strictly above: U[n] = threshold is silent
    J[n]   = W S_in[n] + V S[n] + b            injected current; the bias is a constant current
    U[n+1] = (decay_mem U[n] + (1 - decay_mem) I[n]) (1 - S[n])
    I[n+1] = decay_syn I[n] + J[n]             delay = 0
    I[n+1] = decay_syn I[n] + J[n-1]           delay = 1, J[-1] from the initial state

- Order: the spike is read off U[n], then U and I advance together from their old values. An input
  spike at n reaches I at n+1 and U at n+2 (one step later with delay = 1); without an initial state
  S[0] = 0.
- Input scaling: the membrane integrates (1 - decay_mem) I, so a constant current I drives U to I.
- Reset: multiplicative and to zero. It takes one step: after a spike at n, U[n+1] is exactly 0 and
  what I[n] would have added is lost; I itself is not reset.
- Gradient: dS/dU is the surrogate scale / (slope |U - threshold| + 1)^2 (eqs 28 and 29). With
  detach_reset the factor (1 - S[n]) counts as a constant; without it the gradient also flows
  through that S[n], with the same surrogate.
- A readout has the same U and I, no spikes and no reset. Its score is the maximum of U[0 .. T-1];
  the gradient goes to the first step that reaches it, and to no other.
- Inhibition (Dale's law, eqs 12 to 19): the last channels of such a layer are inhibitory. All
  weights are used as they are; V has excitatory sources only, the current H of inhibitory sources
  is subtracted, and decay_inh is of its own. Decays are those of a neuron's own population.

    K[n]   = V_inh S_inh[n]
    U[n+1] = (decay_mem U[n] + (1 - decay_mem) (I[n] - H[n])) (1 - S[n])
    H[n+1] = decay_inh H[n] + K[n]             delay = 0; K[n-1] with delay = 1

  The next layer hears S of the excitatory neurons.
- Max pooling: S[n] of a window is the maximum of its sources' S[n]; nothing beyond the border
  counts. The gradient goes to the first source that spikes, to the first of all if none does.
- A readout with skips adds to J[n] what the spikes of earlier layers cause through its weight's
  further columns, at the same step n.
- Several networks: each is what it is alone, with its own parameters and its samples of the batch,
  which lie one network behind the other; a shared input is every network's.
- Initial state in: (U[0], I[0], J[-1], H[0], K[-1]), zeros by default. Final state out: (U[T],
  I[T], J[T-1], H[T], K[T-1]), J and K only with delay = 1, H and K only with inhibition.
  Spikes emitted: S[0 .. T-1].

Works in the dtype of its tensors, on any device; autograd differentiates it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlif.ops.networks import of_one_network, tensors_of_network
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState, StackResult


class StackTrace(NamedTuple):
    """A run with what is normally not kept; membranes and spikes are (time, batch, *features)."""

    result: StackResult
    membranes: tuple[Tensor, ...]  # U[0 .. T-1] of every layer but "current" and "max_pool"
    spikes: tuple[Tensor, ...]  # S[0 .. T-1] of every "lif" layer


class Spike(torch.autograd.Function):
    """Heaviside step of U - threshold with the SuperSpike derivative (eqs 28, 29)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        membrane: Tensor,
        forced: Tensor | None,  # spikes of another run, in place of this run's own
        threshold: float,
        slope: float,
        scale: float,
    ) -> Tensor:
        """Spikes, 0 or 1, in the shape and dtype of `membrane`."""
        if forced is not None:
            return forced.to(membrane.dtype, copy=True)
        return (membrane > threshold).to(membrane.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the membrane: the surrogate is evaluated at this run's U, forced spikes or not."""
        membrane, _, ctx.threshold, ctx.slope, ctx.scale = inputs
        ctx.save_for_backward(membrane)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None, None, None, None]:
        """grad_membrane = surrogate(U - threshold) grad_spikes."""
        (membrane,) = ctx.saved_tensors
        distance = membrane - ctx.threshold
        surrogate = ctx.scale / (ctx.slope * distance.abs() + 1.0) ** 2
        return surrogate * grad_spikes, None, None, None, None


def stack(
    input: Tensor,  # (time, batch, *features): spikes, any numbers, or a current
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    *,
    replay_spikes: Sequence[Tensor] | None = None,
    spiking: bool = True,
) -> StackResult:
    """Run a stack of layers over time; see `stack_trace`, of which this is the result."""
    return stack_trace(input, plans, tensors, replay_spikes=replay_spikes, spiking=spiking).result


def stack_trace(
    input: Tensor,  # (time, batch, *features)
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    *,
    replay_spikes: Sequence[Tensor] | None = None,  # per "lif" layer, (time, batch, *features)
    spiking: bool = True,
) -> StackTrace:
    """Run a stack of layers over time and return membranes and spikes too.

    `replay_spikes`, of 0 and 1, replaces S everywhere (reset, recurrence, output, counts); the
    surrogate is still evaluated at this run's U. It makes two implementations comparable whose
    membranes differ by a rounding at the threshold.

    `spiking=False` switches threshold and reset off, for measuring free membranes. S is then zero,
    or `replay_spikes` where given, which still drive the recurrence and the next layer.
    """
    if plans[0].networks > 1:
        return _trace_networks(input, plans, tensors, replay_spikes, spiking)
    n_spiking = sum(plan.kind == "lif" for plan in plans)
    if replay_spikes is not None and len(replay_spikes) != n_spiking:
        raise ValueError(
            f"replay_spikes must hold one tensor per 'lif' layer, {n_spiking}, "
            f"got {len(replay_spikes)}"
        )
    forced = iter(replay_spikes) if replay_spikes is not None else None
    signal = input
    membranes: list[Tensor] = []
    spikes: list[Tensor] = []
    states: list[LIFState] = []
    heard: list[Tensor] = []  # what each layer emitted
    for plan, layer_tensors in zip(plans, tensors, strict=True):
        if plan.kind == "current":
            signal = torch.stack([_synapse(plan, layer_tensors, x) for x in signal.unbind(0)])
            states.append(LIFState())
            continue
        if plan.kind == "max_pool":
            signal = _max_pool(plan, signal)
            heard.append(signal)
            states.append(LIFState())
            continue
        replay = next(forced) if forced is not None and plan.kind == "lif" else None
        for index in plan.skips:
            signal = torch.cat((signal.flatten(2), heard[index].flatten(2)), dim=2)
        trace, emitted, state = _scan(plan, layer_tensors, signal, replay, spiking)
        membranes.append(trace)
        states.append(state)
        if plan.kind == "lif":
            spikes.append(emitted)
            signal = emitted[:, :, : plan.emitted_features[0]]
            heard.append(signal)
        elif plan.kind == "readout_max":
            first_maximum = trace.detach().argmax(0, keepdim=True)
            signal = trace.gather(0, first_maximum).squeeze(0)
        else:
            signal = trace
    counts = tuple(emitted.sum(0) for emitted in spikes)
    return StackTrace(StackResult(signal, counts, tuple(states)), tuple(membranes), tuple(spikes))


def _trace_networks(
    input: Tensor,
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    replay_spikes: Sequence[Tensor] | None,
    spiking: bool,
) -> StackTrace:
    """One network after the other; then everything side by side again."""
    networks, shared = plans[0].networks, plans[0].shared_input
    traces = []
    for network in range(networks):
        own = None
        if replay_spikes is not None:
            own = [spikes.chunk(networks, dim=1)[network] for spikes in replay_spikes]
        trace = stack_trace(
            input if shared else input.chunk(networks, dim=1)[network],
            of_one_network(tuple(plans)),
            [tensors_of_network(layer, network, networks) for layer in tensors],
            replay_spikes=own,
            spiking=spiking,
        )
        traces.append(trace)

    def joined(parts: Iterable[Tensor | None], dim: int) -> Any:
        present = [part for part in parts if part is not None]
        return torch.cat(present, dim) if present else None

    results = [trace.result for trace in traces]
    states = [
        LIFState(*(joined(parts, 0) for parts in zip(*layer, strict=True)))
        for layer in zip(*(result.states for result in results), strict=True)
    ]
    result = StackResult(
        joined((r.output for r in results), 0 if plans[-1].kind == "readout_max" else 1),
        tuple(joined(own, 0) for own in zip(*(r.spike_counts for r in results), strict=True)),
        tuple(states),
    )
    return StackTrace(
        result,
        tuple(joined(own, 1) for own in zip(*(t.membranes for t in traces), strict=True)),
        tuple(joined(own, 1) for own in zip(*(t.spikes for t in traces), strict=True)),
    )


def _scan(
    plan: LayerPlan, tensors: LayerTensors, signal: Tensor, replay: Tensor | None, spiking: bool
) -> tuple[Tensor, Tensor, LIFState]:
    """One layer over all steps: U[0 .. T-1], S[0 .. T-1] and the final state."""
    silent = signal.new_zeros(signal.shape[1], *plan.features)
    state = tensors.state or LIFState()
    membrane, current, pending, inhibitory, pending_inhibitory = (
        silent if x is None else x for x in state
    )
    decay_mem, decay_syn, decay_inhibitory = _decays(plan, signal)
    membranes, emitted = [], []
    forced = [None] * len(signal) if replay is None else replay.detach().unbind(0)
    for spikes_in, forced_spikes in zip(signal.unbind(0), forced, strict=True):
        if plan.kind != "lif" or (not spiking and forced_spikes is None):
            spikes = silent
        else:
            spikes = Spike.apply(
                membrane, forced_spikes, plan.threshold, plan.surrogate_slope, plan.surrogate_scale
            )
        membranes.append(membrane)
        emitted.append(spikes)

        excitatory = spikes[:, : plan.emitted_features[0]]
        injected = _synapse(plan, tensors, spikes_in)
        if tensors.recurrent_weight is not None:
            injected = injected + _recurrence(plan, tensors.recurrent_weight, excitatory)
        arriving = injected if plan.delay == 0 else pending
        net_current = current
        if tensors.inhibitory_weight is not None:
            net_current = current - inhibitory
            own = spikes[:, plan.emitted_features[0] :]
            injected_inhibitory = _inhibition(plan, tensors.inhibitory_weight, own)
            arriving_inhibitory = injected_inhibitory if plan.delay == 0 else pending_inhibitory
            inhibitory = decay_inhibitory * inhibitory + arriving_inhibitory
            pending_inhibitory = injected_inhibitory

        reset = spikes.detach() if plan.detach_reset else spikes
        stays = 1.0 - reset if spiking else 1.0
        membrane = (decay_mem * membrane + (1.0 - decay_mem) * net_current) * stays
        current = decay_syn * current + arriving
        pending = injected
    last = LIFState(
        membrane,
        current,
        pending if plan.delay else None,
        inhibitory if plan.inhibition else None,
        pending_inhibitory if plan.delay and plan.inhibition else None,
    )
    return torch.stack(membranes), torch.stack(emitted), last


def _decays(plan: LayerPlan, like: Tensor) -> tuple[float | Tensor, float | Tensor, float | Tensor]:
    """decay_mem, decay_syn and decay_inh; with inhibition per channel, (channels, 1, ...)."""
    own = plan.inhibition
    if own is None:
        return plan.decay_mem, plan.decay_syn, 0.0
    pairs = (
        (plan.decay_mem, own.neuron_decay_mem),
        (plan.decay_syn, own.neuron_decay_syn),
        (own.decay_syn, own.neuron_decay_inhibitory),
    )
    n_excitatory = plan.emitted_features[0]
    shape = (-1, *(1 for _ in plan.features[1:]))

    def per_channel(excitatory: float, inhibitory: float) -> Tensor:
        values = [excitatory] * n_excitatory + [inhibitory] * own.channels
        return like.new_tensor(values).reshape(shape)

    mem, syn, inhibitory = (per_channel(*pair) for pair in pairs)
    return mem, syn, inhibitory


def _synapse(plan: LayerPlan, tensors: LayerTensors, signal: Tensor) -> Tensor:
    """W S_in[n] + b, (batch, *features), or the input current itself when there is no synapse."""
    link = plan.feedforward
    if link is None:
        return signal
    assert tensors.weight is not None
    if plan.skips:  # several sources, flattened one behind the other
        return F.linear(signal, tensors.weight, tensors.bias)
    current = F.conv2d(
        signal.reshape(-1, *link.in_shape),
        tensors.weight.reshape(link.weight_shape),
        tensors.bias,
        stride=link.stride,
        padding=link.padding,
        dilation=link.dilation,
    )
    return current.reshape(-1, *plan.features)


def _max_pool(plan: LayerPlan, signal: Tensor) -> Tensor:
    """The maximum of every window, (time, batch, *features)."""
    link = plan.feedforward
    assert link is not None
    pooled = F.max_pool2d(
        signal.reshape(-1, *link.in_shape), link.kernel, link.stride, link.padding, link.dilation
    )
    return pooled.reshape(*signal.shape[:2], *plan.features)


def _recurrence(plan: LayerPlan, weight: Tensor, spikes: Tensor) -> Tensor:
    """V S[n], (batch, *features), of the layer's excitatory (if it has no others, all) neurons."""
    assert plan.recurrent_kernel is not None and plan.recurrent_weight_shape is not None
    return _same(plan, weight.reshape(plan.recurrent_weight_shape), spikes)


def _inhibition(plan: LayerPlan, weight: Tensor, spikes: Tensor) -> Tensor:
    """V_inh S_inh[n], (batch, *features)."""
    assert plan.inhibitory_weight_shape is not None
    return _same(plan, weight.reshape(plan.inhibitory_weight_shape), spikes)


def _same(plan: LayerPlan, weight: Tensor, spikes: Tensor) -> Tensor:
    """A convolution with stride 1 and "same" padding; weight (out, in, height, width)."""
    _, in_channels, height, width = weight.shape
    current = F.conv2d(
        spikes.reshape(-1, in_channels, *plan.shape[1:]), weight, padding=(height // 2, width // 2)
    )
    return current.reshape(-1, *plan.features)
