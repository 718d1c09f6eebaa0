"""How much the neurons of each layer fire, and what to do about a layer that hardly does or always.

Populations are judged by the rule of `fastlif.init.activity`, as layers are after initialization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastlif.init.activity import (
    SATURATED_SHARE,
    activity_state,
    saturated_share,
    silent_share,
)
from fastlif.init.traversal import visit_inputs
from fastlif.inspection.batches import (
    ReachedLayer,
    n_samples_of,
    reached_layers,
    samples_of,
    slices,
)
from fastlif.layers import LIFOutput, Sequential, StackLayer, StackOutput
from fastlif.spikes import PackedSpikes


@dataclass(frozen=True)
class Activity:
    """Firing of one population over a batch: all neurons of a layer, or one of its two kinds."""

    layer: str  # the layer's name in the model
    population: str  # "all"; "excitatory" or "inhibitory" of a layer that obeys Dale's law
    n_neurons: int
    n_samples: int
    firing_rate: float  # Hz, mean over neurons, samples and steps
    silent: float  # share of the neurons that fire in no sample, 0..1
    saturated: float  # share of the neurons that fire in more than SATURATED_SHARE of the steps
    # (n_neurons,) Hz, mean over samples and steps
    neuron_rates: Tensor = field(repr=False, compare=False)


class CountSums:
    """Spike counts of one layer, summed over the samples of any number of slices of a batch."""

    def __init__(self, reached: ReachedLayer) -> None:
        self.reached = reached
        self.n_samples = 0
        self._counts = torch.zeros(reached.plan.features, dtype=torch.float64)

    def add(self, counts: Tensor) -> None:
        """Add the counts (batch, *features), all neurons of the layer, of some samples."""
        self._counts += counts.detach().sum(0, dtype=torch.float64).cpu()
        self.n_samples += len(counts)

    def activities(self) -> tuple[Activity, ...]:
        """One Activity for each population of the layer."""
        shares = self._counts / (self.n_samples * self.reached.n_steps)  # of steps with a spike
        dt = self.reached.layer.dt
        found = []
        for population, channels in self.reached.populations():
            own = shares[channels].flatten()
            found.append(
                Activity(
                    layer=self.reached.name,
                    population=population,
                    n_neurons=len(own),
                    n_samples=self.n_samples,
                    firing_rate=float(own.mean()) / dt,
                    silent=silent_share(own),
                    saturated=saturated_share(own),
                    neuron_rates=own / dt,
                )
            )
        return tuple(found)


def activity(module: nn.Module, inputs: Tensor | PackedSpikes) -> list[Activity]:
    """Firing of every population of a module's spiking layers in a batch, in order of depth.

    module: any module that contains spiking fastlif layers. A `fastlif.Sequential` runs fused and
        once, any other module layer by layer and twice.
    inputs: a batch as the module takes it.

    Raises ValueError when there is no spiking layer, none of the samples, or a layer never runs.
    """
    reached = reached_layers(module, inputs)
    sums = {name: CountSums(one) for name, one in reached.items() if not one.is_readout}
    with torch.no_grad():
        counts = _fused_counts(module, inputs, len(sums))
        if counts is not None:
            for layer_sums, layer_counts in zip(sums.values(), counts, strict=True):
                layer_sums.add(layer_counts)
        else:
            _visit_counts(module, inputs, sums)
    return [one for layer_sums in sums.values() for one in layer_sums.activities()]


def check_activity(module: nn.Module, inputs: Tensor | PackedSpikes) -> list[str]:
    """One line for each silent or saturated layer, naming the cure; see `activity_warnings`."""
    return activity_warnings(activity(module, inputs))


def activity_warnings(activities: Sequence[Activity]) -> list[str]:
    """One line for each population that is silent or saturated, naming the cure."""
    lines = []
    for one in activities:
        name = f"layer {one.layer!r}"
        if one.population != "all":
            name = f"the {one.population} population of {name}"
        state = activity_state(one.firing_rate, one.silent, one.saturated)
        if state == "silent":
            lines.append(
                f"{name} is silent ({one.firing_rate:.1f} Hz; {one.silent:.0%} of "
                f"{_counted(one.n_neurons, 'neuron')} never fire in "
                f"{_counted(one.n_samples, 'sample')}): raise sigma_u (try 1.0), add homeostasis "
                "(--lower-strength) or a priming period (--priming-epochs)"
            )
        elif state == "saturated":
            lines.append(
                f"{name} is saturated ({one.firing_rate:.1f} Hz; {one.saturated:.0%} of "
                f"{_counted(one.n_neurons, 'neuron')} fire in more than {SATURATED_SHARE:.0%} of "
                "the steps): lower sigma_u (try 1.0) or add an upper bound (--upper-strength, "
                "--v-upper)"
            )
    return lines


def layer_counts(layer: StackLayer, layer_input: Tensor | PackedSpikes) -> Tensor:
    """Spike counts (batch, *features) of all neurons of a spiking layer run by itself."""
    result = layer(layer_input, return_spike_counts=True)
    assert isinstance(result, LIFOutput) and result.spike_counts is not None
    return result.spike_counts


def _fused_counts(
    module: nn.Module, inputs: Tensor | PackedSpikes, n_layers: int
) -> Sequence[Tensor] | None:
    """Spike counts of all layers from one fused run; None if the module cannot give them."""
    if type(module).forward is not Sequential.forward:
        return None
    result = module(inputs, return_spike_counts=True)
    assert isinstance(result, StackOutput) and result.spike_counts is not None
    # A module of another kind in the sequence can hold layers whose counts it keeps to itself.
    return result.spike_counts if len(result.spike_counts) == n_layers else None


def _visit_counts(
    module: nn.Module, inputs: Tensor | PackedSpikes, sums: dict[str, CountSums]
) -> None:
    """Add the counts of every layer, run by itself on the input it gets in the module."""

    def visit(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        if name in sums:
            sums[name].add(layer_counts(layer, layer_input))

    largest = max(one.reached.numbers_per_sample for one in sums.values())
    # A layer's input and output, and what the run in between makes of them, exist at once.
    for start, stop in slices(n_samples_of(module, inputs), 4 * largest):
        visit_inputs(module, samples_of(module, inputs, start, stop), visit)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
