"""Reader for DVS128 Gesture (Amir et al. 2017): 11 hand gestures before an event camera.

As distributed, a trial is one long recording, `userNN_LIGHT.aedat` (see `fastlif.data.aedat`), and
`userNN_LIGHT_labels.csv` with a line `class,startTime_usec,endTime_usec` for each gesture, classes
1 to 11; `trials_to_train.txt` and `trials_to_test.txt` list the recordings of the two parts.

The library Tonic leaves the gestures on disk one by one:
`ibmGestureTrain/userNN_LIGHT/CLASS.npy` and `ibmGestureTest/...`, classes 0 to 10, each an array
(events, 4) of x, y, polarity and time in *milliseconds*. A structured array with fields x, y, p
and t, which is what Tonic hands out, is read too, with its time in microseconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastlif.data.aedat import read_aedat
from fastlif.data.files import check_n_samples, find_folder, read_array, require_file
from fastlif.data.recordings import CameraEvents, EventRecordings, PixelGrid, collect

__all__ = ["DVS_GESTURE_CLASSES", "read_dvs_gesture"]

DVS_GESTURE_CLASSES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)

_SENSOR = 128  # pixels a side
_LISTS = ("trials_to_train.txt", "trials_to_test.txt")
_TONIC_FOLDERS = ("ibmGestureTrain", "ibmGestureTest")
_LONGEST_MS = 600_000  # a gesture takes seconds; more than this is a wrong unit of time


class _Gesture(NamedTuple):
    times: Tensor
    neurons: Tensor
    label: int


class _Row(NamedTuple):
    """A line of a label file."""

    line: int
    label: int  # from 0
    start: int  # microseconds
    end: int


def read_dvs_gesture(
    folder: str | os.PathLike[str],
    *,
    duration: float = 1.0,
    dt: float = 2e-3,
    drop: float = 0.5,
    downsample: int = 4,
    all_rows: bool = False,
    n_samples: int | None = None,
) -> tuple[EventRecordings, EventRecordings]:
    """The training and the test recordings, 2 x 32 x 32 pixels by default as in the paper.

    Args:
        folder: holds the files in one of the two forms above, or one folder that does.
        duration: seconds of a recording that a batch takes.
        dt: seconds per step.
        drop: probability with which an event is left out of a batch.
        downsample: this many of the 128 pixels a side become one.
        all_rows: a trial may list a class more than once. By default the first line of each class
            is taken, so that a trial gives at most 11 samples: the data's authors count 11 in each
            of 122 trials, Tonic and the paper 1077 + 264 in all. True takes every line, which
            others count as 1176 + 288. Tonic's folders have one file per class and trial anyway.
        n_samples: only the first of each part, for a small machine; None: all. Memory is 6 bytes an
            event, and about twice that while files are read.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged or incomplete, or a setting does not fit; the message names
            the file and the byte, line or event.
    """
    check_n_samples(n_samples)
    home = find_dvs_gesture(folder)
    grid = PixelGrid(_SENSOR, downsample=downsample)
    if any((home / name).exists() for name in _LISTS):
        parts = [_from_trials(home / name, grid, all_rows) for name in _LISTS]
    else:
        parts = [_from_tonic(home / name, grid) for name in _TONIC_FOLDERS]
    train, test = (
        collect(
            [(one.times, one.neurons) for one in gestures],
            [one.label for one in gestures],
            grid,
            len(DVS_GESTURE_CLASSES),
            duration=duration,
            dt=dt,
            drop=drop,
        )
        for gestures in (list(islice(part, n_samples)) for part in parts)
    )
    return train, test


def find_dvs_gesture(folder: str | os.PathLike[str]) -> Path:
    """`folder`, or the one folder directly within it, that holds the recordings.

    Raises:
        FileNotFoundError: there is no such folder, or no recordings in it.
        ValueError: several folders within it hold some.
    """
    return find_folder(
        folder,
        lambda path: any((path / name).exists() for name in (*_LISTS, *_TONIC_FOLDERS)),
        f"DVS128 Gesture ({' and '.join(_LISTS)}, or {' and '.join(_TONIC_FOLDERS)})",
    )


def _from_trials(listing: Path, grid: PixelGrid, all_rows: bool) -> Iterator[_Gesture]:
    """Gestures of the trials that a file lists, in its order."""
    names = [line.strip() for line in _lines(listing)]
    if not any(names):
        raise ValueError(f"{listing}: lists no recording")
    for name in filter(None, names):
        path = require_file(listing.parent / name)
        labels = path.with_name(f"{path.stem}_labels.csv")
        rows = _read_rows(labels)
        events = read_aedat(path)
        if (np.diff(events.time) < 0).any():
            events = events.at(np.argsort(events.time, kind="stable"))
        seen: set[int] = set()
        for row in rows:
            if row.label in seen and not all_rows:
                continue
            seen.add(row.label)
            first, last = np.searchsorted(events.time, (row.start, row.end))
            where = f"{path}: from {row.start} to {row.end} us ({labels.name}, line {row.line})"
            if first == last:
                raise ValueError(f"{where}: the recording has no event there, truncated perhaps")
            times, neurons = grid.place(events.at(slice(first, last)), row.start, where)
            yield _Gesture(times, neurons, row.label)


def _lines(path: Path) -> list[str]:
    """Lines of a text file; what is no text in it is left to be found by who reads them."""
    return require_file(path).read_text(errors="replace").splitlines()


def _read_rows(path: Path) -> list[_Row]:
    """Lines of a label file, in its order.

    A gesture ends at the latest where the next one begins: of one published file
    (user22_led_labels.csv) a line reaches far into the gesture that follows.
    """
    n_classes = len(DVS_GESTURE_CLASSES)
    rows = []
    for number, line in enumerate(_lines(path)[1:], start=2):
        if not line.strip():
            continue
        try:
            label, start, end = (int(part) for part in line.split(","))
        except ValueError:
            raise ValueError(
                f"{path}: line {number}: must be class,startTime_usec,endTime_usec in integers, "
                f"got {line!r}"
            ) from None
        if not 1 <= label <= n_classes:
            raise ValueError(
                f"{path}: line {number}: class must lie in 1..{n_classes}, got {label}"
            )
        if not 0 <= start < end:
            raise ValueError(f"{path}: line {number}: must end after it starts, got {line!r}")
        rows.append(_Row(number, label - 1, start, end))
    if not rows:
        raise ValueError(f"{path}: holds no label")
    starts = np.unique([row.start for row in rows])
    following = np.append(starts, np.iinfo(np.int64).max)[
        np.searchsorted(starts, [row.start for row in rows], side="right")
    ]
    return [
        row._replace(end=min(row.end, int(limit)))
        for row, limit in zip(rows, following, strict=True)
    ]


def _from_tonic(folder: Path, grid: PixelGrid) -> Iterator[_Gesture]:
    """Gestures of a part that Tonic unpacked, by trial and class."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    paths = [path for path in folder.glob("*/*.npy") if not path.name.startswith(".")]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no recording */CLASS.npy")
    names = {str(label) for label in range(len(DVS_GESTURE_CLASSES))}
    for path in paths:
        if path.stem not in names:
            raise ValueError(f"{path}: must be named by its class, 0.npy to {len(names) - 1}.npy")
    for path in sorted(paths, key=lambda path: (path.parent.name, int(path.stem))):
        events = _tonic_events(path, read_array(path))
        times, neurons = grid.place(events, int(events.time.min()), str(path))
        yield _Gesture(times, neurons, int(path.stem))


