"""A trial as Ray Tune sees it: an actor that passes on what a training process reports."""

from __future__ import annotations

import csv
import math
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from fastlif.sweep.folder import SWEEP_NAME
from fastlif.sweep.process import TrainingProcess, WorkerDied
from fastlif.sweep.records import Outcome, outcome, record
from fastlif.sweep.spec import Resources, Trial
from fastlif.sweep.worker import GO_ON, STOP, Order, Ordered
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
    waits: whether a trial, which is alone then, waits after every epoch until it is told to go on.
    """

    folder: Path
    data: Path | None
    trials: dict[int, Trial]
    resources: Resources
    waits: bool


class TrialLost(RuntimeError):
    """The trial did not end by itself; another attempt may."""


class TrialActor(tune.Trainable):
    """Some trials that are trained side by side, or one; a step is an epoch or the end of a trial.

    A result has the `number` of its trial. At the end of one it has `status` and `message`, or
    under `mend` what stops the sweep. The last result of all has `done`. A step raises `TrialLost`
    where Tune should try once more.
    """

    def setup(self, config: dict[str, Any], *, job: Job) -> None:
        """Take over the first trials."""
        self._job = job
        self._process: TrainingProcess | None = None
        self._begun = self._waits_for_word = False
        self._take(config["numbers"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take over other trials; those before have ended or are not wanted any more."""
        self._become_idle()
        self._take(new_config["numbers"])
        return True

    def cleanup(self) -> None:
        """End the training process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def step(self) -> dict[str, Any]:
        """Let the trials begin or go on, until one has something to report."""
        if not self._begun:
            if not (self._job.folder.parent / SWEEP_NAME).is_file():
                return self._broken(_not_shared(self._job.folder.parent))
            self._begin()
        elif self._waits_for_word and self._process is not None:
            self._process.tell(GO_ON)
            self._charged_at = time.monotonic()
        self._waits_for_word = False
        while not self._ends:
            if not self._running:
                if not self._orders:
                    self._begun = False
                    raise TrialLost(self._losses[0])
                self._order(self._orders.pop(0))
            answer = self._answer()
            if answer["kind"] == "epoch":
                self._waits_for_word = self._job.waits
                return {"number": answer["number"], **answer["row"]}
            if answer["status"] == "mend":
                return self._broken(answer["message"], answer["number"])
            self._end(answer["number"], answer["status"], answer["message"])
        number, ended = self._ends.pop(0)
        is_last = not (self._ends or self._running or self._orders or self._losses)
        return {
            "number": number,
            "status": ended.status,
            "message": ended.message,
            "done": is_last,
        }

    def _take(self, numbers: Sequence[int]) -> None:
        self._trials = [self._job.trials[number] for number in numbers]
        self._begun = False
        self._ends: list[tuple[int, Outcome]] = []  # that are not reported yet
        self._orders: list[list[Trial]] = []  # that are not given yet
        self._running: list[Trial] = []  # of the order that was given, without those that ended
        self._losses: list[str] = []  # of trials, each tried alone, that another attempt may finish
        self._waits_for_word = False

    def _begin(self) -> None:
        self._begun = True
        self._losses.clear()
        waiting = []
        for trial in self._trials:
            ended = outcome(self._folder(trial))
            if ended is None:
                waiting.append(trial)
            else:
                self._ends.append((trial.number, ended))
        if waiting:
            self._orders = [waiting]

    def _folder(self, trial: Trial) -> Path:
        return self._job.folder / trial.name

    def _order(self, trials: list[Trial]) -> None:
        """Give trials to the training process, which is idle or not there.

        Side by side they may take as much as they may one after the other.
        """
        resources = self._job.resources
        self._running = trials
        self._charged_at = time.monotonic()
        self._seconds_left = math.inf
        if resources.hours is not None:
            spent = sum(_seconds(self._folder(trial)) for trial in trials)
            self._seconds_left = 3600.0 * resources.hours * len(trials) - spent
        # Whether what runs out of memory has only itself to blame.
        self._is_conclusive = self._process is None and len(trials) == 1
        if self._process is None:
            self._process = TrainingProcess()
        self._process.order(
            Order(
                trials=tuple(
                    Ordered(trial.number, trial.config.as_dict(), str(self._folder(trial)))
                    for trial in trials
                ),
                data=None if self._job.data is None else str(self._job.data),
                node=ray.get_runtime_context().get_node_id(),
                threads=max(1, int(resources.cpus)),
                memory=None if resources.memory is None else resources.memory * len(trials),
                waits=self._job.waits,
            )
        )

    def _answer(self) -> dict[str, Any]:
        """The next answer of the training process, or what its death or its silence means."""
        assert self._process is not None
        self._charge()
        try:
            left = self._seconds_left
            answer = self._process.answer(None if math.isinf(left) else max(0.0, left))
            self._charge()
        except WorkerDied as death:
            self._process = None
            status = "out of memory" if death.out_of_memory else "again"
            answer = {"kind": "end", "number": None, "status": status, "message": str(death)}
        if answer is None:
            self.cleanup()
            assert self._job.resources.hours is not None
            message = f"above {self._job.resources.hours:g} hours"
            if len(self._running) > 1:
                message += " for each of those side by side"
            answer = {"kind": "end", "number": None, "status": "out of time", "message": message}
        return answer

    def _charge(self) -> None:
        """Take the time since it was last taken from what is left: training goes on meanwhile."""
        now = time.monotonic()
        self._seconds_left -= now - self._charged_at
        self._charged_at = now

    def _end(self, number: int | None, status: str, message: str) -> None:
        """Take down how a trial ended, or all that run; or give them once more, one by one."""
        concerned = [trial for trial in self._running if number in (None, trial.number)]
        self._running = [trial for trial in self._running if trial not in concerned]
        together = len(concerned) > 1
        if status == "out of memory" and not self._is_conclusive:
            # What ran with it or before it may be to blame: a new process decides.
            self.cleanup()
            self._orders += [[trial] for trial in concerned]
        elif status in ("failed", "again") and together:
            self._orders += [[trial] for trial in concerned]
        elif status == "again":
            self._losses.append(message)
        else:
            for trial in concerned:
                ended = Outcome(status, message)
                if outcome(self._folder(trial)) is None:
                    record(self._folder(trial), ended, trial.config, self._job.resources)
                self._ends.append((trial.number, outcome(self._folder(trial)) or ended))

    def _broken(self, message: str, number: int | None = None) -> dict[str, Any]:
        self._running = []
        number = self._trials[0].number if number is None else number
        return {"number": number, "done": True, "mend": message}

    def _become_idle(self) -> None:
        """Leave the training process without a trial: stopped, or ended if it cannot stop."""
        if not self._running:
            return
        self._running = []
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


def _seconds(folder: Path) -> float:
    """That the epochs of a trial took so far."""
    try:
        with open(folder / CSV_NAME, newline="") as file:
            return sum(float(row["seconds"]) for row in csv.DictReader(file))
    except FileNotFoundError:
        return 0.0
