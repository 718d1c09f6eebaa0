"""Reader for event files in the layout of the Spiking Heidelberg Digits (HDF5): SHD and SSC.

Layout: `spikes/times` (samples,) of variable-length floats in seconds, `spikes/units` (samples,)
of variable-length integers, `labels` (samples,). Anything else in the file is ignored. Events stay
as they are on disk, a time (2 bytes in SHD) and a unit (2 bytes); bits are made per batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlif.data.dataset import PackedDataset, n_steps_of, train_validation_split
from fastlif.spikes import PackedSpikes

__all__ = ["EventDataset", "EventSplits", "find_event_files", "read_event_splits", "read_events"]

# An event this close (in steps) below a bin's edge belongs to the bin above: times that were
# written as a multiple of dt come back from the division a rounding error too small.
_EDGE_TOLERANCE = 1e-6

# Samples whose events are turned into bits at a time when a whole data set is packed.
_PACKING_CHUNK = 128


@dataclass(frozen=True)
class EventDataset:
    """Labelled events of many samples, one after the other."""

    times: NDArray[np.floating]  # (events,) seconds, in the file's own precision
    units: NDArray[np.integer]  # (events,) in 0..n_units-1
    offsets: NDArray[np.int64]  # (samples + 1,); events of sample i are offsets[i]:offsets[i + 1]
    labels: Tensor  # (samples,) int64
    n_units: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_classes(self) -> int:
        """Largest label + 1."""
        return int(self.labels.max()) + 1

    def batch(
        self,
        indices: Tensor | Sequence[int],
        n_steps: int,
        dt: float,
        features: tuple[int, ...] | None = None,
    ) -> PackedSpikes:  # (n_steps, len(indices), *features)
        """Bits of some samples: step = floor(time / dt), at most one spike per unit and step.

        Times are converted to float64 before they are scaled: scaling SHD's float16 values in
        their own precision moves about 7 % of the events by a bin. Events after the last step are
        dropped.

        Args:
            indices: (batch,) sample numbers, in any order.
            n_steps: number of steps; `n_steps_of` gives it for a duration.
            dt: seconds per step.
            features: shape of one step, whose product is `n_units`; default (n_units,).

        Raises:
            ValueError: an index, `dt` or `features` that does not fit.
        """
        if not (np.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be finite and > 0 seconds, got {dt}")
        chosen = torch.as_tensor(indices, dtype=torch.int64).numpy()
        if chosen.ndim != 1:
            raise ValueError(f"indices must be one-dimensional, got shape {chosen.shape}")
        if chosen.size and not (0 <= chosen.min() and chosen.max() < len(self)):
            raise ValueError(
                f"indices must lie in 0..{len(self) - 1}, got {chosen.min()}..{chosen.max()}"
            )
        shape = (self.n_units,) if features is None else tuple(features)
        if int(np.prod(shape)) != self.n_units:
            raise ValueError(f"features must hold {self.n_units} units, got {shape}")

        starts, ends = self.offsets[chosen], self.offsets[chosen + 1]
        offsets = np.concatenate([[0], np.cumsum(ends - starts)])
        # Position of every wanted event: its number within the batch, moved to its sample's start.
        events = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts)
        # Clipped before the cast: a time of hours would not fit into an int32 step.
        steps = np.floor(self.times[events].astype(np.float64) / dt + _EDGE_TOLERANCE)
        return PackedSpikes.from_events(
            torch.from_numpy(np.minimum(steps, n_steps).astype(np.int32)),
            torch.from_numpy(self.units[events].astype(np.int32)),
            torch.from_numpy(offsets.astype(np.int64)),
            n_steps=n_steps,
            features=shape,
        )

    def pack(
        self,
        indices: Tensor,
        *,
        duration: float,
        dt: float,
        features: tuple[int, ...] | None = None,
    ) -> PackedDataset:
        """All of `indices` as bits at once, about as small as the events: 31 kB per SHD sample.

        Arguments and errors as in `batch`; `duration` in seconds.
        """
        n_steps = n_steps_of(duration, dt)
        parts = [self.batch(part, n_steps, dt, features) for part in indices.split(_PACKING_CHUNK)]
        words = torch.cat([part.words for part in parts], dim=1)
        spikes = PackedSpikes(words, n_steps, parts[0].features)
        return PackedDataset(spikes, self.labels[indices])


def read_events(path: str | os.PathLike[str], *, n_units: int = 700) -> EventDataset:
    """Read and check a whole event file.

    Args:
        path: HDF5 file in the layout of the module's docstring.
        n_units: number of input units; SHD has 700.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or not HDF5, a data set is missing or has another type or
            length, a sample's times and units differ in length, a time is negative or not
            finite, or a unit or label is out of range. The message names the file and the sample.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no event file at {path}")
    try:
        with h5py.File(path, "r") as file:
            times = _read_ragged(file, path, "spikes/times")
            units = _read_ragged(file, path, "spikes/units")
            labels = _read_labels(file, path)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a readable HDF5 file, truncated perhaps ({error})"
        ) from error
    return _assemble(path, times, units, labels, n_units)


