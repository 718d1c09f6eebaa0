"""The opponent: the same equations as a loop over time in plain PyTorch, written to be fast.

What was faster on a CPU was taken: a dense layer's feed-forward currents of all steps are one
matrix product, a convolutional layer's are computed step by step (one convolution over the whole
sequence spends its time on fresh memory). The loop iterates over tensors, which unbinds them
(indexing has a backward pass that is quadratic in the number of steps), spikes are collected in a
list and stacked once, and `lerp` and `add(alpha=)` take the place of several elementwise operations
each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlif import LIReadout, Sequential
from fastlif.layers.base import StackLayer
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
    """A network of `bench.cases` in plain PyTorch, on the parameters of the given one.

    Networks of other libraries derive from it: they differ in `spikes_of` and `membranes_of`.
    """

    def __init__(self, model: Sequential) -> None:
        super().__init__()
        self.layers = nn.ModuleList(model)

    def forward(self, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and spike counts of spikes (time, batch, *features).

        Scores are the maxima over time of a readout's membranes, (batch, classes), or the spikes
        of the last layer where there is no readout. Counts are (batch, *features) a spiking layer.
        """
        emitted = self.emitted(spikes)
        return emitted[-1], [spikes.sum(0) for spikes in emitted[: self.n_spiking]]

    @property
    def n_spiking(self) -> int:
        """Number of spiking layers."""
        return sum(layer_is_spiking(layer) for layer in self.layers)

    def emitted(self, spikes: Tensor) -> list[Tensor]:
        """The spikes of every spiking layer, (time, batch, *features), then scores if any."""
        found: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            plan = layer.plan(tuple(spikes.shape[2:]), len(spikes))
            if plan.kind == "max_pool":
                spikes = torch.stack([_pooled(plan, step) for step in spikes.unbind(0)])
                continue
            currents = self.currents(plan, layer, spikes)
            if isinstance(layer, LIReadout):
                return [*found, self.membranes_of(index, plan, layer, currents).max(0).values]
            spikes = self.spikes_of(index, plan, layer, currents)
            found.append(spikes)
            spikes = spikes[:, :, : plan.emitted_features[0]]
        return found

    def currents(self, plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Iterable[Tensor]:
        """Feed-forward current of every step."""
        if len(plan.features) == 1:
            return F.linear(spikes.flatten(2), layer.weight, layer.bias)
        return (convolved(plan, layer, step) for step in spikes.unbind(0))

    def spikes_of(
        self, index: int, plan: LayerPlan, layer: nn.Module, currents: Iterable[Tensor]
    ) -> Tensor:
        """Spikes of a layer, (time, batch, *features)."""
        return torch.stack(_spikes(plan, layer, currents))

    def membranes_of(
        self, index: int, plan: LayerPlan, layer: LIReadout, currents: Iterable[Tensor]
    ) -> Tensor:
        """Membranes of a readout, (time, batch, classes)."""
        return torch.stack(_membranes(plan, layer, currents))


def layer_is_spiking(layer: nn.Module) -> bool:
    """Whether a fastlif layer emits spikes of its own."""
    return isinstance(layer, StackLayer) and not isinstance(layer, LIReadout)


def convolved(plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Tensor:
    """The convolution of a layer, of spikes (batch, *features)."""
    convolve = F.conv1d if len(plan.features) == 2 else F.conv2d
    link, n = plan.feedforward, len(plan.features) - 1
    return convolve(spikes, layer.weight, layer.bias, link.stride[-n:], link.padding[-n:])


def _pooled(plan: LayerPlan, spikes: Tensor) -> Tensor:
    link = plan.feedforward
    return F.max_pool2d(spikes, link.kernel, link.stride, link.padding)


StepState = tuple[Tensor, Tensor, Tensor]  # membrane, synaptic current, inhibitory current


class StepConstants(NamedTuple):
    """What a layer's step has besides tensors of the step."""

    decays: tuple[Any, Any, Any]  # of membrane, synaptic and inhibitory current
    threshold: float
    slope: float
    n_excitatory: int
    has_inhibition: bool


def step_constants(plan: LayerPlan, like: Tensor) -> StepConstants:
    """The constants of a layer, tensors among them as `like`."""
    return StepConstants(
        _decays(plan, like),
        plan.threshold,
        plan.surrogate_slope,
        plan.emitted_features[0],
        plan.inhibition is not None,
    )


def lif_step(
    constants: StepConstants,
    state: StepState,
    injected: Tensor,  # feed-forward current (batch, *features)
    recurrent_weight: Tensor | None,
    inhibitory_weight: Tensor | None,
) -> tuple[Tensor, StepState]:
    """Spikes of a step (batch, *features), and the state after it."""
    decay_mem, decay_syn, decay_inhibitory = constants.decays
    membrane, synaptic_current, inhibitory_current = state
    spikes = SurrogateSpike.apply(membrane - constants.threshold, constants.slope)
    if recurrent_weight is not None:
        injected = injected + lateral(recurrent_weight, spikes[:, : constants.n_excitatory])
    has_inhibition = constants.has_inhibition
    net = synaptic_current - inhibitory_current if has_inhibition else synaptic_current
    membrane = torch.lerp(net, membrane, decay_mem) * (1.0 - spikes.detach())
    if inhibitory_weight is not None:
        own = lateral(inhibitory_weight, spikes[:, constants.n_excitatory :])
        inhibitory_current = torch.addcmul(own, inhibitory_current, decay_inhibitory)
        synaptic_current = torch.addcmul(injected, synaptic_current, decay_syn)
    else:
        synaptic_current = torch.add(injected, synaptic_current, alpha=decay_syn)
    return spikes, (membrane, synaptic_current, inhibitory_current)


def _spikes(plan: LayerPlan, layer: nn.Module, currents: Iterable[Tensor]) -> list[Tensor]:
    """Spikes of all steps, (batch, *features) each."""
    constants = step_constants(plan, layer.weight)
    weights = (layer.recurrent_weight, layer.inhibitory_weight)
    state: StepState | None = None
    emitted = []
    for injected in currents:
        if state is None:
            zeros = torch.zeros_like(injected)
            state = (zeros, zeros, zeros)
        spikes, state = lif_step(constants, state, injected, *weights)
        emitted.append(spikes)
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


def lateral(weight: Tensor, spikes: Tensor) -> Tensor:
    """Current of synapses inside a layer, of spikes (batch, *features)."""
    if weight.dim() == 2:
        return F.linear(spikes, weight)
    convolve = F.conv1d if weight.dim() == 3 else F.conv2d
    return convolve(spikes, weight, padding=[size // 2 for size in weight.shape[2:]])


def readout_step(
    state: tuple[Tensor, Tensor],  # membrane, synaptic current
    injected: Tensor,
    decay_mem: float,
    decay_syn: float,
) -> tuple[Tensor, Tensor]:
    """The state of a readout after a step."""
    membrane, synaptic_current = state
    return (
        torch.lerp(synaptic_current, membrane, decay_mem),
        torch.add(injected, synaptic_current, alpha=decay_syn),
    )


def _membranes(plan: LayerPlan, layer: LIReadout, currents: Iterable[Tensor]) -> list[Tensor]:
    state: tuple[Tensor, Tensor] | None = None
    membranes = []
    for injected in currents:
        if state is None:
            state = torch.full_like(injected, layer.initial_membrane), torch.zeros_like(injected)
        membranes.append(state[0])
        state = readout_step(state, injected, plan.decay_mem, plan.decay_syn)
    return membranes
