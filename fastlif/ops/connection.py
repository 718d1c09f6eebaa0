"""Synapses as convolutions: geometry of a connection, checked, and how to make one.

Every synapse is a convolution: a dense synapse is one whose kernel covers the whole input, so its
weight (out, in_channels * height * width) is viewed (out, in_channels, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastlif.ops.remember import remembered
from fastlif.spikes import spatial_shape

MOST_CHANNELS = MOST_POSITIONS = 65535  # an event is one 32-bit code: position and channel


def check_map(name: str, shape: tuple[int, int, int]) -> None:
    """ValueError for more channels or positions than the code of an event has room for."""
    channels, height, width = shape
    if channels > MOST_CHANNELS or height * width > MOST_POSITIONS:
        raise ValueError(
            f"{name} must have at most {MOST_CHANNELS} channels and {MOST_POSITIONS} positions "
            f"(height x width), got {shape}"
        )


def check_ints(name: str, values: tuple[int, ...], length: int, minimum: int) -> None:
    """ValueError unless there are so many whole numbers, none below the minimum."""
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in values)
    if len(values) != length or not whole or min(values) < minimum:
        raise ValueError(f"{name} must be {length} integers >= {minimum}, got {values}")


@dataclass(frozen=True)
class Connection:
    """A synapse: a convolution of the binary (or real) input of one layer, without groups.

    Shapes are (channels, height, width), pairs are (height, width). Raises ValueError when they
    disagree.
    """

    in_shape: tuple[int, int, int]
    out_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        check_ints("in_shape", self.in_shape, 3, 1)
        check_ints("out_shape", self.out_shape, 3, 1)
        check_map("in_shape", self.in_shape)
        check_ints("kernel", self.kernel, 2, 1)
        check_ints("stride", self.stride, 2, 1)
        check_ints("padding", self.padding, 2, 0)
        check_ints("dilation", self.dilation, 2, 1)
        expected = convolved_size(
            self.in_shape[1:], self.kernel, self.stride, self.padding, self.dilation
        )
        if self.out_shape[1:] != expected:
            raise ValueError(
                f"out_shape must be {(self.out_shape[0], *expected)} for in_shape {self.in_shape}, "
                f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}, "
                f"dilation {self.dilation}; got {self.out_shape}"
            )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """The 4-d view of the weight: (out channels, in channels, kernel height, kernel width)."""
        return (self.out_shape[0], self.in_shape[0], *self.kernel)

    @property
    def fan_in(self) -> int:
        """Number of synapses of one neuron."""
        return self.in_shape[0] * self.kernel[0] * self.kernel[1]


def convolved_size(
    size: Sequence[int],  # (height, width)
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """(height, width) after a convolution; ValueError when the kernel exceeds the padded input."""
    out = []
    for length, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        extent, padded = d * (k - 1) + 1, length + 2 * p
        if extent > padded:
            raise ValueError(
                f"kernel must not be larger than the padded input, got kernel {tuple(kernel)} with "
                f"dilation {tuple(dilation)} on input {tuple(size)} with padding {tuple(padding)}"
            )
        out.append((padded - extent) // s + 1)
    return (out[0], out[1])


def check_windows(
    size: Sequence[int],  # one entry per dimension, as the four below
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """ValueError when a window of a pooling lies in the padding alone: it has no maximum."""
    for length, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        if p == 0:
            continue
        for first in range(-p, length + p - d * (k - 1), s):
            if not any(0 <= first + tap * d < length for tap in range(k)):
                raise ValueError(
                    f"max_pool must have a source in every window, got kernel {tuple(kernel)} "
                    f"with dilation {tuple(dilation)} and padding {tuple(padding)} on input "
                    f"{tuple(size)}"
                )


@remembered
def dense_connection(in_features: Sequence[int], out_features: int) -> Connection:
    """All-to-all synapse from neurons of any feature shape to `out_features` neurons."""
    in_shape = spatial_shape(in_features)
    return Connection(in_shape, (out_features, 1, 1), kernel=in_shape[1:])


@remembered
def conv_connection(
    in_features: Sequence[int],  # (C, L) or (C, H, W)
    out_channels: int,
    *,
    kernel: Sequence[int],  # one entry per spatial dimension, as the four below
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Connection, tuple[int, ...]]:
    """Convolutional synapse and the features, (C, L) or (C, H, W), of the layer it feeds."""
    n_spatial = len(kernel)
    if len(in_features) != n_spatial + 1:
        expected = "(channels, length)" if n_spatial == 1 else "(channels, height, width)"
        raise ValueError(
            f"input features must be {expected} for a {n_spatial}-d convolution, "
            f"got {tuple(in_features)}"
        )
    in_shape = spatial_shape(in_features)
    pairs = tuple(
        _pair(values, fill)
        for values, fill in ((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    )
    for name, values, minimum in zip(
        ("kernel", "stride", "padding", "dilation"), pairs, (1, 1, 0, 1), strict=True
    ):
        check_ints(name, values, 2, minimum)
    size = convolved_size(in_shape[1:], *pairs)
    connection = Connection(in_shape, (out_channels, *size), *pairs)
    return connection, (out_channels, *size[2 - n_spatial :])


def as_sizes(name: str, value: int | Sequence[int], length: int) -> tuple[int, ...]:
    """One number for all dimensions or one per dimension, as torch's convolutions take them."""
    if isinstance(value, int):
        return (value,) * length
    sizes = tuple(value) if isinstance(value, Sequence) else ()
    if len(sizes) != length or not all(isinstance(size, int) for size in sizes):
        raise ValueError(f"{name} must be an int or {length} ints, got {sizes or value!r}")
    return sizes


def _pair(values: Sequence[int], fill: int) -> tuple[int, int]:
    """(k,) -> (fill, k): a 1-d feature map is a 2-d one of height 1."""
    if len(values) == 1:
        return (fill, values[0])
    return (values[0], values[1])
