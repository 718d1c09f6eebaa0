"""Data sets small enough to train every preset on within a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastlif.data import EventRecordings, ImageDataset, PackedDataset, SampleSource
from fastlif.models import preset
from fastlif.spikes import PackedSpikes
from fastlif.train import Task, TrainConfig, TrainResult, default_config, train

N_CLASSES = 3
DURATION = 0.08  # seconds: 40 steps, in which spikes get through ten layers
# Inputs that the kernels and the pooling of these presets leave something of. The deepest ones fade
# on short inputs: most of their neurons are at a border, where zero padding takes inputs away.
FEATURES = {
    "shd-conv1": (1, 60),
    "shd-conv3": (1, 271),
    "shd-conv7": (1, 700),
    "shd-conv10": (1, 700),
    "shd-dalian-conv3": (1, 271),
    "cifar-conv2": (3, 6, 6),
    "cifar-conv4": (3, 6, 6),
    "dvs-conv6": (2, 8, 8),
    "dvs-conv8": (2, 16, 16),
}


def features_of(name: str) -> tuple[int, ...]:
    return FEATURES.get(name, (30,))


def spikes_of_classes(n_samples: int, features: tuple[int, ...], seed: int) -> PackedDataset:
    """The units of a class fire at 100 Hz, the others at 25 Hz."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % N_CLASSES
    n_units = int(torch.tensor(features).prod())
    group = torch.arange(n_units) * N_CLASSES // n_units
    rates = torch.where(group == labels.unsqueeze(1), 0.2, 0.05)
    steps = torch.rand(40, n_samples, n_units, generator=generator) < rates
    return PackedDataset(PackedSpikes.pack(steps.float().unflatten(2, features)), labels)


def images_of_classes(n_samples: int, features: tuple[int, ...], seed: int) -> ImageDataset:
    """The color of a class is bright, the others are dark."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % N_CLASSES
    images = torch.randint(0, 60, (n_samples, *features), generator=generator)
    images[torch.arange(n_samples), labels % features[0]] += 190
    return ImageDataset(images.to(torch.uint8), labels, ("red", "green", "blue"))


def recordings_of_classes(n_samples: int, seed: int) -> EventRecordings:
    """2 x 8 x 8 pixels for 0.2 s, of which a batch takes 0.08 s; rows of a class are busier."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_samples) % N_CLASSES
    times, neurons = [], []
    for label in labels.tolist():
        times.append(torch.randint(0, 200_000, (900,), generator=generator).sort().values)
        row = torch.where(
            torch.rand(900, generator=generator) < 0.7,
            torch.randint(0, 2, (900,), generator=generator) + 3 * label,
            torch.randint(0, 8, (900,), generator=generator),
        ).clamp_max(7)
        column, polarity = (torch.randint(0, n, (900,), generator=generator) for n in (8, 2))
        neurons.append((row * 8 + column) * 2 + polarity)
    return EventRecordings(
        torch.cat(times).to(torch.int32),
        torch.cat(neurons).to(torch.int16),
        torch.arange(n_samples + 1) * 900,
        labels,
        (2, 8, 8),
        N_CLASSES,
        duration=DURATION,
        dt=2e-3,
        drop=0.5,
    )


def tiny_task(name: str, *, recordings: bool = False) -> Task:
    """Twelve training samples and three of each other part, of the kind that a preset takes."""

    def part(n_samples: int, seed: int) -> SampleSource:
        if recordings:
            return recordings_of_classes(n_samples, seed)
        if preset(name).data == "images":
            return images_of_classes(n_samples, features_of(name), seed)
        return spikes_of_classes(n_samples, features_of(name), seed)

    return Task(part(12, 1), part(3, 2), part(3, 3), N_CLASSES, DURATION)


def tiny_config(name: str, **changes: Any) -> TrainConfig:
    """The preset's settings on batches of six."""
    optimizer = changes.pop("optimizer", "smorms3")
    return replace(default_config(name, optimizer), **{"epochs": 3, "batch_size": 6} | changes)


def run_tiny(
    name: str, folder: Path, *, resume: bool = False, recordings: bool = False, **changes: Any
) -> TrainResult:
    """Train a preset on its tiny data."""
    task = tiny_task(name, recordings=recordings)
    return train(tiny_config(name, **changes), task, folder, resume=resume)
