"""Weight distributions for layers that obey Dale's law: arithmetic only.

A layer of excitatory (E) and inhibitory (I) neurons hears feed-forward excitation (F), its own
excitation (R, optional) and its own inhibition; no weight is negative and inhibitory currents are
subtracted. With mean weights m and mean squares q of the three sets, n synapses each, sources
firing at nu, and the integrals of excitatory and inhibitory postsynaptic potentials,

    mu_U      = eps_bar_E (n_F nu_F m_F + n_R nu_R m_R) - eps_bar_I n_I nu_I m_I
    sigma_U^2 = eps_hat_E (n_F nu_F q_F + n_R nu_R q_R) + eps_hat_I n_I nu_I q_I

(eqs 40 to 50 of Rossbroich, Gygax, Zenke 2022). Three conditions fix the three means: mu_U = 0,
sigma_U is its target, and alpha is the feed-forward share of the excitatory part of sigma_U^2.
Exponential and log-normal weights (of a given spread s) both have q proportional to m^2, which
makes one derivation serve both. Both populations have these synapses, each its own integrals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from fastlif.init.formulas import PSPIntegrals, check_positive


class Source(NamedTuple):
    """One set of synapses: how many a neuron has, and how often each of their sources fires."""

    fan_in: int
    rate: float  # Hz


@dataclass(frozen=True)
class ExponentialDistribution:
    """Weights of density lam exp(-lam w)."""

    lam: float

    @property
    def mean(self) -> float:
        """1 / lam."""
        return 1.0 / self.lam

    @property
    def std(self) -> float:
        """1 / lam."""
        return 1.0 / self.lam


@dataclass(frozen=True)
class LogNormalDistribution:
    """Weights whose logarithm is normal with mean m and standard deviation s."""

    m: float
    s: float

    @property
    def mean(self) -> float:
        """exp(m + s^2 / 2)."""
        return math.exp(self.m + 0.5 * self.s**2)

    @property
    def std(self) -> float:
        """Mean times sqrt(exp(s^2) - 1)."""
        return self.mean * math.sqrt(math.expm1(self.s**2))


PositiveDistribution = ExponentialDistribution | LogNormalDistribution


@dataclass(frozen=True)
class DalianDistributions:
    """Distributions of the three sets of synapses onto one population, E or I."""

    feedforward: PositiveDistribution
    recurrent: PositiveDistribution | None  # from excitatory neurons; None if there are none
    inhibitory: PositiveDistribution


def dalian_exponential(
    feedforward: Source,
    recurrent: Source | None,
    inhibitory: Source,
    excitatory_integrals: PSPIntegrals,
    inhibitory_integrals: PSPIntegrals,
    *,
    sigma_u: float = 1.0,
    alpha: float = 0.9,
) -> DalianDistributions:
    """Exponential weights for one population of a Dalian layer: mu_u = 0 and a target sigma_u.

    feedforward, recurrent, inhibitory: the synapses of one neuron; recurrent None if the layer's
        excitatory neurons do not project onto this population (eqs 40 to 45), else eqs 46 to 55,
        with the square in the variance that eq 55 and Table 9 lack. Rates may all differ.
    excitatory_integrals, inhibitory_integrals: `psp_integrals` of this population's membrane with
        its excitatory and its inhibitory synaptic time constant.
    alpha: feed-forward share of the excitatory variance, 0 < alpha < 1; no matter without
        recurrent excitation.

    Raises ValueError for fan-ins below 1 and numbers that are not positive and finite.
    """
    sources = (feedforward, recurrent, inhibitory)
    integrals = (excitatory_integrals, inhibitory_integrals)
    means = _means(sources, integrals, sigma_u, alpha, square=2.0)
    return DalianDistributions(
        ExponentialDistribution(1.0 / means[0]),
        None if recurrent is None else ExponentialDistribution(1.0 / means[1]),
        ExponentialDistribution(1.0 / means[2]),
    )


def dalian_lognormal(
    feedforward: Source,
    recurrent: Source | None,
    inhibitory: Source,
    excitatory_integrals: PSPIntegrals,
    inhibitory_integrals: PSPIntegrals,
    *,
    sigma_u: float = 1.0,
    alpha: float = 0.9,
    s: float = 1.0,
) -> DalianDistributions:
    """Log-normal weights for one population of a Dalian layer: mu_u = 0 and a target sigma_u.

    s: standard deviation of the logarithm of a weight, the same for all three sets. The rest is as
    for `dalian_exponential`. (A log-normal variable of mean m has the mean square exp(s^2) m^2.)
    """
    check_positive("s", s, "standard deviation of the logarithm")
    sources = (feedforward, recurrent, inhibitory)
    integrals = (excitatory_integrals, inhibitory_integrals)
    means = _means(sources, integrals, sigma_u, alpha, square=math.exp(s**2))

    def of_mean(mean: float) -> LogNormalDistribution:
        return LogNormalDistribution(math.log(mean) - 0.5 * s**2, s)

    return DalianDistributions(
        of_mean(means[0]), None if recurrent is None else of_mean(means[1]), of_mean(means[2])
    )


def _means(
    sources: tuple[Source, Source | None, Source],
    integrals: tuple[PSPIntegrals, PSPIntegrals],
    sigma_u: float,
    alpha: float,
    square: float,  # mean square of a weight in units of its squared mean
) -> tuple[float, float, float]:
    """Mean weights m_F, m_R (0 without recurrent excitation) and m_I."""
    check_positive("sigma_u", sigma_u, "units of the membrane")
    if not (0.0 < alpha < 1.0):
        raise ValueError(f"alpha must lie between 0 and 1 (both excluded), got {alpha}")
    for name, source in zip(("feedforward", "recurrent", "inhibitory"), sources, strict=True):
        if source is None:
            continue
        if source.fan_in < 1:
            raise ValueError(f"{name} fan_in must be at least 1, got {source.fan_in}")
        check_positive(f"{name} rate", source.rate, "Hz")
    # Arriving spikes per second of each set.
    n_feedforward, n_recurrent, n_inhibitory = (
        0.0 if source is None else source.fan_in * source.rate for source in sources
    )
    excitatory, inhibitory = integrals
    # All means in units of m_F first. Alpha: n_F q_F / alpha = n_R q_R / (1 - alpha).
    recurrent_mean = 0.0
    if n_recurrent:
        recurrent_mean = math.sqrt((1.0 - alpha) * n_feedforward / (alpha * n_recurrent))
    balance = n_feedforward + n_recurrent * recurrent_mean  # mu_U = 0
    inhibitory_mean = excitatory.eps_bar * balance / (inhibitory.eps_bar * n_inhibitory)
    variance = square * (
        excitatory.eps_hat * (n_feedforward + n_recurrent * recurrent_mean**2)
        + inhibitory.eps_hat * n_inhibitory * inhibitory_mean**2
    )
    unit = sigma_u / math.sqrt(variance)  # m_F
    return unit, unit * recurrent_mean, unit * inhibitory_mean
