"""What the readers of downloaded data have in common: finding the files, opening arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "archives",
    "check_labels",
    "check_n_samples",
    "check_offsets",
    "find_folder",
    "one_archive",
    "open_arrays",
    "read_array",
    "require_file",
]

# What numpy raises for a file that is no array, is cut off, or whose compressed part is damaged.
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def find_folder(folder: str | os.PathLike[str], fits: Callable[[Path], bool], wanted: str) -> Path:
    """`folder`, or the one folder directly within it, that holds a data set.

    Args:
        folder: where to look.
        fits: tells whether a folder holds the data set.
        wanted: the files looked for, for the message.

    Raises:
        FileNotFoundError: there is no such folder, or the files are not in it.
        ValueError: several folders within it hold the data set.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no data folder at {folder}")
    if fits(folder):
        return folder
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and fits(path)]
    if not found:
        raise FileNotFoundError(f"neither {folder} nor a folder directly in it holds {wanted}")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ValueError(f"{folder} must hold {wanted} once, found them in {names}")
    return found[0]


def require_file(path: Path) -> Path:
    """`path` if a file is there; FileNotFoundError otherwise."""
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    return path


def check_n_samples(n_samples: int | None) -> None:
    """ValueError when a limit on the samples lets none through."""
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, or None for all, got {n_samples}")


def read_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, never unpickled; ValueError names a damaged file."""
    try:
        array = np.load(require_file(path), allow_pickle=False)
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a readable array, truncated perhaps ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: must hold one array, got an archive of several")
    return array


def archives(folder: Path, key: str, hint: str) -> list[Path]:
    """The .npz files of a folder that hold an array `key`.

    One too damaged to tell counts when `hint` is in its name, so that reading it says what is
    wrong with it.
    """
    return [path for path in sorted(folder.glob("*.npz")) if _lists(path, key, hint)]


def one_archive(folder: Path, pattern: str, key: str, hint: str) -> Path:
    """The one file of `archives` that matches a pattern.

    Raises:
        FileNotFoundError: none does.
        ValueError: several do.
    """
    matches = [path for path in archives(folder, key, hint) if path.match(pattern)]
    if not matches:
        raise FileNotFoundError(f"{folder} holds no file {pattern} with an array '{key}'")
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise ValueError(f"{folder} must hold one file that matches {pattern}, found {names}")
    return matches[0]


def _lists(path: Path, key: str, hint: str) -> bool:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return key in archive
    except _DAMAGE:
        return hint in path.name.lower()


def open_arrays(path: Path, kinds: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """One-dimensional arrays of an .npz archive.

    Args:
        path: of the archive.
        kinds: of each array wanted, the letters of numpy's kinds that it may have ("iu": integers).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the archive or an array in it is damaged, missing, or of another type or shape.
    """
    arrays = {}
    try:
        with np.load(require_file(path), allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            missing = [name for name in kinds if name not in archive.files]
            if missing:
                raise ValueError(f"it has no array '{missing[0]}'")
            for name in kinds:
                arrays[name] = archive[name]
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(f"{path}: not a readable archive of arrays ({error})") from error
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind not in kinds[name]:
            raise ValueError(
                f"{path}: '{name}' must be a one-dimensional array of numpy kind "
                f"{' or '.join(kinds[name])}, got shape {array.shape} of {array.dtype}"
            )
    return arrays


def check_offsets(path: Path, offsets: NDArray[Any], n_samples: int, size: int) -> None:
    """ValueError when offsets do not cut `size` entries into `n_samples` samples."""
    if len(offsets) != n_samples + 1:
        raise ValueError(
            f"{path}: 'offsets' must have one entry more than 'labels', "
            f"got {len(offsets)} and {n_samples}"
        )
    falls = np.diff(offsets.astype(np.int64)) < 0
    if falls.any():
        raise ValueError(f"{path}: sample {int(np.argmax(falls))}: 'offsets' must not fall")
    if int(offsets[0]) != 0 or int(offsets[-1]) != size:
        raise ValueError(
            f"{path}: 'offsets' must run from 0 to the number of entries, {size}, "
            f"got {offsets[0]}..{offsets[-1]}"
        )


def check_labels(path: Path, labels: NDArray[Any], n_classes: int) -> None:
    """ValueError naming the first sample whose label is not in 0..n_classes-1, or no sample."""
    if len(labels) == 0:
        raise ValueError(f"{path}: holds no sample")
    outside = (labels < 0) | (labels >= n_classes)
    if outside.any():
        sample = int(np.argmax(outside))
        raise ValueError(
            f"{path}: sample {sample}: label must lie in 0..{n_classes - 1}, got {labels[sample]}"
        )
