"""From still images to spikes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlif.init import encoder_
from fastlif.layers.neuron import LIF, check_counts
from fastlif.ops import LayerTensors, LIFState
from fastlif.spikes import PackedSpikes


class ImageEncoder(LIF):
    """LIF neurons that turn the pixels of an image into spike trains (Rossbroich et al. 2022, 4.1).

    Input: images (batch, channels, height, width). Output: spikes (time, batch, channels * fan_out,
    height, width), or batch first if so built. Each pixel drives fan_out neurons, those of channel
    c being channels c * fan_out to (c + 1) * fan_out - 1 of the output, with a current that is the
    same in all n_steps steps::

        J = weight * pixel + bias

    Parameters: weight and bias (channels * fan_out,), the same at all positions. They are drawn by
    `fastlif.init.encoder_`, also where a model is initialized.

    n_steps: steps that an image is shown for.
    The other keyword arguments are those of `LIF`. It can only be the first layer of a model.
    """

    hidden = False
    shares_input = False
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        channels: int,
        n_steps: int,
        fan_out: int = 5,
        *,
        tau_mem: float = 20e-3,
        tau_syn: float = 10e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
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
        check_counts(channels=channels, n_steps=n_steps, fan_out=fan_out)
        self.channels = channels
        self.n_steps = n_steps
        self.fan_out = fan_out
        for name in ("weight", "bias"):
            values = torch.empty(channels * fan_out, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight from N(0, (dt / tau_syn)^2) and bias from N(0, 1 / (channels * fan_out))."""
        encoder_(self)

    def tensors(self, state: LIFState | None = None) -> LayerTensors:
        """The state alone: weight and bias have gone into the current."""
        return LayerTensors(state=state)

    def time_first(self, input: Tensor | PackedSpikes, shared_input: bool = False) -> Tensor:
        """Current (n_steps, batch, channels * fan_out, height, width), which has no time stride.

        Of several networks it is each one's own, also where they share the images.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"input must be a Tensor of images, got {type(input).__name__}")
        if input.dim() != 4 or input.shape[1] != self.channels:
            raise ValueError(
                f"input must be images (batch, {self.channels}, height, width), "
                f"got shape {tuple(input.shape)}"
            )
        if self.networks == 1:
            current = self._current(input, self.weight, self.bias)
        else:  # each by itself: sums over the batch in its gradients are then what they are alone
            parts = [input] * self.networks if shared_input else input.chunk(self.networks)
            own = zip(parts, self.weight, self.bias, strict=True)
            current = torch.cat([self._current(*one) for one in own])
            return _Held.apply(current, self.n_steps, self.networks)
        return current.expand(self.n_steps, *current.shape)

    def _current(self, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """(batch, channels * fan_out, height, width)."""
        gain, offset = weight.view(-1, 1, 1), bias.view(-1, 1, 1)
        return images.repeat_interleave(self.fan_out, dim=1) * gain + offset

    def extra_repr(self) -> str:
        """Sizes, then what the neurons show."""
        shown = f"{self.channels}, n_steps={self.n_steps}, fan_out={self.fan_out}"
        return f"{shown}, {super().extra_repr()}"


class _Held(torch.autograd.Function):
    """The current of several networks, held for some steps; each network's gradient summed alone.

    In one sum over all of them a number's place would decide how it is rounded.
    """

    @staticmethod
    def forward(ctx: Any, current: Tensor, n_steps: int, networks: int) -> Tensor:
        """(batch, ...) to (n_steps, batch, ...) without a copy."""
        ctx.networks = networks
        return current.expand(n_steps, *current.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The sum over steps."""
        return torch.cat([own.sum(0) for own in grad.chunk(ctx.networks, 1)]), None, None
