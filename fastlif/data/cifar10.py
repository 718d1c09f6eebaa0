"""Reader for CIFAR-10 (Krizhevsky 2009): the python batches, or archives of JPEG images.

The python version as distributed is five files `data_batch_1` .. `data_batch_5` and a `test_batch`,
each a pickled dictionary with `data`, (images, 3072) bytes in the order channel, row, column, and
`labels`. The smaller form is one `*train*.npz` and one `*test*.npz` with `jpeg_bytes`, all images
one after the other, `offsets` (images + 1,), of which image i is bytes offsets[i]:offsets[i + 1],
and `labels`. JPEG is lossy, so accuracies from it are not quite those of CIFAR-10.
"""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from fastlif.data.images import ImageDataset

__all__ = ["CIFAR10_CLASSES", "find_cifar10", "read_cifar10"]

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_SIDE = 32  # pixels
_VALUES = 3 * _SIDE * _SIDE
_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST_BATCH = "test_batch"
_ARCHIVE = ("jpeg_bytes", "cifar")  # an array that only these archives hold, and a name of theirs

Bytes = NDArray[np.uint8]


def read_cifar10(
    folder: str | os.PathLike[str], *, n_samples: int | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """The 50000 training and the 10000 test images, in the order of the files.

    Args:
        folder: holds the files, or one folder that does, as `cifar-10-batches-py`.
        n_samples: only the first of each part, for a small machine; None: all.

    Raises:
        FileNotFoundError: the folder or a file is missing.
        ValueError: a file is damaged or incomplete; the message names the file and the image.
    """
    check_n_samples(n_samples)
    home = find_cifar10(folder)
    if _has_batches(home):
        train = _read_batches([home / name for name in _TRAIN_BATCHES], n_samples)
        return train, _read_batches([home / _TEST_BATCH], n_samples)
    return (
        _read_archive(one_archive(home, "*train*.npz", *_ARCHIVE), n_samples),
        _read_archive(one_archive(home, "*test*.npz", *_ARCHIVE), n_samples),
    )


def find_cifar10(folder: str | os.PathLike[str]) -> Path:
    """`folder`, or the one folder directly within it, that holds the files.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        ValueError: several folders within it hold some.
    """
    return find_folder(
        folder,
        lambda path: _has_batches(path) or bool(archives(path, *_ARCHIVE)),
        "CIFAR-10 (data_batch_1 .. data_batch_5 and test_batch, or *train*.npz and *test*.npz "
        "with 'jpeg_bytes')",
    )


def _has_batches(folder: Path) -> bool:
    """Whether any batch is there: the others are then missing, which is said by their names."""
    return any((folder / name).is_file() for name in (*_TRAIN_BATCHES, _TEST_BATCH))


def _dataset(images: Bytes, labels: NDArray[Any]) -> ImageDataset:
    return ImageDataset(
        torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), CIFAR10_CLASSES
    )


def _read_batches(paths: list[Path], n_samples: int | None) -> ImageDataset:
    images: list[Bytes] = []
    labels: list[NDArray[Any]] = []
    missing = n_samples
    for path in paths:
        if missing is not None and missing <= 0:
            break
        data, numbers = _read_batch(path)
        images.append(data[:missing])
        labels.append(numbers[:missing])
        missing = None if missing is None else missing - len(data)
    joined = np.concatenate(images).reshape(-1, 3, _SIDE, _SIDE)
    return _dataset(joined, np.concatenate(labels))


def _read_batch(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    """Images (n, 3072) and labels (n,) of one pickled batch."""
    with require_file(path).open("rb") as file:
        try:
            batch = _ArraysOnly(file, encoding="bytes").load()
        # Damaged bytes are read as some other instruction, which can fail in any way.
        except Exception as error:
            raise ValueError(
                f"{path}: not a readable batch, damaged or truncated near byte {file.tell()} "
                f"({error})"
            ) from error
    if not isinstance(batch, dict):
        raise ValueError(f"{path}: must hold a dictionary, got {type(batch).__name__}")
    named = {key.decode() if isinstance(key, bytes) else key: batch[key] for key in batch}
    for name in ("data", "labels"):
        if name not in named:
            raise ValueError(f"{path}: '{name}' is missing")
    data, labels = named["data"], np.asarray(named["labels"])
    if not (
        isinstance(data, np.ndarray)
        and data.dtype == np.uint8
        and data.ndim == 2
        and data.shape[1] == _VALUES
    ):
        got = f"{data.shape} of {data.dtype}" if isinstance(data, np.ndarray) else type(data)
        raise ValueError(f"{path}: 'data' must be (images, {_VALUES}) bytes, got {got}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(data),):
        raise ValueError(
            f"{path}: 'labels' must hold one integer for each of {len(data)} images, got "
            f"{labels.shape} of {labels.dtype}"
        )
    check_labels(path, labels, len(CIFAR10_CLASSES))
    return data, labels.astype(np.int64)


def _array_makers() -> dict[tuple[str, str], Callable[..., Any]]:
    """By module and name, all that an array of numbers may call while it is unpickled.

    The module that numpy keeps them in has had two names; the files were written under the first.
    """
    rebuild: Any = np.zeros(1).__reduce__()[0]
    from_bytes: Any = np.zeros(1).__reduce_ex__(5)[0]
    makers: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray", "_reconstruct"] = rebuild
        makers[f"{core}.numeric", "_frombuffer"] = from_bytes
    return makers


class _ArraysOnly(pickle.Unpickler):
    """Reads numbers, text, lists, dictionaries and arrays; a pickle could call anything else."""

    _allowed = _array_makers()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how bytes are written for Python 2
            return lambda text, encoding: text.encode(encoding)
        try:
            return self._allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a batch") from None


def _read_archive(path: Path, n_samples: int | None) -> ImageDataset:
    arrays = open_arrays(path, {"jpeg_bytes": "u", "offsets": "iu", "labels": "iu"})
    jpeg, offsets, labels = arrays["jpeg_bytes"], arrays["offsets"], arrays["labels"]
    if jpeg.dtype != np.uint8:
        raise ValueError(f"{path}: 'jpeg_bytes' must be uint8, got {jpeg.dtype}")
    check_labels(path, labels, len(CIFAR10_CLASSES))
    check_offsets(path, offsets, len(labels), len(jpeg))
    labels = labels[:n_samples]
    images = np.empty((len(labels), 3, _SIDE, _SIDE), dtype=np.uint8)
    for number, (start, end) in enumerate(
        zip(offsets[: len(labels)].tolist(), offsets[1 : len(labels) + 1].tolist(), strict=True)
    ):
        images[number] = _decode(path, number, jpeg[start:end].tobytes(), start).transpose(2, 0, 1)
    return _dataset(images, labels)


def _decode(path: Path, number: int, content: bytes, start: int) -> Bytes:  # (row, column, RGB)
    from PIL import Image

    where = f"{path}: image {number} (bytes {start}..{start + len(content)})"
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            pixels = np.asarray(image)
    # Pillow raises various errors for damaged content.
    except Exception as error:
        raise ValueError(f"{where}: not a readable JPEG ({error})") from error
    if pixels.shape != (_SIDE, _SIDE, 3):
        raise ValueError(f"{where}: must be {_SIDE}x{_SIDE} in RGB, got shape {pixels.shape}")
    return pixels
