"""Where the data of a reproduction comes from, and what is said of data that is another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DATA_SETS", "DataSet", "Sources"]


@dataclass(frozen=True)
class DataSet:
    """A data set of the paper (Table 2)."""

    name: str
    n_train: int
    n_classes: int
    option: str  # of the command line; empty for data that is generated
    wanted: str  # what its folder holds


# By the kind that a preset asks for.
DATA_SETS: dict[str, DataSet] = {
    "randman": DataSet("Randman", 8000, 10, "", ""),
    "events": DataSet("SHD", 7340, 20, "--data-shd", "one *train*.h5 and one *test*.h5"),
    "images": DataSet("CIFAR-10", 54000, 10, "--data-cifar", "the CIFAR-10 batches"),
    "event_camera": DataSet("DVS-Gesture", 1077, 11, "--data-dvs", "event camera recordings"),
}


# Names of the files that are read and how many folders below the given one they may lie.
_READ: dict[str, tuple[tuple[str, ...], int]] = {
    "events": (("*train*.h5", "*valid*.h5", "*test*.h5"), 0),
    "images": (("data_batch_*", "test_batch", "*.npz"), 1),
    "event_camera": (
        ("*.aedat", "*_labels.csv", "trials_to_*.txt", "*.npy", "*.bin", "*.npz"),
        3,
    ),
}


@dataclass(frozen=True)
class Sources:
    """Folders by kind of data; a kind without one is absent, generated data needs none.

    Raises:
        ValueError: a kind that does not exist.
        FileNotFoundError: a folder that does not exist.
    """

    folders: Mapping[str, Path] = field(default_factory=dict)
    # Listing a folder of recordings takes a while, and every run asks for it.
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for kind, folder in self.folders.items():
            if kind not in DATA_SETS:
                raise ValueError(f"data must be one of {', '.join(DATA_SETS)}, got {kind!r}")
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder (data for {kind})")

    @staticmethod
    def sorted(folders: Sequence[Path], **named: Path | None) -> Sources:
        """Folders by what they hold; those given by the name of their kind come first.

        Raises:
            ValueError: a folder without data of a known kind, or two of the same kind.
            FileNotFoundError: a folder that does not exist.
        """
        found: dict[str, Path] = {}
        for folder in folders:
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder")
            kind = _kind_of(folder)
            if kind in found:
                raise ValueError(
                    f"data must be one folder of each kind, got {found[kind]} and {folder}, both "
                    f"for {DATA_SETS[kind].option}"
                )
            found[kind] = folder
        by_name = {kind: folder for kind, folder in named.items() if folder is not None}
        return Sources(found | by_name)

    def folder(self, kind: str) -> Path | None:
        """Folder of a kind of data, None where it is absent or generated."""
        return self.folders.get(kind)

    def missing(self, kind: str) -> str | None:
        """Why the data cannot be had, None if it can."""
        known = DATA_SETS[kind]
        if not known.option or kind in self.folders:
            return None
        return f"no {known.name} data: give {known.option} FOLDER with {known.wanted}"

    def name(self, kind: str) -> str:
        """What a figure calls the data: the paper's name, or that of a folder of other data."""
        folder = self.folder(kind)
        if folder is None or _is_the_papers(kind, folder):
            return DATA_SETS[kind].name
        return folder.resolve().name

    def fingerprint(self, kind: str) -> str:
        """Tells one content of a data folder from another by its data files' paths and sizes.

        The same for a copy elsewhere, whatever else lies beside the files.
        """
        folder = self.folder(kind)
        if folder is None:
            return DATA_SETS[kind].name
        if kind not in self._digests:
            paths = _data_files(kind, folder)
            home = os.path.commonpath([path.parent for path in paths]) if paths else folder
            listing = sorted(
                (path.relative_to(home).as_posix(), path.stat().st_size) for path in paths
            )
            self._digests[kind] = hashlib.sha256(repr(listing).encode()).hexdigest()[:12]
        return self._digests[kind]

    def n_train(self, kind: str) -> int:
        """Samples to train with, for estimates: counted where that is cheap, else the paper's."""
        folder = self.folder(kind)
        if kind == "events" and folder is not None:
            import h5py

            from fastlif.data import find_event_files

            path = find_event_files(folder)[0]
            try:
                with h5py.File(path) as file:
                    return round(0.9 * file["labels"].shape[0])  # a tenth is for validation
            except (OSError, RuntimeError, KeyError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{path}: not a readable HDF5 file with labels, truncated perhaps ({error})"
                ) from error
        return DATA_SETS[kind].n_train


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


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def _kind_of(folder: Path) -> str:
    """Kind of the data in a folder, by the names of its files; ValueError if they tell none."""
    names = [path.name.lower() for path in folder.rglob("*") if path.is_file()]
    if any(name.endswith((".h5", ".hdf5")) for name in names):
        return "events"
    if any("data_batch" in name or "cifar" in name for name in [folder.name.lower(), *names]):
        return "images"
    if any(name.endswith((".aedat", ".npy", ".bin", ".npz")) for name in names):
        return "event_camera"
    wanted = ", ".join(known.wanted for known in DATA_SETS.values() if known.wanted)
    raise ValueError(f"{folder}: holds no data of a known kind, which are {wanted}")


def _is_the_papers(kind: str, folder: Path) -> bool:
    """Whether a folder holds the paper's data itself, as far as its files' names tell."""
    if kind == "events":
        return any(path.name.lower().startswith("shd") for path in _files(folder))
    if kind == "images":
        return any(folder.rglob("data_batch_1"))
    return any(folder.rglob("*.aedat")) or "gesture" in folder.resolve().name.lower()
