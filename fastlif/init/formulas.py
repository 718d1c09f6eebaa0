"""Weight distributions that put a layer into the fluctuation-driven regime: arithmetic only.

Symbols follow the paper: Rossbroich, Gygax, Zenke (2022), Neuromorph. Comput. Eng. 2 044016.
`mu_u`, `sigma_u` are the mean and the standard deviation over time of a membrane that does not
spike, `xi` the distance from mean to threshold in units of `sigma_u` (eq 8), `alpha` the share of
the variance that comes from feed-forward input (eq 34), `rate` the firing rate nu of every input
in Hz, `fan_in` the number of inputs n. Everything is float64 arithmetic on Python numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class UnreachableTarget(ValueError):
    """No weights give the membranes that were asked for."""


class PSPIntegrals(NamedTuple):
    """Integrals of the response k(t) of the membrane to one input spike of weight 1."""

    eps_bar: float  # integral of k dt, in seconds
    eps_hat: float  # integral of k^2 dt, in seconds


@dataclass(frozen=True)
class WeightDistribution:
    """The normal distribution from which the weights of one connection are drawn."""

    mean: float
    std: float


@dataclass(frozen=True)
class RecurrentDistributions:
    """One distribution per feed-forward and per recurrent connection of a population."""

    feedforward: tuple[WeightDistribution, ...]
    recurrent: tuple[WeightDistribution, ...]


def psp_integrals(
    tau_mem: float, tau_syn: float, dt: float, method: str = "numerical"
) -> PSPIntegrals:
    """Integrals eps_bar and eps_hat of the postsynaptic potential (eqs 2, 3), in seconds.

    tau_mem, tau_syn, dt: seconds.
    method: "numerical" sums the response k[n] of the discrete equations (eqs 10, 11) to one input
        spike, eps_bar = sum_n k[n] dt and eps_hat = sum_n k[n]^2 dt; this is what the layers
        compute, and at dt = 2 ms it differs from the continuous integrals by 10 to 20 %.
        "analytical" takes the continuous-time integrals, tau_syn and
        tau_syn^2 / (2 (tau_syn + tau_mem)).
    """
    for name, value in (("tau_mem", tau_mem), ("tau_syn", tau_syn), ("dt", dt)):
        check_positive(name, value, "seconds")
    if method == "analytical":
        return PSPIntegrals(float(tau_syn), tau_syn**2 / (2.0 * (tau_syn + tau_mem)))
    if method != "numerical":
        raise ValueError(f'method must be "numerical" or "analytical", got {method!r}')
    # I[n] = s^(n-1) and U[n+1] = m U[n] + (1-m) I[n] after a spike at step 0: the response is that
    # of a filter with the two poles m and s and gain 1-m, so both infinite sums are closed forms.
    # expm1 keeps 1-m and 1-s accurate when the time constants are much longer than dt.
    gain_mem = -math.expm1(-dt / tau_mem)  # 1 - m
    gain_syn = -math.expm1(-dt / tau_syn)  # 1 - s
    decay_mem, decay_syn = math.exp(-dt / tau_mem), math.exp(-dt / tau_syn)
    decay_both = decay_mem * decay_syn
    gain_both = -math.expm1(-dt / tau_mem - dt / tau_syn)
    sum_of_squares = (gain_mem * (1.0 + decay_both)) / (
        (1.0 + decay_mem) * gain_syn * (1.0 + decay_syn) * gain_both
    )
    return PSPIntegrals(dt / gain_syn, sum_of_squares * dt)


def target_sigma_u(
    sigma_u: float | None = None,
    *,
    mu_u: float = 0.0,
    xi: float | None = None,
    threshold: float = 1.0,
) -> float:
    """The target sigma_u, given itself or through xi: (threshold - mu_u) / xi (eq 8).

    Neither given means sigma_u = 1; both given is a ValueError.
    """
    check_finite("mu_u", mu_u)
    if xi is None:
        sigma_u = 1.0 if sigma_u is None else sigma_u
        check_positive("sigma_u", sigma_u, "units of the membrane")
        return float(sigma_u)
    if sigma_u is not None:
        raise ValueError(f"give sigma_u or xi, not both: got sigma_u={sigma_u}, xi={xi}")
    check_positive("xi", xi, "standard deviations between mu_u and threshold")
    if mu_u >= threshold:
        raise ValueError(
            f"xi needs a mean below the threshold, got mu_u={mu_u} and threshold={threshold}"
        )
    return (threshold - mu_u) / xi


def centred_distribution(
    fan_in: int, rate: float, integrals: PSPIntegrals, *, sigma_u: float = 1.0
) -> WeightDistribution:
    """Weights of mean 0 for a feed-forward connection (eq 9): sigma_u^2 / (n nu eps_hat)."""
    return general_distribution(fan_in, rate, integrals, sigma_u=sigma_u, mu_u=0.0)


def general_distribution(
    fan_in: int,
    rate: float,
    integrals: PSPIntegrals,
    *,
    sigma_u: float = 1.0,
    mu_u: float = 0.0,
) -> WeightDistribution:
    """Weights for a feed-forward connection and any target mean (eqs 6, 7).

    Raises ValueError when sigma_u is too small for mu_u: weights that are all equal already
    fluctuate more than that.
    """
    _check_rate(rate)
    check_finite("mu_u", mu_u)
    mean = mu_u / (_fan_in("fan_in", fan_in) * rate * integrals.eps_bar)
    std = _connection_std(
        "sigma_w", sigma_u, mu_u, share=1.0, mean=mean, unit=fan_in * rate * integrals.eps_hat
    )
    return WeightDistribution(mean, std)


def recurrent_distributions(
    feedforward_fan_in: Sequence[int],
    recurrent_fan_in: Sequence[int],
    rate: float,
    integrals: PSPIntegrals,
    *,
    sigma_u: float = 1.0,
    mu_u: float = 0.0,
    alpha: float = 0.9,
) -> RecurrentDistributions:
    """Weights for a population with feed-forward and recurrent connections (eqs 37 to 39).

    feedforward_fan_in, recurrent_fan_in: one n per connection onto the population. All weights
        share one mean; several feed-forward connections take equal parts of alpha, several
        recurrent ones equal parts of 1 - alpha.
    alpha: share of sigma_u^2 from feed-forward input, 0 < alpha < 1.

    Raises UnreachableTarget when a connection's part of the variance is too small for mu_u.
    """
    _check_rate(rate)
    check_finite("mu_u", mu_u)
    if not (0.0 < alpha < 1.0):
        raise ValueError(f"alpha must lie between 0 and 1 (both excluded), got {alpha}")
    n_total = sum(_fan_in("feedforward_fan_in", n) for n in feedforward_fan_in)
    n_total += sum(_fan_in("recurrent_fan_in", n) for n in recurrent_fan_in)
    if n_total == 0:
        raise ValueError("feedforward_fan_in and recurrent_fan_in are both empty")
    mean = mu_u / (n_total * rate * integrals.eps_bar)

    def distributions(
        symbol: str, fan_ins: Sequence[int], share: float
    ) -> tuple[WeightDistribution, ...]:
        return tuple(
            WeightDistribution(
                mean,
                _connection_std(
                    symbol,
                    sigma_u,
                    mu_u,
                    share=share / len(fan_ins),
                    mean=mean,
                    unit=n * rate * integrals.eps_hat,
                ),
            )
            for n in fan_ins
        )

    return RecurrentDistributions(
        distributions("sigma_w", feedforward_fan_in, alpha),
        distributions("sigma_v", recurrent_fan_in, 1.0 - alpha),
    )


def kaiming_distribution(fan_in: int) -> WeightDistribution:
    """The baseline of deep rectifier networks, N(0, 2/n) (He et al. 2015)."""
    return WeightDistribution(0.0, math.sqrt(2.0 / _fan_in("fan_in", fan_in)))


def unit_distribution(fan_in: int) -> WeightDistribution:
    """N(0, 1) / sqrt(n), the readout's start in the paper's simulations."""
    return WeightDistribution(0.0, 1.0 / math.sqrt(_fan_in("fan_in", fan_in)))


def predicted_sigma_u(
    connections: Sequence[tuple[int, WeightDistribution]], rate: float, integrals: PSPIntegrals
) -> float:
    """sigma_u that connections of (fan_in, distribution) lead to (eqs 5, 36)."""
    return math.sqrt(
        sum(n * (w.std**2 + w.mean**2) for n, w in connections) * rate * integrals.eps_hat
    )


def _connection_std(
    symbol: str, sigma_u: float, mu_u: float, *, share: float, mean: float, unit: float
) -> float:
    """sqrt(share sigma_u^2 / unit - mean^2), where unit = n nu eps_hat of the connection."""
    check_positive("sigma_u", sigma_u, "units of the membrane")
    try:
        variance = share * sigma_u**2 / unit - mean**2
    except OverflowError:
        raise UnreachableTarget(
            f"the target sigma_u={sigma_u:g} cannot be reached: its square is too large a number"
        ) from None
    if variance < 0.0:
        needed = math.sqrt(mean**2 * unit / share)
        raise UnreachableTarget(
            f"the target mu_u={mu_u:g}, sigma_u={sigma_u:g} cannot be reached: {symbol}^2 would be "
            f"{variance:.4g}. Weights that all equal the mean that this mu_u asks for, {mean:.4g}, "
            f"fluctuate more: it needs sigma_u >= {needed:.4g}, {needed - sigma_u:.4g} more. Raise "
            f"sigma_u (or lower xi), bring mu_u nearer to 0, or raise the connection's share "
            f"({share:g}) of the variance"
        )
    return math.sqrt(variance)


def check_positive(name: str, value: float, unit: str) -> None:
    """ValueError unless value is a positive finite number."""
    if not (math.isfinite(value) and value > 0.0):
        raise ValueError(f"{name} must be positive and finite ({unit}), got {value}")


def check_finite(name: str, value: float) -> None:
    """ValueError unless value is a finite number."""
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def _check_rate(rate: float) -> None:
    check_positive("rate", rate, "Hz")


def _fan_in(name: str, fan_in: int) -> int:
    if fan_in < 1:
        raise ValueError(f"{name} must be at least 1, got {fan_in}")
    return fan_in
