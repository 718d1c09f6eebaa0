"""Formulas of initialization: published numbers, moments, and targets that cannot be reached."""

from __future__ import annotations

import math

import pytest
import torch

from fastlif import init
from fastlif.ops.plan import LayerPlan, LayerTensors
from fastlif.ops.reference import stack_trace

from .init_helpers import DT, SHD


@pytest.mark.parametrize(
    ("tau_mem", "tau_syn", "eps_bar", "eps_hat", "error"),  # error: half of the last digit printed
    [
        (20e-3, 10e-3, 0.011033, 0.0020356, 5e-7),
        (20e-3, 20e-3, 0.0210, 0.0055, 5e-5),
        (10e-3, 5e-3, 0.0061, 0.0012, 5e-5),
    ],
)
def test_numerical_integrals_have_the_published_values(tau_mem, tau_syn, eps_bar, eps_hat, error):
    assert init.psp_integrals(tau_mem, tau_syn, DT) == pytest.approx((eps_bar, eps_hat), abs=error)


@pytest.mark.parametrize(("tau_mem", "tau_syn"), [(20e-3, 10e-3), (10e-3, 10e-3), (0.2, 3e-3)])
def test_numerical_integrals_are_the_response_of_the_reference(tau_mem, tau_syn):
    plan = LayerPlan(
        "readout_trace",
        (1,),
        decay_mem=math.exp(-DT / tau_mem),
        decay_syn=math.exp(-DT / tau_syn),
    )
    spike = torch.zeros(round(20 * tau_mem / DT), 1, 1, dtype=torch.float64)
    spike[0] = 1.0
    response = stack_trace(spike, [plan], [LayerTensors()]).membranes[0].flatten()
    psp = init.psp_integrals(tau_mem, tau_syn, DT)
    assert psp.eps_bar == pytest.approx(float(response.sum()) * DT, rel=1e-6)
    assert psp.eps_hat == pytest.approx(float(response.square().sum()) * DT, rel=1e-6)


def test_analytical_integrals_are_the_limit_of_small_steps():
    psp = init.psp_integrals(20e-3, 10e-3, DT, "analytical")
    assert psp == pytest.approx((0.01, 0.1 / 60), rel=1e-12)
    assert psp == pytest.approx(init.psp_integrals(20e-3, 10e-3, 1e-7), rel=1e-4)


@pytest.mark.parametrize("bad", [0.0, -1e-3, math.nan, math.inf])
@pytest.mark.parametrize("name", ["tau_mem", "tau_syn", "dt"])
def test_integrals_refuse_impossible_times(name, bad):
    times = {"tau_mem": 20e-3, "tau_syn": 10e-3, "dt": DT} | {name: bad}
    with pytest.raises(ValueError, match=f"{name} must be positive and finite"):
        init.psp_integrals(**times)


def test_integrals_refuse_an_unknown_method():
    with pytest.raises(ValueError, match='"numerical" or "analytical", got .exact.'):
        init.psp_integrals(20e-3, 10e-3, DT, "exact")


def test_centred_formula_gives_the_papers_weights_for_shd():
    """0.23 in the text of section 2.1, from the analytical integrals; 0.21 from the numerical."""
    analytical = init.psp_integrals(20e-3, 10e-3, DT, "analytical")
    assert init.centred_distribution(700, 15.8, analytical).std == pytest.approx(0.23, abs=5e-3)
    weights = init.centred_distribution(700, 15.8, SHD)
    assert weights.mean == 0.0
    assert weights.std == pytest.approx((700 * 15.8 * 0.0020356) ** -0.5, rel=1e-4)


def test_general_formula_inverts_the_moments_of_the_membrane():
    weights = init.general_distribution(300, 12.0, SHD, sigma_u=0.7, mu_u=-0.4)
    drive = 300 * 12.0
    assert drive * weights.mean * SHD.eps_bar == pytest.approx(-0.4)
    assert drive * (weights.std**2 + weights.mean**2) * SHD.eps_hat == pytest.approx(0.49)
    assert init.predicted_sigma_u([(300, weights)], 12.0, SHD) == pytest.approx(0.7)


