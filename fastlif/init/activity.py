"""Warnings about layers that an initialization leaves without useful activity."""

from __future__ import annotations

import warnings

SILENT_RATE = 0.1  # Hz: one spike of a neuron in ten seconds
SATURATED_SHARE = 0.25  # spikes per step; after a spike a neuron rests for one, so 0.5 is the most


class ActivityWarning(UserWarning):
    """A layer is silent or saturated, so that gradients through it carry little information."""


def warn_of_activity(name: str, rate: float, dt: float, *, stacklevel: int = 2) -> None:
    """Warn, with the cure, if the mean firing rate (Hz) of a layer is too low or too high."""
    if rate < SILENT_RATE:
        state = "silent"
        cure = "raise its sigma_u (or lower xi)"
    elif rate * dt > SATURATED_SHARE:
        state = "saturated"
        cure = "lower its sigma_u (or raise xi)"
    else:
        return
    warnings.warn(
        f"layer {name!r} is {state} after initialization, {rate:.3g} Hz on this data: {cure}",
        ActivityWarning,
        stacklevel=stacklevel + 1,
    )
