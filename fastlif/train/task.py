"""The data of a run: training, validation and test samples, generated or read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlif.data import (
    NMNIST_DURATION,
    PackedDataset,
    RandmanConfig,
    SampleSource,
    Subset,
    holds_nmnist,
    make_randman,
    mean_firing_rate,
    read_cifar10,
    read_dvs_gesture,
    read_event_splits,
    read_nmnist,
    train_validation_split,
)
from fastlif.models import Preset, preset
from fastlif.spikes import PackedSpikes
from fastlif.train.config import TrainConfig

__all__ = ["Task", "TaskCache", "load_task", "sample_duration"]

# Samples from which a rate is measured where it takes work to get at the spikes.
_RATE_SAMPLES = 1024
_RATE_BATCH = 64


@dataclass(frozen=True)
class Task:
    """Samples of the three parts and what the network and its initializer need to know of them."""

    train: SampleSource
    validation: SampleSource
    test: SampleSource
    n_classes: int
    duration: float  # seconds

    @property
    def features(self) -> tuple[int, ...]:
        """Of one step of input, or of an image."""
        return self.train.features

    @property
    def n_inputs(self) -> int:
        """Number of input units, or of values of an image."""
        return math.prod(self.features)

    def summary(self, dt: float) -> dict[str, Any]:
        """Numbers by which a checkpoint recognizes the data it was trained on."""
        return {
            "n_train": len(self.train),
            "n_validation": len(self.validation),
            "n_test": len(self.test),
            "n_inputs": self.n_inputs,
            "n_classes": self.n_classes,
            "input_rate": self.input_rate(dt),
        }

    def input_rate(self, dt: float) -> float | None:
        """Mean firing rate of the training samples in Hz; None of images, which do not fire.

        Of packed samples all count, else `_RATE_SAMPLES` of them at most, none augmented.
        """
        if isinstance(self.train, PackedDataset):
            return mean_firing_rate(self.train.spikes, dt)
        total, batches = 0.0, self._spread(_RATE_SAMPLES).split(_RATE_BATCH)
        for indices in batches:
            inputs, _ = self.train.select(indices)
            if not isinstance(inputs, PackedSpikes):
                return None
            total += mean_firing_rate(inputs, dt) * len(indices)
        return total / sum(len(indices) for indices in batches)

    def home(self, device: torch.device) -> torch.device:
        """Where to keep all samples: on a GPU they may take half of what is free."""
        if device.type != "cuda":
            return device
        free, _ = torch.cuda.mem_get_info(device)
        needed = sum(part.n_bytes for part in (self.train, self.validation, self.test))
        return device if needed <= free // 2 else torch.device("cpu")

    def some_images(self) -> Tensor | None:
        """A batch (batch, C, H, W) of training images, None if the samples are spikes."""
        inputs, _ = self.train.select(self._spread(_RATE_BATCH))
        return None if isinstance(inputs, PackedSpikes) else inputs

    def _spread(self, most: int) -> Tensor:
        """Numbers of at most `most` training samples, evenly spread."""
        n_samples = len(self.train)
        chosen = torch.arange(min(most, n_samples)) * n_samples // min(most, n_samples)
        return chosen.to(self.train.targets.device)


def sample_duration(name: str, data_folder: Path | None) -> float:
    """Seconds of a sample of a preset's data, as far as the folder's kind of data tells."""
    network = preset(name)
    if network.data == "event_camera" and data_folder is not None and holds_nmnist(data_folder):
        return NMNIST_DURATION
    return network.duration


def load_task(config: TrainConfig, data_folder: Path | None) -> Task:
    """Generate or read the data of `config.preset`.

    Where a data set comes without validation samples, 10 % of the training samples are held out,
    drawn by `config.data_seed`. The paper has none for DVS128 Gesture; the best epoch has to be
    chosen by something else than the test samples.

    Args:
        config: of the run; its `dt`, `data_seed` and `n_samples` are used.
        data_folder: holds the files; not used by a preset that generates its data. For presets of
            event cameras it may hold DVS128 Gesture or N-MNIST.

    Raises:
        ValueError: the preset needs a folder and none is given, or a file is damaged.
        FileNotFoundError: the folder or a file in it is missing.
    """
    network = preset(config.preset)
    if network.data == "randman":
        splits = make_randman(RandmanConfig(dt=config.dt, seed=config.data_seed))
        return _limited(Task(*splits, network.n_classes, network.duration), config)
    readers: dict[str, tuple[Callable[[Preset, TrainConfig, Path], Task], str]] = {
        "events": (_events, "one file *train*.h5 and one *test*.h5"),
        "images": (_images, "CIFAR-10"),
        "event_camera": (_event_camera, "DVS128 Gesture or N-MNIST"),
    }
    read, wanted = readers[network.data]
    if data_folder is None:
        raise ValueError(
            f"preset {config.preset!r} needs data: give --data (or set FASTLIF_DATA), a folder "
            f"with {wanted}"
        )
    return read(network, config, data_folder)


class TaskCache:
    """The data of runs; that of the last one is kept, as most runs share it with the next."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._task: Task | None = None

    def load(self, config: TrainConfig, data_folder: Path | None) -> Task:
        """What `load_task` gives, and raises."""
        network = preset(config.preset)
        key = (
            network.data,
            network.input_features(),
            network.duration,
            config.dt,
            config.data_seed,
            config.n_samples,
            data_folder,
        )
        if self._task is None or key != self._key:
            self.clear()  # the old data is freed before the new is read
            self._task = load_task(config, data_folder)
            self._key = key
        return self._task

    def clear(self) -> None:
        """Free what is kept."""
        self._key, self._task = None, None


