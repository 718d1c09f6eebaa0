"""Runs trained as one: every folder is the one that the run leaves when it is trained alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastlif.models import Regularization
from fastlif.train import (
    EpochRecord,
    Task,
    TrainConfig,
    TrainingFailed,
    TrainResult,
    check_pack,
    train,
    train_pack,
)
from fastlif.train.checkpoint import load_checkpoint

from .tiny_tasks import tiny_config, tiny_task
from .training import CHECKPOINT, assert_same_run, rows, scalars, without_seconds

BOUNDS = (
    Regularization(0.1, 2.0, "layer", 10.0, 1.0),
    Regularization(0.0, 1.0, "layer", 100.0, 0.5),
    Regularization(1.0, 3.0, "layer", 0.0, 1.0),
)
VARIED = [
    {"seed": 0, "sigma_u": 1.0, "lr": 5e-3, "regularization": BOUNDS[0]},
    {"seed": 1, "sigma_u": 2.0, "lr": 1e-3, "regularization": BOUNDS[1]},
    {"seed": 2, "sigma_u": 0.5, "lr": 2e-2, "regularization": BOUNDS[2]},
]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "randman": ("randman", {"rescale_surrogate": True}),
    "dense": ("shd-dense160", {"channel_shift": 3}),
    "dalian": ("shd-dalian", {"distribution": "lognormal"}),
    "conv": ("shd-conv3", {"skip": True}),
    "dalian-conv": ("shd-dalian-conv3", {"recurrent": False}),
    "images": ("cifar-conv2", {}),
    "adam": ("shd-dalian", {"optimizer": "adam"}),
    "sgd": ("shd-dense", {"optimizer": "sgd"}),
    "priming": ("shd-dense", {"priming_epochs": 1}),
    "recordings": ("dvs-conv6", {}),
}


def configs_of(variant: str, varied: list[dict[str, Any]] | None = None) -> list[TrainConfig]:
    name, common = VARIANTS[variant]
    return [tiny_config(name, **common, **own) for own in varied or VARIED]


def folders_in(place: Path, n: int) -> list[Path]:
    return [place / f"{number}" for number in range(n)]


def train_alone(configs: list[TrainConfig], tasks: list[Task], place: Path) -> list[TrainResult]:
    folders = folders_in(place, len(configs))
    return [train(*one) for one in zip(configs, tasks, folders, strict=True)]


def assert_same(first: Path, second: Path, n: int = 3) -> None:
    for one, two in zip(folders_in(first, n), folders_in(second, n), strict=True):
        assert_same_run(one, two, at_least=4)
        tag = "train/loss"
        assert scalars(one, tag) == scalars(two, tag) and len(scalars(one, tag)) > 1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_run_is_bitwise_what_it_is_alone(
    tmp_path: Path, variant: str, threads: int, two_threads_at_most: None
) -> None:
    torch.set_num_threads(threads)
    configs = configs_of(variant)
    task = tiny_task(configs[0].preset, recordings=variant == "recordings")
    results = train_pack(configs, task, folders_in(tmp_path / "pack", 3))
    alone = train_alone(configs, [task] * 3, tmp_path / "alone")
    assert_same(tmp_path / "pack", tmp_path / "alone")
    for result, wanted in zip(results, alone, strict=True):
        assert isinstance(result, TrainResult)
        assert replace(result, seconds_per_epoch=0.0) == replace(wanted, seconds_per_epoch=0.0)
    weights = [load_file(folder / CHECKPOINT) for folder in folders_in(tmp_path / "pack", 3)]
    assert not torch.equal(weights[0]["model/readout.weight"], weights[1]["model/readout.weight"])


@pytest.fixture
def two_threads_at_most() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_runs_of_one_seed_share_their_batches(tmp_path: Path) -> None:
    configs = configs_of("dense", [{"seed": 3, "lr": lr} for lr in (1e-3, 1e-2, 1e-1)])
    task = tiny_task("shd-dense160")
    train_pack(configs, task, folders_in(tmp_path / "pack", 3))
    train_alone(configs, [task] * 3, tmp_path / "alone")
    assert_same(tmp_path / "pack", tmp_path / "alone")


def test_runs_on_data_of_their_own(tmp_path: Path) -> None:
    configs = configs_of("dense", [{"seed": n % 2, "data_seed": n} for n in range(3)])
    first = tiny_task("shd-dense160")
    second = replace(first, train=replace(first.train, labels=first.train.labels.roll(1)))
    tasks = [first, second, replace(first, test=first.validation)]
    train_pack(configs, tasks, folders_in(tmp_path / "pack", 3))
    train_alone(configs, tasks, tmp_path / "alone")
    assert_same(tmp_path / "pack", tmp_path / "alone")


class Interrupting:
    """A reporter that interrupts the runs at one of the steps, and notes what it is told."""

    def __init__(self, after: int = 10**6) -> None:
        self.left = after
        self.told: list[Any] = []

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        self.told.append((epochs_done, epochs, batches_per_epoch))

    def batch_done(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        self.told.append((record.epoch, is_best))


def test_an_interrupted_pack_goes_on(tmp_path: Path) -> None:
    configs = configs_of("priming", [one | {"epochs": 4} for one in VARIED])
    task, place = tiny_task("shd-dense"), tmp_path / "pack"
    folders = folders_in(place, 3)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        train_pack(configs, task, folders, resume=True)
    reporters = [None, Interrupting(after=6), Interrupting()]  # in the third epoch of two steps
    with pytest.raises(KeyboardInterrupt):
        train_pack(configs, task, folders, reporters=reporters)
    assert [load_checkpoint(folder / CHECKPOINT).epoch for folder in folders] == [2, 2, 2]
    with pytest.raises(ValueError, match="already holds a run"):
        train_pack(configs, task, folders)
    # One goes on for an epoch, as if the rest had been killed while it was saved; one is lost.
    train(replace(configs[0], epochs=2), task, folders[0], resume=True)
    (folders[2] / CHECKPOINT).unlink()
    reporters = [Interrupting() for _ in configs]
    train_pack(configs, task, folders, resume=True, reporters=reporters)
    assert [reporter.told[0] for reporter in reporters] == [(3, 5, 2), (2, 5, 2), (0, 5, 2)]
    for reporter in reporters:
        first = reporter.told[0][0]
        assert [told[0] for told in reporter.told[1:]] == list(range(first + 1, 6))
    train_alone(configs, [task] * 3, tmp_path / "alone")
    assert_same(place, tmp_path / "alone")
    train_pack(configs, task, folders, resume=True)  # nothing is left to do but the test
    assert_same(place, tmp_path / "alone")
    fewer = [replace(one, epochs=2) for one in configs]  # with priming 3, which they have passed
    assert [result.epochs for result in train_pack(fewer, task, folders, resume=True)] == [5] * 3


def test_a_run_of_a_pack_goes_on_alone(tmp_path: Path) -> None:
    task, place = tiny_task("shd-dense160"), tmp_path / "pack"
    configs = configs_of("dense")
    train_pack([replace(one, epochs=1) for one in configs], task, folders_in(place, 3))
    for config, folder in zip(configs, folders_in(place, 3), strict=True):
        train(config, task, folder, resume=True)
    train_alone(configs, [task] * 3, tmp_path / "alone")
    assert_same(place, tmp_path / "alone")


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path: Path) -> None:
    bad = Regularization(1e38, 0.0, "layer")
    configs = configs_of("randman")
    configs[1] = replace(configs[1], regularization=bad)
    task, folders = tiny_task("randman"), folders_in(tmp_path / "pack", 3)
    told: list[Any] = []
    results = train_pack(configs, task, folders, on_failure=lambda *one: told.append(one))
    assert isinstance(results[1], TrainingFailed) and told == [(1, results[1])]
    assert "loss must stay finite" in str(results[1]) and "in epoch 1" in str(results[1])
    assert not (folders[1] / "result.json").exists() and not (folders[1] / CHECKPOINT).exists()
    with pytest.raises(TrainingFailed, match=r"got .* in epoch 1") as failure:
        train(configs[1], task, tmp_path / "alone" / "1")
    assert str(failure.value) == str(results[1])
    for number in (0, 2):
        own = tmp_path / "alone" / str(number)
        train(configs[number], task, own)
        assert_same_run(folders[number], own, at_least=4)
    every = train_pack([configs[1]] * 2, task, folders_in(tmp_path / "bad", 2))
    assert all(isinstance(result, TrainingFailed) for result in every)


def test_a_pack_of_one(tmp_path: Path) -> None:
    configs, task = configs_of("randman")[:1], tiny_task("randman")
    train_pack(configs, task, folders_in(tmp_path / "pack", 1))
    train_alone(configs, [task], tmp_path / "alone")
    assert_same(tmp_path / "pack", tmp_path / "alone", 1)
    settings = json.loads((tmp_path / "pack" / "0" / "result.json").read_text())["settings"]
    assert settings["seed"] == 0
    table = rows(tmp_path / "pack" / "0")
    assert without_seconds(table) != table


def test_runs_that_are_no_pack(tmp_path: Path) -> None:
    one, two, three = configs_of("dense")
    with pytest.raises(ValueError, match="at least one run, got none"):
        check_pack([])
    wrong = replace(
        two, epochs=4, batch_size=5, regularization=replace(BOUNDS[1], upper_per="channel")
    )
    with pytest.raises(ValueError, match="may differ in seed, data_seed, lr") as error:
        check_pack([one, wrong, replace(three, preset="shd-dense")])
    for words in (
        "epochs is 3 in run 0 and 4 in run 1",
        "batch_size is 6 in run 0 and 5 in run 1",
        "upper_per is 'layer' in run 0 and 'channel' in run 1",
        "preset is 'shd-dense160' in run 0 and 'shd-dense' in run 2",
    ):
        assert words in str(error.value)
    task = tiny_task("shd-dense160")
    folders = folders_in(tmp_path, 2)
    with pytest.raises(ValueError, match="folders must be as many as configs, 2, got 1"):
        train_pack([one, two], task, folders[:1])
    with pytest.raises(ValueError, match="folders must all be different"):
        train_pack([one, two], task, folders[:1] * 2)
    with pytest.raises(ValueError, match="tasks must be as many as configs, 2, got 1"):
        train_pack([one, two], [task], folders)
    other = replace(task, test=task.train)
    with pytest.raises(ValueError, match="agree in test samples: 3 in run 0 and 12 in run 1"):
        train_pack([one, two], [task, other], folders)
    assert not folders[0].exists()
