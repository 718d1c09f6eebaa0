"""What a sweep gave so far: a row for every trial and metric, ended or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlif.models import preset
from fastlif.plots import InputTheory
from fastlif.rows import Rows, Summary
from fastlif.sweep.report.layout import combinations

__all__ = ["METRICS", "Results", "results_of"]

# Accuracies, a share of 1 each, with what an axis in percent says.
METRICS = {
    "final_validation_accuracy": "validation accuracy\n(last epoch, %)",
    "test_accuracy": "test accuracy\n(best epoch, %)",
    "validation_accuracy": "validation accuracy\n(best epoch, %)",
    "train_accuracy": "training accuracy\n(best epoch, %)",
}
FINISHED, STOPPED, WAITING = "finished", "stopped", "waiting"


@dataclass(frozen=True)
class Setting:
    """Trials that differ in their seed alone, and the summaries of their metrics by name."""

    options: dict[str, Any]
    n_trials: int
    n_finished: int
    summaries: dict[str, Summary]


@dataclass(frozen=True)
class Results:
    """All that a report is made from.

    name: of the sweep.
    varied: its options, without the seed.
    trials: a row for every trial that the sweep has, in order, with its options, seed, status and
        message; "waiting" is one that has not ended.
    rows: a row for every trial and metric: those columns, the settings, `metric`, and `value`,
        which only finished trials have. Of trials that the scheduler stopped, `stopped_at` is what
        they had reached.
    metrics: to be drawn, unless others are asked for.
    """

    name: str
    varied: tuple[str, ...]
    trials: tuple[dict[str, Any], ...]
    rows: Rows
    metrics: tuple[str, ...]

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing; None if it is not known, or not the same for all trials."""
        classes = set(self.rows.distinct("n_classes"))
        return 1.0 / classes.pop() if len(classes) == 1 else None

    def counts(self) -> dict[str, int]:
        """Trials by status, those that finished first and those that wait last."""
        counted = Counter(trial["status"] for trial in self.trials)
        order = [FINISHED, *sorted(counted.keys() - {FINISHED, WAITING}), WAITING]
        return {status: counted[status] for status in order if counted[status]}

    def troubles(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Trials that ended without a score, by status and message."""
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for trial in self.trials:
            if trial["status"] not in (FINISHED, STOPPED, WAITING):
                key = (trial["status"], trial["message"] or "no message")
                found.setdefault(key, []).append(trial)
        return found

    def best(self, n_trials: int) -> list[dict[str, Any]]:
        """The finished trials that were best on validation samples, the best first."""
        finished = [trial for trial in self.trials if trial["status"] == FINISHED]
        return sorted(finished, key=lambda trial: -trial["validation_accuracy"])[:n_trials]

    def settings(self) -> list[Setting]:
        """Every combination of the varied options, in the order of the sweep."""
        found = []
        for options in combinations(self.rows, self.varied):
            rows = self.rows.where(**options)
            summaries = {key[0]: summary for key, summary in rows.over("metric").items()}
            statuses = [row["status"] for row in rows.where(metric=next(iter(METRICS)))]
            found.append(Setting(options, len(statuses), statuses.count(FINISHED), summaries))
        return found

    def title(self) -> str:
        """The sweep's name, and how many of its trials are shown if not all of them are."""
        finished = self.counts().get(FINISHED, 0)
        if finished == len(self.trials):
            return self.name
        return f"{self.name}: {finished} of {len(self.trials)} trials finished"

    def theory_of(self, rows: Rows) -> InputTheory | None:
        """What theory needs for the first layer of the trials of these rows.

        None where it has no say: for convolutions, recurrence, several networks at once, and data
        whose rate is not known.
        """
        known = [rows.distinct(name) for name in ("preset", "n_inputs", "input_rate", "dt")]
        if any(len(values) != 1 for values in known) or True in rows.distinct("recurrent"):
            return None
        (name,), (n_inputs,), (rate,), (dt,) = known
        return None if preset(name).convolutional else InputTheory(n_inputs, rate, dt=dt)


def results_of(
    name: str,
    varied: Sequence[str],
    planned: Sequence[Mapping[str, Any]],
    ended: Sequence[Mapping[str, Any]],
    metrics: Sequence[str] = ("final_validation_accuracy", "test_accuracy"),
) -> Results:
    """Results from what a sweep consists of and the table of its trials.

    Args:
        name: of the sweep.
        varied: options that it varies, without the seed.
        planned: number, name, options and settings of every trial.
        ended: rows of the table, of the trials that have ended.
        metrics: to be drawn.
    """
    by_number = {trial["number"]: trial for trial in ended}
    waiting = {"status": WAITING, "message": ""}
    trials = [{**by_number.get(trial["number"], waiting), **trial} for trial in planned]
    rows = Rows(_row(trial, metric) for trial in trials for metric in METRICS)
    return Results(name, tuple(varied), tuple(trials), rows, tuple(metrics))


def _row(trial: Mapping[str, Any], metric: str) -> dict[str, Any]:
    value, status = trial.get(metric), trial["status"]
    return {
        **trial,
        "metric": metric,
        "value": value if status == FINISHED else None,
        "stopped_at": value if status == STOPPED else None,
    }
