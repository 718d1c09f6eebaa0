"""Networks of the presets, made of fastlif's layers."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from fastlif.layers import (
    ImageEncoder,
    LIFConv1d,
    LIFConv2d,
    LIFDalianConv1d,
    LIFDalianLinear,
    LIFLinear,
    LIReadout,
    MaxPool2d,
    Sequential,
)
from fastlif.layers.base import StackLayer, StackMember
from fastlif.models.presets import ConvSize, Preset, preset

__all__ = ["build"]

Features = tuple[int, ...]


def build(
    name: str,
    *,
    recurrent: bool | None = None,
    skip: bool = False,
    rescale_surrogate: bool = False,
    n_inputs: int | Features | None = None,
    n_classes: int | None = None,
    duration: float | None = None,
    dt: float = 2e-3,
    backend: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Sequential:
    """Build the network of a preset, weights drawn by the layers' own default.

    Args:
        name: a key of `PRESETS`.
        recurrent: whether the hidden layers are recurrent (with Dale's law: whether excitatory
            neurons excite those of their own layer); None is the preset's own choice.
        skip: the readout hears every hidden layer, not the last one alone; where that is pooled,
            what is pooled, and of the others every neuron.
        rescale_surrogate: the surrogate derivative of a neuron at rest is 1 (eq 29).
        n_inputs: features of one step of input (of an image), if the data has others than the
            paper's; for a one-dimensional network the number of input units does.
        n_classes: readout units, likewise.
        duration: seconds of a sample, likewise: the readout's tau_mem, and how long an image is
            shown.
        dt: seconds per step.
        backend: as for every layer.
        device: of the parameters.
        dtype: of the parameters.

    Returns:
        A `Sequential` of `encoder` (for images), `hidden1`, `hidden2`, ... with `pool2`, ...
        between them, and `readout`. Its input is (time, batch, *`Preset.input_features`), for
        images (batch, C, H, W); its output the scores (batch, classes).

    Raises:
        ValueError: an unknown name, a size below 1, an input too small for the kernels, or `skip`
            for a network of one hidden layer.
    """
    network = preset(name)
    recurrent = network.recurrent if recurrent is None else recurrent
    n_classes = network.n_classes if n_classes is None else n_classes
    duration = network.duration if duration is None else duration
    features = network.input_features(n_inputs)
    if n_classes < 1:
        raise ValueError(f"n_classes must be at least 1, got {n_classes}")
    if not 0.0 < dt < math.inf:
        raise ValueError(f"dt must be finite and > 0 seconds, got {dt}")
    if skip and len(network.hidden) < 2:
        raise ValueError(f"skip must be False for preset {name!r}, which has one hidden layer")
    common: dict[str, Any] = {"dt": dt, "backend": backend, "device": device, "dtype": dtype}
    neurons = common | {"rescale_surrogate": rescale_surrogate}

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if network.encoder_fan_out is not None:
        n_steps = max(1, round(duration / dt))
        encoder = ImageEncoder(features[0], n_steps, network.encoder_fan_out, **neurons)
        features = (features[0] * network.encoder_fan_out, *features[1:])
        layers["encoder"] = encoder
    emitted: list[Features] = []  # by each hidden layer
    for number, size in enumerate(network.hidden, start=1):
        layer = _hidden(network, size, features, recurrent, neurons)
        features = _after(layer, features, network, n_inputs)
        layers[f"hidden{number}"] = layer
        emitted.append(features)
        if network.pool_after is not None and number % network.pool_after == 0:
            pool = MaxPool2d(2)
            features = _after(pool, features, network, n_inputs)
            layers[f"pool{number}"] = pool
    heard = [features, *emitted[:-1]] if skip else [features]
    layers["readout"] = LIReadout(
        [math.prod(sizes) for sizes in heard],
        n_classes,
        bias=False,
        tau_mem=duration,
        initial_membrane=network.initial_membrane,
        **common,
    )
    return Sequential(layers, skip_to_readout=skip)


def _hidden(
    network: Preset,
    size: int | ConvSize,
    features: Features,
    recurrent: bool,
    neurons: dict[str, Any],
) -> StackLayer:
    if isinstance(size, ConvSize):
        synapses = (features[0], size.channels, size.kernel, size.stride, size.padding)
        if network.dalian:
            return LIFDalianConv1d(*synapses, recurrent_excitation=recurrent, **neurons)
        conv = LIFConv1d if len(features) == 2 else LIFConv2d
        return conv(*synapses, bias=False, recurrent=recurrent, **neurons)
    if network.dalian:
        n_inputs = math.prod(features)
        return LIFDalianLinear(n_inputs, size, recurrent_excitation=recurrent, **neurons)
    return LIFLinear(math.prod(features), size, bias=False, recurrent=recurrent, **neurons)


def _after(
    layer: StackMember, features: Features, network: Preset, n_inputs: int | Features | None
) -> Features:
    """Features of what a layer emits; ValueError if its kernel is larger than its input."""
    try:
        return layer.plan(features, 1).emitted_features
    except ValueError as error:
        raise ValueError(
            f"n_inputs must be larger for preset {network.name!r}, got {n_inputs}"
        ) from error
