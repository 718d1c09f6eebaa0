"""Synapses on packed spikes: the current they inject and the gradient of the weights.

Dense and convolutional alike, as one product whose K index runs over the taps of the kernel and the
source channels. A "site" is an output position of a sample. A word of 32 steps makes 32 rows of the
product, so an address is computed and a word is read once for all of them; spikes never exist as
numbers in memory.

Spikes are exact in half precision. A float32 weight is the sum of two halves, each scaled by a
power of two per output channel, up to one bit: two products on tensor cores give float32 accuracy.
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.connection import Connection
from fastlif.ops.triton import launch
from fastlif.spikes import WORD_STEPS

SITES = launch.block(4)  # of a program forward: 128 rows
BLOCK_K = launch.block(32)
MOST_OUT = 64  # output channels of a program
GRAD_SITES = launch.block(2)  # of an iteration of the weight gradient: 64 rows
GRAD_BLOCK_K = launch.block(64)
PROGRAMS = 1024  # of the weight gradient, at most; fixed, so that sums do not depend on the device
HEADROOM = 14  # binary exponent that the largest weight of a channel is scaled to


@triton.jit
def site_words(
    words, word_index, site, n_sites, k, n_k, batch, positions, in_c, in_h, in_w, out_w,
    kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
):  # fmt: skip
    """Words (sites, k) of the sources of each site; zero outside of the map and of K."""
    sample = site // positions
    position = site - sample * positions
    out_y = position // out_w
    out_x = position - out_y * out_w
    tap = k // in_c
    channel = k - tap * in_c
    tap_y = tap // kernel_w
    tap_x = tap - tap_y * kernel_w
    y = (out_y * stride_h - padding_h)[:, None] + (tap_y * dilation_h)[None, :]
    x = (out_x * stride_w - padding_w)[:, None] + (tap_x * dilation_w)[None, :]
    inside = (site < n_sites)[:, None] & (k < n_k)[None, :]
    inside = inside & (y >= 0) & (y < in_h) & (x >= 0) & (x < in_w)
    row = (tl.cast(word_index, tl.int64) * batch + sample)[:, None] * in_h + y
    at = (row * in_w + x) * in_c + channel[None, :]
    return tl.load(words + at, mask=inside, other=0)


@triton.jit(do_not_specialize=["start", "stop"])
def synapse_forward_kernel(
    words,  # int32 (words, batch, in_h, in_w, in_c)
    weight_high,  # float16 (K, out_c), k = tap * in_c + channel, as weight_low
    weight_low,
    weight_unscale,  # (out_c,)
    bias,  # (out_c,) or None
    injected,  # (stop - start, sites, out_c), to write
    start,  # a multiple of 32
    stop,
    n_sites,
    n_k,
    out_c,
    batch,
    positions,
    in_c,
    in_h,
    in_w,
    out_w,
    kernel_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    PARTS: tl.constexpr,  # 2: float32 products; 1: as TF32
    SITES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """W S + b of 32 steps, SITES sites and BLOCK_OUT channels."""
    site = tl.program_id(0) * SITES + tl.arange(0, SITES)
    word_index = start // 32 + tl.program_id(1)
    out = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    steps = tl.arange(0, 32)
    total = tl.zeros((SITES * 32, BLOCK_OUT), tl.float32)
    for k0 in range(0, n_k, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        word = site_words(
            words, word_index, site, n_sites, k, n_k, batch, positions, in_c, in_h, in_w, out_w,
            kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
        )  # fmt: skip
        bits = (word[:, None, :] >> steps[None, :, None]) & 1
        spikes = tl.reshape(bits.to(tl.float16), (SITES * 32, BLOCK_K))
        at = k[:, None] * out_c + out[None, :]
        valid = (k < n_k)[:, None] & (out < out_c)[None, :]
        total = tl.dot(spikes, tl.load(weight_high + at, mask=valid, other=0.0), total)
        if PARTS > 1:
            total = tl.dot(spikes, tl.load(weight_low + at, mask=valid, other=0.0), total)
    total *= tl.load(weight_unscale + out, mask=out < out_c, other=0.0)[None, :]
    if bias is not None:
        total += tl.load(bias + out, mask=out < out_c, other=0.0)[None, :]
    row = tl.arange(0, SITES * 32)
    row_site = tl.program_id(0) * SITES + row // 32
    step = word_index * 32 + row % 32
    valid = ((row_site < n_sites) & (step < stop))[:, None] & (out < out_c)[None, :]
    at = ((step - start).to(tl.int64) * n_sites + row_site)[:, None] * out_c + out[None, :]
    tl.store(injected + at, total, mask=valid)


@triton.jit
def to_tf32(x):
    """The nearest number with 10 bits of fraction; infinity and NaN are made up for by the rest."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def weight_gradient_kernel(
    words,  # int32 (words, batch, in_h, in_w, in_c)
    grad_injected,  # (steps, sites, out_c)
    partials,  # (splits, K, out_c), to write
    n_steps,
    n_words,
    n_sites,
    n_k,
    out_c,
    batch,
    positions,
    in_c,
    in_h,
    in_w,
    out_w,
    kernel_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    PARTS: tl.constexpr,
    SITES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Sum of S dL/dJ over the steps and over every n-th block of sites, n the number of splits."""
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    out = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    split = tl.program_id(2)
    row = tl.arange(0, SITES * 32)
    total = tl.zeros((BLOCK_K, BLOCK_OUT), tl.float32)
    blocks = (n_sites + SITES - 1) // SITES
    for unit in range(split, blocks * n_words, tl.num_programs(2)):
        word_index = unit // blocks
        first_site = (unit % blocks) * SITES
        word = site_words(
            words, word_index, first_site + tl.arange(0, SITES), n_sites, k, n_k, batch,
            positions, in_c, in_h, in_w, out_w, kernel_w, stride_h, stride_w, padding_h,
            padding_w, dilation_h, dilation_w,
        )  # fmt: skip
        bits = (word[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
        spikes = tl.reshape(bits.to(tl.float32), (SITES * 32, BLOCK_K))
        row_site = first_site + row // 32
        step = word_index * 32 + row % 32
        valid = ((row_site < n_sites) & (step < n_steps))[:, None] & (out < out_c)[None, :]
        at = (step.to(tl.int64) * n_sites + row_site)[:, None] * out_c + out[None, :]
        grad = tl.load(grad_injected + at, mask=valid, other=0.0)
        high = to_tf32(grad)
        total = tl.dot(tl.trans(spikes), high, total, input_precision="tf32")
        if PARTS > 1:
            low = to_tf32(grad - high)
            total = tl.dot(tl.trans(spikes), low, total, input_precision="tf32")
    at = (split.to(tl.int64) * n_k + k)[:, None] * out_c + out[None, :]
    tl.store(partials + at, total, mask=(k < n_k)[:, None] & (out < out_c)[None, :])


def split_weight(
    weight: Tensor,  # (K, out channels)
) -> tuple[Tensor, Tensor, Tensor]:
    """High and low half of a weight, float16, and what undoes their scaling, (out channels,).

    The largest weight of a channel is scaled to 2^14, so the low half of any weight that matters
    beside it is not subnormal. high + low differs from the weight by at most 2^-23 of it, or 2^-39
    of the largest.
    """
    _, exponent = torch.frexp(weight.abs().amax(0))
    exponent = exponent.clamp(-100, 100)
    scaled = (weight * _power_of_two(HEADROOM - exponent)).contiguous()
    high = scaled.half()
    low = (scaled - high.float()).half()
    return high, low, _power_of_two(exponent - HEADROOM)


def _power_of_two(exponent: Tensor) -> Tensor:
    """2 to an int32 exponent, exactly, as float32."""
    return ((exponent + 127) << 23).view(torch.float32)


def forward_weight(link: Connection, weight: Tensor) -> Tensor:
    """A weight as `split_weight` takes it, (K, out channels)."""
    return weight.reshape(link.weight_shape).permute(2, 3, 1, 0).flatten(0, 2)


def _geometry(link: Connection, batch: int) -> tuple[int, ...]:
    """Arguments of the kernels from `batch` on."""
    (in_c, in_h, in_w), (_, out_h, out_w) = link.in_shape, link.out_shape
    return (
        batch, out_h * out_w, in_c, in_h, in_w, out_w, link.kernel[1], *link.stride,
        *link.padding, *link.dilation,
    )  # fmt: skip


def _block_out(out_channels: int) -> int:
    return min(MOST_OUT, max(16, triton.next_power_of_2(out_channels)))


def _warps(block_out: int) -> int:
    return 8 if block_out == MOST_OUT else 4


def injected_current(
    words: Tensor,  # int32 (words, batch, N of the input)
    link: Connection,
    weight: tuple[Tensor, Tensor, Tensor],  # (K, out channels): see split_weight
    bias: Tensor | None,
    start: int,  # a multiple of 32
    stop: int,
    *,
    reduced: bool,
) -> Tensor:
    """W S + b of the steps from start to stop, float32, flat (stop - start, batch, N)."""
    channels = link.out_shape[0]
    batch, positions = words.shape[1], link.out_shape[1] * link.out_shape[2]
    n_sites = batch * positions
    injected = weight[2].new_empty((stop - start, batch, positions * channels))
    block_out = _block_out(channels)
    grid = (
        triton.cdiv(n_sites, SITES),
        triton.cdiv(stop - start, WORD_STEPS),
        triton.cdiv(channels, block_out),
    )
    launch.run(
        synapse_forward_kernel, grid, words, *weight, bias, injected, start, stop, n_sites,
        link.fan_in, channels, *_geometry(link, batch), PARTS=1 if reduced else 2, SITES=SITES,
        BLOCK_K=BLOCK_K, BLOCK_OUT=block_out, num_warps=_warps(block_out),
    )  # fmt: skip
    return injected


def weight_gradient(
    words: Tensor,  # int32 (words, batch, N of the input)
    grad_injected: Tensor,  # float32, flat (steps, batch, N)
    link: Connection,
    *,
    reduced: bool,
) -> Tensor:
    """dL/dW, (out channels, in channels, kernel height, kernel width)."""
    channels, height, width = link.out_shape
    n_steps, batch = grad_injected.shape[:2]
    n_sites = batch * height * width
    block_out = _block_out(channels)
    tiles = triton.cdiv(link.fan_in, GRAD_BLOCK_K), triton.cdiv(channels, block_out)
    units = triton.cdiv(n_sites, GRAD_SITES) * words.shape[0]
    splits = min(units, max(1, PROGRAMS // (tiles[0] * tiles[1])))
    partials = grad_injected.new_empty((splits, link.fan_in, channels))
    launch.run(
        weight_gradient_kernel, (*tiles, splits), words, grad_injected, partials, n_steps,
        words.shape[0], n_sites, link.fan_in, channels, *_geometry(link, batch),
        PARTS=1 if reduced else 2, SITES=GRAD_SITES, BLOCK_K=GRAD_BLOCK_K, BLOCK_OUT=block_out,
        num_warps=_warps(block_out),
    )  # fmt: skip
    grad = partials.sum(0)
    return grad.view(*link.kernel, link.in_shape[0], channels).permute(3, 2, 0, 1)
