"""How far a sweep is, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fastlif.sweep.records import Outcome
from fastlif.sweep.spec import SweepSpec, Trial

__all__ = ["Pace", "Progress", "SweepReporter"]


@dataclass(frozen=True)
class Progress:
    """Trials by state.

    ended: by status.
    seconds_left: None as long as no epoch was timed. Where a scheduler stops trials, at most so
        many.
    """

    total: int
    ended: dict[str, int]
    running: int
    seconds_left: float | None

    @property
    def n_ended(self) -> int:
        """Trials that need not run any more."""
        return sum(self.ended.values())


class SweepReporter(Protocol):
    """Told of the progress of a sweep; the command line shows it."""

    def started(self, progress: Progress) -> None:
        """The sweep begins or goes on; trials that ended before are among those of `progress`."""

    def trial_ended(self, trial: Trial, ended: Outcome) -> None:
        """A trial ended, now."""

    def progressed(self, progress: Progress) -> None:
        """Something changed; told a few times a second at most."""


class Pace:
    """Counts trials and epochs."""

    def __init__(self, spec: SweepSpec, ended: dict[int, Outcome]) -> None:
        self._trials = {trial.number: trial for trial in spec.trials}
        self._ended = dict(ended)
        self._epochs_done: dict[int, int] = {}
        self._seconds: dict[int, list[float]] = {}  # of epochs
        self._running: dict[int, float] = {}  # the part of a place that each takes
        self._most_places = 1.0

    def begun(self, numbers: Iterable[int]) -> None:
        """Trials run, side by side."""
        together = [number for number in numbers if number not in self._ended]
        self._running |= {number: 1.0 / len(together) for number in together}
        # What runs side by side takes one place; the epochs of its trials have a part of the time.
        self._most_places = max(self._most_places, sum(self._running.values()))

    def interrupted(self, numbers: Iterable[int]) -> None:
        """Trials do not run any more, and will run again."""
        for number in numbers:
            self._running.pop(number, None)

    def epoch_done(self, number: int, row: dict[str, Any]) -> None:
        """A trial reported an epoch."""
        self._epochs_done[number] = row["epoch"]
        self._seconds.setdefault(number, []).append(row["seconds"])

    def ended(self, number: int, how: Outcome) -> None:
        """A trial need not run any more."""
        self._running.pop(number, None)
        self._ended[number] = how

    def has_ended(self, number: int) -> bool:
        """Whether a trial need not run any more."""
        return number in self._ended

    @property
    def is_running(self) -> bool:
        """Whether any trial runs."""
        return bool(self._running)

    def progress(self) -> Progress:
        """How things stand."""
        return Progress(
            total=len(self._trials),
            ended=dict(Counter(how.status for how in self._ended.values())),
            running=len(self._running),
            seconds_left=self._seconds_left(),
        )

    def _seconds_left(self) -> float | None:
        """By the epochs that were timed: of the trial, else of its network, else of any."""
        medians = {number: statistics.median(times) for number, times in self._seconds.items()}
        if not medians:
            return None
        networks: dict[tuple[str, bool], list[float]] = {}
        for number, median in medians.items():
            networks.setdefault(self._network(number), []).append(median)
        any_network = statistics.mean(medians.values())
        left = 0.0
        for number, trial in self._trials.items():
            if number not in self._ended:
                same = networks.get(self._network(number), [any_network])
                seconds = medians.get(number, statistics.mean(same))
                left += seconds * (trial.config.all_epochs - self._epochs_done.get(number, 0))
        return left / self._most_places

    def _network(self, number: int) -> tuple[str, bool]:
        config = self._trials[number].config
        return config.preset, config.recurrent
