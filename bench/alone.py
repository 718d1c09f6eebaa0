"""Processes of their own: memory that others left does not count as theirs."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
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


def alone(function: Callable[..., Value], *arguments: Any) -> Value:
    """`function(*arguments)` with as many threads as here; raises what it raises, or Died."""
    context = fresh_processes()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(theirs, torch.get_num_threads(), function, arguments), daemon=True
    )
    process.start()
    theirs.close()
    try:
        raised, value = ours.recv()
    except EOFError:
        process.join()
        raise Died(process.exitcode) from None
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
        ours.close()
    if raised:
        raise value
    return value


def _answer(
    answers: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    try:
        answer = (False, function(*arguments))
    except Exception as error:
        answer = (True, error)
    answers.send(answer)
    answers.close()
