"""Convolutional LIF neurons in one and two dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from fastlif.layers.neuron import SynapticLIF, check_counts
from fastlif.ops.connection import Connection, as_sizes, conv_connection
from fastlif.ops.plan import LayerPlan


class Convolution(SynapticLIF):
    """Geometry of spiking convolutions; `n_spatial`: number of dimensions they slide along."""

    n_spatial: int

    def set_geometry(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
    ) -> None:
        """Set the attributes of these names and fan_in; ValueError for what cannot be."""
        check_counts(in_channels=in_channels, out_channels=out_channels)
        n = self.n_spatial
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = as_sizes("kernel_size", kernel_size, n)
        self.stride = as_sizes("stride", stride, n)
        self.padding = padding if isinstance(padding, str) else as_sizes("padding", padding, n)
        self.dilation = as_sizes("dilation", dilation, n)
        for name in ("kernel_size", "stride", "dilation"):
            sizes = getattr(self, name)
            if min(sizes) < 1:
                raise ValueError(f"{name} must be >= 1, got {sizes}")
        if min(self.padding_sizes()) < 0:
            raise ValueError(f"padding must be >= 0, got {self.padding}")
        self.fan_in = in_channels * math.prod(self.kernel_size)

    def own_kernel(self, name: str, size: int | Sequence[int]) -> tuple[int, ...]:
        """Kernel of synapses within the layer, one size per dimension; ValueError unless odd."""
        sizes = as_sizes(name, size, self.n_spatial)
        if any(size < 1 or size % 2 == 0 for size in sizes):
            raise ValueError(f"{name} must be odd and >= 1, got {sizes}")
        return sizes

    def padding_sizes(self) -> tuple[int, ...]:
        """Padding on either side of each dimension, also for "same" and "valid"."""
        if not isinstance(self.padding, str):
            return self.padding
        if self.padding == "valid":
            return (0,) * self.n_spatial
        if self.padding != "same":
            raise ValueError(f"padding must be numbers, 'same' or 'valid', got {self.padding!r}")
        if max(self.stride) > 1:
            raise ValueError(f"padding 'same' needs stride 1, got stride {self.stride}")
        total = [d * (k - 1) for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if any(size % 2 for size in total):
            raise ValueError(
                "padding 'same' needs kernels that reach equally far to both sides, got "
                f"kernel_size {self.kernel_size} with dilation {self.dilation}"
            )
        return tuple(size // 2 for size in total)

    def connection(
        self, input_features: tuple[int, ...], n_channels: int
    ) -> tuple[Connection, tuple[int, ...]]:
        """Feed-forward synapses onto `n_channels` and the features of these neurons."""
        if len(input_features) != self.n_spatial + 1 or input_features[0] != self.in_channels:
            sizes = ("length",) if self.n_spatial == 1 else ("height", "width")
            raise ValueError(
                f"input must have features ({', '.join((str(self.in_channels), *sizes))}), "
                f"got {input_features}"
            )
        return conv_connection(
            input_features,
            n_channels,
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding_sizes(),
            dilation=self.dilation,
        )

    def geometry(self) -> str:
        """Sizes as torch's convolutions show them."""
        shown = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding not in ((0,) * self.n_spatial, "valid"):
            shown.append(f"padding={self.padding}")
        if self.dilation != (1,) * self.n_spatial:
            shown.append(f"dilation={self.dilation}")
        return ", ".join(shown)


class _LIFConv(Convolution):
    """What the convolutions without inhibition share."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        tau_mem: float = 20e-3,
        tau_syn: float = 10e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
        recurrent: bool = False,
        recurrent_kernel_size: int | Sequence[int] = 5,
        batch_first: bool = False,
        exact_membrane: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            tau_mem=tau_mem,
            tau_syn=tau_syn,
            dt=dt,
            threshold=threshold,
            surrogate_slope=surrogate_slope,
            rescale_surrogate=rescale_surrogate,
            detach_reset=detach_reset,
            delay=delay,
            batch_first=batch_first,
            exact_membrane=exact_membrane,
            backend=backend,
        )
        if groups != 1:
            raise ValueError(f"groups must be 1, got {groups}")
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode must be 'zeros', got {padding_mode!r}")
        self.set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        self.recurrent_kernel_size = as_sizes(
            "recurrent_kernel_size", recurrent_kernel_size, self.n_spatial
        )
        recurrent_shape = None
        if recurrent:
            kernel = self.own_kernel("recurrent_kernel_size", recurrent_kernel_size)
            recurrent_shape = (out_channels, out_channels, *kernel)
        self.recurrent_fan_in = math.prod(recurrent_shape[1:]) if recurrent_shape else 0
        self.make_parameters(
            (out_channels, in_channels, *self.kernel_size),
            recurrent_shape,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for inputs of shape (n_steps, batch, *input_features)."""
        link, features = self.connection(input_features, self.out_channels)
        kernel = kernel_pair(self.recurrent_kernel_size) if self.recurrent else None
        return self.neuron_plan(features, link, kernel)

    def extra_repr(self) -> str:
        """Arguments as in torch's convolutions, then those of the neurons."""
        bias = [] if self.bias is not None else ["bias=False"]
        return ", ".join((self.geometry(), *bias, super().extra_repr()))


def kernel_pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    """(width,) or (height, width) as the (height, width) of a plan."""
    height, width = (1, *sizes)[-2:]
    return (height, width)


class LIFConv1d(_LIFConv):
    """`nn.Conv1d` followed by LIF neurons, with convolutional recurrence on request.

    Input: spikes or any numbers, (time, batch, in_channels, length).
    Output: spikes, (time, batch, out_channels, out_length).
    Parameters: weight (out_channels, in_channels, kernel_size), recurrent_weight (out_channels,
    out_channels, recurrent_kernel_size), bias (out_channels,).

    groups must be 1 and padding_mode "zeros". padding "same" needs stride 1 and a kernel that is
    centred on its neuron. recurrent: the layer's own spikes, convolved with an odd kernel, stride 1
    and "same" padding, are part of its input in the same step.
    The other keyword arguments are those of `LIF`, device and dtype those of `nn.Conv1d`.
    """

    n_spatial = 1


class LIFConv2d(_LIFConv):
    """`nn.Conv2d` followed by LIF neurons, with convolutional recurrence on request.

    Input: spikes or any numbers, (time, batch, in_channels, height, width).
    Output: spikes, (time, batch, out_channels, out_height, out_width).
    Parameters: weight (out_channels, in_channels, *kernel_size), recurrent_weight (out_channels,
    out_channels, *recurrent_kernel_size), bias (out_channels,).

    Sizes are one number or (height, width). For the rest see `LIFConv1d`.
    """

    n_spatial = 2
