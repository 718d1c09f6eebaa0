"""What training asks of every data set, and a labelled set of spike trains held as bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlif.spikes import PackedSpikes

__all__ = [
    "PackedDataset",
    "SampleSource",
    "Subset",
    "mean_firing_rate",
    "n_steps_of",
    "shift_features",
    "to_device",
    "train_validation_split",
]


class SampleSource(Protocol):
    """Labelled samples of which batches are taken; training and evaluation need no more of them.

    `targets` (samples,) are int64 class numbers; where they are tells where the samples are kept,
    and `to` moves both.
    """

    def __len__(self) -> int: ...

    @property
    def n_classes(self) -> int:
        """Number of classes."""

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one step of a sample, or of an image: (N,), (C, L) or (C, H, W)."""

    @property
    def targets(self) -> Tensor:
        """(samples,) int64 class numbers."""

    @property
    def n_bytes(self) -> int:
        """Memory of the samples."""

    def to(self, device: torch.device | str) -> SampleSource:
        """The same samples on another device."""

    def select(
        self,
        indices: Tensor,  # (batch,) int64, on the device of the samples
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        part: slice = slice(None),
    ) -> tuple[PackedSpikes | Tensor, Tensor]:
        """Inputs and targets (batch,) of the samples at `indices[part]`, put on `device`.

        Inputs are spikes (time, batch, *features) or images (batch, C, H, W) in [-1, 1]. With a
        generator (on the CPU) they are augmented at random; without one they are those of
        evaluation, the same at every call and in every batch. Random numbers are drawn for all of
        `indices`, so that a sample is varied in the same way whatever part it is taken with.
        """


