"""Max pooling of spikes over space, at every time step."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from fastlif.layers.base import StackMember
from fastlif.ops import LayerPlan
from fastlif.ops.connection import as_sizes, check_windows, conv_connection
from fastlif.ops.plan import layer_plan
from fastlif.spikes import PackedSpikes


class _MaxPool(StackMember):
    """What the poolings share; `n_spatial` is the number of dimensions that they pool along."""

    n_spatial: int

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
    ) -> None:
        super().__init__()
        n = self.n_spatial
        self.kernel_size = as_sizes("kernel_size", kernel_size, n)
        self.stride = as_sizes("stride", kernel_size if stride is None else stride, n)
        self.padding = as_sizes("padding", padding, n)
        self.dilation = as_sizes("dilation", dilation, n)
        for name, minimum in (("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
            if min(getattr(self, name)) < minimum:
                raise ValueError(f"{name} must be >= {minimum}, got {getattr(self, name)}")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"padding must be at most half of kernel_size {self.kernel_size}, "
                f"got {self.padding}"
            )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this module computes for spikes of shape (n_steps, batch, *input_features)."""
        if len(input_features) != self.n_spatial + 1:
            raise ValueError(
                f"input of {type(self).__name__} must have features (channels, {self._sizes()}), "
                f"got {input_features}"
            )
        link, features = conv_connection(
            input_features,
            input_features[0],
            kernel=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return layer_plan("max_pool", features, link)

    def forward(self, input: Tensor) -> Tensor:
        """Pool a dense input, (time, batch, C, ...) or (batch, time, C, ...), step by step."""
        if isinstance(input, PackedSpikes):
            raise TypeError(
                f"{type(self).__name__} needs a dense input: give input.unpack(), not PackedSpikes"
            )
        if input.dim() != self.n_spatial + 3:
            raise ValueError(
                f"input of {type(self).__name__} must have shape (time, batch, channels, "
                f"{self._sizes()}), got {tuple(input.shape)}"
            )
        check_windows(input.shape[3:], self.kernel_size, self.stride, self.padding, self.dilation)
        pool = functional.max_pool1d if self.n_spatial == 1 else functional.max_pool2d
        pooled = pool(
            input.flatten(0, 1), self.kernel_size, self.stride, self.padding, self.dilation
        )
        return pooled.unflatten(0, input.shape[:2])

    def _sizes(self) -> str:
        return "length" if self.n_spatial == 1 else "height, width"

    def extra_repr(self) -> str:
        """Arguments as torch's pooling shows them."""
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}"
        )


class MaxPool1d(_MaxPool):
    """`nn.MaxPool1d` at every time step: (time, batch, C, L) -> (time, batch, C, L_out).

    Of spikes: a window emits one where any of its neurons does. In a `Sequential`, behind a spiking
    layer, it is part of the fused stack; anywhere else it is torch's pooling on the dense input.
    Either way the gradient goes to the first maximum of each window.

    stride: None takes kernel_size. Padding never wins. Raises ValueError for sizes that are too
    small, for a padding of more than half the kernel and for windows in the padding alone.
    """

    n_spatial = 1


class MaxPool2d(_MaxPool):
    """`nn.MaxPool2d` at every time step: (time, batch, C, H, W) -> (time, batch, C, H_out, W_out).

    Sizes are one number or (height, width). For the rest see `MaxPool1d`.
    """

    n_spatial = 2
