"""A process that trains trials, one after the other, as its standard input tells it to.

It is apart from the process that speaks to Ray: a limit of memory holds for the training alone, and
a process that is killed, for its memory or for its time, takes nothing else with it. It keeps data
and loaded kernels for the next trial.

Commands and answers are lines of JSON, on standard input and standard output. A command is an
`Order`, or `GO_ON` or `STOP` for a trial that waits after an epoch. The answers to an order are one
`{"kind": "epoch", "row": ...}` for every epoch, and at last `{"kind": "end", "status": ...,
"message": ...}`, where the status is

    finished, stopped, failed, out of memory: how the trial ended
    mend: something that stops every trial, and that a user can mend
    again: something that may not happen a second time
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
from fastlif.train import EpochRecord, TrainConfig, train
from fastlif.train.failures import RUN_FAILURES
from fastlif.train.run import CHECKPOINT_NAME
from fastlif.train.task import TaskCache

__all__ = ["GO_ON", "STOP", "Order"]

GO_ON, STOP = "go on", "stop"
# Of a folder that a process of a lost node or a killed driver still holds. File servers take up to
# 90 s to notice that a machine with a lock is gone.
_PATIENCE = 120.0
_POLL = 0.2  # seconds between looks at such a folder
# A file server or a network that did not answer may answer the next time.
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.ENETDOWN,
            errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """A trial to train.

    settings: of the run, as `TrainConfig.as_dict` gives them.
    data: folder of its data.
    folder: of the run; one that holds a checkpoint is continued.
    node: where the worker runs, in Ray's words.
    threads: to compute with.
    memory: most bytes to take.
    waits: whether the next epoch begins only when told to go on.
    """

    settings: dict[str, Any]
    data: str | None
    folder: str
    node: str
    threads: int = 1
    memory: int | None = None
    waits: bool = False


class _Stopped(BaseException):
    """The trial need not go on."""


class _Worker:
    """Trains as it is ordered to; the `Reporter` of its trials."""

    def __init__(self, commands: Queue[Any], answers: TextIO) -> None:
        self._commands = commands
        self._answers = answers
        self._tasks = TaskCache()
        self._order: Order | None = None

    def serve(self) -> None:
        """Train until the input ends, which ends the process."""
        while True:
            self._order = Order(**self._commands.get())
            ended = self._end_of(self._order)
            self._answer(kind="end", status=ended.status, message=ended.message)

    def _end_of(self, order: Order) -> Outcome:
        """Train a trial and tell how it ended."""
        config = TrainConfig.from_dict(order.settings)
        torch.set_num_threads(order.threads)
        try:
            with memory_limit(order.memory, config.device):
                return self._train(config, order)
        except _Stopped:
            return Outcome("stopped")
        except RUN_FAILURES as error:
            return Outcome("failed", str(error))
        except Exception as error:
            return self._classified(error)
        finally:
            release_memory()
            if config.device == "cuda" and torch.cuda.is_initialized():
                torch.cuda.empty_cache()

    def _train(self, config: TrainConfig, order: Order) -> Outcome:
        task = self._tasks.load(config, None if order.data is None else Path(order.data))
        folder = Path(order.folder)
        give_up = time.monotonic() + _PATIENCE
        while (ended := outcome(folder)) is None:
            try:
                with warnings.catch_warnings():
                    # Layers that a start leaves silent are what sweeps are about.
                    warnings.simplefilter("ignore", ActivityWarning)
                    resume = (folder / CHECKPOINT_NAME).is_file()
                    train(config, task, folder, resume=resume, reporter=self)
            except FolderInUse:
                if time.monotonic() > give_up:
                    raise
                time.sleep(_POLL)
        return ended

    def _classified(self, error: Exception) -> Outcome:
        first_line = str(error).strip().partition("\n")[0]
        if is_out_of_memory(error):
            self._tasks.clear()
            return Outcome("out of memory", first_line or "no memory left")
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"{error.filename}: {error.strerror}"
        passing = isinstance(error, FolderInUse)
        passing |= isinstance(error, OSError) and error.errno in _PASSING
        if isinstance(error, (ValueError, OSError, ImportError)):
            return Outcome("again" if passing else "mend", message)
        return Outcome("again", f"{type(error).__name__}: {first_line}")

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        """Leave a line on this attempt; the folder is held by this process by now."""
        assert self._order is not None
        folder = Path(self._order.folder)
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
        assert self._order is not None
        self._answer(kind="epoch", row=record.row())
        if self._order.waits and self._commands.get() == STOP:
            raise _Stopped

    def _answer(self, **answer: Any) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


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
