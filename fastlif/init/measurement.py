"""Measuring membranes and firing rates, to compare with what the initialization predicts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastlif import ops
from fastlif.init.traversal import (
    image_encoders,
    mean_rate,
    spiking_layers,
    time_dim,
    visit_inputs,
)
from fastlif.ops.connection import Connection
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

if TYPE_CHECKING:
    from fastlif.layers import StackLayer

SLICE_NUMBERS = 1 << 22  # numbers in one (time, batch, neurons) slice: 16 MB of float32


@dataclass(frozen=True)
class Measurement:
    """Activity of one spiking layer, averaged over its neurons and the samples.

    mu_u is the average of the membrane's mean over time, sigma_u the root of the average of its
    variance over time: the quantities of a `Prediction`. Of a Dalian layer, these are those of the
    excitatory neurons, and `inhibitory` is a measurement of the inhibitory ones.
    """

    name: str  # the layer's name in the model, or its class if it was given by itself
    mu_u: float
    sigma_u: float
    firing_rate: float  # Hz, of the layer's own spikes (it spikes here even where spiking=False)
    input_rate: float  # Hz, of the layer's input
    n_neurons: int
    inhibitory: Measurement | None = None


@dataclass
class _Sums:
    """Sums over samples of one population's averages over neurons."""

    n_neurons: int = 0
    mean: float = 0.0
    variance: float = 0.0
    firing_rate: float = 0.0
    input_rate: float = 0.0
    inhibitory: _Sums | None = None

    def add(self, mean: Tensor, variance: Tensor) -> None:
        """Mean and variance over time, (batch, *features)."""
        self.n_neurons = math.prod(mean.shape[1:])
        self.mean += float(mean.mean()) * len(mean)
        self.variance += float(variance.mean()) * len(variance)

    def add_rates(self, firing_rate: float, input_rate: float, n_samples: int) -> None:
        """Rates in Hz of n_samples more samples."""
        self.firing_rate += firing_rate * n_samples
        self.input_rate += input_rate * n_samples

    def measurement(self, name: str, n_samples: int) -> Measurement:
        of_inhibitory = self.inhibitory
        return Measurement(
            name=name,
            mu_u=self.mean / n_samples,
            sigma_u=math.sqrt(self.variance / n_samples),
            firing_rate=self.firing_rate / n_samples,
            input_rate=self.input_rate / n_samples,
            n_neurons=self.n_neurons,
            inhibitory=None
            if of_inhibitory is None
            else of_inhibitory.measurement(name, n_samples),
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
        if the layers are so (all of them); images if the module begins with an ImageEncoder.
    spiking: True measures the membranes as they are, reset included. False disables threshold and
        reset of the layer that is measured; its input still comes from the spiking layers below,
        which is the situation that the formulas describe.
    recurrent_input: with spiking=False a layer sends itself no spikes. These take their place, one
        tensor if the module has one spiking layer, else a tensor or None per spiking layer, always
        (time, batch, *features of the layer), in a Dalian layer those of its excitatory and behind
        them its inhibitory neurons. Without them the recurrent weights get no input.
    warmup: number of first steps that the statistics leave out.

    Returns one Measurement per spiking layer, in the order in which the module registered them. A
    layer that runs more than once is measured the first time; one that never runs is a ValueError.
    """
    layers = spiking_layers(module)
    if not layers:
        raise ValueError(f"{type(module).__name__} contains no spiking fastlif layer")
    first = next(iter(layers.values()))
    if first in image_encoders(module).values():
        sample_dim, n_steps = 0, image_encoders(module)[next(iter(layers))].n_steps
    else:
        sample_dim = 1 - time_dim(first, input)
        n_steps = input.shape[1 - sample_dim]
    n_samples = input.shape[sample_dim]
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

        if isinstance(input, PackedSpikes) or sample_dim == 0:
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
    signal = layer.time_first(input)
    if isinstance(signal, PackedSpikes):
        signal = signal.unpack(emitted.dtype)
    n_steps, n_samples = signal.shape[:2]
    plan, tensors = layer.plan(tuple(signal.shape[2:]), n_steps), layer.tensors(None)
    if own_spikes is not None and own_spikes.shape[2:] != plan.features:
        raise ValueError(
            f"recurrent_input must be (time, batch, *{plan.features}), "
            f"got {tuple(own_spikes.shape)}"
        )
    total = torch.zeros(n_samples, *plan.features, dtype=torch.float64, device=signal.device)
    total_of_squares = torch.zeros_like(total)
    first_step = 0
    for membrane in _membranes(layer, plan, tensors, signal, own_spikes, spiking):
        counted = membrane[max(0, warmup - first_step) :].double()
        total += counted.sum(0)
        total_of_squares += counted.square().sum(0)
        first_step += len(membrane)
    mean = total / (n_steps - warmup)
    # A rounding error can be all that is left of the difference, and then it can be negative.
    variance = (total_of_squares / (n_steps - warmup) - mean.square()).clamp_min(0.0)
    input_rate = mean_rate(layer, signal[warmup:])
    n_excitatory = plan.emitted_features[0]
    sums.add(mean[:, :n_excitatory], variance[:, :n_excitatory])
    sums.add_rates(mean_rate(layer, emitted[warmup:]), input_rate, n_samples)
    if plan.inhibition is not None:
        sums.inhibitory = sums.inhibitory or _Sums()
        sums.inhibitory.add(mean[:, n_excitatory:], variance[:, n_excitatory:])
        rate = _inhibitory_rate(layer, plan, tensors, signal, warmup)
        sums.inhibitory.add_rates(rate, input_rate, n_samples)


def _membranes(
    layer: StackLayer,
    plan: LayerPlan,
    tensors: LayerTensors,
    signal: Tensor,  # (time, batch, *features)
    own_spikes: Tensor | None,
    spiking: bool,
) -> Iterator[Tensor]:
    """Membranes of one layer, (time, batch, *features), slice of time by slice of time."""
    run = _Spiking(plan, tensors) if spiking else _Free(plan, layer.backend)
    n_excitatory = plan.emitted_features[0]
    n_slice = max(1, SLICE_NUMBERS // (signal.shape[1] * math.prod(plan.features)))
    for start in range(0, len(signal), n_slice):
        part = slice(start, start + n_slice)
        current, inhibitory = signal[part], None
        if plan.feedforward is not None:
            weights = LayerTensors(tensors.weight, tensors.bias)
            current = _current(layer, plan.features, plan.feedforward, weights, current)
        if own_spikes is not None:
            own = own_spikes[part]
            if plan.recurrent_kernel is not None:
                link = _link(plan, plan.emitted_features[0], plan.recurrent_kernel)
                weights = LayerTensors(tensors.recurrent_weight)
                excitatory = own[:, :, :n_excitatory]
                current = current + _current(layer, plan.features, link, weights, excitatory)
            if plan.inhibition is not None:
                link = _link(plan, plan.inhibition.channels, plan.inhibition.kernel)
                weights = LayerTensors(tensors.inhibitory_weight)
                inhibitory = _current(layer, plan.features, link, weights, own[:, :, n_excitatory:])
        yield run(current, inhibitory)


class _Spiking:
    """Membranes of neurons that spike and hear each other, slice by slice of their current."""

    def __init__(self, plan: LayerPlan, tensors: LayerTensors) -> None:
        self.plan = replace(plan, feedforward=None)
        self.tensors = tensors._replace(weight=None, bias=None, state=LIFState())

    def __call__(self, current: Tensor, inhibitory: Tensor | None) -> Tensor:
        trace = stack_trace(current, [self.plan], [self.tensors])
        self.tensors = self.tensors._replace(state=trace.result.states[0])
        return trace.membranes[0]


class _Free:
    """Membranes without threshold and reset, slice by slice of their currents.

    They are linear in the currents: those of a readout driven by the excitatory current less those
    of one driven by the inhibitory current, with the decays of each population.
    """

    def __init__(self, plan: LayerPlan, backend: str | None) -> None:
        self.delay = plan.delay
        self.backend = backend
        self.states: dict[tuple[int, bool], LIFState] = {}
        own, n = plan.inhibition, plan.emitted_features[0]
        # Channels, decays of the membrane, of excitatory and of inhibitory currents.
        self.populations = [
            (slice(n), plan.decay_mem, plan.decay_syn, own.decay_syn if own else 0.0)
        ]
        if own is not None:
            decays = (own.neuron_decay_mem, own.neuron_decay_syn, own.neuron_decay_inhibitory)
            self.populations.append((slice(n, None), *decays))

    def __call__(self, current: Tensor, inhibitory: Tensor | None) -> Tensor:
        membranes = []
        for index, (channels, mem, syn, inhibitory_syn) in enumerate(self.populations):
            membrane = self._integrate((index, False), current[:, :, channels], mem, syn)
            if inhibitory is not None:
                key, part = (index, True), inhibitory[:, :, channels]
                membrane = membrane - self._integrate(key, part, mem, inhibitory_syn)
            membranes.append(membrane)
        return torch.cat(membranes, dim=2)

    def _integrate(
        self, key: tuple[int, bool], current: Tensor, decay_mem: float, decay_syn: float
    ) -> Tensor:
        unit = LayerPlan(
            "readout_trace",
            tuple(current.shape[2:]),
            decay_mem=decay_mem,
            decay_syn=decay_syn,
            delay=self.delay,
        )
        tensors = LayerTensors(state=self.states.get(key))
        result = ops.stack(current.contiguous(), [unit], [tensors], backend=self.backend)
        self.states[key] = result.states[0]
        return result.output


def _inhibitory_rate(
    layer: StackLayer, plan: LayerPlan, tensors: LayerTensors, signal: Tensor, warmup: int
) -> float:
    """Firing rate in Hz of a layer's inhibitory neurons, whose spikes it does not emit."""
    if warmup:
        run = ops.stack(signal[:warmup], [plan], [tensors], backend=layer.backend)
        tensors = tensors._replace(state=run.states[0])
    run = ops.stack(signal[warmup:], [plan], [tensors], backend=layer.backend)
    counts = run.spike_counts[0][:, plan.emitted_features[0] :]
    return float(counts.mean(dtype=torch.float64)) / ((len(signal) - warmup) * layer.dt)


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


def _link(plan: LayerPlan, in_channels: int, kernel: tuple[int, int]) -> Connection:
    """A connection from some of the layer's own channels to all: stride 1, "same" padding."""
    height, width = kernel
    in_shape = (in_channels, *plan.shape[1:])
    return Connection(in_shape, plan.shape, kernel=kernel, padding=(height // 2, width // 2))


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