def test_recurrent_formula_inverts_the_moments_and_splits_alpha_equally():
    feedforward, recurrent = [50, 200], [30, 70, 110]
    weights = init.recurrent_distributions(
        feedforward, recurrent, 20.0, SHD, sigma_u=0.9, mu_u=0.3, alpha=0.8
    )
    pairs = [
        *zip(feedforward, weights.feedforward, strict=True),
        *zip(recurrent, weights.recurrent, strict=True),
    ]
    means = [w.mean for _, w in pairs]
    variances = [n * (w.std**2 + w.mean**2) * 20.0 * SHD.eps_hat for n, w in pairs]
    assert means == pytest.approx([means[0]] * 5)
    assert sum(n * w.mean for n, w in pairs) * 20.0 * SHD.eps_bar == pytest.approx(0.3)
    assert variances == pytest.approx([0.4 * 0.81] * 2 + [0.2 / 3 * 0.81] * 3)


def test_xi_is_the_distance_to_threshold_in_sigmas():
    assert init.target_sigma_u(mu_u=0.25, xi=3.0, threshold=1.0) == pytest.approx(0.25)
    assert init.target_sigma_u(mu_u=-1.0, xi=2.0, threshold=1.5) == pytest.approx(1.25)
    assert init.target_sigma_u() == 1.0
    with pytest.raises(ValueError, match=r"sigma_u or xi, not both: got sigma_u=0.5, xi=2.0"):
        init.target_sigma_u(0.5, xi=2.0)
    with pytest.raises(ValueError, match=r"below the threshold, got mu_u=1.2 and threshold=1.0"):
        init.target_sigma_u(mu_u=1.2, xi=2.0)


def test_unreachable_target_is_named_with_the_smallest_sigma_that_is_not():
    with pytest.raises(ValueError, match=r"mu_u=2, sigma_u=0\.1 cannot be reached: sigma_w\^2"):
        init.general_distribution(100, 10.0, SHD, sigma_u=0.1, mu_u=2.0)
    smallest = 2.0 * math.sqrt(SHD.eps_hat / (100 * 10.0)) / SHD.eps_bar
    with pytest.raises(
        ValueError, match=f"needs sigma_u >= {smallest:.4g}, {smallest - 0.1:.4g} more"
    ):
        init.general_distribution(100, 10.0, SHD, sigma_u=0.1, mu_u=2.0)
    below, above = 0.999 * smallest, 1.001 * smallest
    assert init.general_distribution(100, 10.0, SHD, sigma_u=above, mu_u=2.0).std < 0.05 * 0.18
    with pytest.raises(ValueError, match="cannot be reached"):
        init.general_distribution(100, 10.0, SHD, sigma_u=below, mu_u=2.0)


def test_unreachable_recurrent_target_names_the_recurrent_weights():
    with pytest.raises(ValueError, match=r"sigma_v\^2 would be -"):
        init.recurrent_distributions([700], [128], 15.8, SHD, sigma_u=0.5, mu_u=5.0, alpha=0.999)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_must_be_a_share(alpha):
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        init.recurrent_distributions([10], [10], 10.0, SHD, alpha=alpha)


def test_formulas_refuse_bad_fan_in_rate_and_targets():
    with pytest.raises(ValueError, match="fan_in must be at least 1, got 0"):
        init.centred_distribution(0, 10.0, SHD)
    with pytest.raises(ValueError, match=r"rate must be positive and finite \(Hz\), got 0.0"):
        init.centred_distribution(10, 0.0, SHD)
    with pytest.raises(ValueError, match="sigma_u must be positive"):
        init.centred_distribution(10, 10.0, SHD, sigma_u=-1.0)
    with pytest.raises(ValueError, match="mu_u must be finite, got nan"):
        init.general_distribution(10, 10.0, SHD, mu_u=math.nan)
