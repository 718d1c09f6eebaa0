"""Where the data of a reproduction comes from, and what is said of data that is another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastlif.data import N_TRAIN, fingerprint, n_training_samples

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
    "randman": DataSet("Randman", N_TRAIN["randman"], 10, "", ""),
    "events": DataSet(
        "SHD", N_TRAIN["events"], 20, "--data-shd", "one *train*.h5 and one *test*.h5"
    ),
    "images": DataSet("CIFAR-10", N_TRAIN["images"], 10, "--data-cifar", "the CIFAR-10 batches"),
    "event_camera": DataSet(
        "DVS-Gesture", N_TRAIN["event_camera"], 11, "--data-dvs", "event camera recordings"
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
            self._digests[kind] = fingerprint(kind, folder)
        return self._digests[kind]

    def n_train(self, kind: str) -> int:
        """Samples to train with, for estimates: counted where that is cheap, else the paper's."""
        return n_training_samples(kind, self.folder(kind))


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
