"""Drawing the weights of readouts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Generator, Tensor, nn

from fastlif.init.drawing import draw_, zero_
from fastlif.init.formulas import (
    centred_distribution,
    predicted_sigma_u,
    psp_integrals,
    unit_distribution,
)
from fastlif.init.prediction import Prediction
from fastlif.init.traversal import check_one_network, mean_rate, readout_layers
from fastlif.spikes import PackedSpikes

if TYPE_CHECKING:
    from fastlif.layers import LIReadout


def readout_(
    layer: nn.Module,
    *,
    method: str = "unit",
    rate: float | Sequence[float] | None = None,
    sigma_u: float = 1.0,
    tau_mem: float | None = None,
    integrals: str = "numerical",
    generator: Generator | None = None,
) -> Prediction:
    """Draw the weights of an LIReadout in place; its bias becomes 0.

    method: "unit" draws N(0, 1) / sqrt(n), as the paper's simulations; "fluctuation" the centred
        formula (eq 9) for `rate` and `sigma_u` with the readout's own time constants. Of several
        sources (skip connections) each counts its own inputs n, and takes an equal part of
        sigma_u^2.
    rate: firing rate of the readout's input in Hz, one or one per source.
    tau_mem: seconds; needed if the readout takes the duration of the sample for its tau_mem.
    """
    readout = readout_layers(layer).get(type(layer).__name__)
    if readout is not layer:
        raise TypeError(f"layer must be an LIReadout, got {type(layer).__name__}")
    check_one_network(readout)
    sources = readout.source_features
    rates = _per_source(rate, len(sources))
    tau_mem = readout.tau_mem if tau_mem is None else tau_mem
    psp = None
    if tau_mem is not None:
        psp = psp_integrals(tau_mem, readout.tau_syn, readout.dt, integrals)
    if method == "unit":
        weights = [unit_distribution(n) for n in sources]
    elif method != "fluctuation":
        raise ValueError(f'method must be "unit" or "fluctuation", got {method!r}')
    elif rates is None:
        raise ValueError('method "fluctuation" needs rate, the firing rate of the input in Hz')
    elif psp is None:
        raise ValueError(
            "this readout's tau_mem is the duration of the sample: give tau_mem in seconds"
        )
    else:
        part = sigma_u / math.sqrt(len(sources))
        weights = [
            centred_distribution(n, one, psp, sigma_u=part)
            for n, one in zip(sources, rates, strict=True)
        ]
    predicted = None
    if rates is not None and psp is not None:
        parts = zip(sources, weights, rates, strict=True)
        predicted = math.hypot(*(predicted_sigma_u([(n, w)], one, psp) for n, w, one in parts))
    for block, distribution in zip(
        readout.weight.detach().split(sources, dim=1), weights, strict=True
    ):
        draw_(block, distribution, generator)
    zero_(readout.bias)
    return Prediction(
        name=type(readout).__name__,
        mu_u=0.0,
        sigma_u=predicted,
        mu_w=0.0,
        sigma_w=weights[0].std,
        sigma_v=None,
        n=sources[0],
        rate=None if rates is None else rates[0],
    )


def source_rates(readout: LIReadout, input: Tensor | PackedSpikes) -> list[float]:
    """Mean firing rates in Hz of the sources that a readout hears side by side."""
    if len(readout.source_features) == 1 or not isinstance(input, Tensor):
        return [mean_rate(readout, input)] * len(readout.source_features)
    blocks = input.flatten(2).split(readout.source_features, dim=2)
    return [mean_rate(readout, block) for block in blocks]


def _per_source(rate: float | Sequence[float] | None, n_sources: int) -> list[float] | None:
    """One rate per source of a readout; ValueError for what is no rate."""
    if rate is None:
        return None
    rates = list(rate) if isinstance(rate, Sequence) else [rate] * n_sources
    if len(rates) != n_sources:
        raise ValueError(f"rate must be one number or {n_sources}, one per source, got {rate}")
    for one in rates:
        if not (math.isfinite(one) and one >= 0.0):
            raise ValueError(f"rate must be finite and not negative (Hz), got {one}")
    return rates
