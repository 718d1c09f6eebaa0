"""Warnings about layers that an initialization leaves without useful activity.

Silent and saturated are judged by one number, the mean rate of a layer on the data given to the
initializer (in training: on the first batch). `fastlif.inspection.activity` judges by the share of
neurons that never or almost always fire, so that a layer can be named by one and not by the other.
"""

from __future__ import annotations

import warnings

SILENT_RATE = 0.1  # Hz: one spike of a neuron in ten seconds
# Spikes per step. After a spike a neuron rests for a step, so 0.5 is the most; of neurons whose
# weights have mean 0 about half are held down. Layers at their limit (sigma_u of 20 and more) come
# to about 0.16 without and 0.26 with recurrence, at sigma_u = 2 to 0.06.
SATURATED_SHARE = 0.15


class ActivityWarning(UserWarning):
    """A layer is silent or saturated, so that gradients through it carry little information."""


def warn_of_activity(
    name: str,
    rate: float,
    dt: float,
    *,
    silent: str | None = None,
    saturated: str | None = None,
    stacklevel: int = 2,
) -> None:
    """Warn, with the cure, if the mean firing rate of a layer is too low or too high.

    name: of the layer.
    rate: in Hz.
    dt: seconds per step.
    silent, saturated: cures of either; None is a change of the layer's sigma_u.
    """
    if rate < SILENT_RATE:
        state = "silent"
        cure = "raise its sigma_u (or lower xi)" if silent is None else silent
    elif rate * dt > SATURATED_SHARE:
        state = "saturated"
        cure = "lower its sigma_u (or raise xi)" if saturated is None else saturated
    else:
        return
    warnings.warn(
        f"layer {name!r} is {state} after initialization, {rate:.3g} Hz on this data: {cure}",
        ActivityWarning,
        stacklevel=stacklevel + 1,
    )
