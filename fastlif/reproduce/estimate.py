"""How long the runs of a reproduction will take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastlif.reproduce.runs import Run
from fastlif.reproduce.sources import Sources
from fastlif.train.estimate import EpochTimes

__all__ = ["Estimator"]

RECORD_SECONDS = 5.0  # of looking inside a network once


class Estimator:
    """Seconds that runs take on this machine, epochs and records."""

    def __init__(self, sources: Sources, runs_folder: Path) -> None:
        self._sources = sources
        self.times = EpochTimes(runs_folder)

    def is_measured(self, run: Run) -> bool:
        """Whether a run of the same network was timed here."""
        return self.times.is_measured(run.config)

    def seconds(self, run: Run) -> float:
        """Estimate for a run from its first epoch to its last record."""
        recording = RECORD_SECONDS * len([r for r in run.records if r != "curves"])
        if not run.trained:
            return recording
        return recording + self.times.seconds(run.config, self._sources.n_train(run.data))

    def hours(self, runs: Iterable[Run]) -> float:
        """Estimate for runs one after the other."""
        return sum(map(self.seconds, runs)) / 3600.0
