"""Everything that happens in a module during one sample, to draw it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastlif.init.traversal import visit_inputs
from fastlif.inspection.batches import (
    ReachedLayer,
    n_samples_of,
    reached_layers,
    samples_of,
)
from fastlif.inspection.membranes import trace_layer, trace_readout
from fastlif.layers import LIF, StackLayer
from fastlif.spikes import PackedSpikes

MOST_MEMBRANES = 512  # neurons of a population whose membranes are kept


@dataclass(frozen=True)
class PopulationRecord:
    """One population during one sample. Neurons are the features flattened."""

    layer: str
    population: str  # as in `Activity`
    spikes: Tensor  # (time, neurons) bool
    membrane: Tensor  # (time, kept neurons) with reset; at most MOST_MEMBRANES, evenly spread
    neurons: Tensor  # (kept neurons,) int64, which ones
    threshold: float


@dataclass(frozen=True)
class Recording:
    """One sample's way through a module, on the CPU."""

    input: Tensor | None  # (time, inputs) bool; None if the input is not spikes
    populations: tuple[PopulationRecord, ...]  # in the order in which the module runs them
    readouts: dict[str, Tensor]  # membranes (time, classes), by name
    dt: float  # seconds
    target: int | None  # class of the sample


def record(
    module: nn.Module,
    inputs: Tensor | PackedSpikes,
    sample: int = 0,
    *,
    targets: Tensor | None = None,
) -> Recording:
    """Spikes and membranes of every layer during one sample of a batch.

    module, inputs: as for `inspect`.
    sample: its number in the batch.
    targets: (batch,) classes of the samples, if they are to be noted.

    Raises ValueError as `inspect`, and for a sample that the batch does not have.
    """
    reached = reached_layers(module, inputs)
    n_samples = n_samples_of(module, inputs)
    if not 0 <= sample < n_samples:
        raise ValueError(f"sample must be between 0 and {n_samples - 1}, got {sample}")
    one = samples_of(module, inputs, sample, sample + 1)
    populations: list[PopulationRecord] = []
    readouts: dict[str, Tensor] = {}
    first_input: list[Tensor | None] = []

    def visit(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        if not first_input:
            first_input.append(_spikes(reached[name], layer_input))
        if reached[name].is_readout:
            readouts[name] = trace_readout(reached[name], layer_input)[:, 0].cpu()
            return
        assert isinstance(layer, LIF)
        trace = trace_layer(reached[name], layer_input)
        for population, channels in reached[name].populations():
            spikes = trace.spikes[:, 0, channels].flatten(1).bool().cpu()
            membrane = trace.membrane[:, 0, channels].flatten(1).cpu()
            n_neurons = membrane.shape[1]
            kept = torch.linspace(0, n_neurons - 1, min(n_neurons, MOST_MEMBRANES)).long()
            populations.append(
                PopulationRecord(name, population, spikes, membrane[:, kept], kept, layer.threshold)
            )

    visit_inputs(module, one, visit)
    return Recording(
        input=first_input[0],
        populations=tuple(populations),
        readouts=readouts,
        dt=next(iter(reached.values())).layer.dt,
        target=None if targets is None else int(targets[sample]),
    )


def _spikes(reached: ReachedLayer, layer_input: Tensor | PackedSpikes) -> Tensor | None:
    """A layer's input of one sample as (time, inputs) bool; None unless it is spikes."""
    signal = reached.layer.time_first(layer_input)
    if isinstance(signal, PackedSpikes):
        signal = signal.unpack()
    if reached.plan.feedforward is None or bool(((signal != 0) & (signal != 1)).any()):
        return None
    return signal[:, 0].flatten(1).bool().cpu()
