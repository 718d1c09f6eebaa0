"""Many networks trained as one against the same networks one after the other.

    python -m bench pack [--networks 16] [--batch-size 400] [--repeats 5] [--threads 2]

The networks are those of the preset "randman", of different seeds and sigma_u. An epoch is training
and validation, without files. The pack and the single runs take turns, an epoch each, in one
process; every epoch's losses and accuracies and at the end all weights must be the same bits.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.machine import describe_machine
from fastlif.train import Task, TrainConfig, default_config, load_task
from fastlif.train.logs import Scores
from fastlif.train.run import Run
from fastlif.train.side_by_side import RunsSideBySide

Epoch = Callable[[int], tuple[list[Scores], list[Scores]]]  # given its number: training, validation


@dataclass(frozen=True)
class Turns:
    """What a comparison found."""

    seconds_together: list[float]  # per epoch of all networks
    seconds_alone: list[float]
    steps: int  # of an epoch
    different: tuple[str, ...]  # what was not the same bits

    @property
    def ratio(self) -> float:
        """Median of the time together over that alone in the same turn."""
        pairs = zip(self.seconds_together, self.seconds_alone, strict=True)
        return statistics.median(together / alone for together, alone in pairs)


def pack_configs(networks: int, batch_size: int) -> list[TrainConfig]:
    """Runs of different seeds, and of sigma_u from 0.5 to 2 in even ratios."""
    preset = replace(default_config("randman"), batch_size=batch_size, graph=False)
    steps = max(1, networks - 1)
    return [
        replace(preset, seed=number, sigma_u=0.5 * 4.0 ** (number / steps))
        for number in range(networks)
    ]


def take_turns(configs: Sequence[TrainConfig], task: Task, repeats: int) -> Turns:
    """Time epochs of runs side by side and one by one; the first epoch of both is not timed."""
    with tempfile.TemporaryDirectory() as folder:
        alone, together = (
            [Run(config, task, Path(folder), resume=False) for config in configs] for _ in range(2)
        )
    pack = RunsSideBySide(together)

    def one_by_one(epoch: int) -> tuple[list[Scores], list[Scores]]:
        results = [
            (run.train_epoch(epoch, None), run.evaluate(run.validation_set)) for run in alone
        ]
        trained, validated = zip(*results, strict=True)
        return list(trained), list(validated)

    sides: list[Epoch] = [lambda epoch: (pack.train_epoch(epoch, ()), pack.validate()), one_by_one]
    seconds: tuple[list[float], list[float]] = ([], [])
    different = []
    for epoch in range(1, repeats + 2):
        found = []
        for side, epochs in enumerate(sides):
            start = time.perf_counter()
            found.append(epochs(epoch))
            seconds[side].append(time.perf_counter() - start)
        if found[0] != found[1]:
            different.append(f"scores of epoch {epoch}")
    for number, (run, other) in enumerate(zip(alone, together, strict=True)):
        for name, parameter in run.network.named_parameters():
            if not torch.equal(parameter, other.network.get_parameter(name)):
                different.append(f"{name} of network {number}")
    return Turns(seconds[0][1:], seconds[1][1:], alone[0].n_batches, tuple(different))


def turns_text(turns: Turns, networks: int) -> str:
    """Three lines."""

    def line(name: str, seconds: list[float]) -> str:
        median = statistics.median(seconds)
        step = 1e3 * median / turns.steps / networks
        return (
            f"{name:12} {median:8.2f} s an epoch ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{step:.2f} ms a step and network"
        )

    return "\n".join(
        (
            line("side by side", turns.seconds_together),
            line("one by one", turns.seconds_alone),
            f"side by side takes {turns.ratio:.2f} times as long (median of the turns)",
        )
    )


def add_parser(commands: Any) -> None:
    """The subcommand `pack`."""
    pack = commands.add_parser("pack", help="many networks trained as one against single runs")
    pack.add_argument("--networks", type=int, default=16, help="default: 16")
    pack.add_argument("--batch-size", type=int, default=400, help="of each (default: 400)")
    pack.add_argument("--repeats", type=int, help="timed epochs of each side (default: 5)")
    pack.add_argument("--threads", type=int, help="CPU threads (default: 2; 1 with --quick)")
    pack.add_argument("--quick", action="store_true", help="few samples: times nothing useful")
    pack.set_defaults(main=main, error=pack.error)


def main(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Check and time; the exit status is 1 when a network is not what it is alone."""
    defaults = (1, 1) if options.quick else (5, 2)
    repeats, threads = (
        default if value is None else value
        for value, default in zip((options.repeats, options.threads), defaults, strict=True)
    )
    numbers = {"networks": options.networks, "batch-size": options.batch_size}
    for name, number in (numbers | {"repeats": repeats, "threads": threads}).items():
        if number < 1:
            options.error(f"--{name} must be at least 1, got {number}")
    torch.set_num_threads(threads)
    machine = describe_machine()
    print(
        f"{machine.cpu}, {machine.cores} cores (load {machine.load:.2f}), {machine.isa}, "
        f"{threads} threads; torch {machine.torch}, commit {machine.commit}\n"
        f"{options.networks} networks of randman, batches of {options.batch_size}",
        flush=True,
    )
    configs = pack_configs(options.networks, options.batch_size)
    if options.quick:
        configs = [replace(config, n_samples=60, dt=4e-3) for config in configs]
    turns = take_turns(configs, load_task(configs[0], None), repeats)
    if turns.different:
        print(f"FAILED: not the same bits: {', '.join(turns.different)}", file=sys.stderr)
        return 1
    print(turns_text(turns, options.networks), flush=True)
    return 0
