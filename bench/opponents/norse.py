"""Norse: `LIFRecurrentCell` in dense recurrent layers, `LIFCell` in others, `LICell` in readouts.

Cells, not the modules that loop over time: these index their input at every step, whose backward
pass is quadratic in the number of steps.
"""

from __future__ import annotations

from collections.abc import Iterable

import norse.torch as norse
import torch
from torch import Tensor, nn

from bench.opponents.delayed import Constants, DelayedNetwork
from bench.opponents.loop import lateral
from fastlif import LIReadout
from fastlif.ops import LayerPlan


def _is_dense_recurrent(layer: nn.Module) -> bool:
    weight = layer.recurrent_weight
    return weight is not None and weight.dim() == 2 and layer.bias is None


class NorseNetwork(DelayedNetwork):
    """The network in Norse; its time constants are those whose Euler steps are fastlif's decays."""

    def neuron(self, layer: nn.Module, constants: Constants) -> nn.Module:
        """A cell of Norse."""
        rates = {
            "tau_mem_inv": torch.tensor((1.0 - constants.decay_mem) / layer.dt),
            "tau_syn_inv": torch.tensor((1.0 - constants.decay_syn) / layer.dt),
        }
        if isinstance(layer, LIReadout):
            return norse.LICell(p=norse.LIParameters(**rates), dt=layer.dt)
        p = norse.LIFParameters(
            **rates,
            v_th=torch.tensor(constants.threshold),
            alpha=torch.tensor(constants.slope),
        )
        if not _is_dense_recurrent(layer):
            return norse.LIFCell(p=p, dt=layer.dt)
        return norse.LIFRecurrentCell(
            layer.in_features,
            layer.out_features,
            p=p,
            input_weights=layer.weight,
            recurrent_weights=layer.recurrent_weight,
            autapses=True,
            dt=layer.dt,
        )

    def currents(self, plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Iterable[Tensor]:
        """Currents, or the spikes themselves for cells that hold their input weights."""
        if not isinstance(layer, LIReadout) and _is_dense_recurrent(layer):
            return spikes[: len(spikes) - self.lag].flatten(2)
        return super().currents(plan, layer, spikes)

    def run(self, index: int, layer: nn.Module, currents: Iterable[Tensor]) -> Iterable[Tensor]:
        """Spikes of every step."""
        cell = self.neurons[str(index)]
        state = None
        before = last = None  # recurrent spikes take one step longer in fastlif
        for given in currents:
            if _is_dense_recurrent(layer):
                if state is not None:
                    known = torch.zeros_like(state.z) if before is None else before
                    state = norse.LIFState(known, state.v, state.i)
            elif layer.recurrent_weight is not None and before is not None:
                given = given + lateral(layer.recurrent_weight, before)
            spikes, state = cell(given, state)
            before, last = last, spikes
            yield spikes

    def integrate(
        self, index: int, layer: LIReadout, currents: Iterable[Tensor], start: float
    ) -> Iterable[Tensor]:
        """Membranes of every step."""
        cell = self.neurons[str(index)]
        state = None
        for current in currents:
            if state is None:
                state = norse.LIState(torch.full_like(current, start), torch.zeros_like(current))
            membrane, state = cell(current, state)
            yield membrane
