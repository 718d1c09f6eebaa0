"""The opponent: the same equations as a loop over time in plain PyTorch, written to be fast.

What was faster on a CPU was taken: a dense layer's feed-forward currents of all steps are one
matrix product, a convolutional layer's are computed step by step (one convolution over the whole
sequence spends its time on fresh memory). The loop iterates over `unbind(0)` (indexing has a
backward pass that is quadratic in the number of steps), spikes are collected in a list and stacked
once, and `lerp` and `add(alpha=)` take the place of several elementwise operations each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlif import LIFConv1d, LIFLinear, LIReadout, Sequential


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
        steps: Sequence[Tensor] = spikes.unbind(0)
        counts = []
        for layer in self.layers:
            if isinstance(layer, LIReadout):
                return _readout(layer, _currents(layer, spikes, steps)), counts
            steps = _spikes(layer, _currents(layer, spikes, steps))
            spikes = torch.stack(steps)
            counts.append(spikes.sum(0))
        raise ValueError("the last layer of the network must be a readout")


def _currents(layer: nn.Module, spikes: Tensor, steps: Sequence[Tensor]) -> Iterable[Tensor]:
    """Feed-forward current of every step; the spikes come stacked and one by one."""
    if isinstance(layer, LIFConv1d):
        return (F.conv1d(s, layer.weight, layer.bias, layer.stride, layer.padding) for s in steps)
    return F.linear(spikes.flatten(2), layer.weight, layer.bias).unbind(0)


def _spikes(layer: LIFConv1d | LIFLinear, currents: Iterable[Tensor]) -> list[Tensor]:
    """Spikes of all steps, (batch, *features) each."""
    decay_mem, decay_syn = _decays(layer.tau_mem, layer.tau_syn, layer.dt)
    recurrence = _recurrence(layer)
    membrane = synaptic_current = None
    emitted = []
    for injected in currents:
        if membrane is None:
            membrane = synaptic_current = torch.zeros_like(injected)
        spikes = SurrogateSpike.apply(membrane - layer.threshold, layer.surrogate_slope)
        emitted.append(spikes)
        if recurrence is not None:
            injected = injected + recurrence(spikes)
        membrane = torch.lerp(synaptic_current, membrane, decay_mem) * (1.0 - spikes.detach())
        synaptic_current = torch.add(injected, synaptic_current, alpha=decay_syn)
    return emitted


def _recurrence(layer: LIFConv1d | LIFLinear) -> Callable[[Tensor], Tensor] | None:
    weight = layer.recurrent_weight
    if weight is None:
        return None
    if isinstance(layer, LIFLinear):
        return lambda spikes: F.linear(spikes, weight)
    return lambda spikes: F.conv1d(spikes, weight, padding=weight.shape[-1] // 2)


def _readout(layer: LIReadout, currents: Iterable[Tensor]) -> Tensor:
    """Maximum over time of the readout's membranes, (batch, classes)."""
    assert layer.tau_mem is not None  # the presets state it
    decay_mem, decay_syn = _decays(layer.tau_mem, layer.tau_syn, layer.dt)
    membrane = synaptic_current = None
    membranes = []
    for injected in currents:
        if membrane is None:
            membrane = torch.full_like(injected, layer.initial_membrane)
            synaptic_current = torch.zeros_like(injected)
        membranes.append(membrane)
        membrane = torch.lerp(synaptic_current, membrane, decay_mem)
        synaptic_current = torch.add(injected, synaptic_current, alpha=decay_syn)
    return torch.stack(membranes).max(0).values


def _decays(tau_mem: float, tau_syn: float, dt: float) -> tuple[float, float]:
    return math.exp(-dt / tau_mem), math.exp(-dt / tau_syn)
