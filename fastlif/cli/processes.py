"""A command that torchrun started in several processes: what each knows of the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import typer
from torch import distributed

if TYPE_CHECKING:
    from fastlif.train.parallel import Processes

# How long another process waits for the first one to fail as it did itself.
_PATIENCE = timedelta(seconds=10)
_REPORTED = "fastlif/reported"


@dataclass(frozen=True)
class Launch:
    """How this process was started: by itself, or by torchrun as one of several."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # among those of this machine
    store: distributed.Store | None = None  # through which all of them can talk

    @classmethod
    def of_environment(cls) -> Launch:
        """As the variables say that torchrun sets."""
        if not distributed.is_available() or not distributed.is_torchelastic_launched():
            return cls()
        if int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        store, rank, count = next(distributed.rendezvous("env://"))
        return cls(rank, count, int(os.environ["LOCAL_RANK"]), store)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that talks to the user."""
        return self.rank == 0

    @contextmanager
    def joined(self, device: str) -> Iterator[Processes]:
        """Meet the other processes; all of them then train one network, each on its own device.

        Raises:
            ValueError: there are fewer GPUs than processes on this machine.
        """
        from fastlif.train.parallel import Processes

        if self.store is None:
            yield Processes()
            return
        if device == "cuda":
            if self.local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"device 'cuda' needs a GPU for each process: {torch.cuda.device_count()} of "
                    f"them here, and process {self.rank} is number {self.local_rank + 1}"
                )
            torch.cuda.set_device(self.local_rank)
        distributed.init_process_group(
            # Objects, such as checkpoints, go from CPU to CPU.
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
            store=distributed.PrefixStore("fastlif", self.store),
            rank=self.rank,
            world_size=self.count,
        )
        yield Processes.of_group(self.local_rank)
        # Not after an error: others may be waiting for this one, and its end tells them.
        distributed.destroy_process_group()

    def is_to_report(self) -> bool:
        """Whether this process has to say why it failed: the first one has, or it did not fail.

        The first process calls `reported` when it has spoken. Others wait for that before they end,
        since torchrun ends the first one when another has failed.
        """
        if self.store is None or self.is_first:
            return True
        try:
            self.store.wait([_REPORTED], _PATIENCE)
        except distributed.DistError:
            return True
        return False

    def reported(self) -> None:
        """The first process has said why it failed."""
        if self.store is not None and self.is_first:
            self.store.set(_REPORTED, "1")


ALONE = Launch()


def refuse_several_processes(command: str) -> None:
    """Let a command that is for one process fail in the first one alone.

    Raises:
        ValueError: torchrun started several, and this is the first.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return
    count = int(os.environ["WORLD_SIZE"])
    if count > 1 and int(os.environ["RANK"]) > 0:
        raise typer.Exit  # without an error, at which torchrun would end the first one
    if count > 1:
        raise ValueError(
            f"fastlif {command} runs in one process, torchrun started {count}: start it by itself; "
            "fastlif train is the command that divides one network's batches among processes"
        )
