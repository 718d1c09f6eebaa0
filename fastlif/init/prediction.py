"""From a layer, the rate of its input and a target to the distributions of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fastlif.init.dalian import (
    DalianDistributions,
    PositiveDistribution,
    Source,
    dalian_exponential,
    dalian_lognormal,
)
from fastlif.init.formulas import (
    UnreachableTarget,
    general_distribution,
    psp_integrals,
    recurrent_distributions,
)

if TYPE_CHECKING:
    from torch import dtype

    from fastlif.layers.dalian import DalianLIF, TimeConstants
    from fastlif.layers.neuron import SynapticLIF

DALIAN = {"exponential": dalian_exponential, "lognormal": dalian_lognormal}


@dataclass(frozen=True)
class Prediction:
    """What the formulas expect of one initialized layer.

    mu_u and sigma_u are averages over neurons of the mean and of the variance over time of a
    membrane that does not spike, under Poisson input at `rate`; `measure` gives the same
    quantities. A readout whose input rate or time constant is unknown has sigma_u = None; sigma_w,
    n and rate of a readout with skip connections are those of its first source.

    In a Dalian layer, excitatory and inhibitory neurons have the same target; `blocks` has the
    distribution of each set of weights, and mu_w, sigma_w and sigma_v are those of its W_FE and
    V_EE.
    """

    name: str  # the layer's name in the model, or its class if it was given by itself
    mu_u: float
    sigma_u: float | None
    mu_w: float  # mean of all weights, feed-forward and recurrent
    sigma_w: float  # standard deviation of the feed-forward weights
    sigma_v: float | None  # standard deviation of the recurrent weights; None if there are none
    n: int  # feed-forward fan-in
    rate: float | None  # Hz
    blocks: Mapping[str, PositiveDistribution] | None = None  # by names as in `layer.blocks()`


def predict(
    name: str,
    layer: SynapticLIF,
    rate: float,
    target: tuple[float, float],  # (mu_u, sigma_u)
    *,
    alpha: float,
    integrals: str,
    distribution: str,  # of Dalian weights
) -> Prediction:
    """Distributions that bring a spiking layer to its target.

    Raises:
        ValueError: the input is silent, or the target is none that such a layer can have.
        UnreachableTarget: no weights reach it, or none that the layer's type of number can hold.
    """
    from fastlif.layers.dalian import DalianLIF

    mu_u, sigma_u = target
    if not (math.isfinite(rate) and rate > 0.0):
        raise ValueError(
            f"rate of the input of layer {name!r} must be positive and finite, got {rate} Hz; if "
            f"it was measured, the layer before is silent: raise that layer's sigma_u or give rate"
        )
    if isinstance(layer, DalianLIF):
        prediction = _predict_dalian(
            name, layer, rate, target, alpha=alpha, integrals=integrals, distribution=distribution
        )
        _check_numbers(prediction, layer.weight.dtype)
        return prediction
    psp = psp_integrals(layer.tau_mem, layer.tau_syn, layer.dt, integrals)
    sigma_v = None
    if layer.recurrent_weight is None:
        weights = general_distribution(layer.fan_in, rate, psp, sigma_u=sigma_u, mu_u=mu_u)
    else:
        both = recurrent_distributions(
            [layer.fan_in],
            [layer.recurrent_fan_in],
            rate,
            psp,
            sigma_u=sigma_u,
            mu_u=mu_u,
            alpha=alpha,
        )
        weights, sigma_v = both.feedforward[0], both.recurrent[0].std
    prediction = Prediction(
        name=name,
        mu_u=mu_u,
        sigma_u=sigma_u,
        mu_w=weights.mean,
        sigma_w=weights.std,
        sigma_v=sigma_v,
        n=layer.fan_in,
        rate=rate,
    )
    _check_numbers(prediction, layer.weight.dtype)
    return prediction


def _check_numbers(prediction: Prediction, dtype: dtype) -> None:
    """UnreachableTarget if all weights would be 0 or infinite in their type of number."""
    typical = max(abs(prediction.mu_w), prediction.sigma_w)
    limits = torch.finfo(dtype)
    if not limits.tiny * limits.eps <= typical <= limits.max:
        raise UnreachableTarget(
            f"the target mu_u={prediction.mu_u:g}, sigma_u={prediction.sigma_u:g} of layer "
            f"{prediction.name!r} cannot be reached: its weights would be of the order of "
            f"{typical:.4g}, which {dtype} cannot hold"
        )


def _predict_dalian(
    name: str,
    layer: DalianLIF,
    rate: float,
    target: tuple[float, float],
    *,
    alpha: float,
    integrals: str,
    distribution: str,
) -> Prediction:
    """As `predict`; the layer's own neurons are expected to fire at the rate of its input."""
    mu_u, sigma_u = target
    if distribution not in DALIAN:
        known = " or ".join(f'"{one}"' for one in DALIAN)
        raise ValueError(f"distribution must be {known}, got {distribution!r}")
    if mu_u != 0.0:
        raise ValueError(
            f"mu_u of the Dalian layer {name!r} must be 0, where excitation and inhibition "
            f"balance, got {mu_u:g}"
        )

    def population(taus: TimeConstants) -> DalianDistributions:
        n_recurrent = layer.recurrent_fan_in
        return DALIAN[distribution](
            Source(layer.fan_in, rate),
            Source(n_recurrent, rate) if n_recurrent else None,
            Source(layer.inhibitory_fan_in, rate),
            psp_integrals(taus.tau_mem, taus.tau_syn, layer.dt, integrals),
            psp_integrals(taus.tau_mem, taus.tau_inhibitory, layer.dt, integrals),
            sigma_u=sigma_u,
            alpha=alpha,
        )

    onto_e, onto_i = population(layer.excitatory_taus), population(layer.inhibitory_taus)
    blocks = {"W_FE": onto_e.feedforward, "W_FI": onto_i.feedforward}
    if onto_e.recurrent is not None and onto_i.recurrent is not None:
        blocks |= {"V_EE": onto_e.recurrent, "V_EI": onto_i.recurrent}
    blocks |= {"V_IE": onto_e.inhibitory, "V_II": onto_i.inhibitory}
    return Prediction(
        name=name,
        mu_u=0.0,
        sigma_u=sigma_u,
        mu_w=onto_e.feedforward.mean,
        sigma_w=onto_e.feedforward.std,
        sigma_v=None if onto_e.recurrent is None else onto_e.recurrent.std,
        n=layer.fan_in,
        rate=rate,
        blocks=blocks,
    )
