"""One training run of a reproduction: its settings, its folder, its execution and its rows."""

from __future__ import annotations

import csv
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlif.files import write_atomically
from fastlif.init import ActivityWarning
from fastlif.models import preset
from fastlif.reproduce.recording import LAYER_STAGES, layer_name, record_example, record_layers
from fastlif.reproduce.sources import Sources
from fastlif.train import (
    Reporter,
    Task,
    TrainConfig,
    train,
)
from fastlif.train.failures import FAILED_NAME, RUN_FAILURES, record_failure, recorded_failure
from fastlif.train.loop import RESULT_NAME
from fastlif.train.run import CHECKPOINT_NAME
from fastlif.train.task import TaskCache
from fastlif.versions import versions

__all__ = [
    "Run",
    "Tasks",
    "execute",
    "failure",
    "made_by",
    "outcome",
    "run_arrays",
    "run_rows",
]

EPOCHS_TO = 0.9  # training accuracy whose first epoch is reported (figure 4c)
BEST_EPOCH, LAST_EPOCH = "best epoch", "last epoch"  # whose weights a score is of
_WORDS = ("phase",)  # columns of the log of epochs that are no numbers


@dataclass(frozen=True)
class Run:
    """A network trained, or only looked at, under one condition with one seed.

    panels: letters of the panels that show it.
    network: as the figure names it, without the condition.
    condition: what sets it apart from other runs of the network: initialization, homeostasis, ...
    trained: False if the network at its initialization is all that is asked for.
    records: besides the scores. "initial" and "trained" are firing rates, surrogate gradients and
        weight updates of every layer at that stage; "example" the spikes of a sample before and
        after training; "curves" the firing rates after every epoch.
    """

    panels: str
    network: str
    condition: str
    config: TrainConfig
    trained: bool = True
    records: tuple[str, ...] = ()

    @property
    def target(self) -> float | None:
        """Target of sigma_U, None for an initialization that has none."""
        return self.config.sigma_u if self.config.initialization == "fluctuation" else None

    @property
    def data(self) -> str:
        """Kind of data that the network is for."""
        return preset(self.config.preset).data

    def label(self) -> str:
        """One line that says which run it is."""
        parts = [self.network, self.condition]
        if self.target is not None:
            parts.append(f"sigma_U = {self.target:g}")
        elif self.config.initialization == "normal":
            parts.append(f"mu_W = {self.config.mu_w:g}, sigma_W = {self.config.sigma_w:g}")
        return ", ".join([*parts, f"seed {self.config.seed}"])

    def folder_name(self, sources: Sources) -> str:
        """Readable, and different for runs that differ in any setting or in their data."""
        config = self.config
        start = {
            "fluctuation": f"sigma{config.sigma_u:g}",
            "normal": f"mu{config.mu_w or 0:g}-sigmaw{config.sigma_w or 0:g}",
        }.get(config.initialization, config.initialization)
        kind = "rec" if config.recurrent else "ff"
        digest = config.digest(sources.fingerprint(self.data))
        return f"{config.preset}-{kind}-{start}-seed{config.seed}-{digest}"


class Tasks:
    """The data of runs, from the sources of a reproduction."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._kept = TaskCache()

    def of(self, config: TrainConfig) -> Task:
        """Data of a run."""
        return self._kept.load(config, self._sources.folder(preset(config.preset).data))


def outcome(run: Run, folder: Path) -> str:
    """What is in a run's folder: "finished", "failed", or "unfinished" with something to do."""
    has_result = (folder / RESULT_NAME).is_file()
    recorded = all(_record_path(folder, record).is_file() for record in _own_files(run))
    if recorded and (has_result or not run.trained):
        return "finished"
    # A result outranks a failure: only records are missing then, and they can be made.
    failed = (folder / FAILED_NAME).is_file() and not has_result
    return "failed" if failed else "unfinished"


def execute(run: Run, folder: Path, tasks: Tasks, reporter: Reporter | None = None) -> None:
    """Do what is not done yet: train, going on where it was interrupted, then record.

    A run that cannot go on (its loss is no longer finite, its target cannot be reached) leaves a
    file with the message instead of a result. What a user can mend is not the run's failure.

    Raises:
        ValueError: data, checkpoint, device or backend cannot be used.
        FileNotFoundError: a file of the data is missing.
    """
    task = tasks.of(run.config)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            # Layers that a start leaves silent are what the experiments are about.
            warnings.simplefilter("ignore", ActivityWarning)
            _execute(run, folder, task, reporter)
    except RUN_FAILURES as error:
        record_failure(folder, str(error), run.config)


