"""Initialization in the fluctuation-driven regime, and measurements to check it against.

    predictions = fluctuation_driven_(model, rate=10.0)      # draw all weights in place
    measurements = measure(model, spikes)                    # compare mu_u and sigma_u

`formulas` and `dalian` are arithmetic on fan-in, rate and time constants, `weights` and `readouts`
draw, `measurement` simulates. Source: Rossbroich, Gygax, Zenke (2022), Neuromorph. Comput. Eng. 2
044016.
"""

from __future__ import annotations

from fastlif.init.activity import SATURATED_SHARE, SILENT_RATE, ActivityWarning
from fastlif.init.dalian import (
    DalianDistributions,
    ExponentialDistribution,
    LogNormalDistribution,
    Source,
    dalian_exponential,
    dalian_lognormal,
)
from fastlif.init.formulas import (
    PSPIntegrals,
    RecurrentDistributions,
    UnreachableTarget,
    WeightDistribution,
    centred_distribution,
    general_distribution,
    kaiming_distribution,
    predicted_sigma_u,
    psp_integrals,
    recurrent_distributions,
    target_sigma_u,
    unit_distribution,
)
from fastlif.init.measurement import Measurement, measure
from fastlif.init.prediction import Prediction
from fastlif.init.readouts import readout_
from fastlif.init.weights import encoder_, fluctuation_driven_, kaiming_, normal_

__all__ = [
    "SATURATED_SHARE",
    "SILENT_RATE",
    "ActivityWarning",
    "DalianDistributions",
    "ExponentialDistribution",
    "LogNormalDistribution",
    "Measurement",
    "PSPIntegrals",
    "Prediction",
    "RecurrentDistributions",
    "Source",
    "UnreachableTarget",
    "WeightDistribution",
    "centred_distribution",
    "dalian_exponential",
    "dalian_lognormal",
    "encoder_",
    "fluctuation_driven_",
    "general_distribution",
    "kaiming_",
    "kaiming_distribution",
    "measure",
    "normal_",
    "predicted_sigma_u",
    "psp_integrals",
    "readout_",
    "recurrent_distributions",
    "target_sigma_u",
    "unit_distribution",
]
