"""Whether a network can be built and brought to its target, found without data and weights."""

from __future__ import annotations

from fastlif.data import n_steps_of
from fastlif.init import UnreachableTarget
from fastlif.models import build
from fastlif.ops.engines import ENGINES
from fastlif.train import TrainConfig, initialize

__all__ = ["Feasibility"]

_REFERENCE = "reference"  # plain PyTorch, on any device
_LOWEST_RATE = 1e-3  # Hz: below any data's


class Feasibility:
    """Why settings that fit together cannot be trained; what was found once is remembered."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str | None] = {}

    def reason(self, config: TrainConfig, duration: float) -> str | None:
        """What is wrong, beginning with the option if it is one alone; None if nothing is.

        duration: of a sample in seconds.
        """
        key = (
            config.preset,
            config.recurrent,
            config.skip,
            config.rescale_surrogate,
            config.dt,
            config.backend,
            config.device,
            config.initialization,
            config.sigma_u,
            config.distribution,
            config.mu_w,
            config.sigma_w,
            duration,
        )
        if key not in self._known:
            self._known[key] = _reason(config, duration)
        return self._known[key]


def _reason(config: TrainConfig, duration: float) -> str | None:
    try:
        n_steps_of(duration, config.dt)
        _check_backend(config)
        # Weights without storage. Inputs of other sizes than the preset's change fan-ins a little,
        # which does not matter here.
        network = build(
            config.preset,
            recurrent=config.recurrent,
            skip=config.skip,
            rescale_surrogate=config.rescale_surrogate,
            duration=duration,
            dt=config.dt,
            device="meta",
        )
        # The rate of the data is not known, but what neither end allows no rate does: the weights
        # that a target asks for fall with it.
        try:
            initialize(network, config, input_rate=1.0 / config.dt)
        except UnreachableTarget:
            initialize(network, config, input_rate=_LOWEST_RATE)
    except (ValueError, OverflowError) as error:
        return str(error)
    return None


def _check_backend(config: TrainConfig) -> None:
    """ValueError for kernels that do not exist, or are for another device than the trials'.

    Whether there is a GPU is seen by the trials: theirs may be another machine.
    """
    if config.backend in (None, _REFERENCE):
        return
    if config.backend not in ENGINES:
        raise ValueError(
            f"backend must be one of {', '.join((*ENGINES, _REFERENCE))}, got {config.backend!r}"
        )
    if (config.backend == "cpu") != (config.device == "cpu"):
        raise ValueError(
            f"backend must be {'cpu' if config.device == 'cpu' else 'cuda, triton'} or reference "
            f"for trials with {'no' if config.device == 'cpu' else 'a share of a'} GPU, got "
            f"{config.backend!r}"
        )