def _execute(run: Run, folder: Path, task: Task, reporter: Reporter | None) -> None:
    # First what needs no training, so that it is there whatever becomes of the training.
    if "initial" in run.records:
        _record_layers(run, task, folder, "initial")
    if run.trained and not (folder / RESULT_NAME).is_file():
        resume = (folder / CHECKPOINT_NAME).is_file()
        train(run.config, task, folder, resume=resume, reporter=reporter)
    if "trained" in run.records:
        _record_layers(run, task, folder, "trained")
    example = _record_path(folder, "example")
    if "example" in run.records and not example.is_file():
        record_example(run.config, task, folder, example)


def _record_layers(run: Run, task: Task, folder: Path, stage: str) -> None:
    path = _record_path(folder, stage)
    if not path.is_file():
        rows = record_layers(run.config, task, folder if stage == "trained" else None)
        content = {"versions": versions(), "rows": rows}
        write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def run_rows(run: Run, folder: Path) -> list[dict[str, Any]]:
    """The numbers that a run gave so far: dictionaries with metric, stage, layer and value."""
    rows: list[dict[str, Any]] = []
    if run.trained and (folder / RESULT_NAME).is_file():
        result = json.loads((folder / RESULT_NAME).read_text())
        history = _history(folder)
        best = history[result["best_epoch"] - 1]
        supervised = history[run.config.priming_epochs :]
        accuracies = [row["train_accuracy"] for row in supervised]
        reached = [i for i, value in enumerate(accuracies, start=1) if value >= EPOCHS_TO]
        rows += [
            # The paper reports the validation accuracy after the last epoch.
            _row("test_accuracy", BEST_EPOCH, result["test_accuracy"]),
            _row("validation_accuracy", BEST_EPOCH, result["validation_accuracy"]),
            _row("final_validation_accuracy", LAST_EPOCH, history[-1]["validation_accuracy"]),
            _row("train_accuracy", BEST_EPOCH, best["train_accuracy"]),
            _row("best_epoch", "trained", result["best_epoch"]),
            _row("epochs_to_90", "training", reached[0] if reached else None),
            _row("n_parameters", "", result["n_parameters"]),
            _row("input_rate", "", result["data"]["input_rate"]),
            _row("n_classes", "", result["data"]["n_classes"]),
        ]
        layers = [name for name in history[0] if name.startswith("rate_")]
        rows += [
            _row("test_firing_rate", "trained", rate, _layer(name))
            for name, rate in zip(layers, result["test_firing_rates_hz"], strict=True)
        ]
        if "curves" in run.records:
            rows += _curves(history)
    for stage in LAYER_STAGES:
        path = _record_path(folder, stage)
        if stage in run.records and path.is_file():
            for row in json.loads(path.read_text())["rows"]:
                rows.append(_row(row["metric"], stage, row["value"], row["layer"]))
    return rows


def run_arrays(run: Run, folder: Path) -> dict[str, NDArray[Any]]:
    """The recorded example of a finished run, empty if there is none."""
    path = _record_path(folder, "example")
    if "example" not in run.records or not path.is_file():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def failure(folder: Path) -> str:
    """Why a run failed."""
    return str((recorded_failure(folder) or {})["message"])


def made_by(folder: Path) -> dict[str, str | None]:
    """Versions of fastlif and torch, and the commit, that trained a run or looked at its start.

    Empty of a run from before they were kept.
    """
    for name in (RESULT_NAME, FAILED_NAME, _record_path(folder, "initial").name):
        if (folder / name).is_file():
            return dict(json.loads((folder / name).read_text()).get("versions", {}))
    return {}


def _own_files(run: Run) -> list[str]:
    """Records that take a file of their own."""
    return [record for record in run.records if record != "curves"]


def _record_path(folder: Path, record: str) -> Path:
    return folder / ("example.npz" if record == "example" else f"activity-{record}.json")


def _row(metric: str, stage: str, value: float | None, layer: str = "") -> dict[str, Any]:
    return {"metric": metric, "stage": stage, "layer": layer or None, "value": value}


def _history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) for k, v in row.items() if v and k not in _WORDS} for row in rows]


def _curves(history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Firing rate of every hidden layer in every epoch; the stage is the epoch's number."""
    rows = []
    for epoch in history:
        for name, rate in epoch.items():
            if name.startswith("rate_"):
                rows.append(_row("epoch_firing_rate", str(int(epoch["epoch"])), rate, _layer(name)))
    return rows


def _layer(column: str) -> str:
    """Layer of a column of the log: rate_hidden2_hz is of "2"."""
    return layer_name(column.removeprefix("rate_").removesuffix("_hz"))
