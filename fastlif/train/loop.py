"""Training from start to end: epochs, logs and the test score of the best epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastlif.files import held_by_this_process, write_atomically
from fastlif.train.config import TrainConfig
from fastlif.train.logs import EpochRecord, Scores, TensorBoardLog
from fastlif.train.parallel import Processes
from fastlif.train.run import CHECKPOINT_NAME, Reporter, Run
from fastlif.train.task import Task
from fastlif.versions import versions

__all__ = [
    "RESULT_NAME",
    "TrainResult",
    "end_epoch",
    "epoch_record",
    "held",
    "train",
    "write_result",
]

RESULT_NAME = "result.json"


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a finished run; the test scores are those of the best epoch's weights."""

    best_epoch: int
    validation_accuracy: float  # of the best epoch
    test: Scores
    epochs: int  # priming among them
    n_parameters: int
    seconds_per_epoch: float  # median
    populations: tuple[str, ...]  # whose firing rates `test` has


def train(
    config: TrainConfig,
    task: Task,
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    processes: Processes | None = None,
) -> TrainResult:
    """Train a preset, saving every epoch in `folder`, and test the best epoch's weights.

    The folder gets `checkpoint.safetensors`, `epochs.csv`, `tensorboard/` and at the end
    `result.json`. An interrupted run is continued with `resume=True` and then ends bit for bit
    as it would have without the interruption.

    processes: those that train the network together, see `Processes`; default: this one alone. All
        of them call this function with the same arguments and return the same result. The folder
        and the reporter are the first one's.

    Raises:
        ValueError: the folder already holds a run and `resume` is False, its checkpoint is
            damaged or of another run, or another process trains there; there are more processes
            than samples in a batch, or they differ in settings, data or versions.
        TrainingFailed: the loss is no longer finite; it is a ValueError too.
        FileNotFoundError: `resume` is True and there is no checkpoint.
        ConnectionError: another one of several processes has ended.
    """
    processes = Processes() if processes is None else processes
    with processes.held_by_first(held(folder, resume)):
        return _train(config, task, folder, resume, reporter, processes)


@contextmanager
def held(folder: Path, resume: bool) -> Iterator[None]:
    """Hold a folder that is for a new run, or for the one in it."""
    with held_by_this_process(folder):
        if (folder / CHECKPOINT_NAME).exists() and not resume:
            raise ValueError(
                f"{folder} already holds a run: resume it, or choose another output folder"
            )
        yield


def _train(
    config: TrainConfig,
    task: Task,
    folder: Path,
    resume: bool,
    reporter: Reporter | None,
    processes: Processes,
) -> TrainResult:
    """Train in a folder that no other process writes to."""
    code = versions()  # loaded now, whatever is checked out later
    run = Run(config, task, folder, processes, resume=resume)
    reporter = reporter if processes.is_first else None
    if reporter is not None:
        reporter.started(
            epochs_done=run.epoch, epochs=config.all_epochs, batches_per_epoch=run.n_batches
        )
    log = None
    if processes.is_first:
        log = TensorBoardLog(folder / "tensorboard", epochs_done=run.epoch)
    try:
        for epoch in range(run.epoch + 1, config.all_epochs + 1):
            start = time.perf_counter()
            scores = run.train_epoch(epoch, reporter)
            validation = run.evaluate(run.validation_set)
            seconds = time.perf_counter() - start
            end_epoch(run, epoch_record(run, epoch, scores, validation, seconds), log, reporter)
        test = run.test_best()
        if log is not None:
            log.test(test, run.best_epoch)
    finally:
        if log is not None:
            log.close()
    return write_result(run, test, code)


def epoch_record(
    run: Run,
    epoch: int,
    scores: Scores,  # of training
    validation: Scores,
    seconds: float,
) -> EpochRecord:
    """What an epoch of a run gave."""
    return EpochRecord(
        epoch=epoch,
        phase=run.phase(epoch),
        populations=run.population_names,
        train=scores,
        validation=validation,
        seconds=seconds,
    )


def end_epoch(
    run: Run, record: EpochRecord, log: TensorBoardLog | None, reporter: Reporter | None
) -> None:
    """Log and save an epoch, and tell the reporter."""
    if log is not None:
        log.epoch(record.row())
    is_best = run.finish_epoch(record)
    if reporter is not None:
        reporter.epoch_done(record, is_best=is_best)


def write_result(run: Run, test: Scores, code: dict[str, str | None]) -> TrainResult:
    """The outcome of a run that has come to its end, and its `result.json`."""
    best = run.history[run.best_epoch - 1]
    result = TrainResult(
        best_epoch=run.best_epoch,
        validation_accuracy=best["validation_accuracy"],
        test=test,
        epochs=run.epoch,
        n_parameters=sum(p.numel() for p in run.network.parameters()),
        seconds_per_epoch=float(np.median([row["seconds"] for row in run.history])),
        populations=run.population_names,
    )
    content = {
        "settings": run.settings,
        "data": run.data,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "validation_accuracy": result.validation_accuracy,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_firing_rates_hz": list(test.firing_rates),
        "populations": list(result.populations),
        "n_parameters": result.n_parameters,
        "seconds_per_epoch": result.seconds_per_epoch,
        "versions": code,  # that ended the run
    }
    if run.processes.is_first:
        write_atomically(run.folder / RESULT_NAME, (json.dumps(content, indent=2) + "\n").encode())
    return result
