"""Sweeps of the paper's figures that come with fastlif: files like any other, and what they hold.

`fastlif sweep paper:3f` runs one, `fastlif reproduce` takes its grids and settings from them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["PREFIX", "PaperSweep", "paper_sweep", "paper_sweeps", "sweep_path"]

PREFIX = "paper:"
_FOLDER = Path(__file__).parent
_ENDING = ".yaml"


@dataclass(frozen=True)
class PaperSweep:
    """What a file of the paper's varies and fixes, at the paper's size.

    presets: networks, in the file's order.
    axes: values of every other option that it varies, in the file's order.
    settings: options that it fixes.
    n_seeds: of every network, numbered from 0.
    """

    presets: tuple[str, ...]
    axes: dict[str, tuple[Any, ...]]
    settings: dict[str, Any]
    n_seeds: int


def paper_sweeps() -> tuple[str, ...]:
    """Names of the sweeps, which are those of the figures' panels: 3c, 3f, ..."""
    return tuple(sorted(path.stem for path in _FOLDER.glob(f"*{_ENDING}")))


def sweep_path(text: str) -> Path:
    """The file that a user names: that of the paper's sweep for "paper:3f", else the path as it is.

    Raises:
        ValueError: there is no such sweep of the paper's.
    """
    if not text.startswith(PREFIX):
        return Path(text)
    name = text.removeprefix(PREFIX)
    if name not in paper_sweeps():
        known = ", ".join(PREFIX + one for one in paper_sweeps())
        raise ValueError(f"sweeps of the paper are {known}; got {text!r}")
    return _FOLDER / f"{name}{_ENDING}"


@functools.cache
def paper_sweep(name: str) -> PaperSweep:
    """What the file of a panel holds. Unlike for a sweep that is to run, no data is looked for.

    Raises:
        ValueError: there is no such sweep.
        ImportError: packages for sweep files are missing.
    """
    path = sweep_path(PREFIX + name)
    try:
        from fastlif.sweep.document import read_document
        from fastlif.sweep.problems import Problems
        from fastlif.sweep.validation import checked_file, checked_option
    except ImportError as error:
        raise ImportError(
            "the paper's grids and settings are in sweep files, which need the packages of "
            f"pip install 'fastlif[sweep]' ({error})"
        ) from error
    problems = Problems(path.name)
    file = checked_file(read_document(path, problems), problems)

    def checked(option: str, value: Any, *place: str) -> Any:
        return checked_option(option, value, place, problems)[0]

    presets = file.preset if isinstance(file.preset, list) else [file.preset]
    found = PaperSweep(
        tuple(checked("preset", one, "preset") for one in presets),
        {
            option: tuple(checked(option, value, "search", option) for value in values)
            for option, values in file.search.items()
        },
        {
            option: checked(option, value, "settings", option)
            for option, value in file.settings.items()
        },
        len(file.seeds),
    )
    problems.stop()
    return found
