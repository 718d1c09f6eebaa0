"""snnTorch: `Synaptic` with reset to zero and the fast sigmoid, which are fastlif's equations.

Recurrent currents are added to the input of `Synaptic`: `RSynaptic`, meant for them, computes the
recurrent product twice a step when it resets to zero. A readout is `Synaptic` without reset.
"""

from __future__ import annotations

from collections.abc import Iterable

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from bench.opponents.delayed import Constants, DelayedNetwork
from bench.opponents.loop import lateral
from fastlif import LIReadout


class SnnTorchNetwork(DelayedNetwork):
    """The network in snnTorch; its neurons add currents unscaled, so weights are scaled."""

    def gain(self, constants: Constants) -> float:
        """The share of the current that fastlif's membrane takes."""
        return 1.0 - constants.decay_mem

    def neuron(self, layer: nn.Module, constants: Constants) -> nn.Module:
        """`Synaptic`."""
        return snntorch.Synaptic(
            alpha=constants.decay_syn,
            beta=constants.decay_mem,
            threshold=constants.threshold,
            spike_grad=surrogate.fast_sigmoid(slope=constants.slope),
            reset_mechanism="none" if isinstance(layer, LIReadout) else "zero",
        )

    def run(self, index: int, layer: nn.Module, currents: Iterable[Tensor]) -> Iterable[Tensor]:
        """Spikes of every step."""
        neuron = self.neurons[str(index)]
        synaptic_current, membrane = neuron.reset_mem()
        before = last = None  # recurrent spikes take one step longer in fastlif
        for current in currents:
            if layer.recurrent_weight is not None and before is not None:
                current = current + lateral(layer.recurrent_weight, before)
            spikes, synaptic_current, membrane = neuron(current, synaptic_current, membrane)
            before, last = last, spikes
            yield spikes

    def integrate(
        self, index: int, layer: LIReadout, currents: Iterable[Tensor], start: float
    ) -> Iterable[Tensor]:
        """Membranes of every step."""
        neuron = self.neurons[str(index)]
        synaptic_current, membrane = neuron.reset_mem()
        for step, current in enumerate(currents):
            if step == 0:
                membrane = torch.full_like(current, start)
            _, synaptic_current, membrane = neuron(current, synaptic_current, membrane)
            yield membrane
