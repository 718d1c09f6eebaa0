"""Drawing the weights of readouts."""

from __future__ import annotations

import math

from torch import Generator, nn

from fastlif.init.drawing import draw_, zero_
from fastlif.init.formulas import (
    centred_distribution,
    predicted_sigma_u,
    psp_integrals,
    unit_distribution,
)
from fastlif.init.prediction import Prediction
from fastlif.init.traversal import readout_layers


def readout_(
    layer: nn.Module,
    *,
    method: str = "unit",
    rate: float | None = None,
    sigma_u: float = 1.0,
    tau_mem: float | None = None,
    integrals: str = "numerical",
    generator: Generator | None = None,
) -> Prediction:
    """Draw the weights of an LIReadout in place; its bias becomes 0.

    method: "unit" draws N(0, 1) / sqrt(n), as the paper's simulations; "fluctuation" the centred
        formula (eq 9) for `rate` and `sigma_u` with the readout's own time constants.
    rate: firing rate of the readout's input in Hz.
    tau_mem: seconds; needed if the readout takes the duration of the sample for its tau_mem.
    """
    readout = readout_layers(layer).get(type(layer).__name__)
    if readout is not layer:
        raise TypeError(f"layer must be an LIReadout, got {type(layer).__name__}")
    if rate is not None and not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"rate must be finite and not negative (Hz), got {rate}")
    tau_mem = readout.tau_mem if tau_mem is None else tau_mem
    psp = None
    if tau_mem is not None:
        psp = psp_integrals(tau_mem, readout.tau_syn, readout.dt, integrals)
    if method == "unit":
        weights = unit_distribution(readout.fan_in)
    elif method != "fluctuation":
        raise ValueError(f'method must be "unit" or "fluctuation", got {method!r}')
    elif rate is None:
        raise ValueError('method "fluctuation" needs rate, the firing rate of the input in Hz')
    elif psp is None:
        raise ValueError(
            "this readout's tau_mem is the duration of the sample: give tau_mem in seconds"
        )
    else:
        weights = centred_distribution(readout.fan_in, rate, psp, sigma_u=sigma_u)
    predicted = None
    if rate is not None and psp is not None:
        predicted = predicted_sigma_u([(readout.fan_in, weights)], rate, psp)
    prediction = Prediction(
        name=type(readout).__name__,
        mu_u=0.0,
        sigma_u=predicted,
        mu_w=weights.mean,
        sigma_w=weights.std,
        sigma_v=None,
        n=readout.fan_in,
        rate=rate,
    )
    draw_(readout.weight, weights, generator)
    zero_(readout.bias)
    return prediction
