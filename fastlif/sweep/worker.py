"""A process that trains trials as its standard input tells it to, those of an order side by side.

It is apart from the process that speaks to Ray: a limit of memory holds for the training alone, and
a process that is killed, for its memory or for its time, takes nothing else with it. It keeps data
and loaded kernels for the next trial.

Commands and answers are lines of JSON, on standard input and standard output. A command is an
`Order`, or `GO_ON` or `STOP` for a trial that waits after an epoch. The answers to an order are one
`{"kind": "epoch", "number": ..., "row": ...}` for every trial and epoch, and at last for every
trial `{"kind": "end", "number": ..., "status": ..., "message": ...}`, or for all of them one whose
number is None. The status is

    finished, stopped, failed, out of memory: how the trial ended
    mend: something that stops every trial, and that a user can mend
    again: something that may not happen a second time

Of several trials at once, "failed" and "out of memory" do not say which of them is to blame.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from queue import Queue
from typing import Any, TextIO

import torch

from fastlif.backends import release_memory
from fastlif.files import FolderInUse, write_atomically
from fastlif.init import ActivityWarning
from fastlif.memory import is_out_of_memory, memory_limit
from fastlif.sweep.records import ATTEMPTS_NAME, Outcome, attempts, outcome
from fastlif.train import EpochRecord, TrainConfig, train, train_pack
from fastlif.train.failures import RUN_FAILURES
from fastlif.train.run import CHECKPOINT_NAME, TrainingFailed
from fastlif.train.task import Task, TaskCache

__all__ = ["GO_ON", "STOP", "Order", "Ordered"]

GO_ON, STOP = "go on", "stop"
# Of a folder that a process of a lost node or a killed driver still holds. File servers take up to
# 90 s to notice that a machine with a lock is gone.
_PATIENCE = 120.0
_POLL = 0.2  # seconds between looks at such a folder
# A file server or a network that did not answer may answer the next time.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENETDOWN,
            errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET}  # fmt: skip


@dataclass(frozen=True)
class Ordered:
    """A trial of an order.

    number: of the trial.
    settings: of the run, as `TrainConfig.as_dict` gives them.
    folder: of the run; one that holds a checkpoint is continued.
    """

    number: int
    settings: dict[str, Any]
    folder: str


@dataclass(frozen=True)
class Order:
    """Trials to train, side by side if they are several.

    data: folder of their data.
    node: where the worker runs, in Ray's words.
    threads: to compute with.
    memory: most bytes to take.
    waits: whether the next epoch begins only when told to go on; for a single trial.
    """

    trials: tuple[Ordered, ...]
    data: str | None
    node: str
    threads: int = 1
    memory: int | None = None
    waits: bool = False

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Order:
        """The order that `dataclasses.asdict` made a dictionary of."""
        trials = tuple(Ordered(**one) for one in content["trials"])
        return Order(**{**content, "trials": trials})


class _Stopped(BaseException):
    """The trial need not go on."""


class _Voice:
    """The `Reporter` of a trial."""

    def __init__(self, worker: _Worker, order: Order, trial: Ordered) -> None:
        self._worker = worker
        self._order = order
        self._trial = trial

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        """Leave a line on this attempt; the folder is held by this process by now."""
        folder = Path(self._trial.folder)
        attempt = {
            "node": socket.gethostname(),
            "ray_node": self._order.node,
            "process": os.getpid(),
            "epochs_done": epochs_done,
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        text = json.dumps([*attempts(folder), attempt], indent=1)
        write_atomically(folder / ATTEMPTS_NAME, (text + "\n").encode())

    def batch_done(self) -> None:
        """Nobody wants to know."""

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """Report an epoch, and wait if somebody decides now whether the trial goes on."""
        self._worker.answer(kind="epoch", number=self._trial.number, row=record.row())
        if self._order.waits and self._worker.next_command() == STOP:
            raise _Stopped


class _Worker:
    """Trains as it is ordered to."""

    def __init__(self, commands: Queue[Any], answers: TextIO) -> None:
        self._commands = commands
        self._answers = answers
        self._tasks = TaskCache()
        self._told: set[int | None] = set()  # of the order, whose ends were answered

    def serve(self) -> None:
        """Train until the input ends, which ends the process."""
        while True:
            order = Order.from_dict(self.next_command())
            self._told.clear()
            for number, ended in self._ends_of(order).items():
                self._tell_end(number, ended)

    def _tell_end(self, number: int | None, ended: Outcome) -> None:
        """Once for each trial of an order."""
        if number not in self._told:
            self._told.add(number)
            self.answer(kind="end", number=number, status=ended.status, message=ended.message)

    def next_command(self) -> Any:
        """Wait for it."""
        return self._commands.get()

    def answer(self, **answer: Any) -> None:
        """Send a line of JSON."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()

    def _ends_of(self, order: Order) -> dict[int | None, Outcome]:
        """Train and tell how the trials ended, by number, or under None how all of them did."""
        device = order.trials[0].settings["device"]
        torch.set_num_threads(order.threads)
        try:
            with memory_limit(order.memory, device):
                return self._train(order)
        except _Stopped:
            ended = Outcome("stopped")
        except RUN_FAILURES as error:
            ended = Outcome("failed", str(error))
        except Exception as error:
            ended = self._classified(error)
        finally:
            release_memory()
            if device == "cuda" and torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        return {order.trials[0].number if len(order.trials) == 1 else None: ended}

    def _train(self, order: Order) -> dict[int | None, Outcome]:
        """Train those that have not ended yet; patient with folders that are still held."""
        ends: dict[int | None, Outcome] = {}
        give_up = time.monotonic() + _PATIENCE
        while True:
            for trial in order.trials:
                if (ended := outcome(Path(trial.folder))) is not None:
                    ends[trial.number] = ended
            waiting = [trial for trial in order.trials if trial.number not in ends]
            if not waiting:
                return ends
            try:
                with warnings.catch_warnings():
                    # Layers that a start leaves silent are what sweeps are about.
                    warnings.simplefilter("ignore", ActivityWarning)
                    ends |= self._failures(order, waiting)
            except FolderInUse:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_POLL)

    def _failures(self, order: Order, trials: list[Ordered]) -> dict[int | None, Outcome]:
        """Train trials; those whose loss is not finite any more, where others went on."""
        data = None if order.data is None else Path(order.data)
        configs = [TrainConfig.from_dict(trial.settings) for trial in trials]
        of_seed: dict[int, Task] = {}  # the only setting in which their data may differ
        for config in configs:
            if config.data_seed not in of_seed:
                of_seed[config.data_seed] = self._tasks.load(config, data)
        tasks = [of_seed[config.data_seed] for config in configs]
        folders = [Path(trial.folder) for trial in trials]
        voices = [_Voice(self, order, trial) for trial in trials]
        resume = any((folder / CHECKPOINT_NAME).is_file() for folder in folders)
        if len(trials) == 1:
            train(configs[0], tasks[0], folders[0], resume=resume, reporter=voices[0])
            return {}
        failed: dict[int | None, Outcome] = {}

        def tell(place: int, failure: TrainingFailed) -> None:
            """At once, as the others may go on for hours."""
            number, ended = trials[place].number, Outcome("failed", str(failure))
            failed[number] = ended
            self._tell_end(number, ended)

        train_pack(configs, tasks, folders, resume=resume, reporters=voices, on_failure=tell)
        return failed

    def _classified(self, error: Exception) -> Outcome:
        first_line = str(error).strip().partition("\n")[0]
        of_file = isinstance(error, OSError) and error.filename is not None
        passing = isinstance(error, OSError) and error.errno in _PASSING
        if is_out_of_memory(error) and not (of_file and passing):
            self._tasks.clear()
            return Outcome("out of memory", first_line or "no memory left")
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        passing |= isinstance(error, FolderInUse)
        if isinstance(error, (ValueError, OSError, ImportError)):
            return Outcome("again" if passing else "mend", message)
        return Outcome("again", f"{type(error).__name__}: {first_line}")


def _listen(commands: Queue[Any], lines: TextIO) -> None:
    """Pass commands on; the process ends with who gave them, in the middle of an epoch too."""
    for line in lines:
        commands.put(json.loads(line))
    os._exit(1)


def main() -> None:
    """Serve on standard input and output. What libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    commands: Queue[Any] = Queue()
    # What training loads at its start should not meet a limit of memory.
    import lightning_fabric  # noqa: F401

    threading.Thread(target=_listen, args=(commands, sys.stdin), daemon=True).start()
    _Worker(commands, answers).serve()
