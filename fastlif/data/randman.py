"""Randman: spike times that lie on smooth random manifolds, one manifold per class.

The generator of Zenke and Vogels (2021) with the settings of Rossbroich et al. 2022 (Methods,
"Synthetic random manifolds"). A point x in [0, 1]^D of a manifold has the coordinates ::

    c_m(x) = prod_d sum_{i=0}^{F-1} a_i s_i sin(2 pi (i x_d b_i + c_i))

with a, b, c uniform in [0, 1] for every coordinate m and dimension d, a_0 = 0,
s_i = 1 / ((i + 1)^smoothness + 1) and F = min(ceil(0.001^(-1 / smoothness)), 1000).
Every coordinate is scaled to [0, 1] over the samples of a class and becomes the time of the one
spike of one input neuron.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastlif.data.dataset import PackedDataset, n_steps_of
from fastlif.spikes import PackedSpikes

__all__ = ["RandmanConfig", "RandmanSplits", "make_randman", "manifold_points", "randman_steps"]

_CUTOFF_AMPLITUDE = 0.001  # harmonics with a smaller amplitude than this are left out
_MAX_HARMONICS = 1000


@dataclass(frozen=True)
class RandmanConfig:
    """What a Randman data set is made of; times in seconds. Raises ValueError on bad numbers."""

    n_classes: int = 10
    n_inputs: int = 20  # embedding dimension M
    manifold_dimension: int = 1  # D
    smoothness: float = 1.0  # alpha
    n_train: int = 800  # per class, as the two below
    n_validation: int = 100
    n_test: int = 100
    active_duration: float = 0.1  # every neuron fires once within it
    duration: float = 0.2  # the rest is silence
    dt: float = 2e-3
    seed: int = 0  # of the data set, not of a training run

    def __post_init__(self) -> None:
        for name in (
            "n_classes", "n_inputs", "manifold_dimension", "n_train", "n_validation", "n_test"
        ):  # fmt: skip
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not (math.isfinite(self.smoothness) and self.smoothness > 0):
            raise ValueError(f"smoothness must be finite and > 0, got {self.smoothness}")
        if self.active_steps > self.n_steps:
            raise ValueError(
                f"active_duration must be at most the duration of {self.duration} s, "
                f"got {self.active_duration}"
            )

    @property
    def n_steps(self) -> int:
        """Steps in a sample."""
        return n_steps_of(self.duration, self.dt)

    @property
    def active_steps(self) -> int:
        """Steps within which all spikes lie."""
        return n_steps_of(self.active_duration, self.dt)

    @property
    def samples_per_class(self) -> int:
        """Samples of one class in the three splits together."""
        return self.n_train + self.n_validation + self.n_test


class RandmanSplits(NamedTuple):
    """The three parts of a Randman data set, classes interleaved."""

    train: PackedDataset
    validation: PackedDataset
    test: PackedDataset


def manifold_points(
    n_points: int,
    *,
    n_inputs: int,
    dimension: int = 1,
    smoothness: float = 1.0,
    generator: torch.Generator,
) -> Tensor:  # (n_points, n_inputs) float64
    """Random points of one random manifold, every coordinate scaled to [0, 1] over the points."""
    n_harmonics = min(math.ceil(_CUTOFF_AMPLITUDE ** (-1.0 / smoothness)), _MAX_HARMONICS)
    harmonic = torch.arange(n_harmonics, dtype=torch.float64)
    spectrum = 1.0 / ((harmonic + 1.0) ** smoothness + 1.0)
    a, b, c = torch.rand(
        3, n_inputs, dimension, n_harmonics, dtype=torch.float64, generator=generator
    )
    a[..., 0] = 0.0
    x = torch.rand(n_points, dimension, dtype=torch.float64, generator=generator)

    points = torch.ones(n_points, n_inputs, dtype=torch.float64)
    waves = torch.empty(n_points, n_harmonics, dtype=torch.float64)  # reused: fresh memory is slow
    for m in range(n_inputs):
        for d in range(dimension):
            torch.outer(x[:, d], harmonic * b[m, d], out=waves).add_(c[m, d])
            waves.mul_(2.0 * math.pi).sin_()
            points[:, m] *= waves @ (a[m, d] * spectrum)
    low, high = points.amin(dim=0), points.amax(dim=0)
    # A single point, or a flat coordinate, has no range to be scaled by; it lands on 0.
    return (points - low) / torch.where(high > low, high - low, 1.0)


def randman_steps(config: RandmanConfig) -> Tensor:  # (samples per class, classes, inputs) int32
    """The step at which each input neuron fires its one spike.

    A coordinate in [0, 1] times the active steps, floored; the class's largest, exactly 1, is put
    into the last active step so that it too lies within `active_duration`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    classes = [
        manifold_points(
            config.samples_per_class,
            n_inputs=config.n_inputs,
            dimension=config.manifold_dimension,
            smoothness=config.smoothness,
            generator=generator,
        )
        for _ in range(config.n_classes)
    ]
    steps = (torch.stack(classes, dim=1) * config.active_steps).floor()
    return steps.clamp_(max=config.active_steps - 1).to(torch.int32)


def make_randman(config: RandmanConfig | None = None) -> RandmanSplits:
    """Generate a Randman data set: by default 8000 / 1000 / 1000 samples of 10 classes."""
    config = config or RandmanConfig()
    steps = randman_steps(config)
    train, validation, test = steps.split((config.n_train, config.n_validation, config.n_test))
    return RandmanSplits(_pack(train, config), _pack(validation, config), _pack(test, config))


def _pack(steps: Tensor, config: RandmanConfig) -> PackedDataset:
    n_samples = steps.shape[0] * config.n_classes
    spikes = PackedSpikes.from_events(
        steps.reshape(-1),
        torch.arange(config.n_inputs, dtype=torch.int32).repeat(n_samples),
        torch.arange(n_samples + 1, dtype=torch.int64) * config.n_inputs,
        n_steps=config.n_steps,
        features=(config.n_inputs,),
    )
    labels = torch.arange(config.n_classes).repeat(steps.shape[0])
    return PackedDataset(spikes, labels)
