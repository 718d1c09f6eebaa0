"""Max pooling of packed spikes by torch's integer operations, 32 steps at a time.

The maximum of spikes is the OR of their bits. Words are int32 (words, batch, N), N channels last.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlif.ops.connection import Connection


def pooled_words(
    words: Tensor,  # int32 (words, batch, N of the input)
    link: Connection,  # geometry of the windows
) -> Tensor:
    """Spikes of the windows, int32 (words, batch, N)."""
    taps = _taps(words, link)
    pooled = next(taps).clone()
    for tap in taps:
        pooled |= tap
    return pooled.flatten(2)


def routes(
    words: Tensor,  # int32 (words, batch, N of the input)
    link: Connection,
) -> Tensor:
    """Which source the gradient of a window goes to: int32 (taps, words, batch, N of the windows).

    A bit is set where a step's gradient goes to the source at this tap of the kernel: to the first
    that spikes, in row-major order, or to the first of all inside the map when none does.
    """
    (channels, height, width), (rows, columns) = link.out_shape, link.kernel
    shape = (rows, columns, *words.shape[:2], height, width, channels)
    chosen = torch.empty(shape, dtype=torch.int32, device=words.device)
    spiked: Tensor | None = None
    for tap, into in zip(_taps(words, link), chosen.flatten(0, 1), strict=True):
        if spiked is None:
            spiked = into.copy_(tap).clone()
        else:
            torch.bitwise_and(tap, ~spiked, out=into)
            spiked |= tap
    assert spiked is not None
    silent = ~spiked
    for row, above, below in _first_inside(link, 0):
        for column, left, right in _first_inside(link, 1):
            at = (slice(None), slice(None), slice(above, below), slice(left, right))
            chosen[row, column][at] |= silent[at]
    return chosen.view(rows * columns, *words.shape[:2], -1)


def _taps(words: Tensor, link: Connection) -> Iterator[Tensor]:
    """What all windows see at each tap of the kernel, (words, batch, height, width, channels).

    In row-major order of the kernel; zero outside of the map.
    """
    channels, height, width = link.in_shape
    (padding_y, padding_x), (stride_y, stride_x) = link.padding, link.stride
    sources = words.unflatten(2, (height, width, channels))
    sources = F.pad(sources, (0, 0, padding_x, padding_x, padding_y, padding_y))
    _, out_h, out_w = link.out_shape
    for row in range(link.kernel[0]):
        y = row * link.dilation[0]
        for column in range(link.kernel[1]):
            x = column * link.dilation[1]
            rows = slice(y, y + stride_y * (out_h - 1) + 1, stride_y)
            columns = slice(x, x + stride_x * (out_w - 1) + 1, stride_x)
            yield sources[:, :, rows, columns]


def _first_inside(link: Connection, axis: int) -> Iterator[tuple[int, int, int]]:
    """Along an axis, (tap, start, stop): the windows whose first source inside the map it is."""
    size, stride = link.out_shape[1 + axis], link.stride[axis]
    padding, dilation = link.padding[axis], link.dilation[axis]
    first = [max(0, -((stride * o - padding) // dilation)) for o in range(size)]
    for tap in sorted(set(first)):
        start = first.index(tap)  # they do not increase: the windows of a tap lie side by side
        yield tap, start, start + first.count(tap)
