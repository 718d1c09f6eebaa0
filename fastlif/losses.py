"""Losses: maximum-over-time cross-entropy and bounds on the spike counts.

All three are added to each other: cross-entropy + upper bound + lower bound.
The spike counts come from the forward pass (`return_spike_counts=True`) and are differentiable:
the gradient of a count reaches every step's spike of that neuron.

With `networks`, scores and counts are those of several networks side by side, one network behind
the other in the batch, and a loss is one value per network, (networks,), bit for bit what it is of
that network alone: in float32 and float64, of up to 512 classes, not under torch.compile. Bounds
and strengths are then one number or one per network, in a sequence, or in a tensor (networks,) on
the device, which a CUDA graph needs; its values are not checked. On a GPU with the CUDA kernels,
losses of many networks are as many launches as of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from fastlif.ops import means

__all__ = ["lower_bound", "max_over_time_cross_entropy", "upper_bound"]

_NO_CLASS = torch.iinfo(torch.int64).min  # for torch, which would leave out targets of -100
Numbers = float | Sequence[float] | Tensor  # one for all networks, or one for each


def max_over_time_cross_entropy(
    scores: Tensor,  # (batch, classes), or the readout's membrane (time, batch, classes)
    targets: Tensor,  # (batch,) int64 class numbers; of several networks also those of one
    networks: int | None = None,
) -> Tensor:  # scalar, mean over the batch; (networks,)
    """Cross-entropy of the largest membrane of every readout unit over time.

    Rossbroich et al. 2022, eqs 20 and 21. A readout with `reduction="max"` has already taken the
    maximum and gives (batch, classes); a trace is reduced here, the first maximum getting the
    gradient. Targets count from 0; all samples have one.

    Raises:
        ValueError: scores are not 2-d or 3-d, or targets do not fit them.
        TypeError: targets are not int64.
    """
    if scores.dim() not in (2, 3):
        raise ValueError(
            "scores must be (batch, classes) or (time, batch, classes), "
            f"got shape {tuple(scores.shape)}"
        )
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 class numbers, got dtype {targets.dtype}")
    n_samples = scores.shape[-2]
    _check_networks(networks, scores=n_samples)
    if networks is not None and targets.shape == (n_samples // networks,):
        targets = targets.repeat(networks)
    if targets.shape != (n_samples,):
        raise ValueError(
            f"targets must have shape ({n_samples},) to match scores of shape "
            f"{tuple(scores.shape)}, got {tuple(targets.shape)}"
        )
    if scores.dim() == 3:
        scores = scores.max(dim=0).values
    if means.suits(scores):
        each = functional.nll_loss(
            scores.log_softmax(1), targets, ignore_index=_NO_CLASS, reduction="none"
        )
        return mean_of_networks(each, networks)
    if networks is None:
        return functional.cross_entropy(scores, targets, ignore_index=_NO_CLASS)
    parts = zip(scores.log_softmax(1).chunk(networks), targets.chunk(networks), strict=True)
    return torch.stack([functional.nll_loss(*part, ignore_index=_NO_CLASS) for part in parts])


def upper_bound(
    spike_counts: Sequence[Tensor],  # one (batch, *features) per spiking layer
    v_upper: Numbers,
    strength: Numbers,
    per: Literal["layer", "channel"] = "layer",
    networks: int | None = None,
) -> Tensor:  # scalar; (networks,)
    """Soft upper bound on the mean spike count of a population.

    Rossbroich et al. 2022, eq 22: per sample the square of what the mean count of a layer's neurons
    exceeds `v_upper` (spikes per sample), averaged over the batch, summed over the layers, times
    `strength`. With `per="channel"` every feature map of a convolutional layer has a bound of
    its own, on the mean over its positions, and the squares are averaged over the maps; on a dense
    layer the two are the same.

    Raises:
        ValueError: no counts, counts without a feature dimension, an unknown `per`, or a
            `v_upper` or `strength` that is negative or not finite.
    """
    _check(spike_counts, networks, v_upper=v_upper, strength=strength)
    if per not in ("layer", "channel"):
        raise ValueError(f"per must be 'layer' or 'channel', got {per!r}")
    penalties = []
    for counts in spike_counts:
        first = 1 if per == "layer" or counts.dim() == 2 else 2
        mean_counts = _mean_of_last(counts.flatten(first))
        excess = mean_counts - _of_samples(v_upper, mean_counts)
        penalties.append(mean_of_networks(excess.relu().square(), networks))
    return _per_network(strength, penalties[0]) * _total(penalties)


def lower_bound(
    spike_counts: Sequence[Tensor],  # one (batch, *features) per spiking layer
    v_lower: Numbers,
    strength: Numbers,
    networks: int | None = None,
) -> Tensor:  # scalar; (networks,)
    """Soft lower bound on the spike count of every neuron.

    Rossbroich et al. 2022, eq 24: the square of what a neuron's count in one sample lacks to
    `v_lower`, averaged over neurons and batch, summed over the layers, times `strength`.

    Raises:
        ValueError: no counts, counts without a feature dimension, or a `v_lower` or `strength`
            that is negative or not finite.
    """
    _check(spike_counts, networks, v_lower=v_lower, strength=strength)
    penalties = []
    for counts in spike_counts:
        lacking = _of_samples(v_lower, counts) - counts
        penalties.append(mean_of_networks(lacking.relu().square(), networks))
    return _per_network(strength, penalties[0]) * _total(penalties)


def mean_of_networks(values: Tensor, networks: int | None) -> Tensor:
    """The mean of all values, or with `networks` that of each network's samples, (networks,)."""
    if means.suits(values):
        # In two steps, as a row is for one block of the device.
        each = values if values.dim() == 1 else means.row_means(values.flatten(1))
        n = networks or 1
        result = means.row_means(each.view(n, len(each) // n))
        return result.view(()) if networks is None else result
    if networks is None:
        return values.mean()
    # One after the other: the order of the sum is that of the network alone.
    return torch.stack([own.mean() for own in values.chunk(networks)])


def _mean_of_last(values: Tensor) -> Tensor:
    """The mean over the last dimension, whose bits do not depend on how many there are."""
    if means.suits(values):
        return means.row_means(values.flatten(0, -2)).unflatten(0, values.shape[:-1])
    return values.mean(dim=-1)


def _per_network(number: Numbers, like: Tensor) -> float | Tensor:
    """A number as it is, or one per network on the device and in the dtype of `like`."""
    if isinstance(number, Tensor):
        return number.to(like.dtype) if number.dim() else number
    if isinstance(number, Sequence):
        return torch.tensor(number, dtype=like.dtype, device=like.device)
    return number


def _of_samples(number: Numbers, values: Tensor) -> float | Tensor:
    """The same for every sample of `values`, (batch, ...)."""
    own = _per_network(number, values)
    if not isinstance(own, Tensor) or own.dim() == 0:
        return own
    return own.repeat_interleave(len(values) // len(own)).view(-1, *[1] * (values.dim() - 1))


def _total(penalties: list[Tensor]) -> Tensor:
    total = penalties[0]
    for penalty in penalties[1:]:
        total = total + penalty
    return total


def _check(spike_counts: Sequence[Tensor], networks: int | None, **numbers: Any) -> None:
    if isinstance(spike_counts, Tensor):
        raise TypeError("spike_counts must be a sequence of tensors, one per layer, got one tensor")
    if len(spike_counts) == 0:
        raise ValueError("spike_counts must hold one tensor per spiking layer, got none")
    for index, counts in enumerate(spike_counts):
        if counts.dim() < 2:
            raise ValueError(
                f"spike_counts[{index}] must be (batch, *features), got shape {tuple(counts.shape)}"
            )
        _check_networks(networks, **{f"spike_counts[{index}]": len(counts)})
    for name, number in numbers.items():
        several = isinstance(number, Sequence) or (isinstance(number, Tensor) and number.dim() > 0)
        own: Sequence[Any] = (number,)
        if several:
            own = [] if isinstance(number, Tensor) else number
            if networks is None or len(number) != networks:
                wanted = "one number" if networks is None else f"one number or {networks}"
                raise ValueError(f"{name} must be {wanted}, got {number}")
        for one in own:
            if not (math.isfinite(one) and one >= 0):
                raise ValueError(f"{name} must be finite and >= 0, got {one}")


def _check_networks(networks: int | None, **samples: int) -> None:
    for name, n_samples in samples.items():
        if networks is not None and (networks < 1 or n_samples % networks):
            raise ValueError(
                f"networks must be at least 1 and divide the {n_samples} samples of {name}, "
                f"got {networks}"
            )
