"""The opponent: the same equations as a loop over time in plain PyTorch, written to be fast.

What was faster on a CPU was taken: a dense layer's feed-forward currents of all steps are one
matrix product, a convolutional layer's are computed step by step (one convolution over the whole
sequence spends its time on fresh memory). The loop iterates over `unbind(0)` (indexing has a
backward pass that is quadratic in the number of steps), spikes are collected in a list and stacked
once, and `lerp` and `add(alpha=)` take the place of several elementwise operations each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlif import LIReadout, Sequential
from fastlif.ops import LayerPlan


class SurrogateSpike(torch.autograd.Function):
    """Heaviside step with the derivative 1 / (slope |x| + 1)^2."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, slope: float) -> Tensor:
        """1 where the membrane is above the threshold."""
        ctx.save_for_backward(distance)
        ctx.slope = slope
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def backward(ctx: Any, grad_spikes: Tensor) -> tuple[Tensor, None]:
        """The surrogate gradient."""
        (distance,) = ctx.saved_tensors
        return grad_spikes / distance.abs().mul_(ctx.slope).add_(1.0).square_(), None


class LoopNetwork(nn.Module):
    """A network of `fastlif.models` in plain PyTorch, on the parameters of the given one."""

    def __init__(self, model: Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model)

    def forward(self, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (batch, classes) and spike counts of spikes (time, batch, *features)."""
        counts: list[Tensor] = []
        for layer in self.layers:
            plan = layer.plan(tuple(spikes.shape[2:]), len(spikes))
            if isinstance(layer, LIReadout):
                return _readout(plan, layer, self.currents(plan, layer, spikes)), counts
            if plan.kind == "max_pool":
                spikes = torch.stack([_pooled(plan, step) for step in spikes.unbind(0)])
                continue
            spikes = torch.stack(_spikes(plan, layer, self.currents(plan, layer, spikes)))
            counts.append(spikes.sum(0))
            spikes = spikes[:, :, : plan.emitted_features[0]]
        raise ValueError("the last layer of the network must be a readout")

    def currents(self, plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Iterable[Tensor]:
        """Feed-forward current of every step."""
        if len(plan.features) == 1:
            return F.linear(spikes.flatten(2), layer.weight, layer.bias).unbind(0)
        return (convolved(plan, layer, step) for step in spikes.unbind(0))


def convolved(plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Tensor:
    """The convolution of a layer, of spikes (batch, *features)."""
    convolve = F.conv1d if len(plan.features) == 2 else F.conv2d
    link, n = plan.feedforward, len(plan.features) - 1
    return convolve(spikes, layer.weight, layer.bias, link.stride[-n:], link.padding[-n:])


def _pooled(plan: LayerPlan, spikes: Tensor) -> Tensor:
    link = plan.feedforward
    return F.max_pool2d(spikes, link.kernel, link.stride, link.padding)


def _spikes(plan: LayerPlan, layer: nn.Module, currents: Iterable[Tensor]) -> list[Tensor]:
    """Spikes of all steps, (batch, *features) each."""
    decay_mem, decay_syn, decay_inhibitory = _decays(plan, layer.weight)
    n_excitatory = plan.emitted_features[0]
    has_inhibition = plan.inhibition is not None
    membrane = synaptic_current = inhibitory_current = None
    emitted = []
    for injected in currents:
        if membrane is None:
            membrane = synaptic_current = inhibitory_current = torch.zeros_like(injected)
        spikes = SurrogateSpike.apply(membrane - plan.threshold, plan.surrogate_slope)
        emitted.append(spikes)
        if layer.recurrent_weight is not None:
            injected = injected + _lateral(layer.recurrent_weight, spikes[:, :n_excitatory])
        net = synaptic_current - inhibitory_current if has_inhibition else synaptic_current
        membrane = torch.lerp(net, membrane, decay_mem) * (1.0 - spikes.detach())
        if has_inhibition:
            own = _lateral(layer.inhibitory_weight, spikes[:, n_excitatory:])
            inhibitory_current = torch.addcmul(own, inhibitory_current, decay_inhibitory)
            synaptic_current = torch.addcmul(injected, synaptic_current, decay_syn)
        else:
            synaptic_current = torch.add(injected, synaptic_current, alpha=decay_syn)
    return emitted


def _decays(plan: LayerPlan, like: Tensor) -> tuple[Any, Any, Any]:
    """decay_mem, decay_syn and the inhibitory current's; per neuron where populations differ."""
    own = plan.inhibition
    if own is None:
        return plan.decay_mem, plan.decay_syn, 0.0
    is_inhibitory = torch.arange(plan.features[0]) >= plan.emitted_features[0]
    is_inhibitory = is_inhibitory.reshape(-1, *(1 for _ in plan.features[1:]))

    def choose(excitatory: float, inhibitory: float) -> Tensor:
        both = like.new_tensor([excitatory, inhibitory])
        return both[is_inhibitory.long()]

    return (
        choose(plan.decay_mem, own.neuron_decay_mem),
        choose(plan.decay_syn, own.neuron_decay_syn),
        choose(own.decay_syn, own.neuron_decay_inhibitory),
    )


def _lateral(weight: Tensor, spikes: Tensor) -> Tensor:
    """Current of synapses inside a layer."""
    if weight.dim() == 2:
        return F.linear(spikes, weight)
    return F.conv1d(spikes, weight, padding=weight.shape[-1] // 2)


def _readout(plan: LayerPlan, layer: LIReadout, currents: Iterable[Tensor]) -> Tensor:
    """Maximum over time of the readout's membranes, (batch, classes)."""
    membrane = synaptic_current = None
    membranes = []
    for injected in currents:
        if membrane is None:
            membrane = torch.full_like(injected, layer.initial_membrane)
            synaptic_current = torch.zeros_like(injected)
        membranes.append(membrane)
        membrane = torch.lerp(synaptic_current, membrane, plan.decay_mem)
        synaptic_current = torch.add(injected, synaptic_current, alpha=plan.decay_syn)
    return torch.stack(membranes).max(0).values