def _events(network: Preset, config: TrainConfig, folder: Path) -> Task:
    splits = read_event_splits(
        folder,
        duration=network.duration,
        dt=config.dt,
        n_units=network.n_inputs,
        features=network.features,
        seed=config.data_seed,
    )
    return _limited(Task(*splits, splits.train.n_classes, network.duration), config)


def _images(network: Preset, config: TrainConfig, folder: Path) -> Task:
    train, test = read_cifar10(folder, n_samples=config.n_samples)
    return _with_validation(train, test, network.duration, config)


def _event_camera(network: Preset, config: TrainConfig, folder: Path) -> Task:
    """DVS128 Gesture as the paper takes it, or N-MNIST whole: 0.3 s, all events and pixels."""
    if holds_nmnist(folder):
        train, test = read_nmnist(folder, dt=config.dt, n_samples=config.n_samples)
    else:
        train, test = read_dvs_gesture(
            folder, duration=network.duration, dt=config.dt, n_samples=config.n_samples
        )
    return _with_validation(train, test, train.duration, config)


def _with_validation(
    train: SampleSource, test: SampleSource, duration: float, config: TrainConfig
) -> Task:
    """A task with 10 % of the training samples held out."""
    kept, held_out = train_validation_split(len(train), seed=config.data_seed)
    return Task(Subset(train, kept), Subset(train, held_out), test, train.n_classes, duration)


def _limited(task: Task, config: TrainConfig) -> Task:
    """At most `config.n_samples` for training and validation and as many for testing, at random."""
    if config.n_samples is None:
        return task
    both = len(task.train) + len(task.validation)
    wanted = min(config.n_samples, both)
    n_validation = min(max(1, round(wanted * len(task.validation) / both)), wanted - 1)
    generator = torch.Generator().manual_seed(config.data_seed)

    def some(source: SampleSource, most: int) -> SampleSource:
        if most >= len(source):
            return source
        order = torch.randperm(len(source), generator=generator)
        return Subset(source, order[:most].sort().values)

    return Task(
        some(task.train, wanted - n_validation),
        some(task.validation, n_validation),
        some(task.test, config.n_samples),
        task.n_classes,
        task.duration,
    )