def find_event_files(folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The one training and the one test file of a folder: `*train*.h5` and `*test*.h5`.

    Raises:
        FileNotFoundError: no such folder, or a file is missing.
        ValueError: more than one file matches.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    found = []
    for pattern in ("*train*.h5", "*test*.h5"):
        path = _match(folder, pattern)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no file that matches {pattern}")
        found.append(path)
    return found[0], found[1]


class EventSplits(NamedTuple):
    """The three parts of a data set in SHD's layout, as bits."""

    train: PackedDataset
    validation: PackedDataset
    test: PackedDataset


def read_event_splits(
    folder: str | os.PathLike[str],
    *,
    duration: float,
    dt: float,
    n_units: int = 700,
    features: tuple[int, ...] | None = None,
    seed: int = 0,
) -> EventSplits:
    """Training, validation and test samples of a folder, as bits.

    Validation samples are those of `*valid*.h5` where the folder has one (SSC has), else 10 % of
    the training file, drawn by `seed` (SHD has none).

    Args:
        folder: with one file `*train*.h5`, one `*test*.h5` and perhaps one `*valid*.h5`.
        duration: seconds of each sample that are used, from its start.
        dt: seconds per step.
        n_units: number of input units.
        features: shape of one step, whose product is `n_units`; default (n_units,).
        seed: of the split, where there is no validation file.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged, has a class that the training file does not know, or is there
            twice.
    """
    train_path, test_path = find_event_files(folder)
    validation_path = _match(Path(folder), "*valid*.h5")
    train = read_events(train_path, n_units=n_units)
    if validation_path is None:
        kept, held_out = train_validation_split(len(train), seed=seed)
        validation = train.pack(held_out, duration=duration, dt=dt, features=features)
    else:
        kept = torch.arange(len(train))
        validation = _read_part(validation_path, train, train_path, duration, dt, features)
    return EventSplits(
        train.pack(kept, duration=duration, dt=dt, features=features),
        validation,
        _read_part(test_path, train, train_path, duration, dt, features),
    )


def _read_part(
    path: Path,
    train: EventDataset,
    train_path: Path,
    duration: float,
    dt: float,
    features: tuple[int, ...] | None,
) -> PackedDataset:
    part = read_events(path, n_units=train.n_units)
    if part.n_classes > train.n_classes:
        raise ValueError(
            f"{path}: largest label is {part.n_classes - 1}, but {train_path.name} has none above "
            f"{train.n_classes - 1}"
        )
    return part.pack(torch.arange(len(part)), duration=duration, dt=dt, features=features)


def _match(folder: Path, pattern: str) -> Path | None:
    """The one file that matches, None without any; ValueError for several."""
    matches = sorted(folder.glob(pattern))
    if len(matches) > 1:
        names = ", ".join(match.name for match in matches)
        raise ValueError(f"{folder} must hold one file that matches {pattern}, found {names}")
    return matches[0] if matches else None


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    item = file.get(name)
    if not isinstance(item, h5py.Dataset):
        raise ValueError(f"{path}: data set '{name}' is missing")
    if item.ndim != 1:
        raise ValueError(f"{path}: '{name}' must have one entry per sample, got shape {item.shape}")
    return item


def _read_ragged(file: h5py.File, path: Path, name: str) -> list[NDArray[np.generic]]:
    item = _dataset(file, path, name)
    base = h5py.check_vlen_dtype(item.dtype)
    if base is None or not isinstance(base, np.dtype):
        raise ValueError(
            f"{path}: '{name}' must hold a variable-length array per sample, got {item.dtype}"
        )
    wanted = "f" if name == "spikes/times" else "ui"
    if base.kind not in wanted:
        expected = "floats" if wanted == "f" else "integers"
        raise ValueError(f"{path}: '{name}' must hold {expected}, got {base}")
    return list(item[:])


def _read_labels(file: h5py.File, path: Path) -> Tensor:
    item = _dataset(file, path, "labels")
    if item.dtype.kind not in "ui":
        raise ValueError(f"{path}: 'labels' must hold integers, got {item.dtype}")
    return torch.from_numpy(item[:].astype(np.int64))


def _assemble(
    path: Path,
    times: list[NDArray[np.generic]],
    units: list[NDArray[np.generic]],
    labels: Tensor,
    n_units: int,
) -> EventDataset:
    if not len(times) == len(units) == len(labels):
        raise ValueError(
            f"{path}: 'spikes/times', 'spikes/units' and 'labels' must have as many samples as "
            f"each other, got {len(times)}, {len(units)} and {len(labels)}"
        )
    if len(labels) == 0:
        raise ValueError(f"{path}: holds no sample")
    lengths = np.array([len(sample) for sample in times], dtype=np.int64)
    unit_lengths = np.array([len(sample) for sample in units], dtype=np.int64)
    if (lengths != unit_lengths).any():
        sample = int(np.argmax(lengths != unit_lengths))
        raise ValueError(
            f"{path}: sample {sample} has {lengths[sample]} times but {unit_lengths[sample]} units"
        )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    all_times, all_units = np.concatenate(times), np.concatenate(units)
    _check_events(path, offsets, ~np.isfinite(all_times), all_times, "time must be finite, got")
    _check_events(path, offsets, all_times < 0, all_times, "time must be >= 0 s, got")
    outside = (all_units < 0) | (all_units >= n_units)
    _check_events(path, offsets, outside, all_units, f"unit must lie in 0..{n_units - 1}, got")
    if bool((labels < 0).any()):
        sample = int((labels < 0).int().argmax())
        raise ValueError(f"{path}: sample {sample}: label must be >= 0, got {int(labels[sample])}")
    return EventDataset(all_times, all_units, offsets, labels, n_units)


def _check_events(
    path: Path,
    offsets: NDArray[np.int64],
    bad: NDArray[np.bool_],
    values: NDArray[np.generic],
    complaint: str,
) -> None:
    if bad.any():
        event = int(np.argmax(bad))
        sample = int(np.searchsorted(offsets, event, side="right")) - 1
        raise ValueError(f"{path}: sample {sample}: {complaint} {values[event]}")
