"""A side of a case in a process of its own: its own memory, and nothing of the others'."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from bench.alone import fresh_processes
from bench.cases import Case
from bench.check import CheckFailed, OpponentCheck, check_opponent
from bench.machine import ROOT
from bench.measure import (
    StepTime,
    Trainer,
    fused_forward,
    launches,
    peak_rss,
    release_freed_memory,
    resident_bytes,
)
from bench.opponents import OPPONENTS
from fastlif import PackedSpikes, Sequential

FASTLIF, FASTLIF_FLOAT = "fastlif", "fastlif-float"
TURN_SECONDS = 0.5  # of steps one after the other, at least: others' data is out of the caches then


class SideFailed(Exception):
    """A side stopped with an error of its own."""


@dataclass(frozen=True)
class Memory:
    """What a training step takes, in bytes; None outside Linux."""

    memory_steps: int  # that it was given
    peak_rss: int | None  # of the whole process during the step
    resident_before: int | None  # of the process before it: PyTorch, data and parameters


@dataclass(frozen=True)
class Facts:
    """What a side tells of its steps before they are timed."""

    steps: int  # that it runs
    kept_bytes: int  # by autograd between forward and backward, over `steps`
    launches: int | None  # of a training step over `steps`; None where they cannot be seen
    compile_seconds: float | None  # of the first step beyond the second; None if nothing compiles
    check: OpponentCheck | None  # None of fastlif, which has been checked before


def save_network(path: Path, model: Sequential, input: PackedSpikes) -> None:
    """Weights and input, for sides in other processes."""
    content = {"weights": model.state_dict(), "words": input.words, "n_steps": input.n_steps}
    torch.save(content | {"features": input.features}, path)


class Side:
    """One way to run a case."""

    def __init__(self, name: str, case: Case, saved: Path) -> None:
        content = torch.load(saved, weights_only=True)
        input = PackedSpikes(content["words"], content["n_steps"], tuple(content["features"]))
        self.name, self.case = name, case
        self.model = case.build()
        self.model.load_state_dict(content["weights"])
        self.packed = input
        self.is_fastlif = name in (FASTLIF, FASTLIF_FLOAT)
        self.steps = case.n_steps if self.is_fastlif else case.loop_steps
        self.input = self._input(self.steps)
        network: Any = copy.deepcopy(self.model)
        forward: Any = fused_forward(network)
        if not self.is_fastlif:
            network = forward = OPPONENTS[name].build(self.model)
        self.first: float | None = None  # seconds of the first step
        self.trainer = Trainer(forward, network, case.bounds, case.targets())

    def _input(self, steps: int) -> Tensor | PackedSpikes:
        if self.name == FASTLIF and not self.case.input_gradient:
            return self.packed
        spikes = self.packed.unpack()
        if steps != len(spikes):
            spikes = spikes[:steps].clone()
        return spikes.requires_grad_(self.case.input_gradient)

    def prepare(self) -> Facts:
        """Everything but the times. Raises CheckFailed where results are wrong."""
        first = self._start()
        opponent = OPPONENTS.get(self.name)
        compiles = opponent is not None and opponent.compiles
        compile_seconds = first - self.trainer.step(self.input).step if compiles else None
        return Facts(
            steps=self.steps,
            kept_bytes=self.trainer.kept_bytes(self.input),
            # What is compiled for a CPU shows no operators.
            launches=None if compiles else launches(lambda: self.trainer.step(self.input)),
            compile_seconds=compile_seconds,
            check=self._check(),
        )

    def memory(self) -> Memory:
        """Of a step over `case.memory_steps`, after a first one."""
        self._start()
        taken = self._memory_of_a_step()
        release_freed_memory()  # the others need what so long a step leaves behind
        return taken

    def _memory_of_a_step(self) -> Memory:
        steps = self.steps if self.is_fastlif else self.case.memory_steps or self.steps
        input = self.input if steps == self.steps else self._input(steps)
        release_freed_memory()
        before = resident_bytes()
        return Memory(steps, peak_rss(lambda: self.trainer.step(input)), before)

    def _start(self) -> float:
        """Take the first step, in which things are compiled, unless it was taken; its seconds."""
        if self.first is None:
            self.first = self.trainer.step(self.input).step
        return self.first

    def _check(self) -> OpponentCheck | None:
        if self.is_fastlif:
            return None
        return check_opponent(self.case, OPPONENTS[self.name], self.model, self.packed)

    def turn(self) -> StepTime:
        """The median of timed steps one after the other, scaled to the steps of the case."""
        median = self.trainer.turn(self.input, TURN_SECONDS)
        return median.scaled(self.case.n_steps / self.steps)

    def processor_seconds(self) -> float:
        """Processor time that this process has taken."""
        return time.process_time()


def serve(connection: Connection, name: str, case: Case, saved: Path, threads: int) -> None:
    """Answer the parent's requests, names of methods of `Side`, until it sends None."""
    torch.set_num_threads(threads)
    # The profiler's own messages do not belong into the report.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    side = None
    while (request := connection.recv()) is not None:
        try:
            if side is None:
                side = Side(name, case, saved)
            connection.send(("done", getattr(side, request)()))
        except CheckFailed as failure:
            connection.send(("wrong", str(failure)))
        except Exception:
            connection.send(("failed", traceback.format_exc(limit=-3)))


class Worker:
    """The parent's end of a side; a context in which the process lives."""

    def __init__(self, name: str, case: Case, saved: Path) -> None:
        context = fresh_processes()
        self.name = name
        self.connection, theirs = context.Pipe()
        arguments = (theirs, name, case, saved, torch.get_num_threads())
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, request: str) -> Any:
        """What a method of `Side` returns. Raises CheckFailed or SideFailed."""
        try:
            self.connection.send(request)
            state, answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            answer = f"its process ended with exit status {self.process.exitcode}"
            raise SideFailed(answer) from None
        if state == "wrong":
            raise CheckFailed(answer)
        if state == "failed":
            raise SideFailed(answer)
        return answer

    def close(self) -> None:
        """End the process, if it has not ended."""
        with contextlib.suppress(OSError):  # raised by a connection that has an end no more
            self.connection.send(None)
        self.process.join()
        self.connection.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@lru_cache
def import_seconds(module: str) -> float:
    """Seconds that importing a module takes in a fresh process that has imported torch."""
    code = (
        "import time, torch; begin = time.perf_counter(); "
        f"import {module}; print('seconds', time.perf_counter() - begin)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(answer.stdout.split("seconds")[-1])
