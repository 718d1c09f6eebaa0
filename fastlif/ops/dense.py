"""Synapses on tensors that are not spikes, by torch's own libraries; and the two orders of neurons.

"Flat" tensors are (time, batch, N) or (batch, N) with the N neurons channels last, as the GPU
kernels want them; "user" tensors are as torch keeps them, (..., *features).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fastlif.ops.connection import Connection
from fastlif.ops.plan import LayerPlan
from fastlif.spikes import spatial_shape


def to_flat(user: Tensor, features: Sequence[int]) -> Tensor:
    """(..., *features) to contiguous (..., N)."""
    channels, height, width = spatial_shape(features)
    leading = user.shape[: user.dim() - len(features)]
    by_channel = user.reshape(*leading, channels, height * width)
    return by_channel.transpose(-1, -2).flatten(-2).contiguous()


def to_user(flat: Tensor, features: Sequence[int]) -> Tensor:
    """(..., N) to contiguous (..., *features)."""
    channels, height, width = spatial_shape(features)
    by_channel = flat.unflatten(-1, (height * width, channels)).transpose(-1, -2)
    return by_channel.reshape(*flat.shape[:-1], *features).contiguous()


def select_channels(flat: Tensor, channels: int, first: int, stop: int) -> Tensor:
    """Of flat (..., positions * channels) the channels from first to stop, contiguous flat."""
    if (first, stop) == (0, channels):
        return flat
    return flat.unflatten(-1, (-1, channels))[..., first:stop].flatten(-2).contiguous()


@contextmanager
def library_precision(reduced: bool) -> Iterator[None]:
    """Deterministic cuDNN, in full float32 unless reduced (TF32) convolutions are allowed.

    Only torch's newer settings for TF32 are touched: where a user has mixed them with the older
    ones, reading those is an error.
    """
    cudnn: Any = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.conv.fp32_precision = "tf32" if reduced else "ieee"
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark, cudnn.conv.fp32_precision = before


def reduced_products_allowed(dtype: torch.dtype) -> bool:
    """Whether the user lets float32 products use TF32, by torch.set_float32_matmul_precision().

    Or by torch.backends.cuda.matmul.fp32_precision, which says the same.
    """
    matmul: Any = torch.backends.cuda.matmul
    return dtype == torch.float32 and matmul.fp32_precision == "tf32"


def _is_dense(link: Connection) -> bool:
    """Whether every source reaches every target: the kernel covers the whole input."""
    return (
        link.kernel == link.in_shape[1:]
        and link.padding == (0, 0)
        and link.dilation == (1, 1)
        and link.out_shape[1:] == (1, 1)
    )


def _columns(weight: Tensor, link: Connection) -> Tensor:
    """A dense weight as (out channels, N of the flat input)."""
    return weight.reshape(link.weight_shape).permute(0, 2, 3, 1).flatten(1)


def _map(flat: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Flat (time, batch, N) as a channels-last (time * batch, C, H, W), without a copy."""
    channels, height, width = shape
    return flat.reshape(-1, height, width, channels).permute(0, 3, 1, 2)


def injected_current(
    values: Tensor,  # user (time, batch, *features of the input)
    plan: LayerPlan,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """W x + b for numbers that are not spikes, flat (time, batch, N), in full precision."""
    link = plan.feedforward
    assert link is not None
    steps, batch = values.shape[:2]
    with library_precision(reduced=False):
        current = F.conv2d(
            values.reshape(-1, *link.in_shape),
            weight.reshape(link.weight_shape),
            bias,
            link.stride,
            link.padding,
            link.dilation,
        )
    return current.permute(0, 2, 3, 1).reshape(steps, batch, -1).contiguous()


def input_gradient(
    grad_injected: Tensor,  # flat (time, batch, N)
    plan: LayerPlan,
    weight: Tensor,
    *,
    reduced: bool,
) -> Tensor:
    """W^T dL/dJ, flat (time, batch, N of the input)."""
    link = plan.feedforward
    assert link is not None
    steps, batch = grad_injected.shape[:2]
    if _is_dense(link):
        return grad_injected @ _columns(weight, link)
    with library_precision(reduced):
        grad = conv2d_input(
            (steps * batch, *link.in_shape),
            weight.reshape(link.weight_shape),
            _map(grad_injected, link.out_shape),
            link.stride,
            link.padding,
            link.dilation,
        )
    return grad.permute(0, 2, 3, 1).reshape(steps, batch, -1).contiguous()


def weight_gradient(
    grad_injected: Tensor,  # flat (time, batch, N)
    values: Tensor,  # user (time, batch, *features of the input), not spikes
    plan: LayerPlan,
    *,
    reduced: bool,
) -> Tensor:
    """dL/dW as (out channels, in channels, kernel height, kernel width)."""
    link = plan.feedforward
    assert link is not None
    with library_precision(reduced):
        return conv2d_weight(
            values.reshape(-1, *link.in_shape),
            link.weight_shape,
            _map(grad_injected, link.out_shape),
            link.stride,
            link.padding,
            link.dilation,
        )
