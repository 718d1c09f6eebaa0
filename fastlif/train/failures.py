"""Runs that failed: what counts as a failure of the run itself, and how it is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastlif.files import write_atomically
from fastlif.init import UnreachableTarget
from fastlif.train.config import TrainConfig
from fastlif.train.run import TrainingFailed
from fastlif.versions import versions

__all__ = ["FAILED_NAME", "RUN_FAILURES", "record_failure", "recorded_failure"]

FAILED_NAME = "failed.json"
# With these settings and this data a run ends so on any machine. What a user can mend is none.
RUN_FAILURES = (TrainingFailed, UnreachableTarget)


def record_failure(folder: Path, message: str, config: TrainConfig, **more: Any) -> None:
    """Leave a file with the message instead of a result.

    Args:
        folder: of the run; made if it is not there.
        message: why there is no result.
        config: of the run.
        more: JSON-serialisable entries of the caller's own.
    """
    content = {
        "message": message,
        **more,
        "settings": config.as_dict(),
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / FAILED_NAME, (json.dumps(content, indent=2) + "\n").encode())


def recorded_failure(folder: Path) -> dict[str, Any] | None:
    """What `record_failure` left in a folder, None if there is nothing."""
    try:
        return dict(json.loads((folder / FAILED_NAME).read_text()))
    except FileNotFoundError:
        return None
