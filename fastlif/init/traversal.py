"""Which fastlif layers a module holds, and which input each of them gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from fastlif.spikes import PackedSpikes

if TYPE_CHECKING:
    from fastlif.layers import LIF, ImageEncoder, LIReadout, StackLayer
    from fastlif.layers.neuron import SynapticLIF

Layer = TypeVar("Layer", bound=nn.Module)


# Imported when called: fastlif.layers imports this package to draw its weights.


def spiking_layers(module: nn.Module) -> dict[str, LIF]:
    """The spiking layers of a module by name, in the order of registration."""
    from fastlif.layers.neuron import LIF

    return _layers(module, LIF)


def synaptic_layers(module: nn.Module) -> dict[str, SynapticLIF]:
    """Those of the spiking layers that have weights."""
    from fastlif.layers.neuron import SynapticLIF

    return _layers(module, SynapticLIF)


def readout_layers(module: nn.Module) -> dict[str, LIReadout]:
    """The readouts of a module by name, in the order of registration."""
    from fastlif.layers.readout import LIReadout

    return _layers(module, LIReadout)


def image_encoders(module: nn.Module) -> dict[str, ImageEncoder]:
    """The encoders of images of a module by name, in the order of registration."""
    from fastlif.layers.encoder import ImageEncoder

    return _layers(module, ImageEncoder)


def visit_inputs(
    module: nn.Module,
    input: Tensor | PackedSpikes,
    visit: Callable[[str, StackLayer, Tensor | PackedSpikes], None],
    visit_output: Callable[[str, StackLayer, Tensor], None] | None = None,
) -> None:
    """Run a module once and call visit(name, layer, input) before each of its fastlif layers.

    visit_output(name, layer, output) is called behind each of them. visit may change the layer's
    parameters: what follows in the same run sees them. A layer that runs more than once is visited
    the first time. (A fastlif.Sequential calls layers that have hooks one by one, so this reaches
    into its fused stacks too.)
    """
    layers: dict[str, StackLayer] = {**spiking_layers(module), **readout_layers(module)}
    names = {layer: name for name, layer in layers.items()}
    visited: set[StackLayer] = set()
    left: set[StackLayer] = set()

    def before_layer(layer: StackLayer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if layer not in visited:
            visited.add(layer)
            visit(names[layer], layer, args[0] if args else kwargs["input"])

    def behind_layer(layer: StackLayer, args: tuple[Any, ...], output: Any) -> None:
        if visit_output is not None and layer not in left:
            left.add(layer)
            visit_output(names[layer], layer, output if isinstance(output, Tensor) else output[0])

    handles = [layer.register_forward_pre_hook(before_layer, with_kwargs=True) for layer in names]
    handles += [layer.register_forward_hook(behind_layer) for layer in names]
    try:
        with torch.no_grad():
            module(input)
    finally:
        for handle in handles:
            handle.remove()


def check_one_network(layer: StackLayer) -> None:
    """ValueError for a layer of several networks, each of which has weights to be drawn alone."""
    if layer.networks > 1:
        raise ValueError(
            f"weights are drawn of one network at a time, got a layer of {layer.networks}: draw "
            "those of the networks given to side_by_side, which are its own"
        )


def time_dim(layer: StackLayer, input: Tensor | PackedSpikes) -> int:
    """Dimension of time in a layer's input or output; packed spikes are time first always."""
    return 1 if layer.batch_first and isinstance(input, Tensor) else 0


def mean_rate(layer: StackLayer, input: Tensor | PackedSpikes) -> float:
    """Mean firing rate of a layer's input in Hz; analogue input counts by its values."""
    if isinstance(input, PackedSpikes):
        return input.count() / (math.prod(input.shape) * layer.dt)
    return float(input.mean(dtype=torch.float64)) / layer.dt


def _layers(module: nn.Module, kind: type[Layer]) -> dict[str, Layer]:
    return {
        name or type(layer).__name__: layer
        for name, layer in module.named_modules()
        if isinstance(layer, kind)
    }
