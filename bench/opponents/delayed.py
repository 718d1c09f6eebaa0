"""Networks of libraries whose neurons answer in the step that brings their current.

In fastlif a current of step n is part of I at n+1 and of U at n+2. Where it is part of both at n,
the library's spikes of step n are fastlif's of n+2. So a layer is run over all but its last steps,
and its spikes are moved to where fastlif has them; recurrent spikes are handed over late. The
library does its own work in its own order, on a few steps less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.opponents.loop import LoopNetwork, layer_is_spiking
from fastlif import LIReadout, Sequential
from fastlif.layers.base import decay_per_step
from fastlif.ops import LayerPlan


@dataclass(frozen=True)
class Constants:
    """Of a fastlif layer, per step."""

    decay_mem: float
    decay_syn: float
    threshold: float
    slope: float

    @staticmethod
    def of(layer: nn.Module) -> Constants:
        """Of a spiking layer or of a readout, which has no threshold."""
        if layer.delay or getattr(layer, "rescale_surrogate", False):
            raise ValueError("opponents have no delay of synapses and no rescaled surrogate")
        return Constants(
            decay_per_step("tau_mem", layer.tau_mem, layer.dt),
            decay_per_step("tau_syn", layer.tau_syn, layer.dt),
            getattr(layer, "threshold", 1.0),
            getattr(layer, "surrogate_slope", 1.0),
        )


class DelayedNetwork(LoopNetwork):
    """A network whose layers answer `lag` steps before fastlif's.

    Subclasses make the library's `neuron` of a layer, say with what `gain` its currents come, and
    run it in `run` and, if `readouts` are the library's too, in `integrate`.
    """

    lag = 2
    readouts = True

    def __init__(self, model: Sequential) -> None:
        super().__init__(model)
        self.scales = {name: 1.0 for name, _ in self.named_parameters()}  # ours / fastlif's
        self.neurons = nn.ModuleDict()  # of the library, by index of the layer
        for index, layer in enumerate(self.layers):
            if not layer_is_spiking(layer) and not (self.readouts and isinstance(layer, LIReadout)):
                continue
            constants = Constants.of(layer)
            gain = self.gain(constants)
            for name, parameter in layer.named_parameters():
                parameter.data.mul_(gain)
                self.scales[f"layers.{index}.{name}"] = gain
            self.neurons[str(index)] = self.neuron(layer, constants)

    def gain(self, constants: Constants) -> float:
        """Factor on the parameters of a layer."""
        return 1.0

    def neuron(self, layer: nn.Module, constants: Constants) -> nn.Module:
        """The library's neurons for a layer."""
        raise NotImplementedError

    def run(self, index: int, layer: nn.Module, currents: Iterable[Tensor]) -> Iterable[Tensor]:
        """The library's spikes at every step of the currents: a tensor of all, or one by one."""
        raise NotImplementedError

    def integrate(
        self, index: int, layer: LIReadout, currents: Iterable[Tensor], start: float
    ) -> Iterable[Tensor]:
        """Membranes of a readout after every step, (batch, classes) each; `start` is before it."""
        raise NotImplementedError

    def currents(self, plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Iterable[Tensor]:
        """Feed-forward current of every step that can have an effect."""
        if self.readouts or not isinstance(layer, LIReadout):
            spikes = spikes[: len(spikes) - self.lag]
        return super().currents(plan, layer, spikes)

    def spikes_of(
        self, index: int, plan: LayerPlan, layer: nn.Module, currents: Iterable[Tensor]
    ) -> Tensor:
        """Spikes of a layer where fastlif has them."""
        spikes = self.run(index, layer, currents)
        if isinstance(spikes, Tensor):
            return torch.cat([spikes.new_zeros(self.lag, *spikes.shape[1:]), spikes])
        steps = list(spikes)
        return torch.stack([torch.zeros_like(steps[0])] * self.lag + steps)

    def membranes_of(
        self, index: int, plan: LayerPlan, layer: LIReadout, currents: Iterable[Tensor]
    ) -> Tensor:
        """Membranes of a readout where fastlif has them."""
        if not self.readouts:
            return super().membranes_of(index, plan, layer, currents)
        values = [layer.initial_membrane * plan.decay_mem**step for step in range(self.lag)]
        membranes = list(self.integrate(index, layer, currents, values[-1]))
        before = [torch.full_like(membranes[0], value) for value in values]
        return torch.stack(before + membranes)
