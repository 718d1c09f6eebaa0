"""What two processes do together in `test_parallel`: trainings, then failures."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from fastlif.data import Subset
from fastlif.files import held_by_this_process
from fastlif.models import Regularization
from fastlif.train import Processes, TrainConfig, run, train
from tests.tiny_tasks import tiny_config, tiny_task
from tests.training import CHECKPOINT

BOUNDS = Regularization(
    v_upper=1.0, upper_strength=0.1, upper_per="channel", v_lower=2.0, lower_strength=0.1
)
# Batches of three of the twelve samples: shares of two and one, four steps an epoch.
EXACT: dict[str, dict[str, Any]] = {
    "shd-dense": {"recurrent": True, "channel_shift": 3},
    "shd-dalian-conv3": {"optimizer": "adam", "regularization": BOUNDS},
    "cifar-conv2": {"priming_epochs": 2, "epochs": 3},
    "dvs-conv6": {"optimizer": "adam", "regularization": BOUNDS},
}
FEW = {"validation": ("validation", 1), "uneven": ("train", 3)}  # samples of a part


def exact_config(name: str, **changes: Any) -> TrainConfig:
    return tiny_config(name, **{"epochs": 5, "batch_size": 3} | EXACT[name] | changes)


def train_tiny(config: TrainConfig, folder: Path, processes: Processes, **options: Any) -> None:
    recordings = config.preset.startswith("dvs")
    task = tiny_task(config.preset, recordings=recordings)
    train(config, task, folder, processes=processes, **options)


def in_float64(task: Callable[[], None]) -> None:
    """Training in float64: one rounding does not change what follows within a few epochs."""
    single = run.build_network
    run.build_network = lambda *arguments: single(*arguments).double()
    try:
        task()
    finally:
        run.build_network = single


def trainings(folder: Path, both: Processes) -> None:
    def in_two_and_in_one() -> None:
        for name in EXACT:
            train_tiny(exact_config(name), folder / "two" / name, both)
            if both.is_first:
                train_tiny(exact_config(name), folder / "one" / name, Processes())

    def in_turns() -> None:
        config, out = exact_config("shd-dense"), folder / "turns"
        train_tiny(dataclasses.replace(config, epochs=2), out, both)
        if both.is_first:
            train_tiny(dataclasses.replace(config, epochs=3), out, Processes(), resume=True)
        train_tiny(config, out, both, resume=True)

    in_float64(in_two_and_in_one)
    in_float64(in_turns)
    config = exact_config("shd-dense")
    train_tiny(config, folder / "whole", both)
    parts = folder / ("parts" if both.is_first else "nowhere")  # only the first one's is used
    train_tiny(dataclasses.replace(config, epochs=2), parts, both)
    train_tiny(config, parts, both, resume=True)


def failures(folder: Path, both: Processes) -> dict[str, str]:
    """What this process is told when one of them, or both, cannot train."""

    def message(name: str, *, resume: bool = False, **changes: Any) -> str:
        config = exact_config("shd-dense", **{"epochs": 1} | changes)
        task = tiny_task("shd-dense")
        if name in FEW:
            part, n_samples = FEW[name]
            few = Subset(getattr(task, part), torch.arange(n_samples))
            task = dataclasses.replace(task, **{part: few})
        try:
            train(config, task, folder / name, resume=resume, processes=both)
        except (ValueError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "trained"

    def with_patched(name: str, patched: Callable[..., Any]) -> str:
        """Of a training with another function of this name in the module `run`."""
        original = getattr(run, name)
        setattr(run, name, lambda *given, **options: patched(original, *given, **options))
        try:
            return message(name)
        finally:
            setattr(run, name, original)

    def other_weights(
        original: Callable[..., Any], network: Any, *given: Any, **options: Any
    ) -> None:
        original(network, *given, **options)
        with torch.no_grad():
            network.hidden1.weight[0, 0] += 1e-3 * both.rank

    def full_disk(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")

    if both.is_first:
        (folder / "damaged").mkdir()
        (folder / "damaged" / CHECKPOINT).write_bytes(b"damaged")
    with held_by_this_process(folder / "lock") if both.is_first else nullcontext():
        locked = message("lock")
    return {
        "lock": locked,
        "again": message("whole"),
        "missing": message("missing", resume=True),
        "damaged": message("damaged", resume=True),
        "batch": message("batch", batch_size=1),
        "uneven": message("uneven", batch_size=2),
        "validation": message("validation"),
        "seed": message("seed", seed=both.rank),
        "weights": with_patched("initialize", other_weights),
        "loss": message("loss", regularization=Regularization(v_lower=100.0, lower_strength=1e38)),
        "disk": with_patched("save_checkpoint", full_disk),
    }


def deserted(folder: Path, both: Processes) -> str:
    """What the first process says when the other one is gone."""
    if not both.is_first:
        os._exit(0)
    try:
        both.add(torch.ones(3))
    except ConnectionError as error:
        return str(error)
    return "not deserted"


def work(rank: int, folder: Path) -> None:
    """What one of the two processes does; leaves what it was told of failures."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        timeout=timedelta(seconds=60),
        rank=rank,
        world_size=2,
    )
    both = Processes.of_group()
    trainings(folder, both)
    found = failures(folder, both)
    (folder / f"failures{rank}.json").write_text(json.dumps(found))
    (folder / "deserted").write_text(deserted(folder, both))
