"""Which layers a batch reaches, and batches in slices that fit into memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastlif.init.traversal import (
    image_encoders,
    readout_layers,
    spiking_layers,
    time_dim,
    visit_inputs,
)
from fastlif.layers import LIReadout, StackLayer
from fastlif.ops import LayerPlan
from fastlif.spikes import PackedSpikes

# Numbers in the dense outputs that a slice of a batch keeps at once: 128 MB of float32.
SLICE_NUMBERS = 1 << 25


@dataclass(frozen=True)
class ReachedLayer:
    """A fastlif layer that a batch reaches, in the order in which the module runs them."""

    name: str
    layer: StackLayer
    plan: LayerPlan  # for the batch's shape; of a readout that gives maxima a trace
    n_steps: int

    @property
    def is_readout(self) -> bool:
        """Whether the layer integrates without spikes."""
        return isinstance(self.layer, LIReadout)

    @property
    def numbers_per_sample(self) -> int:
        """Numbers of the layer's dense output for one sample."""
        return self.n_steps * math.prod(self.plan.features)

    def populations(self) -> Iterator[tuple[str, slice]]:
        """Names of the layer's populations and their channels."""
        if self.plan.inhibition is None:
            yield "all", slice(None)
        else:
            n_excitatory = self.plan.emitted_features[0]
            yield "excitatory", slice(0, n_excitatory)
            yield "inhibitory", slice(n_excitatory, None)


def reached_layers(module: nn.Module, inputs: Tensor | PackedSpikes) -> dict[str, ReachedLayer]:
    """Run one sample and tell which layers it passed, by name.

    Raises ValueError when the module holds no spiking fastlif layer, the batch is empty, or a
    layer is never run.
    """
    layers = spiking_layers(module)
    if not layers:
        raise ValueError(f"{type(module).__name__} contains no spiking fastlif layer")
    if n_samples_of(module, inputs) == 0:
        raise ValueError("inputs must hold at least one sample, got none")
    found: dict[str, ReachedLayer] = {}

    def visit(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        n_steps, _, *features = layer.time_first(layer_input).shape
        found[name] = ReachedLayer(name, layer, layer.plan(tuple(features), n_steps), n_steps)

    visit_inputs(module, samples_of(module, inputs, 0, 1), visit)
    missed = [name for name in (*layers, *readout_layers(module)) if name not in found]
    if missed:
        raise ValueError(f"inputs did not reach the layers {missed}: the module never ran them")
    return found


def batch_dim(module: nn.Module, inputs: Tensor | PackedSpikes) -> int:
    """Dimension of the samples in the input of a module."""
    if isinstance(inputs, PackedSpikes):
        return 1
    if image_encoders(module):
        return 0
    layers = {**spiking_layers(module), **readout_layers(module)}
    return 1 - time_dim(next(iter(layers.values())), inputs)


def n_samples_of(module: nn.Module, inputs: Tensor | PackedSpikes) -> int:
    """Number of samples in the input of a module."""
    return inputs.shape[batch_dim(module, inputs)]


def samples_of(
    module: nn.Module, inputs: Tensor | PackedSpikes, start: int, stop: int
) -> Tensor | PackedSpikes:
    """Samples start .. stop of the input of a module."""
    if isinstance(inputs, PackedSpikes):
        return inputs[start:stop]
    stop = min(stop, n_samples_of(module, inputs))
    return inputs.narrow(batch_dim(module, inputs), start, stop - start)


def slices(n_samples: int, numbers_per_sample: int) -> Iterator[tuple[int, int]]:
    """Parts (start, stop) of a batch whose dense numbers fit into SLICE_NUMBERS."""
    size = max(1, SLICE_NUMBERS // max(1, numbers_per_sample))
    for start in range(0, n_samples, size):
        yield start, min(start + size, n_samples)


def dtype_of(layer: StackLayer) -> torch.dtype:
    """dtype of a layer's parameters; torch's default if it has none."""
    return next((p.dtype for p in layer.parameters()), torch.get_default_dtype())
