"""Measuring membranes and firing rates, to compare with what the initialization predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlif import ops
from fastlif.init.traversal import mean_rate, spiking_layers, time_dim, visit_inputs
from fastlif.ops.plan import Connection, LayerPlan, LayerTensors, LIFState
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

if TYPE_CHECKING:
    from fastlif.layers import StackLayer

SLICE_NUMBERS = 1 << 22  # numbers in one (time, batch, neurons) slice: 16 MB of float32


@dataclass(frozen=True)
class Measurement:
    """Activity of one spiking layer, averaged over its neurons and the samples.

    mu_u is the average of the membrane's mean over time, sigma_u the root of the average of its
    variance over time: the quantities of a `Prediction`.
    """

    name: str  # the layer's name in the model, or its class if it was given by itself
    mu_u: float
    sigma_u: float
    firing_rate: float  # Hz, of the layer's own spikes (it spikes here even where spiking=False)
    input_rate: float  # Hz, of the layer's input
    n_neurons: int


@dataclass
class _Sums:
    """Sums over samples of one layer's averages over neurons."""

    n_neurons: int = 0
    mean: float = 0.0
    variance: float = 0.0
    firing_rate: float = 0.0
    input_rate: float = 0.0

    def measurement(self, name: str, n_samples: int) -> Measurement:
        return Measurement(
            name=name,
            mu_u=self.mean / n_samples,
            sigma_u=math.sqrt(self.variance / n_samples),
            firing_rate=self.firing_rate / n_samples,
            input_rate=self.input_rate / n_samples,
            n_neurons=self.n_neurons,
        )


