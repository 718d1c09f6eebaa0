"""Tiny runs of the command line, and what they leave behind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from fastlif.cli import app

CHECKPOINT = "checkpoint.safetensors"
# 35 steps of 20 ms: small, and the network still fires.
QUICK = ("--dt", "0.02", "--batch-size", "12", "--threads", "1")


def write_events(path: Path, n_samples: int, seed: int, n_classes: int = 3) -> None:
    """Samples of a class fire in a band of units and a part of the time of their own."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n_samples) % n_classes
    with h5py.File(path, "w") as file:
        for name, kind in (("spikes/times", np.float16), ("spikes/units", np.uint16)):
            file.create_dataset(name, (n_samples,), dtype=h5py.vlen_dtype(kind))
        file["labels"] = labels.astype(np.uint16)
        for sample, label in enumerate(labels):
            times = generator.uniform(0.2 * label, 0.2 * label + 0.3, 1500)
            units = (generator.normal(150 + 200 * label, 60, 1500) % 700).astype(np.uint16)
            file["spikes/times"][sample] = np.sort(times).astype(np.float16)
            file["spikes/units"][sample] = units


def run_train(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)], env=env)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "epochs.csv", newline="") as file:
        return list(csv.DictReader(file))


def without_seconds(table: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table]


def assert_same_run(first: Path, second: Path, *, at_least: int = 10) -> None:
    """Bit for bit: parameters, optimizer, best parameters, every logged number."""
    one, two = load_file(first / CHECKPOINT), load_file(second / CHECKPOINT)
    assert one.keys() == two.keys() and len(one) >= at_least
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    assert without_seconds(rows(first)) == without_seconds(rows(second))
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    for result in results:
        del result["seconds_per_epoch"]
    assert results[0] == results[1]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    log = EventAccumulator(str(folder / "tensorboard"))
    log.Reload()
    return [(event.step, event.value) for event in log.Scalars(tag)]
