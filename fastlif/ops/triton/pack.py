"""Spikes as bits and as numbers: packing, unpacking, counting."""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.triton import launch
from fastlif.spikes import WORD_STEPS, n_words, spatial_shape

BLOCK = launch.block(256)  # neurons of a program


@triton.jit
def user_index(flat, neurons, channels, positions):
    """Index in (batch, channels, positions) of an index in (batch, positions, channels)."""
    sample = flat // neurons
    neuron = flat - sample * neurons
    position = neuron // channels
    channel = neuron - position * channels
    return sample * neurons + channel * positions + position


@triton.jit
def pack_kernel(
    dense,  # (steps, batch, channels, positions), any strides of steps and batch
    words,  # int32 (words, batch * neurons)
    not_binary,  # int32 (1,): becomes 1 when a value is neither 0 nor 1
    n_steps,
    time_stride,
    batch_stride,
    size,  # batch * neurons
    neurons,
    channels,
    positions,
    BLOCK: tl.constexpr,
):
    """Words of dense spikes; a program packs one word of each of its neurons."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    word_index = tl.program_id(1).to(tl.int64)
    sample = flat // neurons
    source = dense + sample * batch_stride
    source += user_index(flat, neurons, channels, positions) - sample * neurons
    word = tl.zeros((BLOCK,), tl.int32)
    other = tl.zeros((BLOCK,), tl.int32)
    first = word_index * 32
    for q in range(0, tl.minimum(n_steps - first, 32).to(tl.int32)):
        value = tl.load(source + (first + q) * time_stride, mask=inside, other=0.0)
        word |= tl.where(value != 0.0, 1, 0) << q
        other |= tl.where((value != 0.0) & (value != 1.0), 1, 0)
    tl.store(words + word_index * size + flat, word, mask=inside)
    # All who write here write the same value.
    tl.store(not_binary + tl.zeros((BLOCK,), tl.int32), other, mask=other != 0)


@triton.jit
def unpack_kernel(
    words,  # int32 (words, batch * neurons)
    dense,  # (stop - start, batch * neurons)
    start,
    stop,
    size,
    neurons,
    channels,
    positions,
    USER: tl.constexpr,  # dense is (..., channels, positions), else flat
    BLOCK: tl.constexpr,
):
    """Zeros and ones of the steps from start, a multiple of 32, to stop."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    word_index = start // 32 + tl.program_id(1).to(tl.int64)
    word = tl.load(words + word_index * size + flat, mask=inside, other=0)
    to = flat
    if USER:
        to = user_index(flat, neurons, channels, positions)
    first = word_index * 32
    for q in range(0, tl.minimum(stop - first, 32).to(tl.int32)):
        spike = ((word >> q) & 1).to(dense.dtype.element_ty)
        tl.store(dense + (first + q - start) * size + to, spike, mask=inside)


@triton.jit
def count_kernel(
    words,  # int32 (words, batch * neurons)
    counts,  # (batch, channels, positions)
    n_words,
    size,
    neurons,
    channels,
    positions,
    BLOCK: tl.constexpr,
):
    """Number of spikes of each neuron."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    count = tl.zeros((BLOCK,), tl.int32)
    for w in range(0, n_words):
        bits = tl.load(words + tl.cast(w, tl.int64) * size + flat, mask=inside, other=0)
        bits -= (bits >> 1) & 0x55555555
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        bits += bits >> 8
        count += (bits + (bits >> 16)) & 63
    to = user_index(flat, neurons, channels, positions)
    tl.store(counts + to, count.to(counts.dtype.element_ty), mask=inside)


def _sizes(words: Tensor, features: Sequence[int]) -> tuple[int, int, int, int]:
    """size, neurons, channels, positions of the kernels."""
    channels, height, width = spatial_shape(features)
    return words.shape[1] * words.shape[2], words.shape[2], channels, height * width


def pack(
    dense: Tensor,  # user (time, batch, *features), features contiguous
) -> tuple[Tensor, Tensor]:
    """Words int32 (words, batch, N), and int32 (1,): 1 when a value was neither 0 nor 1."""
    n_steps, batch = dense.shape[:2]
    features = tuple(dense.shape[2:])
    neurons = dense[0, 0].numel()
    words = dense.new_empty((n_words(n_steps), batch, neurons), dtype=torch.int32)
    not_binary = dense.new_zeros((1,), dtype=torch.int32)
    sizes = _sizes(words, features)
    launch.run(
        pack_kernel, (triton.cdiv(sizes[0], BLOCK), words.shape[0]), dense, words, not_binary,
        n_steps, dense.stride(0), dense.stride(1), *sizes, BLOCK=BLOCK,
    )  # fmt: skip
    return words, not_binary


def unpack(
    words: Tensor,  # int32 (words, batch, N)
    dense: Tensor,  # to write: (stop - start, batch, N), or user (..., *features)
    start: int,
    stop: int,
    features: Sequence[int],
    *,
    user: bool,
) -> Tensor:
    """The spikes of the steps from start, a multiple of 32, to stop, as numbers."""
    sizes = _sizes(words, features)
    grid = (triton.cdiv(sizes[0], BLOCK), triton.cdiv(stop - start, WORD_STEPS))
    launch.run(unpack_kernel, grid, words, dense, start, stop, *sizes, USER=user, BLOCK=BLOCK)
    return dense


def count(
    words: Tensor,  # int32 (words, batch, N)
    counts: Tensor,  # to write: (batch, *features)
    features: Sequence[int],
) -> None:
    """Number of spikes of each neuron."""
    sizes = _sizes(words, features)
    launch.run(
        count_kernel, (triton.cdiv(sizes[0], BLOCK),), words, counts, words.shape[0], *sizes,
        BLOCK=BLOCK,
    )  # fmt: skip