def measure(
    module: nn.Module,
    input: Tensor | PackedSpikes,
    *,
    spiking: bool = False,
    recurrent_input: Tensor | Sequence[Tensor | None] | None = None,
    warmup: int = 0,
) -> list[Measurement]:
    """Mean and fluctuations of the membranes of every spiking layer, and its firing rate.

    input: a batch of input to the module, (time, batch, *features) or PackedSpikes, or batch first
        if the layers are so (all of them).
    spiking: True measures the membranes as they are, reset included. False disables threshold and
        reset of the layer that is measured; its input still comes from the spiking layers below,
        which is the situation that the formulas describe.
    recurrent_input: with spiking=False a layer sends itself no spikes. These take their place, one
        tensor if the module has one spiking layer, else a tensor or None per spiking layer, always
        (time, batch, *features of the layer). Without them the recurrent weights get no input.
    warmup: number of first steps that the statistics leave out.

    Returns one Measurement per spiking layer, in the order in which the module registered them. A
    layer that runs more than once is measured the first time; one that never runs is a ValueError.
    """
    layers = spiking_layers(module)
    if not layers:
        raise ValueError(f"{type(module).__name__} contains no spiking fastlif layer")
    over_time = time_dim(next(iter(layers.values())), input)
    n_steps, n_samples = input.shape[over_time], input.shape[1 - over_time]
    if not 0 <= warmup < n_steps:
        raise ValueError(f"warmup must be between 0 and {n_steps - 1} steps, got {warmup}")
    if n_samples == 0:
        raise ValueError("input must hold at least one sample, got none")
    recurrent = _per_layer_recurrent(recurrent_input, layers, spiking)
    sums = {name: _Sums() for name in layers}
    n_slice = max(1, SLICE_NUMBERS // (n_steps * math.prod(input.shape[2:])))
    for start in range(0, n_samples, n_slice):
        samples = slice(start, start + n_slice)

        def visit(
            name: str,
            layer: StackLayer,
            layer_input: Tensor | PackedSpikes,
            samples: slice = samples,
        ) -> None:
            if name in layers:
                own_spikes = recurrent[name]
                if own_spikes is not None:
                    own_spikes = own_spikes[:, samples]
                _measure_layer(layer, layer_input, own_spikes, spiking, warmup, sums[name])

        if isinstance(input, PackedSpikes) or over_time == 1:
            visit_inputs(module, input[samples], visit)
        else:
            visit_inputs(module, input[:, samples], visit)
    missed = [name for name, layer_sums in sums.items() if layer_sums.n_neurons == 0]
    if missed:
        raise ValueError(f"input did not reach the layers {missed}: the module never ran them")
    return [layer_sums.measurement(name, n_samples) for name, layer_sums in sums.items()]


def _measure_layer(
    layer: StackLayer,
    input: Tensor | PackedSpikes,  # as the layer takes it
    own_spikes: Tensor | None,  # (time, batch, *features)
    spiking: bool,
    warmup: int,
    sums: _Sums,
) -> None:
    """Run one layer over slices of time and add its averages over neurons to the sums."""
    emitted = layer(input)  # by the fused operation; the membranes below are the reference's
    emitted = emitted.movedim(time_dim(layer, emitted), 0)
    if isinstance(input, PackedSpikes):
        input = input.unpack(emitted.dtype)
    else:
        input = input.movedim(time_dim(layer, input), 0)
    n_steps, n_samples = input.shape[:2]
    plan, tensors = layer.plan(tuple(input.shape[2:]), n_steps), layer.tensors(None)
    if own_spikes is not None and own_spikes.shape[2:] != plan.features:
        raise ValueError(
            f"recurrent_input must be (time, batch, *{plan.features}), "
            f"got {tuple(own_spikes.shape)}"
        )
    # With every input current known beforehand, only the membranes are left to step through.
    membrane_plan = replace(plan, feedforward=None)
    recurrent_weight = tensors.recurrent_weight if spiking else None
    n_neurons = math.prod(plan.features)
    total = torch.zeros(n_samples, *plan.features, dtype=torch.float64, device=input.device)
    total_of_squares = torch.zeros_like(total)
    state = LIFState()
    n_slice = max(1, SLICE_NUMBERS // (n_samples * n_neurons))
    for start in range(0, n_steps, n_slice):
        part = slice(start, start + n_slice)
        current = input[part]
        if plan.feedforward is not None:
            weights = LayerTensors(tensors.weight, tensors.bias)
            current = _current(layer, plan.features, plan.feedforward, weights, current)
        if own_spikes is not None:
            weights = LayerTensors(tensors.recurrent_weight)
            link = _recurrent_link(plan)
            current = current + _current(layer, plan.features, link, weights, own_spikes[part])
        trace = stack_trace(
            current,
            [membrane_plan],
            [LayerTensors(recurrent_weight=recurrent_weight, state=state)],
            spiking=spiking,
        )
        state = trace.result.states[0]
        membrane = trace.membranes[0][max(0, warmup - start) :].double()
        total += membrane.sum(0)
        total_of_squares += membrane.square().sum(0)
    mean = total / (n_steps - warmup)
    # A rounding error can be all that is left of the difference, and then it can be negative.
    variance = (total_of_squares / (n_steps - warmup) - mean.square()).clamp_min(0.0)
    sums.n_neurons = n_neurons
    sums.mean += float(mean.mean()) * n_samples
    sums.variance += float(variance.mean()) * n_samples
    sums.firing_rate += mean_rate(layer, emitted[warmup:]) * n_samples
    sums.input_rate += mean_rate(layer, input[warmup:]) * n_samples


def _current(
    layer: StackLayer,
    features: tuple[int, ...],
    link: Connection,
    weights: LayerTensors,
    spikes: Tensor,
) -> Tensor:
    """Current of one connection onto the layer at all steps, (time, batch, *features)."""
    synapse = LayerPlan("current", features, link)
    return ops.stack(spikes, [synapse], [weights], backend=layer.backend).output


def _recurrent_link(plan: LayerPlan) -> Connection:
    """The layer's connection onto itself: stride 1, "same" padding."""
    height, width = plan.recurrent_kernel or (1, 1)
    return Connection(
        plan.shape, plan.shape, kernel=(height, width), padding=(height // 2, width // 2)
    )


def _per_layer_recurrent(
    recurrent_input: Tensor | Sequence[Tensor | None] | None,
    layers: Mapping[str, StackLayer],
    spiking: bool,
) -> dict[str, Tensor | None]:
    """Recurrent input of every layer, (time, batch, *features)."""
    if recurrent_input is None:
        return dict.fromkeys(layers)
    if spiking:
        raise ValueError(
            "recurrent_input is for spiking=False: spiking layers send themselves spikes"
        )
    inputs = [recurrent_input] if isinstance(recurrent_input, Tensor) else list(recurrent_input)
    if len(inputs) != len(layers):
        raise ValueError(
            f"recurrent_input must hold one tensor or None per spiking layer ({len(layers)}), "
            f"got {len(inputs)}"
        )
    for (name, layer), spikes in zip(layers.items(), inputs, strict=True):
        if spikes is not None and not layer.recurrent:
            raise ValueError(f"recurrent_input is given for layer {name!r}, which is not recurrent")
    return dict(zip(layers, inputs, strict=True))
