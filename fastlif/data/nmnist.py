"""Reader for N-MNIST (Orchard et al. 2015): handwritten digits before a moving event camera.

As distributed, `Train/LABEL/NUMBER.bin` and `Test/LABEL/NUMBER.bin` hold one recording of about
0.3 s and three saccades each, 5 bytes an event: x, y, and 24 bits with the polarity in the highest
and the time in microseconds in the others, highest byte first. A row of 240 is no pixel but says
that this and all later times are 8192 microseconds later than written.

The smaller form is one `*train*.npz` and one `*test*.npz` with all events one after the other in
`x`, `y`, `p` and `t_us`, `offsets` (samples + 1,), of which recording i is events
offsets[i]:offsets[i + 1], and `labels`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastlif.data.files import (
    archives,
    check_labels,
    check_n_samples,
    check_offsets,
    find_folder,
    one_archive,
    open_arrays,
    require_file,
)
from fastlif.data.recordings import CameraEvents, EventRecordings, PixelGrid, collect

__all__ = ["NMNIST_DURATION", "holds_nmnist", "read_nmnist"]

NMNIST_DURATION = 0.3  # seconds of a recording

_SENSOR = 34  # pixels a side
_CLASSES = 10
_PARTS = ("Train", "Test")
_ARCHIVE = ("t_us", "mnist")  # an array that only these archives hold, and a name of theirs
_EVENT_BYTES = 5
_OVERFLOW_ROW = 240
_OVERFLOW_US = 2**13
_ARRAYS = {"x": "iu", "y": "iu", "p": "iub", "t_us": "iu", "offsets": "iu", "labels": "iu"}

Sample = tuple[tuple[Tensor, Tensor], int]  # times and neurons, label


def read_nmnist(
    folder: str | os.PathLike[str],
    *,
    duration: float = NMNIST_DURATION,
    dt: float = 2e-3,
    drop: float = 0.0,
    crop: int = 0,
    downsample: int = 1,
    n_samples: int | None = None,
) -> tuple[EventRecordings, EventRecordings]:
    """The training and the test recordings, 2 x 34 x 34 pixels by default.

    Args:
        folder: holds the files in one of the two forms above, or one folder that does.
        duration: seconds of a recording that a batch takes.
        dt: seconds per step.
        drop: probability with which an event is left out of a batch.
        crop: pixels cut off at each edge: 1 leaves 2 x 32 x 32, the size of DVS128 Gesture.
        downsample: this many pixels a side become one.
        n_samples: only the first of each part, for a small machine; None: all. The whole set takes
            1.5 GB of memory, and about twice that while it is read.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged or incomplete, or a setting does not fit; the message names
            the file and the byte, sample or event.
    """
    check_n_samples(n_samples)
    home = find_folder(
        folder,
        _is_home,
        "N-MNIST (Train/LABEL/*.bin and Test/LABEL/*.bin, or *train*.npz and *test*.npz with "
        "'t_us')",
    )
    grid = PixelGrid(_SENSOR, crop, downsample)
    if _has_parts(home):
        parts = [_from_binary(home / name, grid) for name in _PARTS]
    else:
        parts = [
            _from_archive(one_archive(home, f"*{name.lower()}*.npz", *_ARCHIVE), grid)
            for name in _PARTS
        ]
    train, test = (
        collect(
            [events for events, _ in samples],
            [label for _, label in samples],
            grid,
            _CLASSES,
            duration=duration,
            dt=dt,
            drop=drop,
        )
        for samples in (list(islice(part, n_samples)) for part in parts)
    )
    return train, test


def holds_nmnist(folder: str | os.PathLike[str]) -> bool:
    """Whether `read_nmnist` would find its files in a folder, whole or damaged."""
    folder = Path(folder)
    return folder.is_dir() and any(
        _is_home(path) for path in (folder, *filter(Path.is_dir, folder.iterdir()))
    )


def _is_home(folder: Path) -> bool:
    return _has_parts(folder) or bool(archives(folder, *_ARCHIVE))


def _has_parts(folder: Path) -> bool:
    """Whether either folder is there: the other is then missing, which is said by its name."""
    return any((folder / name).is_dir() for name in _PARTS)


def _from_binary(folder: Path, grid: PixelGrid) -> Iterator[Sample]:
    """Recordings in the order of their numbers, so that the first of them are of all classes."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    paths = []
    for label in range(_CLASSES):
        found = [(path.name, label, path) for path in (folder / str(label)).glob("*.bin")]
        if not found:
            raise FileNotFoundError(f"{folder / str(label)} holds no recording *.bin")
        paths += found
    for _, label, path in sorted(paths):
        yield grid.place(_read_binary(path), 0, str(path)), label


def _read_binary(path: Path) -> CameraEvents:
    content = np.fromfile(require_file(path), dtype=np.uint8)
    if len(content) == 0:
        raise ValueError(f"{path}: is empty")
    if len(content) % _EVENT_BYTES:
        raise ValueError(
            f"{path}: truncated: {len(content) % _EVENT_BYTES} bytes at byte "
            f"{len(content) - len(content) % _EVENT_BYTES} are no event, which has {_EVENT_BYTES}"
        )
    x, y, high, middle, low = content.reshape(-1, _EVENT_BYTES).T
    time = (high & 0x7F).astype(np.int32) << 16 | middle.astype(np.int32) << 8 | low
    overflow = y == _OVERFLOW_ROW
    events = CameraEvents(x, y, high >> 7, time + _OVERFLOW_US * np.cumsum(overflow))
    return events.at(~overflow) if overflow.any() else events


def _from_archive(path: Path, grid: PixelGrid) -> Iterator[Sample]:
    arrays = open_arrays(path, _ARRAYS)
    labels, offsets = arrays["labels"], arrays["offsets"]
    events = CameraEvents(arrays["x"], arrays["y"], arrays["p"], arrays["t_us"])
    _check_lengths(path, events)
    check_labels(path, labels, _CLASSES)
    check_offsets(path, offsets, len(labels), len(events.time))
    for number, label in enumerate(labels.tolist()):
        part = slice(int(offsets[number]), int(offsets[number + 1]))
        yield grid.place(events.at(part), 0, f"{path}: sample {number}"), label


def _check_lengths(path: Path, events: CameraEvents) -> None:
    lengths: dict[str, Any] = {
        name: len(field) for name, field in zip(("x", "y", "p", "t_us"), events, strict=True)
    }
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{path}: 'x', 'y', 'p' and 't_us' must be equally long, got {lengths}")
