"""The process that trains, seen from the one that speaks to Ray."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from fastlif.sweep.worker import Order

__all__ = ["TrainingProcess", "WorkerDied"]

# With the modules of this process, wherever they were found.
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fastlif.sweep import worker"
_ABORTED = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS}
_OUT_OF_MEMORY_KILLS = Path("/proc/vmstat")


class WorkerDied(Exception):
    """The process ended in the middle of a trial.

    out_of_memory: whether that is why, as far as can be told.
    """

    def __init__(self, message: str, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class TrainingProcess:
    """A `fastlif.sweep.worker`. It ends with this process, whatever ends it."""

    def __init__(self) -> None:
        self._limited = False
        self._kills = _kills_for_memory()
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{_START}; worker.main()", json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # Ctrl-C is for the driver alone
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def order(self, order: Order) -> None:
        """Begin a trial; the process is idle."""
        self._limited = order.memory is not None
        self._kills = _kills_for_memory()
        self.tell(asdict(order))

    def tell(self, command: Any) -> None:
        """Send a command. Whether it arrived shows in the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass

    def answer(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next answer; None if there is none within `timeout` seconds.

        Raises:
            WorkerDied: there will be none.
        """
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            return None
        if line is None:
            raise self._death()
        return dict(json.loads(line))

    def kill(self) -> None:
        """End it now; what it holds is free when this returns."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _death(self) -> WorkerDied:
        self._process.kill()
        code = self._process.wait()
        how = f"exit code {code}"
        if code < 0:
            how = f"signal {-code} ({signal.Signals(-code).name})"
        said = self._last_words()
        message = f"the training process ended by {how}" + (f": {said}" if said else "")
        # A kernel's thread that gets no memory aborts; the system kills who takes too much.
        refused = self._limited and -code in _ABORTED
        killed = -code == signal.SIGKILL and _kills_for_memory() > self._kills
        return WorkerDied(message, "bad_alloc" in said or refused or killed)

    def _last_words(self) -> str:
        """The end of what it wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return " ".join(line.strip() for line in lines[-4:] if line.strip())[-400:]


def _kills_for_memory() -> int:
    """How many processes the system has killed so far as there was no memory left; 0 if unknown."""
    if not _OUT_OF_MEMORY_KILLS.exists():
        return 0
    found = [line.split() for line in _OUT_OF_MEMORY_KILLS.read_text().splitlines()]
    return next((int(count) for name, count in found if name == "oom_kill"), 0)
