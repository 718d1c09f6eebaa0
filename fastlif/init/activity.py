"""Whether a layer fires so little or so much that gradients through it carry little information.

One rule for initializers, training and inspection. A neuron is silent when it fires in no sample
of a batch, and saturated when it fires in more than `SATURATED_SHARE` of the steps: the reset takes
one step, so that no neuron fires in more than half of them. A layer is judged by its share of such
neurons, and is silent at less than `SILENT_RATE` too, as few neurons miss every sample of a large
batch. Initializers see what a layer emits, of one under Dale's law its excitatory neurons.
"""

from __future__ import annotations

import warnings
from typing import Literal

from torch import Tensor

SATURATED_SHARE = 0.25  # of the steps: 125 Hz at 2 ms
SILENT_RATE = 0.1  # Hz: one spike of a neuron in ten seconds
SILENT_LAYER = 0.95  # a layer with more than this share of silent neurons is silent
# Likewise of saturated neurons. Of neurons whose weights have mean 0 about half are held down, and
# the rest of a layer at its limit (sigma_u of 20 and more) fires in more than 0.3 of the steps.
SATURATED_LAYER = 0.25


class ActivityWarning(UserWarning):
    """A layer is silent or saturated, so that gradients through it carry little information."""


def silent_share(shares_of_steps: Tensor) -> float:
    """Share of silent neurons, 0..1, from the share of steps in which each neuron fires."""
    return float((shares_of_steps == 0.0).double().mean())


def saturated_share(shares_of_steps: Tensor) -> float:
    """Share of saturated neurons, 0..1, from the share of steps in which each neuron fires."""
    return float((shares_of_steps > SATURATED_SHARE).double().mean())


def activity_state(
    rate: float, silent: float, saturated: float
) -> Literal["silent", "saturated"] | None:
    """What a layer is with a mean rate in Hz and shares of silent and saturated neurons."""
    if rate < SILENT_RATE or silent > SILENT_LAYER:
        return "silent"
    return "saturated" if saturated > SATURATED_LAYER else None


def warn_of_activity(
    name: str,
    shares_of_steps: Tensor,
    dt: float,
    *,
    silent: str | None = None,
    saturated: str | None = None,
    stacklevel: int = 2,
) -> None:
    """Warn, with the cure, if a layer is silent or saturated.

    name: of the layer.
    shares_of_steps: (neurons,) share of the steps in which each neuron fires, over a batch.
    dt: seconds per step.
    silent, saturated: cures of either; None is a change of the layer's sigma_u.
    """
    rate = float(shares_of_steps.double().mean()) / dt
    state = activity_state(rate, silent_share(shares_of_steps), saturated_share(shares_of_steps))
    if state is None:
        return
    if state == "silent":
        cure = "raise its sigma_u (or lower xi)" if silent is None else silent
    else:
        cure = "lower its sigma_u (or raise xi)" if saturated is None else saturated
    warnings.warn(
        f"layer {name!r} is {state} after initialization, {rate:.3g} Hz on this data: {cure}",
        ActivityWarning,
        stacklevel=stacklevel + 1,
    )