def _tonic_events(path: Path, array: NDArray[Any]) -> CameraEvents:
    names = array.dtype.names
    if names is not None and set("xypt") <= set(names) and array.ndim == 1:
        x, y, polarity, time = (array[name] for name in "xypt")
        milliseconds = False
    elif names is None and array.ndim == 2 and array.shape[1] == 4 and array.dtype.kind in "iuf":
        x, y, polarity, time = array.T
        milliseconds = True
    else:
        raise ValueError(
            f"{path}: must be an array (events, 4) of x, y, polarity and time, or a structured one "
            f"with fields x, y, p, t; got shape {array.shape} of {array.dtype}"
        )
    if len(array) == 0:
        raise ValueError(f"{path}: holds no event")
    time = time.astype(np.float64) * (1e3 if milliseconds else 1.0)
    if not np.isfinite(time).all():
        event = int(np.argmin(np.isfinite(time)))
        raise ValueError(f"{path}: event {event}: time must be finite, got {time[event]}")
    if milliseconds and np.ptp(time) > 1e3 * _LONGEST_MS:
        raise ValueError(
            f"{path}: the events span {np.ptp(time) / 1e6:.0f} s if their times are in "
            "milliseconds, as in Tonic's files: are they in another unit?"
        )
    return CameraEvents(x, y, polarity.astype(np.int64), np.rint(time).astype(np.int64))
