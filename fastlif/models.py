"""The paper's one-dimensional networks: Rossbroich et al. 2022, Tables 4 and 5.

All of them: tau_mem 20 ms, tau_syn 10 ms, no bias, a dense readout from the flattened last layer
whose tau_mem is the duration of a sample, its membrane starting slightly below 0.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fastlif.layers import LIFConv1d, LIFLinear, LIReadout, Sequential

__all__ = ["PRESETS", "ConvSize", "Preset", "Regularization", "build", "preset"]


@dataclass(frozen=True)
class ConvSize:
    """One convolutional layer; the recurrent kernel has size 5, stride 1, "same" padding."""

    channels: int
    kernel: int
    stride: int
    padding: int

    def out_length(self, length: int) -> int:
        """Positions of the layer for an input of `length` positions."""
        return (length + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class Regularization:
    """Bounds on spike counts, as `fastlif.losses` takes them; a strength of 0 leaves one out."""

    upper_strength: float = 0.0
    v_upper: float = 0.0  # spikes per sample
    upper_per: Literal["layer", "channel"] = "layer"
    lower_strength: float = 0.0
    v_lower: float = 0.0


@dataclass(frozen=True)
class Preset:
    """A network, the data it is for, and how the paper's authors trained it."""

    name: str
    data: Literal["randman", "events"]
    n_inputs: int
    n_classes: int
    duration: float  # seconds of a sample
    hidden: tuple[int | ConvSize, ...]  # an int is a dense layer of that many neurons
    batch_size: int
    epochs: int
    recurrent: bool  # unless asked otherwise
    regularization: Regularization
    initial_membrane: float  # of the readout
    readout_init: Literal["unit", "fluctuation"] = "unit"  # as `fastlif.init.readout_` names them
    lr: float = 5e-3  # of SMORMS3

    @property
    def convolutional(self) -> bool:
        """Whether the input is a feature map (1, n_inputs) instead of a vector (n_inputs,)."""
        return isinstance(self.hidden[0], ConvSize)

    def input_features(self, n_inputs: int | None = None) -> tuple[int, ...]:
        """Features of one step of input."""
        n_inputs = self.n_inputs if n_inputs is None else n_inputs
        return (1, n_inputs) if self.convolutional else (n_inputs,)


def _shd_conv(
    name: str,
    hidden: tuple[ConvSize, ...],
    batch_size: int,
) -> Preset:
    return Preset(
        name=name,
        data="events",
        n_inputs=700,
        n_classes=20,
        duration=0.7,
        hidden=hidden,
        batch_size=batch_size,
        epochs=200,
        recurrent=True,
        # The strength was tuned by the authors for one bound per feature map.
        regularization=Regularization(upper_strength=0.01, v_upper=7.0, upper_per="channel"),
        initial_membrane=-1e-3,
    )


PRESETS: dict[str, Preset] = {
    entry.name: entry
    for entry in (
        Preset(
            name="randman",
            data="randman",
            n_inputs=20,
            n_classes=10,
            duration=0.2,
            hidden=(128,),
            batch_size=400,
            epochs=200,
            recurrent=False,
            regularization=Regularization(
                upper_strength=0.1, v_upper=4.0, lower_strength=100.0, v_lower=1e-3
            ),
            initial_membrane=-1e-2,
            readout_init="fluctuation",
            # With the authors' 5e-3 many a Randman data set has not converged after 200 epochs.
            lr=1e-2,
        ),
        Preset(
            name="shd-dense",
            data="events",
            n_inputs=700,
            n_classes=20,
            duration=0.7,
            hidden=(128,),
            batch_size=400,
            epochs=200,
            recurrent=False,
            regularization=Regularization(upper_strength=0.1, v_upper=7.0),
            initial_membrane=-1e-2,
        ),
        _shd_conv("shd-conv1", (ConvSize(16, 21, 10, 0),), 400),
        # Table 5 prints padding 2 for conv-1 and conv-3; only 0 gives conv-3's parameter counts.
        _shd_conv(
            "shd-conv3",
            (ConvSize(16, 21, 10, 0), ConvSize(32, 7, 3, 0), ConvSize(64, 7, 3, 0)),
            400,
        ),
        _shd_conv(
            "shd-conv7",
            (ConvSize(16, 7, 3, 2), ConvSize(32, 5, 2, 2), *[ConvSize(64, 5, 2, 2)] * 5),
            100,
        ),
        _shd_conv(
            "shd-conv10",
            (ConvSize(16, 5, 2, 2), ConvSize(32, 5, 2, 2), *[ConvSize(64, 5, 2, 2)] * 8),
            100,
        ),
    )
}


def preset(name: str) -> Preset:
    """The preset called `name`; a ValueError that lists the names if there is none."""
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def build(
    name: str,
    *,
    recurrent: bool | None = None,
    n_inputs: int | None = None,
    n_classes: int | None = None,
    dt: float = 2e-3,
    backend: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Sequential:
    """Build the network of a preset, weights drawn by the layers' own default.

    Args:
        name: a key of `PRESETS`.
        recurrent: whether the hidden layers are recurrent; None is the preset's own choice.
        n_inputs: input units, if the data has another number than the paper's.
        n_classes: readout units, likewise.
        dt: seconds per step.
        backend: as for every layer.
        device: of the parameters.
        dtype: of the parameters.

    Returns:
        A `Sequential` of `hidden1`, `hidden2`, ... and `readout`; its input is
        (time, batch, *`Preset.input_features`) and its output the scores (batch, classes).

    Raises:
        ValueError: an unknown name, a size below 1, or an input too short for the kernels.
    """
    network = preset(name)
    recurrent = network.recurrent if recurrent is None else recurrent
    n_inputs = network.n_inputs if n_inputs is None else n_inputs
    n_classes = network.n_classes if n_classes is None else n_classes
    for argument, value in (("n_inputs", n_inputs), ("n_classes", n_classes)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, length = (1, n_inputs) if network.convolutional else (n_inputs, 1)
    for number, size in enumerate(network.hidden, start=1):
        if isinstance(size, ConvSize):
            layer: nn.Module = LIFConv1d(
                channels,
                size.channels,
                size.kernel,
                size.stride,
                size.padding,
                bias=False,
                recurrent=recurrent,
                recurrent_kernel_size=5,
                dt=dt,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            channels, length = size.channels, size.out_length(length)
            if length < 1:
                raise ValueError(f"n_inputs must be larger for preset {name!r}, got {n_inputs}")
        else:
            layer = LIFLinear(
                channels * length,
                size,
                bias=False,
                recurrent=recurrent,
                dt=dt,
                backend=backend,
                device=device,
                dtype=dtype,
            )
            channels, length = size, 1
        layers[f"hidden{number}"] = layer
    layers["readout"] = LIReadout(
        channels * length,
        n_classes,
        bias=False,
        tau_mem=network.duration,
        dt=dt,
        initial_membrane=network.initial_membrane,
        backend=backend,
        device=device,
        dtype=dtype,
    )
    return Sequential(layers)
