"""Tiny sweeps, and what they leave behind."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from fastlif.sweep import SweepSpec, Trial
from fastlif.sweep.folder import TRIALS_FOLDER
from fastlif.sweep.progress import Progress
from fastlif.sweep.records import Outcome
from fastlif.sweep.tables import EPOCHS, PLACE_COLUMNS, TRIALS
from fastlif.train import TrainConfig, default_config
from tests.training import assert_same_run

# About half a second each. Steps of SGD at the last learning rate leave no finite loss.
GRID = """
name: tiny
preset: randman
settings: {epochs: 40, n_samples: 60, batch_size: 60, dt: 1e-2, optimizer: sgd}
search:
  sigma_u: [0.5, 1, 2]
  lr: [0.3, 1, 3, 1e38]
seeds: 2
"""
N_TRIALS, N_FAILED, N_EPOCHS = 24, 6, 40


def tiny_trial(number: int, **changes: Any) -> Trial:
    """A trial of Randman."""
    settings = default_config("randman").as_dict()
    settings |= {"epochs": 3, "n_samples": 60, "batch_size": 60, "dt": 1e-2} | changes
    return Trial(number, f"{number:04d}-tiny", TrainConfig.from_dict(settings), dict(changes))


def tiny_sweep(*trials: Trial, **more: Any) -> SweepSpec:
    """A sweep of these trials."""
    varied = tuple(dict.fromkeys(name for trial in trials for name in trial.options))
    fixed = {"data": None} | more
    return SweepSpec("tiny", trials=trials, varied=varied, **fixed)


class Watcher:
    """A SweepReporter that keeps what it is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, Outcome]] = []
        self.seen: list[Progress] = []

    def started(self, progress: Progress) -> None:
        self.seen.append(progress)

    def trial_ended(self, trial: Trial, ended: Outcome) -> None:
        self.ended.append((trial.number, ended))

    def progressed(self, progress: Progress) -> None:
        self.seen.append(progress)


def table(folder: Path, name: str) -> list[dict[str, str]]:
    """A table's rows without the columns that say where and how fast trials ran."""
    with open(folder / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in PLACE_COLUMNS} for row in rows]


def assert_same_sweep(first: Path, second: Path) -> None:
    """Bit for bit: both tables, and the weights of every trial that finished."""
    for name in (TRIALS, EPOCHS):
        assert table(first, name) == table(second, name)
    finished = sorted(first.glob(f"{TRIALS_FOLDER}/*/result.json"))
    assert len(finished) == N_TRIALS - N_FAILED
    for path in finished:
        assert_same_run(path.parent, second / TRIALS_FOLDER / path.parent.name, at_least=4)
