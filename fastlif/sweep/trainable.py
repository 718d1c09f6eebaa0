"""A trial as Ray Tune sees it: an actor that passes on what a training process reports."""

from __future__ import annotations

import csv
import math
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from fastlif.sweep.folder import SWEEP_NAME
from fastlif.sweep.process import TrainingProcess, WorkerDied
from fastlif.sweep.records import Outcome, outcome, record
from fastlif.sweep.spec import Resources, Trial
from fastlif.sweep.worker import GO_ON, STOP, Order
from fastlif.train.run import CSV_NAME

__all__ = ["Job", "TrialActor", "TrialLost"]

# For a worker that was told to stop; it is between two epochs.
_STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep need to know.

    folder: of the trials.
    data: folder of the data, if any is read.
    trials: by number.
    waits: whether a trial waits after every epoch until it is told to go on.
    """

    folder: Path
    data: Path | None
    trials: dict[int, Trial]
    resources: Resources
    waits: bool


class TrialLost(RuntimeError):
    """The trial did not end by itself; another attempt may."""


class TrialActor(tune.Trainable):
    """A step is an epoch, or the end of the trial.

    The last result has `done`, and either `status` and `message` of the trial or, under `mend`,
    what stops the sweep. A step raises `TrialLost` where Tune should try once more.
    """

    def setup(self, config: dict[str, Any], *, job: Job) -> None:
        """Take over the first trial."""
        self._job = job
        self._process: TrainingProcess | None = None
        self._busy = False
        self._trial: Trial = job.trials[config["number"]]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over another trial; the one before has ended or is not wanted any more."""
        self._become_idle()
        self._trial = self._job.trials[new_config["number"]]
        return True

    def cleanup(self) -> None:
        """End the training process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def step(self) -> dict[str, Any]:
        """Let the trial begin or go on, until it has something to report."""
        if not self._busy:
            if (ended := outcome(self._folder)) is not None:
                return _last(ended)
            if not (self._job.folder.parent / SWEEP_NAME).is_file():
                return {"done": True, "mend": _not_shared(self._job.folder.parent)}
            self._begin()
        elif self._job.waits and self._process is not None:
            self._process.tell(GO_ON)
        return self._next_result()

    @property
    def _folder(self) -> Path:
        return self._job.folder / self._trial.name

    def _begin(self) -> None:
        limit = self._job.resources.hours
        self._seconds_left = math.inf if limit is None else 3600.0 * limit - _seconds(self._folder)
        self._busy = True
        self._order()

    def _order(self) -> None:
        """Give the trial to the training process, which is idle or not there."""
        resources = self._job.resources
        self._fresh = self._process is None
        if self._process is None:
            self._process = TrainingProcess()
        self._process.order(
            Order(
                settings=self._trial.config.as_dict(),
                data=None if self._job.data is None else str(self._job.data),
                folder=str(self._folder),
                node=ray.get_runtime_context().get_node_id(),
                threads=max(1, int(resources.cpus)),
                memory=resources.memory,
                waits=self._job.waits,
            )
        )

    def _next_result(self) -> dict[str, Any]:
        assert self._process is not None
        begun = time.monotonic()
        try:
            left = self._seconds_left
            answer = self._process.answer(None if math.isinf(left) else max(0.0, left))
            self._seconds_left -= time.monotonic() - begun
        except WorkerDied as death:
            self._process = None
            answer = {"kind": "end", "status": "again", "message": str(death)}
            if death.out_of_memory:
                answer["status"] = "out of memory"
        if answer is None:
            self.cleanup()
            limit = self._job.resources.hours
            answer = {"kind": "end", "status": "out of time", "message": f"above {limit:g} hours"}
        if answer["kind"] == "epoch":
            return dict(answer["row"])
        return self._end(answer["status"], answer["message"])

    def _end(self, status: str, message: str) -> dict[str, Any]:
        if status == "out of memory" and not self._fresh:
            # What earlier trials left in the process may be to blame: a new one decides.
            self.cleanup()
            self._order()
            return self._next_result()
        self._busy = False
        if status == "again":
            raise TrialLost(message)
        if status == "mend":
            return {"done": True, "mend": message}
        if outcome(self._folder) is None:
            config, resources = self._trial.config, self._job.resources
            record(self._folder, Outcome(status, message), config, resources)
        return _last(outcome(self._folder) or Outcome(status, message))

    def _become_idle(self) -> None:
        """Leave the training process without a trial: stopped, or ended if it cannot stop."""
        if not self._busy:
            return
        self._busy = False
        try:
            if self._job.waits and self._process is not None:
                self._process.tell(STOP)
                answer = self._process.answer(_STOP_SECONDS)
                if answer is not None and answer["kind"] == "end":
                    return
        except WorkerDied:
            pass
        self.cleanup()


def _not_shared(folder: Path) -> str:
    return (
        f"there is no sweep in {folder} on node {socket.gethostname()}: the folder of a sweep must "
        "be on a file system that all nodes share"
    )


def _last(ended: Outcome) -> dict[str, Any]:
    return {"done": True, "status": ended.status, "message": ended.message}


def _seconds(folder: Path) -> float:
    """That the epochs of a trial took so far."""
    try:
        with open(folder / CSV_NAME, newline="") as file:
            return sum(float(row["seconds"]) for row in csv.DictReader(file))
    except FileNotFoundError:
        return 0.0
