"""What defines a training run, as plain values that fit into a checkpoint."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fastlif.models import Regularization, preset

__all__ = ["TrainConfig", "default_config"]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Two runs with equal settings and data give the same result, bit for bit.

    Raises:
        ValueError: an unknown preset, or a number out of range.
    """

    preset: str
    recurrent: bool
    epochs: int
    batch_size: int  # at most this many samples a step; batches of an epoch are equally large
    regularization: Regularization
    seed: int = 0  # of the weights and the order of the samples
    data_seed: int = 0  # of a generated data set, or of the split into training and validation
    lr: float = 5e-3  # of SMORMS3
    sigma_u: float = 1.0  # target of the initialization
    dt: float = 2e-3  # seconds per step
    channel_shift: int = 0  # training samples are moved by up to this many input channels
    backend: str | None = None  # of the layers; None is by device
    device: str = "cpu"  # an accelerator of Lightning Fabric: cpu, cuda, ...
    graph: bool = True  # on a GPU, steps are replayed as a CUDA graph; the results are the same

    def __post_init__(self) -> None:
        preset(self.preset)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "data_seed", "channel_shift"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "sigma_u", "dt"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON-serialisable values, the regularization's among them."""
        settings = dataclasses.asdict(self)
        return settings | settings.pop("regularization")


def default_config(name: str) -> TrainConfig:
    """The settings of the paper's authors for a preset; `dataclasses.replace` changes some."""
    network = preset(name)
    return TrainConfig(
        preset=name,
        recurrent=network.recurrent,
        epochs=network.epochs,
        batch_size=network.batch_size,
        lr=network.lr,
        regularization=network.regularization,
    )
