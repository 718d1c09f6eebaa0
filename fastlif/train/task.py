"""The data of a run: training, validation and test samples as packed spikes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastlif.data import (
    PackedDataset,
    RandmanConfig,
    find_event_files,
    make_randman,
    mean_firing_rate,
    read_events,
    train_validation_split,
)
from fastlif.models import Preset, preset
from fastlif.train.config import TrainConfig

__all__ = ["Task", "load_task"]


@dataclass(frozen=True)
class Task:
    """Samples of the three parts and what the network and its initializer need to know of them."""

    train: PackedDataset
    validation: PackedDataset
    test: PackedDataset
    n_classes: int
    duration: float  # seconds

    @property
    def n_inputs(self) -> int:
        """Number of input units."""
        return self.train.spikes.features[-1]

    def summary(self, dt: float) -> dict[str, Any]:
        """Numbers by which a checkpoint recognizes the data it was trained on."""
        return {
            "n_train": len(self.train),
            "n_validation": len(self.validation),
            "n_test": len(self.test),
            "n_inputs": self.n_inputs,
            "n_classes": self.n_classes,
            "input_rate": mean_firing_rate(self.train.spikes, dt),
        }


def load_task(config: TrainConfig, data_folder: Path | None) -> Task:
    """Generate or read the data of `config.preset`.

    Args:
        config: of the run; its `dt` and `data_seed` are used.
        data_folder: holds the event files; not used by a preset that generates its data.

    Raises:
        ValueError: the preset needs a folder and none is given, or a file is damaged.
        FileNotFoundError: the folder or a file in it is missing.
    """
    network = preset(config.preset)
    if network.data == "randman":
        return _randman(network, config)
    if data_folder is None:
        raise ValueError(
            f"preset {config.preset!r} needs data: give --data (or set FASTLIF_DATA), a folder "
            "with one file *train*.h5 and one *test*.h5"
        )
    return _events(network, config, data_folder)


def _randman(network: Preset, config: TrainConfig) -> Task:
    splits = make_randman(RandmanConfig(dt=config.dt, seed=config.data_seed))
    return Task(*splits, n_classes=network.n_classes, duration=network.duration)


def _events(network: Preset, config: TrainConfig, folder: Path) -> Task:
    train_path, test_path = find_event_files(folder)
    train_events = read_events(train_path, n_units=network.n_inputs)
    test_events = read_events(test_path, n_units=network.n_inputs)
    if test_events.n_classes > train_events.n_classes:
        raise ValueError(
            f"{test_path}: largest label is {test_events.n_classes - 1}, but {train_path.name} "
            f"has none above {train_events.n_classes - 1}"
        )
    train, validation = train_validation_split(len(train_events), seed=config.data_seed)
    features = network.input_features()

    def pack(events: Any, indices: torch.Tensor) -> PackedDataset:
        return events.pack(indices, duration=network.duration, dt=config.dt, features=features)

    return Task(
        train=pack(train_events, train),
        validation=pack(train_events, validation),
        test=pack(test_events, torch.arange(len(test_events))),
        n_classes=train_events.n_classes,
        duration=network.duration,
    )
