"""The step of SMORMS3 as one Triton kernel per parameter; the equations are in `fastlif.optim`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["smorms3", "update"]

BLOCK = 512
WARPS = 4


def update(
    parameter: Tensor,  # with a gradient; contiguous, as the state, and float32 or float64
    state: dict[str, Tensor],  # g1, g2 and m, of the parameter's shape and dtype
    group: dict[str, Any],  # lr (a number, or a tensor on the device), eps, maximize, minimum
) -> None:
    """Make one step of one parameter, in place. Nothing waits for the device."""
    n_elements = parameter.numel()
    gradient = parameter.grad
    if gradient is None or n_elements == 0:
        return
    lr, minimum = group["lr"], group["minimum"]
    lr_tensor = lr if isinstance(lr, Tensor) else None
    with torch.cuda.device_of(parameter):  # kernels go to the current device
        smorms3[(triton.cdiv(n_elements, BLOCK),)](
            parameter.detach(),
            gradient.contiguous(),
            state["g1"],
            state["g2"],
            state["m"],
            lr_tensor,
            lr if lr_tensor is None else 0.0,
            group["eps"],
            0.0 if minimum is None else minimum,
            n_elements,
            maximize=group["maximize"],
            has_minimum=minimum is not None,
            double=parameter.dtype == torch.float64,
            block=BLOCK,
            num_warps=WARPS,
            enable_fp_fusion=False,  # every operation rounds once, as torch does
        )


@triton.jit
def smorms3(
    parameter: tl.tensor,  # (n_elements,), as the next four
    gradient: tl.tensor,
    mean: tl.tensor,  # g1
    mean_square: tl.tensor,  # g2
    window: tl.tensor,  # m
    lr_tensor: tl.tensor | None,  # one element
    lr: tl.float64,
    eps: tl.float64,
    minimum: tl.float64,
    n_elements: tl.tensor,
    maximize: tl.constexpr,
    has_minimum: tl.constexpr,
    double: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Eqs 30 to 33 for `block` elements."""
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < n_elements
    g = tl.load(gradient + at, mask=inside, other=0.0)
    number: tl.constexpr = g.dtype
    if maximize:
        g = -g
    g1 = tl.load(mean + at, mask=inside, other=0.0)
    g2 = tl.load(mean_square + at, mask=inside, other=0.0)
    m = tl.load(window + at, mask=inside, other=1.0)
    if lr_tensor is None:
        largest = tl.cast(lr, number)
    else:
        largest = tl.load(lr_tensor).to(number)
    small = tl.cast(eps, number)

    rate = _divide(1.0, m + 1.0, double)
    g1 = _lerp(g1, g, rate)
    g2 = _lerp(g2, g * g, rate)
    share = _divide(g1 * g1, g2 + small, double)
    m = m - m * share + 1.0
    # Written so that NaN stays NaN, as it does in torch's clamp.
    step = tl.where(share > largest, largest, share) * g
    if double:
        scale = tl.sqrt(g2) + small
    else:
        scale = tl.sqrt_rn(g2) + small
    p = tl.load(parameter + at, mask=inside, other=0.0)
    p = p - _divide(step, scale, double)
    if has_minimum:
        bound = tl.cast(minimum, number)
        p = tl.where(p < bound, bound, p)

    tl.store(parameter + at, p, mask=inside)
    tl.store(mean + at, g1, mask=inside)
    tl.store(mean_square + at, g2, mask=inside)
    tl.store(window + at, m, mask=inside)


@triton.jit
def _divide(numerator: tl.tensor, denominator: tl.tensor, double: tl.constexpr) -> tl.tensor:
    """The quotient rounded to nearest; in float32 `/` alone would be an approximation."""
    if double:
        return numerator / denominator
    else:
        return tl.div_rn(numerator, denominator)


@triton.jit
def _lerp(start: tl.tensor, end: tl.tensor, rate: tl.tensor) -> tl.tensor:
    """start + rate (end - start), rounded as torch.lerp does."""
    change = end - start
    return tl.where(rate < 0.5, start + rate * change, end - change * (1.0 - rate))
