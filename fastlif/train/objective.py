"""What training lowers and what is measured on the way: populations, bounds, sums of a pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastlif.init.traversal import spiking_layers
from fastlif.layers.dalian import DalianLIF
from fastlif.losses import (
    lower_bound,
    max_over_time_cross_entropy,
    mean_of_networks,
    upper_bound,
)
from fastlif.models import Regularization
from fastlif.spikes import PackedSpikes
from fastlif.train.logs import Scores
from fastlif.train.parallel import Processes

__all__ = [
    "JointBounds",
    "Meter",
    "Objective",
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


@dataclass(frozen=True)
class JointBounds:
    """Bounds on the spike counts of several networks, which agree in the unit of the upper one.

    Their numbers are tensors: within a CUDA graph none can be brought to the device.
    """

    each: tuple[Regularization, ...]
    numbers: dict[str, Tensor]  # (networks,), by their names in `Regularization`

    @classmethod
    def of(cls, each: Sequence[Regularization], like: Tensor) -> JointBounds:
        """Those of networks whose parameters are on the device and of the dtype of `like`."""
        names = ("upper_strength", "v_upper", "lower_strength", "v_lower")
        numbers = {name: like.new_tensor([getattr(one, name) for one in each]) for name in names}
        return cls(tuple(each), numbers)

    def primed(self) -> JointBounds:
        """What the networks are primed with."""
        return JointBounds.of([*map(priming_bounds, self.each)], self.numbers["v_upper"])


def penalty(
    spike_counts: Sequence[Tensor],  # one (batch, channels, *sizes) per population
    bounds: Regularization | JointBounds,
) -> Tensor | None:  # scalar, or (networks,)
    """Sum of the bounds with a strength above 0 (in any network), None if there are none."""
    if isinstance(bounds, Regularization):
        each: tuple[Regularization, ...] = (bounds,)
        networks, numbers = None, vars(bounds)
    else:
        each, networks, numbers = bounds.each, len(bounds.each), bounds.numbers
    total = None
    if any(one.upper_strength > 0 for one in each):
        own = numbers["v_upper"], numbers["upper_strength"]
        total = upper_bound(spike_counts, *own, each[0].upper_per, networks)
    if any(one.lower_strength > 0 for one in each):
        own = numbers["v_lower"], numbers["lower_strength"]
        lower = lower_bound(spike_counts, *own, networks)
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

    The sums are changed in place, so that adding to them can be part of a CUDA graph. With
    `networks` they are those of each of several networks side by side.
    """

    def __init__(self, duration: float, device: torch.device, networks: int | None = None) -> None:
        self._duration = duration
        self._networks = networks
        # Of loss, penalty, correct answers and samples; (4,) or (4, networks).
        shape = (4,) if networks is None else (4, networks)
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        # Mean spike count, summed over samples; (populations,) or (populations, networks).
        self._rates: Tensor | None = None

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
        loss: Tensor,  # as the penalty scalar, or (networks,)
        penalty: Tensor | None,
    ) -> None:
        """Add one batch, of each of several networks."""
        with torch.no_grad():
            n = len(targets) // (self._networks or 1)
            correct = (scores.argmax(dim=1) == targets).unflatten(0, (-1, n)).sum(1).view_as(loss)
            penalty = torch.zeros_like(loss) if penalty is None else penalty
            self._sums += torch.stack((loss * n, penalty * n, correct, torch.full_like(correct, n)))
            means = [mean_of_networks(counts, self._networks) for counts in spike_counts]
            rates = torch.stack(means) * n
            if self._rates is None:
                self._rates = torch.zeros_like(rates)
            self._rates += rates

    def scores(self, processes: Processes) -> Scores:
        """Means over all samples that were added, by all processes together."""
        assert self._rates is not None  # a pass has at least one batch
        processes.add(self._sums)
        processes.add(self._rates)
        return self._means(self._sums.tolist(), self._rates.tolist())

    def scores_of_networks(self) -> list[Scores]:
        """Means over all samples that were added, of each of several networks."""
        assert self._rates is not None
        pairs = zip(self._sums.t().tolist(), self._rates.t().tolist(), strict=True)
        return [self._means(*sums) for sums in pairs]

    def _means(self, sums: list[float], counts: list[float]) -> Scores:
        loss, penalty, correct, n_samples = sums
        rates = [count / n_samples for count in counts]
        return Scores(
            loss=loss / n_samples,
            accuracy=correct / n_samples,
            penalty=penalty / n_samples,
            firing_rates=tuple(rate / self._duration for rate in rates),
        )


class Objective:
    """What training lowers, batch by batch, and the sums that go with it.

    Args:
        model: a preset's network, or several side by side.
        wanted: its populations.
        bounds: of the network, or of each of several.
        meter: every batch is added to it; the sums stay on the device.
        shared_input: several networks get the same batches.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Sequence[Population],
        bounds: Regularization | JointBounds,
        meter: Meter,
        *,
        shared_input: bool = False,
    ) -> None:
        self._model = model
        self._populations = wanted
        self._bounds = bounds
        if isinstance(bounds, Regularization):
            self._networks = None
            self._primed: Regularization | JointBounds = priming_bounds(bounds)
        else:
            self._networks = len(bounds.each)
            self._primed = bounds.primed()
        self._meter = meter
        self._shared_input = shared_input

    def supervised(self, inputs: PackedSpikes | Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy and bounds, a scalar: of several networks the sum."""
        output, counts, targets = self._run(inputs, targets)
        loss = max_over_time_cross_entropy(output, targets, self._networks)
        bounds = penalty(self._bounded(counts), self._bounds)
        self._meter.add(output, targets, counts, loss, bounds)
        return self._total(loss if bounds is None else loss + bounds)

    def priming(self, inputs: PackedSpikes | Tensor, targets: Tensor) -> Tensor:
        """The bounds of priming, whatever the targets: they are for the sums alone."""
        output, counts, targets = self._run(inputs, targets)
        loss = penalty(self._bounded(counts), self._primed)
        assert loss is not None  # its strength is not 0
        cross_entropy = max_over_time_cross_entropy(output.detach(), targets, self._networks)
        self._meter.add(output, targets, counts, cross_entropy, loss)
        return self._total(loss)

    def forward(
        self, inputs: PackedSpikes | Tensor, *, shared_input: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Scores (batch, classes) and the spike counts of every population."""
        flags = {"shared_input": True} if shared_input else {}
        output, _, counts = self._model(inputs, return_spike_counts=True, **flags)
        return output, split_counts(counts, self._populations)

    def _run(
        self, inputs: PackedSpikes | Tensor, targets: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        output, counts = self.forward(inputs, shared_input=self._shared_input)
        if self._shared_input:
            targets = targets.repeat(self._networks or 1)
        return output, counts, targets

    def _bounded(self, counts: list[Tensor]) -> list[Tensor]:
        """Those of the populations that have bounds."""
        return [one for one, of in zip(counts, self._populations, strict=True) if of.bounded]

    def _total(self, loss: Tensor) -> Tensor:
        return loss if self._networks is None else loss.sum()
