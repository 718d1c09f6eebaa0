"""Results from the folder of a sweep."""

from __future__ import annotations

from pathlib import Path

from fastlif.sweep.folder import load_sweep
from fastlif.sweep.report.results import Results, results_of
from fastlif.sweep.tables import read_trials

__all__ = ["read_results"]


def read_results(folder: Path) -> Results:
    """What the tables in a sweep's folder hold, while it runs or afterwards.

    Raises:
        FileNotFoundError: no sweep lies there, or none of its trials has ended.
        ValueError: a file of it is damaged.
        ImportError: packages for the tables are missing.
    """
    sweep = load_sweep(folder)
    planned = [
        trial["settings"] | trial["options"] | {"number": trial["number"], "name": trial["name"]}
        for trial in sweep["trials"]
    ]
    try:
        ended = read_trials(folder)
    except ImportError as error:
        raise ImportError(
            f"the tables of a sweep need the packages of pip install 'fastlif[sweep]' ({error})"
        ) from error
    return results_of(sweep["name"], sweep["varied"], planned, ended, sweep["report"]["metrics"])
