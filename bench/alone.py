"""Processes of their own: memory that others left does not count as theirs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from types import TracebackType
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")
# The last one is what the first optimizer of a process imports, which takes seconds.
PRELOADED = ["bench.worker", "bench.points", "bench.depth", "torch._dynamo"]


class Died(Exception):
    """The process ended without an answer; `exit_code` is below 0 for a signal."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"the process ended with exit code {exit_code}")
        self.exit_code = exit_code


def fresh_processes() -> ForkServerContext:
    """Where processes come from: a server that has only imported PyTorch and run nothing.

    They start at once and are all alike.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Kept:
    """An object in a process of its own, with as many threads as here: a context.

    It is made, by `make(*arguments)`, when a method is first asked for.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = fresh_processes()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, torch.get_num_threads(), make, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method returns; raises what it raises, or Died."""
        try:
            self._connection.send((method, arguments))
            raised, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Died(self._process.exitcode) from None
        if raised:
            raise value
        return value

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()  # it may be at work
        self._connection.close()
        self._process.join()


def alone(function: Callable[..., Value], *arguments: Any) -> Value:
    """`function(*arguments)` in a process of its own; raises what it raises, or Died."""
    with Kept(partial, function, *arguments) as call:
        value: Value = call.ask("__call__")
    return value


def _serve(
    connection: Connection, threads: int, make: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    kept = None
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            kept = make(*arguments) if kept is None else kept
            answer = (False, getattr(kept, method)(*given))
        except Exception as error:
            answer = (True, error)
        connection.send(answer)
