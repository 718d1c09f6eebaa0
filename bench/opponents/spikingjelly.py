"""SpikingJelly: layers over all steps at once (step mode "m"), recurrent ones step by step ("s").

`CUBALIFNode` is its neuron with a synaptic current, in PyTorch. `LIFNode` has none, but an adjoint
of its own, in PyTorch on a CPU and in one kernel for all steps on a GPU, which SpikingJelly chooses
by itself (CUDA, or Triton). Readouts are the plain loop's, as there is no leaky integrator with a
synaptic current.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from bench.opponents.delayed import Constants, DelayedNetwork
from bench.opponents.loop import SurrogateSpike, lateral
from bench.opponents.rule import unfiltered_gain


class CurrentNetwork(DelayedNetwork):
    """With synaptic currents, and fastlif's surrogate gradient."""

    readouts = False
    recurrence_waits = True  # recurrent spikes take one step longer in fastlif

    def gain(self, constants: Constants) -> float:
        """The share of the current that fastlif's membrane takes."""
        return 1.0 - constants.decay_mem

    def neuron(self, layer: nn.Module, constants: Constants) -> nn.Module:
        """A node in the step mode that the layer needs."""
        node = self.node(constants)
        functional.set_step_mode(node, "m" if layer.recurrent_weight is None else "s")
        return node

    def node(self, constants: Constants) -> nn.Module:
        """`CUBALIFNode`."""
        node = neuron.CUBALIFNode(
            c_decay=constants.decay_syn,
            v_decay=constants.decay_mem,
            v_threshold=constants.threshold,
            v_reset=0.0,
            surrogate_function=partial(_spike, constants.slope),
        )
        node.detach_reset = True
        return node

    def run(self, index: int, layer: nn.Module, currents: Iterable[Tensor]) -> Iterable[Tensor]:
        """Spikes of every step."""
        node = self.neurons[str(index)]
        spikes: Iterable[Tensor]
        if layer.recurrent_weight is not None:
            spikes = list(self._recurrent(node, layer, currents))
        else:
            whole = currents if isinstance(currents, Tensor) else torch.stack(list(currents))
            spikes = node(whole)
        functional.reset_net(node)  # or it would start from this state, and keep its graph
        return spikes

    def _recurrent(
        self, node: nn.Module, layer: nn.Module, currents: Iterable[Tensor]
    ) -> Iterable[Tensor]:
        before = last = None
        for current in currents:
            known = before if self.recurrence_waits else last
            if known is not None:
                current = current + lateral(layer.recurrent_weight, known)
            spikes = node(current)
            before, last = last, spikes
            yield spikes


class LeakyNetwork(CurrentNetwork):
    """Without synaptic currents."""

    lag = 1
    recurrence_waits = False

    def gain(self, constants: Constants) -> float:
        """For membranes that fluctuate as much as with a synaptic current."""
        return unfiltered_gain(constants.decay_mem, constants.decay_syn)

    def node(self, constants: Constants) -> nn.Module:
        """`LIFNode`."""
        return neuron.LIFNode(
            tau=1.0 / (1.0 - constants.decay_mem),
            decay_input=True,
            v_threshold=constants.threshold,
            v_reset=0.0,
            surrogate_function=surrogate.SoftSign(alpha=constants.slope),
            detach_reset=True,
        )


def _spike(slope: float, distance: Tensor) -> Tensor:
    return SurrogateSpike.apply(distance, slope)
