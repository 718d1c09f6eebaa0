"""What training lowers and what is measured on the way: populations, bounds, sums of a pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastlif.init.traversal import spiking_layers
from fastlif.layers.dalian import DalianLIF
from fastlif.losses import lower_bound, upper_bound
from fastlif.models import Regularization
from fastlif.train.logs import Scores
from fastlif.train.parallel import Processes

__all__ = [
    "Meter",
    "Population",
    "penalty",
    "penalty_of",
    "populations",
    "priming_bounds",
    "split_counts",
]


def priming_bounds(bounds: Regularization) -> Regularization:
    """What a network is primed with: every neuron is to spike in every sample (eq 24).

    A run's upper bound stays. Weights that neurons share are pushed up as long as one of the
    neurons is silent, and some hear no input that could make them fire: the lower bound alone
    drives the others to 150 Hz, from where supervised training does not come back.
    """
    return dataclasses.replace(bounds, lower_strength=1.0, v_lower=1.0)


@dataclass(frozen=True)
class Population:
    """Neurons of one kind in one layer: what a bound on spike counts is for, and a rate."""

    name: str  # the layer's, with "_inhibitory" behind it for its inhibitory neurons
    layer: int  # position of the layer among the spiking ones
    channels: slice | None  # of the layer; None: all
    bounded: bool  # whether the bounds on spike counts are for it


def populations(network: nn.Module) -> tuple[Population, ...]:
    """The populations of a preset's network, in order.

    Excitatory and inhibitory neurons of a layer that obeys Dale's law are two, each with bounds of
    its own, as the bounds are on means over a population. The encoder of images has none: it is
    input, whose rate is what the images and the gradient of the loss make of it.
    """
    found = []
    for index, (name, layer) in enumerate(spiking_layers(network).items()):
        if isinstance(layer, DalianLIF):
            excitatory = slice(0, layer.n_excitatory)
            inhibitory = slice(layer.n_excitatory, None)
            found.append(Population(name, index, excitatory, layer.hidden))
            found.append(Population(f"{name}_inhibitory", index, inhibitory, layer.hidden))
        else:
            found.append(Population(name, index, None, layer.hidden))
    return tuple(found)


def split_counts(
    spike_counts: Sequence[Tensor],  # one (batch, channels, *sizes) per spiking layer
    wanted: Sequence[Population],
) -> list[Tensor]:  # one (batch, channels of the population, *sizes) each
    """The spike counts of populations."""
    return [
        spike_counts[one.layer]
        if one.channels is None
        else spike_counts[one.layer][:, one.channels]
        for one in wanted
    ]


def penalty(
    spike_counts: Sequence[Tensor],  # one (batch, channels, *sizes) per population
    bounds: Regularization,
) -> Tensor | None:
    """Sum of the bounds with a strength above 0, None if there are none."""
    total = None
    if bounds.upper_strength > 0:
        total = upper_bound(spike_counts, bounds.v_upper, bounds.upper_strength, bounds.upper_per)
    if bounds.lower_strength > 0:
        lower = lower_bound(spike_counts, bounds.v_lower, bounds.lower_strength)
        total = lower if total is None else total + lower
    return total


def penalty_of(
    network: nn.Module, bounds: Regularization
) -> Callable[[Sequence[Tensor]], Tensor | None]:
    """The penalty as a function of the spike counts of a preset's network, one per layer."""
    wanted = populations(network)

    def of_counts(spike_counts: Sequence[Tensor]) -> Tensor | None:
        counts = zip(split_counts(spike_counts, wanted), wanted, strict=True)
        return penalty([own for own, population in counts if population.bounded], bounds)

    return of_counts


class Meter:
    """Sums over the batches of one pass, on the device: nothing waits until the end of it.

    The sums are changed in place, so that adding to them can be part of a CUDA graph.
    """

    def __init__(self, duration: float, device: torch.device) -> None:
        self._duration = duration
        # Of loss, penalty, correct answers and samples.
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._rates: Tensor | None = None  # (populations,) mean spike count, summed over samples

    def reset(self) -> None:
        """Begin another pass."""
        self._sums.zero_()
        if self._rates is not None:
            self._rates.zero_()

    def add(
        self,
        scores: Tensor,  # (batch, classes)
        targets: Tensor,  # (batch,)
        spike_counts: Sequence[Tensor],  # one per population
        loss: Tensor,
        penalty: Tensor | None,
    ) -> None:
        """Add one batch."""
        with torch.no_grad():
            n = len(targets)
            correct = (scores.argmax(dim=1) == targets).sum()
            penalty = torch.zeros_like(loss) if penalty is None else penalty
            self._sums += torch.stack((loss * n, penalty * n, correct, torch.full_like(correct, n)))
            rates = torch.stack([counts.mean() for counts in spike_counts]) * n
            if self._rates is None:
                self._rates = torch.zeros_like(rates)
            self._rates += rates

    def scores(self, processes: Processes) -> Scores:
        """Means over all samples that were added, by all processes together."""
        assert self._rates is not None  # a pass has at least one batch
        processes.add(self._sums)
        processes.add(self._rates)
        loss, penalty, correct, n_samples = self._sums.tolist()
        rates = [count / n_samples for count in self._rates.tolist()]
        return Scores(
            loss=loss / n_samples,
            accuracy=correct / n_samples,
            penalty=penalty / n_samples,
            firing_rates=tuple(rate / self._duration for rate in rates),
        )
