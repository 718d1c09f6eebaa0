"""What defines a training run, as plain values that fit into a checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastlif.models import Preset, Regularization, preset

__all__ = ["FREE_SETTINGS", "LEARNING_RATES", "TrainConfig", "configured", "default_config"]

INITIALIZATIONS = ("fluctuation", "kaiming", "normal")
DISTRIBUTIONS = ("exponential", "lognormal")

# The paper's, and for the others what led furthest in a few epochs of shd-dense and shd-conv1 on
# spoken digits. Without a scale for each parameter, steps have to be larger by far.
LEARNING_RATES = {"smorms3": 5e-3, "adam": 3e-3, "sgd": 1.0}

# Settings without influence on what an epoch computes: a run is the same run under any of them.
FREE_SETTINGS = ("graph",)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a run. Two runs with equal settings and data give the same result, bit for bit.

    Raises:
        ValueError: an unknown preset or choice, a number out of range, or settings that exclude
            each other.
    """

    preset: str
    recurrent: bool
    epochs: int  # of supervised training
    batch_size: int  # at most this many samples a step; batches of an epoch are equally large
    regularization: Regularization
    seed: int = 0  # of the weights and the order of the samples
    data_seed: int = 0  # of a generated data set, or of the split into training and validation
    lr: float = 5e-3
    sigma_u: float = 1.0  # target of the initialization "fluctuation"
    dt: float = 2e-3  # seconds per step
    channel_shift: int = 0  # training samples are moved by up to this many input channels
    backend: str | None = None  # of the layers; None is by device
    device: str = "cpu"  # an accelerator of Lightning Fabric: cpu, cuda, ...
    # On a GPU, one process replays steps as a CUDA graph; the results are the same.
    graph: bool = True
    optimizer: str = "smorms3"  # or "adam", "sgd"
    # Of the hidden layers: for a sigma_u at the rate of the data, N(0, 2 / fan_in), or
    # N(mu_w, sigma_w^2).
    initialization: str = "fluctuation"
    mu_w: float = 0.0
    sigma_w: float | None = None
    distribution: str = "exponential"  # of the weights of layers that obey Dale's law
    # Epochs before the others without the supervised loss: every neuron is to spike once, under the
    # same upper bound.
    priming_epochs: int = 0
    skip: bool = False  # the readout hears every hidden layer
    rescale_surrogate: bool = False  # the surrogate derivative of a neuron at rest is 1
    n_samples: int | None = None  # at most this many for training and validation, and for testing

    def __post_init__(self) -> None:
        network = preset(self.preset)
        for name, minimum in (("epochs", 1), ("batch_size", 1), ("n_samples", 2)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        for name in ("seed", "data_seed", "channel_shift", "priming_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("lr", "sigma_u", "dt"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        for name, choices in (
            ("initialization", INITIALIZATIONS),
            ("distribution", DISTRIBUTIONS),
            ("optimizer", tuple(LEARNING_RATES)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        self._check_weights(network)
        if self.skip and len(network.hidden) < 2:
            raise ValueError(
                f"skip must be False for preset {self.preset!r}: it has one hidden layer, which "
                "the readout hears anyway"
            )
        if self.channel_shift and len(network.input_features()) > 2:
            raise ValueError(
                f"channel_shift must be 0 for preset {self.preset!r}: its input is an image, "
                f"got {self.channel_shift}"
            )

    def _check_weights(self, network: Preset) -> None:
        """ValueError for settings of the initialization that do not belong together."""
        if self.initialization == "normal":
            if self.sigma_w is None:
                raise ValueError('sigma_w must be given for initialization "normal", got None')
            if not (math.isfinite(self.sigma_w) and self.sigma_w >= 0):
                raise ValueError(f"sigma_w must be finite and >= 0, got {self.sigma_w}")
            if not math.isfinite(self.mu_w):
                raise ValueError(f"mu_w must be finite, got {self.mu_w}")
        elif self.sigma_w is not None or self.mu_w != 0.0:
            raise ValueError(
                f'mu_w and sigma_w are for initialization "normal", got {self.mu_w} and '
                f"{self.sigma_w} with {self.initialization!r}"
            )
        if self.initialization != "fluctuation":
            if network.dalian:
                raise ValueError(
                    f'initialization must be "fluctuation" for preset {self.preset!r}, whose '
                    f"weights must not be negative, got {self.initialization!r}"
                )
            if self.sigma_u != 1.0:
                raise ValueError(
                    f'sigma_u is for initialization "fluctuation", got {self.sigma_u} with '
                    f"{self.initialization!r}"
                )
        if self.distribution != "exponential" and not network.dalian:
            raise ValueError(
                "distribution is for presets that obey Dale's law, got "
                f"{self.distribution!r} for {self.preset!r}"
            )

    @property
    def all_epochs(self) -> int:
        """Epochs of priming and of supervised training."""
        return self.priming_epochs + self.epochs

    def as_dict(self) -> dict[str, Any]:
        """All settings as JSON-serialisable values, the regularization's among them."""
        settings = dataclasses.asdict(self)
        return settings | settings.pop("regularization")

    def digest(self, data: str) -> str:
        """Eight hexadecimal digits that tell a run from those with other settings or data.

        data: tells one content of the data from another.
        """
        settings = {k: v for k, v in self.as_dict().items() if k not in FREE_SETTINGS}
        identity = json.dumps([settings, data], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:8]

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> TrainConfig:
        """The inverse of `as_dict`; what is missing is at its default, as before it was there.

        Raises:
            ValueError: a setting that there is not, or one without default is missing.
        """
        own = {setting.name for setting in dataclasses.fields(cls)} - {"regularization"}
        bounds = {setting.name for setting in dataclasses.fields(Regularization)}
        unknown = sorted(settings.keys() - own - bounds)
        if unknown:
            raise ValueError(f"settings must not hold {', '.join(unknown)}: there is no such one")
        try:
            return cls(
                regularization=Regularization(
                    **{name: value for name, value in settings.items() if name in bounds}
                ),
                **{name: value for name, value in settings.items() if name in own},
            )
        except TypeError as error:
            raise ValueError(f"settings are incomplete: {error}") from error


def default_config(
    name: str, optimizer: str = "smorms3", *, duration: float | None = None
) -> TrainConfig:
    """The settings of the paper's authors for a preset; `dataclasses.replace` changes some.

    They trained with SMORMS3; another optimizer has its own learning rate, from `LEARNING_RATES`.
    duration: of a sample in seconds, where it is not the preset's. The upper bound on spike counts
        is one on firing rates and goes with it.
    """
    network = preset(name)
    bounds = network.regularization
    if duration is not None and duration != network.duration:
        v_upper = bounds.v_upper * duration / network.duration
        bounds = dataclasses.replace(bounds, v_upper=v_upper)
    if optimizer not in LEARNING_RATES:
        raise ValueError(f"optimizer must be one of {', '.join(LEARNING_RATES)}, got {optimizer!r}")
    return TrainConfig(
        preset=name,
        recurrent=network.recurrent,
        epochs=network.epochs,
        batch_size=network.batch_size,
        lr=network.lr if optimizer == "smorms3" else LEARNING_RATES[optimizer],
        optimizer=optimizer,
        regularization=bounds,
    )


def configured(
    name: str, changes: Mapping[str, Any], *, duration: float | None = None
) -> TrainConfig:
    """The paper's settings for a preset with changes, of the regularization too.

    Another optimizer brings its own learning rate, unless one is given.
    duration: as for `default_config`.

    Raises:
        ValueError: a preset that there is not, or settings that TrainConfig refuses.
    """
    config = default_config(name, changes.get("optimizer", "smorms3"), duration=duration)
    bounds = {field.name for field in dataclasses.fields(Regularization)}
    regularization = {key: value for key, value in changes.items() if key in bounds}
    return dataclasses.replace(
        config,
        regularization=dataclasses.replace(config.regularization, **regularization),
        **{key: value for key, value in changes.items() if key not in bounds},
    )