@dataclass(frozen=True)
class PackedDataset:
    """Samples packed once, so that a batch is one gather of words.

    Raises:
        ValueError: the number of labels is not the number of samples.
        TypeError: labels are not int64.
    """

    spikes: PackedSpikes  # shape (time, samples, *features)
    labels: Tensor  # (samples,) int64 class numbers

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be int64, got dtype {self.labels.dtype}")
        n_samples = self.spikes.shape[1]
        if self.labels.shape != (n_samples,):
            raise ValueError(
                f"labels must have shape ({n_samples},), one per sample, "
                f"got {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def n_classes(self) -> int:
        """Largest label + 1; waits for the device."""
        return int(self.labels.max()) + 1

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one step."""
        return self.spikes.features

    @property
    def targets(self) -> Tensor:
        """(samples,) int64 class numbers."""
        return self.labels

    @property
    def n_bytes(self) -> int:
        """Memory of the spikes."""
        return self.spikes.words.numel() * self.spikes.words.element_size()

    def to(self, device: torch.device | str) -> PackedDataset:
        """The same samples on another device."""
        return PackedDataset(self.spikes.to(device), self.labels.to(device))

    def select(
        self,
        indices: Tensor,  # (batch,) int64, on the device of the data set
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        part: slice = slice(None),
    ) -> tuple[PackedSpikes, Tensor]:
        """Spikes (time, batch, *features) and labels (batch,) of the samples at `indices[part]`.

        They go to `device`, from the CPU to a GPU through page-locked memory without waiting.
        Packed spikes are not augmented: `generator` changes nothing.
        """
        here, indices = self.spikes.device, indices[part]
        labels = to_device(self.labels.index_select(0, indices), device)
        if device is None or device == here:
            return self.spikes.select(indices), labels
        pinned = here.type == "cpu" and device.type == "cuda"
        spikes = self.spikes.select(indices, pinned=pinned)
        return spikes.to(device, non_blocking=True), labels


@dataclass(frozen=True)
class Subset:
    """Some samples of a source, numbered anew; they are shared with the source, not copied.

    Raises:
        ValueError: an index does not fit the source, or there is none.
    """

    source: SampleSource
    indices: Tensor  # (samples,) int64 sample numbers of the source, on its device

    def __post_init__(self) -> None:
        indices, size = self.indices, len(self.source)
        if indices.dtype != torch.int64 or indices.dim() != 1 or len(indices) == 0:
            raise ValueError(
                "indices must be a one-dimensional int64 tensor, not empty, got "
                f"{tuple(indices.shape)} {indices.dtype}"
            )
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= size:
            raise ValueError(f"indices must lie in 0..{size - 1}, got {low}..{high}")

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def n_classes(self) -> int:
        """Classes of the source, whether each of them is in the subset or not."""
        return self.source.n_classes

    @property
    def features(self) -> tuple[int, ...]:
        """Shape of one step of a sample, or of an image."""
        return self.source.features

    @property
    def targets(self) -> Tensor:
        """(samples,) int64 class numbers."""
        return self.source.targets.index_select(0, self.indices)

    @property
    def n_bytes(self) -> int:
        """Memory of all samples of the source."""
        return self.source.n_bytes

    def to(self, device: torch.device | str) -> Subset:
        """The subset of the source on another device, to which all of the source is copied."""
        return Subset(self.source.to(device), self.indices.to(device))

    def select(
        self,
        indices: Tensor,  # (batch,) int64 numbers within the subset, on the device of the samples
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        part: slice = slice(None),
    ) -> tuple[PackedSpikes | Tensor, Tensor]:
        """Inputs and targets as the source gives them."""
        return self.source.select(self.indices.index_select(0, indices), device, generator, part)


def to_device(tensor: Tensor, device: torch.device | None) -> Tensor:
    """`tensor` on `device` (None: where it is), through page-locked memory without waiting."""
    if device is None or device == tensor.device:
        return tensor
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def n_steps_of(duration: float, dt: float) -> int:
    """Number of steps of `dt` seconds in `duration` seconds, rounded: 0.7 s at 2 ms is 350.

    Truncating the quotient would give 349, because 0.7 / 0.002 is just below 350 in binary.

    Raises:
        ValueError: either is not finite and positive, or no step fits.
    """
    for name, number in (("duration", duration), ("dt", dt)):
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name} must be finite and > 0 seconds, got {number}")
    n_steps = round(duration / dt)
    if n_steps < 1:
        raise ValueError(f"dt must be at most the duration of {duration} s, got {dt}")
    return n_steps


def mean_firing_rate(spikes: PackedSpikes, dt: float) -> float:
    """Mean rate in Hz over samples, features and time of spikes binned at `dt` seconds."""
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt must be finite and > 0 seconds, got {dt}")
    return spikes.count() / (math.prod(spikes.shape) * dt)


def train_validation_split(
    n_samples: int, *, fraction: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Random split into training and validation indices, each ascending int64.

    `round(fraction * n_samples)` samples, at least one, go to validation; the same seed gives the
    same split on every machine.

    Raises:
        ValueError: fewer than two samples, or `fraction` is not inside (0, 1).
    """
    if n_samples < 2:
        raise ValueError(f"n_samples must be at least 2 to be split, got {n_samples}")
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    n_validation = min(max(1, round(fraction * n_samples)), n_samples - 1)
    order = torch.randperm(n_samples, generator=torch.Generator().manual_seed(seed))
    return order[n_validation:].sort().values, order[:n_validation].sort().values


def shift_features(
    spikes: PackedSpikes,  # (time, batch, N) or (time, batch, 1, N)
    shifts: Tensor,  # (batch,) int64
) -> PackedSpikes:
    """Every sample moved along its N channels; what leaves at one end is lost.

    Spike (n, b, i) goes to channel i + shifts[b]. Raises ValueError when the features have more
    than one map, or the shifts do not fit the batch.
    """
    n_channels = spikes.features[-1]
    if math.prod(spikes.features) != n_channels:
        raise ValueError(f"spikes must have features (N,) or (1, N), got {spikes.features}")
    if shifts.shape != (len(spikes),):
        raise ValueError(f"shifts must have shape ({len(spikes)},), got {tuple(shifts.shape)}")
    source = torch.arange(n_channels, device=spikes.device) - shifts.unsqueeze(1)
    inside = (source >= 0) & (source < n_channels)
    source = source.clamp(0, n_channels - 1).expand(spikes.words.shape)
    words = spikes.words.gather(2, source) * inside
    return PackedSpikes(words, spikes.n_steps, spikes.features)
