"""What lies in the folder of a trial, and what it says about how the trial ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastlif.sweep.spec import Resources
from fastlif.train import TrainConfig
from fastlif.train.failures import FAILED_NAME, record_failure, recorded_failure
from fastlif.train.loop import RESULT_NAME

__all__ = ["ATTEMPTS_NAME", "STATUSES", "Outcome", "attempts", "outcome", "record"]

ATTEMPTS_NAME = "attempts.json"
STATUSES = ("finished", "stopped", "failed", "out of memory", "out of time", "lost")
# What a larger limit may mend: the entry of the record with the limit that there was.
_LIMITED = {"out of memory": "memory", "out of time": "hours"}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: one of `STATUSES`, and why, if it is not finished."""

    status: str
    message: str = ""


def outcome(folder: Path) -> Outcome | None:
    """How the trial of a folder ended; None if it did not yet. A result outranks a failure."""
    if (folder / RESULT_NAME).is_file():
        return Outcome("finished")
    failed = recorded_failure(folder)
    if failed is None:
        return None
    return Outcome(str(failed["status"]), str(failed["message"]))


def record(folder: Path, ended: Outcome, config: TrainConfig, resources: Resources) -> None:
    """Leave in a trial's folder how it ended without a result, and the limits that it had."""
    limits = {"memory": resources.memory, "hours": resources.hours}
    record_failure(folder, ended.message, config, status=ended.status, limits=limits)


def open_again(folder: Path, resources: Resources) -> None:
    """Forget an end that says nothing about the trial, or that a limit made which is larger now.

    A trial that was lost with its machine, or out of the memory or the time that it had, goes on.
    """
    failed = recorded_failure(folder)
    if failed is None or (folder / RESULT_NAME).is_file():
        return
    limited = _LIMITED.get(failed["status"])
    if limited is not None:
        then, now = failed["limits"][limited], getattr(resources, limited)
        grown = then is not None and (now is None or now > then)
    if failed["status"] == "lost" or (limited is not None and grown):
        (folder / FAILED_NAME).unlink()


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Where and when training began or went on, in order; empty if it never did."""
    try:
        return list(json.loads((folder / ATTEMPTS_NAME).read_text()))
    except FileNotFoundError:
        return []
