"""Max pooling, backward: the gradient of a window goes to one of its sources, step by step."""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops import pooling
from fastlif.ops.connection import Connection
from fastlif.ops.triton import launch
from fastlif.ops.triton.products import window_steps
from fastlif.spikes import WORD_STEPS

BLOCK = launch.block(128)  # sources of a program
STAGES = 4  # steps whose gradients are on their way from memory


@triton.jit(do_not_specialize=["start", "stop"])
def pool_backward_kernel(
    grad_pooled,  # (steps, pooled_size)
    routes,  # int32 (taps, words of the window of steps, pooled_size): see pooling.routes
    grad_spikes,  # (steps, size), to write
    start,  # a multiple of 32
    stop,
    size,  # sources of all samples
    pooled_size,
    channels,
    in_h,
    in_w,
    out_h,
    out_w,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    COVER_H: tl.constexpr,  # most windows that a source may be in, along the height
    COVER_W: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Gradient of the sources' spikes, of one word of steps: the sum over the windows of each."""
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    site = flat // channels
    padded_y = (site // in_w) % in_h + padding_h
    padded_x = site % in_w + padding_w
    sample = site // in_w // in_h
    word_index = tl.program_id(1).to(tl.int64)
    first = start + word_index * 32
    for window in range(0, COVER_H * COVER_W):
        y = padded_y // stride_h - window // COVER_W
        x = padded_x // stride_w - window % COVER_W
        offset_y = padded_y - y * stride_h
        offset_x = padded_x - x * stride_w
        tap_y = offset_y // dilation_h
        tap_x = offset_x // dilation_w
        seen = inside & (y >= 0) & (y < out_h) & (x >= 0) & (x < out_w)
        seen = seen & (tap_y < kernel_h) & (tap_x < kernel_w)
        seen = seen & (tap_y * dilation_h == offset_y) & (tap_x * dilation_w == offset_x)
        pooled = ((sample * out_h + y) * out_w + x) * channels + flat - site * channels
        row = (tap_y * kernel_w + tap_x) * tl.num_programs(1) + word_index
        route = tl.load(routes + row * pooled_size + pooled, mask=seen, other=0)
        n_steps = tl.minimum(stop - first, 32).to(tl.int32)
        for q in tl.range(0, n_steps, num_stages=STAGES):
            at = grad_pooled + (first + q) * pooled_size + pooled
            grad = tl.load(at, mask=((route >> q) & 1) != 0, other=0.0)
            to = grad_spikes + (first + q) * size + flat
            if COVER_H * COVER_W > 1:
                grad += tl.load(to, mask=inside & (window > 0), other=0.0)
            tl.store(to, grad, mask=inside)
        if COVER_H * COVER_W > 1:
            tl.debug_barrier()  # what was stored is read again, maybe by another thread


def _cover(link: Connection, axis: int) -> int:
    """Windows that a source may be in along an axis."""
    return link.dilation[axis] * (link.kernel[axis] - 1) // link.stride[axis] + 1


def pool_backward(
    words: Tensor,  # int32 (words, batch, N of the sources)
    grad_pooled: Tensor,  # flat (time, batch, N of the windows)
    link: Connection,
) -> Tensor:
    """Gradient of the sources' spikes, flat (time, batch, N of the sources)."""
    n_steps = grad_pooled.shape[0]
    grad_spikes = grad_pooled.new_empty((n_steps, *words.shape[1:]))
    size, pooled_size = grad_spikes[0].numel(), grad_pooled[0].numel()
    taps = link.kernel[0] * link.kernel[1]
    window = window_steps(triton.cdiv(taps * pooled_size * 4, WORD_STEPS), n_steps)
    for start in range(0, n_steps, window):
        stop = min(start + window, n_steps)
        part = words[start // WORD_STEPS : triton.cdiv(stop, WORD_STEPS)]
        grid = (triton.cdiv(size, BLOCK), part.shape[0])
        launch.run(
            pool_backward_kernel, grid, grad_pooled, pooling.routes(part, link), grad_spikes,
            start, stop, size, pooled_size, *link.in_shape, *link.out_shape[1:], *link.kernel,
            *link.stride, *link.padding, *link.dilation, COVER_H=_cover(link, 0),
            COVER_W=_cover(link, 1), BLOCK=BLOCK, STAGES=STAGES,
        )  # fmt: skip
    return grad_spikes
