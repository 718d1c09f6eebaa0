"""What can be said of a data folder without reading the data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fastlif.data.cifar10 import find_cifar10
from fastlif.data.dvs_gesture import find_dvs_gesture
from fastlif.data.events import find_event_files
from fastlif.data.nmnist import holds_nmnist

__all__ = ["N_TRAIN", "check_folder", "fingerprint", "n_training_samples"]

# Training samples of the paper's data sets, by the kind of data that a preset asks for.
N_TRAIN = {"randman": 8000, "events": 7340, "images": 54000, "event_camera": 1077}

# Names of the files that are read and how many folders below the given one they may lie.
_READ: dict[str, tuple[tuple[str, ...], int]] = {
    "events": (("*train*.h5", "*valid*.h5", "*test*.h5"), 0),
    "images": (("data_batch_*", "test_batch", "*.npz"), 1),
    "event_camera": (
        ("*.aedat", "*_labels.csv", "trials_to_*.txt", "*.npy", "*.bin", "*.npz"),
        3,
    ),
}


def fingerprint(kind: str, folder: Path) -> str:
    """Tells one content of a data folder from another by its data files' paths and sizes.

    The same for a copy elsewhere, whatever else lies beside the files.
    """
    paths = _data_files(kind, folder)
    home = os.path.commonpath([path.parent for path in paths]) if paths else folder
    listing = sorted((path.relative_to(home).as_posix(), path.stat().st_size) for path in paths)
    return hashlib.sha256(repr(listing).encode()).hexdigest()[:12]


def n_training_samples(kind: str, folder: Path | None) -> int:
    """Samples to train with, for estimates: counted where that is cheap, else the paper's.

    Raises:
        ValueError: a file is damaged.
        FileNotFoundError: a file is missing.
    """
    if kind == "events" and folder is not None:
        return round(0.9 * _count_labels(find_event_files(folder)[0]))  # a tenth is for validation
    return N_TRAIN[kind]


def check_folder(kind: str, folder: Path) -> None:
    """See that a folder holds the files of a kind of data, without reading what is in them.

    Of event files, that they can be opened: they are two, and the ones cut off most often.

    Raises:
        ValueError: files are there twice or cannot be opened.
        FileNotFoundError: the folder or files are missing.
    """
    if kind == "events":
        for path in find_event_files(folder):
            _count_labels(path)
    elif kind == "images":
        find_cifar10(folder)
    elif kind == "event_camera" and not holds_nmnist(folder):
        find_dvs_gesture(folder)


def _count_labels(path: Path) -> int:
    import h5py

    try:
        with h5py.File(path) as file:
            return int(file["labels"].shape[0])
    except (OSError, RuntimeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: not a readable HDF5 file with labels, truncated perhaps ({error})"
        ) from error


def _data_files(kind: str, folder: Path) -> list[Path]:
    """Files that the reader of a kind of data takes, as deep in a folder as it looks."""
    patterns, depth = _READ[kind]
    found = {
        path
        for level in range(depth + 1)
        for pattern in patterns
        for path in folder.glob("*/" * level + pattern)
    }
    return [path for path in found if path.is_file() and not path.name.startswith(".")]
