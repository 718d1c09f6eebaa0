"""Filling tensors in place from the distributions of this package."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fastlif.init.dalian import ExponentialDistribution, LogNormalDistribution, PositiveDistribution
from fastlif.init.formulas import WeightDistribution


def draw_(
    weight: Tensor,
    distribution: WeightDistribution | PositiveDistribution,
    generator: Generator | None,
) -> None:
    """Fill weight in place. Draws on the generator's device, so a seed means the same anywhere.

    A weight on the meta device has no storage: of a model built there only predictions are wanted.
    """
    if weight.is_meta:
        return
    with torch.no_grad():
        if generator is None or generator.device == weight.device:
            _fill_(weight, distribution, generator)
        else:
            drawn = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device)
            weight.copy_(_fill_(drawn, distribution, generator))


def zero_(bias: Tensor | None) -> None:
    """Set a bias, if there is one, to 0."""
    if bias is not None:
        with torch.no_grad():
            bias.zero_()


def _fill_(
    weight: Tensor,
    distribution: WeightDistribution | PositiveDistribution,
    generator: Generator | None,
) -> Tensor:
    if isinstance(distribution, ExponentialDistribution):
        return weight.exponential_(distribution.lam, generator=generator)
    if isinstance(distribution, LogNormalDistribution):
        return weight.log_normal_(distribution.m, distribution.s, generator=generator)
    return weight.normal_(distribution.mean, distribution.std, generator=generator)
