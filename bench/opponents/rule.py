"""The equations of an opponent's neurons, for checking it: a reference for what is not fastlif's.

With the defaults of `Rule` this computes what `fastlif.ops.reference` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.opponents.loop import lateral
from fastlif.ops import LayerPlan, LayerTensors


@dataclass(frozen=True)
class Rule:
    """What a neuron does: spike S, membrane U, synaptic current I, injected current J.

    U[n+1] = (decay_mem U[n] + (1 - decay_mem) I[n]) (1 - S[n])
    """

    # U[n+1] = decay_mem U[n] (1 - S[n]) + (1 - decay_mem) I[n]
    reset_first: bool = False
    synaptic_current: bool = True  # if not, J[n], scaled to as large fluctuations, stands for I[n]
    surrogate_slope: float | None = None  # None: the plan's
    surrogate_scale: float = 1.0  # surrogate derivative at the threshold
    # None: False, but True in dense recurrent layers
    detach_reset: bool | None = True

    @property
    def is_fastlif(self) -> bool:
        """Whether these are fastlif's equations."""
        return self == Rule()


@dataclass(frozen=True)
class Trace:
    """What a network computed."""

    emitted: list[Tensor]  # as an opponent's `emitted`
    membranes: list[Tensor]  # of every spiking layer, (time, batch, *features)


def unfiltered_gain(decay_mem: float, decay_syn: float) -> float:
    """Factor on currents that no synapse filters, for as large fluctuations of the membrane.

    That is the ratio of the norms over k of its responses to one spike: with the filter the sum
    over j of decay_mem^j decay_syn^(k-j), without it decay_mem^k.
    """
    both = decay_mem * decay_syn
    return ((1 + both) / ((1 - both) * (1 - decay_syn**2))) ** 0.5


def trace(
    rule: Rule,
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],  # with states; parameters in the dtype of spikes
    spikes: Tensor,  # (time, batch, *features)
    replay: Sequence[Tensor],  # the spikes that take the place of S, one a spiking layer
) -> Trace:
    """Run the rule. Gradients flow through the surrogate at this run's own membranes."""
    emitted: list[Tensor] = []
    membranes: list[Tensor] = []
    forced = iter(replay)
    for plan, own in zip(plans, tensors, strict=True):
        if plan.kind == "max_pool":
            link = plan.feedforward
            assert link is not None
            pooled = [F.max_pool2d(x, link.kernel, link.stride, link.padding) for x in spikes]
            spikes = torch.stack(pooled)
        elif plan.kind == "lif":
            spikes, membrane = _layer(rule, plan, own, spikes, next(forced))
            emitted.append(spikes)
            membranes.append(membrane)
        else:
            emitted.append(_readout(plan, own, spikes))
    return Trace(emitted, membranes)


def _injected(plan: LayerPlan, own: LayerTensors, spikes: Tensor) -> Tensor:
    assert own.weight is not None and plan.feedforward is not None
    n = len(plan.features) - 1
    if n == 0:
        return F.linear(spikes.flatten(1), own.weight, own.bias)
    convolve = F.conv1d if n == 1 else F.conv2d
    link = plan.feedforward
    return convolve(spikes, own.weight, own.bias, link.stride[-n:], link.padding[-n:])


def _layer(
    rule: Rule, plan: LayerPlan, own: LayerTensors, spikes: Tensor, replay: Tensor
) -> tuple[Tensor, Tensor]:
    slope = plan.surrogate_slope if rule.surrogate_slope is None else rule.surrogate_slope
    detach = rule.detach_reset
    if detach is None:
        detach = own.recurrent_weight is not None and own.recurrent_weight.dim() == 2
    u = synaptic = spikes.new_zeros(spikes.shape[1], *plan.features)
    out, membranes = [], []
    for x, given in zip(spikes, replay, strict=True):
        membranes.append(u)
        s = _Replayed.apply(u - plan.threshold, given, slope, rule.surrogate_scale)
        out.append(s)
        injected = _injected(plan, own, x)
        if own.recurrent_weight is not None:
            injected = injected + lateral(own.recurrent_weight, s)
        keep = 1.0 - (s.detach() if detach else s)
        drive = (
            synaptic
            if rule.synaptic_current
            else unfiltered_gain(plan.decay_mem, plan.decay_syn) * injected
        )
        drive = (1.0 - plan.decay_mem) * drive
        if rule.reset_first:
            u = plan.decay_mem * u * keep + drive
        else:
            u = (plan.decay_mem * u + drive) * keep
        synaptic = plan.decay_syn * synaptic + injected
    return torch.stack(out), torch.stack(membranes)


def _readout(plan: LayerPlan, own: LayerTensors, spikes: Tensor) -> Tensor:
    start = None if own.state is None else own.state.membrane
    u = spikes.new_zeros(spikes.shape[1], *plan.features) if start is None else start
    synaptic = torch.zeros_like(u)
    membranes = []
    for x in spikes:
        membranes.append(u)
        u = plan.decay_mem * u + (1.0 - plan.decay_mem) * synaptic
        synaptic = plan.decay_syn * synaptic + _injected(plan, own, x)
    return torch.stack(membranes).max(0).values


class _Replayed(torch.autograd.Function):
    """Given spikes, with the surrogate's gradient at the membrane."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        distance: Tensor,
        spikes: Tensor,
        slope: float,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(distance)
        ctx.slope, ctx.scale = slope, scale
        return spikes.clone()

    @staticmethod
    def backward(ctx, grad_spikes: Tensor) -> tuple[Tensor, None, None, None]:
        (distance,) = ctx.saved_tensors
        gradient = grad_spikes * ctx.scale / (ctx.slope * distance.abs() + 1.0) ** 2
        return gradient, None, None, None
