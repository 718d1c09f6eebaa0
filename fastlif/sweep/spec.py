"""A sweep: trials that differ in settings and seeds, and what each of them may use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastlif.train import TrainConfig

__all__ = ["Asha", "Resources", "SpecError", "SweepSpec", "Trial", "read_spec"]


@dataclass(frozen=True)
class Resources:
    """What one trial takes, and what it may not exceed.

    cpus: cores; a trial computes with as many threads, at least one.
    gpus: 0 trains on the CPU; a fraction shares a GPU with other trials.
    memory: bytes; a trial that needs more is recorded as out of memory.
    hours: a trial that takes longer is recorded as out of time.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory: int | None = None
    hours: float | None = None


@dataclass(frozen=True)
class Asha:
    """Asynchronous successive halving: trials that fall behind are stopped early.

    grace_epochs: that every trial gets; priming counts.
    reduction: of the trials that reach a rung, one in so many goes on, to an epoch so many times
        that of the rung.
    metric: of an epoch, the higher the better.
    """

    grace_epochs: int
    reduction: int = 3
    metric: str = "validation_accuracy"


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep.

    number: its place in the sweep, from 0.
    name: of its folder: the number and a digest of settings and data, as in "0007-1a2b3c4d".
    options: value of every varied option.
    """

    number: int
    name: str
    config: TrainConfig
    options: dict[str, Any]


@dataclass(frozen=True)
class SweepSpec:
    """What a sweep file asks for, checked and written out.

    data: folder of the data; None if no preset of the sweep reads any.
    varied: names of the options that the file varies, in its order; `seed` is not among them.
    asha: None lets every trial run to its end.
    retries: of a trial whose node or process was lost.
    report: what `fastlif sweep report` draws.
    """

    name: str
    data: Path | None
    trials: tuple[Trial, ...]
    varied: tuple[str, ...]
    resources: Resources = Resources()
    asha: Asha | None = None
    retries: int = 2
    report: dict[str, Any] = field(default_factory=dict)


class SpecError(ValueError):
    """A sweep file that cannot be run: every mistake in it, a line each, with file, line and key.

    Of several mistakes, the first line says how many.
    """


def read_spec(
    path: Path, *, data: Path | None = None, default_data: Path | None = None
) -> SweepSpec:
    """Read and check a sweep file.

    Args:
        path: of the file.
        data: folder of the data, in place of the file's. One that the file names is relative to
            the file's folder.
        default_data: folder of the data for a file that names none.

    Raises:
        SpecError: all mistakes of the file.
        OSError: the file cannot be read.
        ImportError: packages for sweep files are missing.
    """
    try:
        from fastlif.sweep.reading import read
    except ImportError as error:
        raise ImportError(
            f"sweep files need the packages of pip install 'fastlif[sweep]' ({error})"
        ) from error
    return read(path, data, default_data)
