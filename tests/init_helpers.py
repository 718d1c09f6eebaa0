"""What the tests of initialization share: seeded Poisson spikes, a small network, its weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastlif import init, layers

DT = 2e-3
SHD = init.psp_integrals(20e-3, 10e-3, DT)  # time constants of the paper's hidden layers


def poisson(rate: float, shape: tuple[int, ...], seed: int) -> Tensor:
    """Independent spikes, at most one per step: (time, batch, *features) of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) < rate * DT).float()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_model() -> nn.Module:
    """Two spiking layers and a readout; input (time, batch, 40)."""
    return layers.Sequential(
        layers.LIFLinear(40, 60, recurrent=True),
        layers.LIFLinear(60, 50),
        layers.LIReadout(50, 10),
    )


def drawn_model(sigma_u: float = 1.0) -> nn.Module:
    """The same, drawn for Poisson input of 20 Hz."""
    model = small_model()
    init.fluctuation_driven_(model, rate=20.0, sigma_u=sigma_u, generator=generator())
    return model


def assert_drawn_from(weight: Tensor, mean: float, std: float) -> None:
    """Sample mean and standard deviation within 5 standard errors."""
    weight, n = weight.detach(), weight.numel()
    assert float(weight.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(n))
    assert float(weight.std()) == pytest.approx(std, rel=5 / math.sqrt(2 * n))
