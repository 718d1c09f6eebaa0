"""Losses: maximum-over-time cross-entropy and bounds on the spike counts.

All three are added to each other: cross-entropy + upper bound + lower bound.
The spike counts come from the forward pass (`return_spike_counts=True`) and are differentiable:
the gradient of a count reaches every step's spike of that neuron.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["lower_bound", "max_over_time_cross_entropy", "upper_bound"]


def max_over_time_cross_entropy(
    scores: Tensor,  # (batch, classes), or the readout's membrane (time, batch, classes)
    targets: Tensor,  # (batch,) int64 class numbers
) -> Tensor:  # scalar, mean over the batch
    """Cross-entropy of the largest membrane of every readout unit over time.

    Rossbroich et al. 2022, eqs 20 and 21. A readout with `reduction="max"` has already taken the
    maximum and gives (batch, classes); a trace is reduced here, the first maximum getting the
    gradient.

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
    if targets.shape != (n_samples,):
        raise ValueError(
            f"targets must have shape ({n_samples},) to match scores of shape "
            f"{tuple(scores.shape)}, got {tuple(targets.shape)}"
        )
    if scores.dim() == 3:
        scores = scores.max(dim=0).values
    return functional.cross_entropy(scores, targets)


def upper_bound(
    spike_counts: Sequence[Tensor],  # one (batch, *features) per spiking layer
    v_upper: float,
    strength: float,
    per: Literal["layer", "channel"] = "layer",
) -> Tensor:  # scalar
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
    _check(spike_counts, v_upper=v_upper, strength=strength)
    if per not in ("layer", "channel"):
        raise ValueError(f"per must be 'layer' or 'channel', got {per!r}")
    penalties = []
    for counts in spike_counts:
        first = 1 if per == "layer" or counts.dim() == 2 else 2
        mean_counts = counts.flatten(first).mean(dim=-1)
        penalties.append((mean_counts - v_upper).relu().square().mean())
    return strength * _total(penalties)


def lower_bound(
    spike_counts: Sequence[Tensor],  # one (batch, *features) per spiking layer
    v_lower: float,
    strength: float,
) -> Tensor:  # scalar
    """Soft lower bound on the spike count of every neuron.

    Rossbroich et al. 2022, eq 24: the square of what a neuron's count in one sample lacks to
    `v_lower`, averaged over neurons and batch, summed over the layers, times `strength`.

    Raises:
        ValueError: no counts, counts without a feature dimension, or a `v_lower` or `strength`
            that is negative or not finite.
    """
    _check(spike_counts, v_lower=v_lower, strength=strength)
    penalties = [(v_lower - counts).relu().square().mean() for counts in spike_counts]
    return strength * _total(penalties)


def _total(penalties: list[Tensor]) -> Tensor:
    total = penalties[0]
    for penalty in penalties[1:]:
        total = total + penalty
    return total


def _check(spike_counts: Sequence[Tensor], **numbers: float) -> None:
    if isinstance(spike_counts, Tensor):
        raise TypeError("spike_counts must be a sequence of tensors, one per layer, got one tensor")
    if len(spike_counts) == 0:
        raise ValueError("spike_counts must hold one tensor per spiking layer, got none")
    for index, counts in enumerate(spike_counts):
        if counts.dim() < 2:
            raise ValueError(
                f"spike_counts[{index}] must be (batch, *features), got shape {tuple(counts.shape)}"
            )
    for name, number in numbers.items():
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name} must be finite and >= 0, got {number}")
