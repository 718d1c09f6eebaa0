"""Membranes of a layer's neurons, with and without the reset, and what theory says of the latter.

Symbols follow the paper: Rossbroich, Gygax, Zenke (2022), Neuromorph. Comput. Eng. 2 044016. mu_u
is the mean over neurons of the membrane's mean over time, sigma_u the root of the mean over neurons
of its variance over time; both are of membranes without threshold and reset, which the layer's
input and its own spikes drive as in the real run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastlif import ops
from fastlif.init import psp_integrals
from fastlif.inspection.batches import ReachedLayer, dtype_of
from fastlif.layers import StackLayer
from fastlif.ops.connection import Connection
from fastlif.ops.observation import observe
from fastlif.ops.plan import LayerPlan, LayerTensors
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

N_BINS = 80
QUANTILE_NUMBERS = 100_000  # enough of them to find the range of a histogram
MEMBRANE_NUMBERS = 1 << 22  # numbers in the membranes that are kept of one layer: 16 MB of float32
MOST_SAMPLES = 32  # whose membranes are kept


class LayerTrace(NamedTuple):
    """What the neurons of one spiking layer did, (time, batch, *features) of all of them."""

    spikes: Tensor
    membrane: Tensor  # U with threshold and reset
    free_membrane: Tensor  # U without, driven by the same input and the same own spikes


class Expectation(NamedTuple):
    """Mean and standard deviation over time of each neuron's membrane, (*features,) (eqs 4, 5)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Histogram:
    """Distributions of a population's membranes over neurons, samples and steps, as densities."""

    edges: Tensor  # (N_BINS + 1,)
    free: Tensor  # (N_BINS,) without reset
    reset: Tensor  # (N_BINS,) with reset
    predicted: Tensor | None  # (N_BINS,) a Gaussian for each neuron, averaged


@dataclass(frozen=True)
class Membranes:
    """Membranes of one population, on as many samples as were kept."""

    n_samples: int
    mu_u: float
    sigma_u: float
    mu_u_reset: float  # likewise of the membranes with threshold and reset
    sigma_u_reset: float
    predicted_mu_u: float | None  # from the weights and the rates of their inputs
    predicted_sigma_u: float | None
    histogram: Histogram = field(repr=False, compare=False)


def trace_layer(reached: ReachedLayer, layer_input: Tensor | PackedSpikes) -> LayerTrace:
    """Run a spiking layer by its kernels and keep its spikes and membranes."""
    layer, plan = reached.layer, reached.plan
    tensors = layer.tensors(None)
    spikes = layer.time_first(layer_input)
    ((emitted, membrane),) = observe(spikes, [plan], [tensors], backend=layer.backend)
    n_excitatory = plan.emitted_features[0]
    with torch.no_grad():
        current = spikes
        if plan.feedforward is not None:
            weights = LayerTensors(tensors.weight, tensors.bias)
            current = _current(layer, plan, plan.feedforward, weights, spikes)
        assert isinstance(current, Tensor)  # packed spikes are refused by layers without synapses
        if tensors.recurrent_weight is not None and plan.recurrent_kernel is not None:
            link = _own_connection(plan, plan.recurrent_kernel, n_excitatory)
            sources = LayerTensors(tensors.recurrent_weight)
            current = current + _current(layer, plan, link, sources, emitted[:, :, :n_excitatory])
        free = _integrated(layer, plan, current, inhibitory=False)
        if tensors.inhibitory_weight is not None and plan.inhibition is not None:
            link = _own_connection(plan, plan.inhibition.kernel, plan.inhibition.channels)
            sources = LayerTensors(tensors.inhibitory_weight)
            current = _current(layer, plan, link, sources, emitted[:, :, n_excitatory:])
            free = free - _integrated(layer, plan, current, inhibitory=True)
    return LayerTrace(emitted, membrane, free)


def trace_readout(reached: ReachedLayer, layer_input: Tensor | PackedSpikes) -> Tensor:
    """Membranes of a readout at every step, (time, batch, classes)."""
    layer = reached.layer
    spikes = layer.time_first(layer_input)
    plan = replace(reached.plan, kind="readout_trace")
    tensors = layer.tensors(layer.initial_state(spikes.shape[1]))
    return ops.stack(spikes, [plan], [tensors], backend=layer.backend).output


@torch.no_grad()
def expectation(
    reached: ReachedLayer, layer_input: Tensor | PackedSpikes, own_spikes: Tensor
) -> Expectation | None:
    """Mean and fluctuations that the weights lead to if every input is a Poisson process.

    layer_input: of the layer, its rates being those of each input averaged over samples and steps.
    own_spikes: (time, batch, *features) of all neurons of the layer, whose rates drive its
        recurrent synapses.

    Per neuron the mean is the sum of w nu eps_bar and the variance the sum of w^2 nu eps_hat over
    its synapses (eqs 4, 5), those of zero padding left out; a bias is a constant current. None for
    a layer without weights, whose input is a current.
    """
    layer, plan, tensors = reached.layer, reached.plan, reached.layer.tensors(None)
    if plan.feedforward is None or tensors.weight is None:
        return None
    own = own_spikes.mean((0, 1), keepdim=True)
    n_excitatory = plan.emitted_features[0]
    synapses = [(plan.feedforward, tensors.weight, _mean_spikes(layer, layer_input), False)]
    if tensors.recurrent_weight is not None and plan.recurrent_kernel is not None:
        link = _own_connection(plan, plan.recurrent_kernel, n_excitatory)
        synapses.append((link, tensors.recurrent_weight, own[:, :, :n_excitatory], False))
    if tensors.inhibitory_weight is not None and plan.inhibition is not None:
        link = _own_connection(plan, plan.inhibition.kernel, plan.inhibition.channels)
        synapses.append((link, tensors.inhibitory_weight, own[:, :, n_excitatory:], True))
    mean = torch.zeros(plan.features, dtype=own.dtype, device=own.device)
    variance = torch.zeros_like(mean)
    for link, weight, spikes_per_step, inhibitory in synapses:
        bar, hat = _integrals_per_step(plan, layer.dt, mean, inhibitory=inhibitory)
        current = bar * _mean_current(plan, link, weight, spikes_per_step)
        mean = mean - current if inhibitory else mean + current
        variance = variance + hat * _mean_current(plan, link, weight.square(), spikes_per_step)
    if tensors.bias is not None:
        bar, _ = _integrals_per_step(plan, layer.dt, mean, inhibitory=False)
        mean = mean + bar * tensors.bias.reshape(_per_channel(plan))
    return Expectation(mean, variance.clamp_min(0.0).sqrt())


def membranes_of(
    trace: LayerTrace, expected: Expectation | None, channels: slice, warmup: int = 0
) -> Membranes:
    """Statistics of the population that the given channels are; `warmup` steps are left out."""
    free = trace.free_membrane[warmup:, :, channels]
    reset = trace.membrane[warmup:, :, channels]
    mu_u, sigma_u = _moments(free)
    mu_u_reset, sigma_u_reset = _moments(reset)
    predicted_mu_u = predicted_sigma_u = None
    if expected is not None:
        expected = Expectation(expected.mean[channels].flatten(), expected.std[channels].flatten())
        predicted_mu_u = float(expected.mean.double().mean())
        predicted_sigma_u = math.sqrt(float(expected.std.double().square().mean()))
    return Membranes(
        n_samples=free.shape[1],
        mu_u=mu_u,
        sigma_u=sigma_u,
        mu_u_reset=mu_u_reset,
        sigma_u_reset=sigma_u_reset,
        predicted_mu_u=predicted_mu_u,
        predicted_sigma_u=predicted_sigma_u,
        histogram=_histogram(free, reset, expected),
    )


def _moments(membrane: Tensor) -> tuple[float, float]:
    """mu_u and sigma_u of (time, batch, *features)."""
    variance, mean = torch.var_mean(membrane, dim=0, correction=0)
    return float(mean.double().mean()), math.sqrt(float(variance.double().mean()))


def _histogram(free: Tensor, reset: Tensor, expected: Expectation | None) -> Histogram:
    """Densities over the range of nearly all membranes without reset; the rest is left out."""
    some = free.flatten()[:: max(1, free.numel() // QUANTILE_NUMBERS)].double()
    low, high = torch.quantile(some, some.new_tensor([0.01, 0.99])).tolist()
    # A layer without input has all its membranes at one value.
    margin = 0.1 * (high - low) or 1.0
    edges = torch.linspace(low - margin, high + margin, N_BINS + 1, dtype=torch.float64)
    width = float(edges[1] - edges[0])

    def density(values: Tensor) -> Tensor:
        # Several times faster than torch.histogram. A bin more on both sides takes what is outside.
        bins = ((values.flatten() - float(edges[0])) / width + 1.0).clamp_(0.0, N_BINS + 1.0)
        counts = torch.bincount(bins.int(), minlength=N_BINS + 2)[1 : N_BINS + 1]
        return counts.double().cpu() / (values.numel() * width)

    predicted = None
    if expected is not None:
        mean, std = (values.double().cpu().unsqueeze(1) for values in expected)
        below = torch.special.ndtr((edges - mean) / std.clamp_min(1e-9))
        predicted = below.diff(dim=1).mean(0) / width
    return Histogram(edges, density(free), density(reset), predicted)


def _current(
    layer: StackLayer,
    plan: LayerPlan,
    link: Connection,
    weights: LayerTensors,
    spikes: Tensor | PackedSpikes,
) -> Tensor:
    """Current of one connection onto the layer at all steps, (time, batch, *features)."""
    synapse = LayerPlan("current", plan.features, link)
    return ops.stack(spikes, [synapse], [weights], backend=layer.backend).output


def _integrated(layer: StackLayer, plan: LayerPlan, current: Tensor, *, inhibitory: bool) -> Tensor:
    """What a current alone makes of membranes without threshold, (time, batch, *features)."""
    parts, channel = [], 0
    for n_channels, decay_mem, decay_syn in _decays(plan, inhibitory=inhibitory):
        part = current.narrow(2, channel, n_channels)
        channel += n_channels
        units = LayerPlan(
            "readout_trace",
            tuple(part.shape[2:]),
            decay_mem=decay_mem,
            decay_syn=decay_syn,
            delay=plan.delay,
        )
        parts.append(
            ops.stack(part.contiguous(), [units], [LayerTensors()], backend=layer.backend).output
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _mean_spikes(layer: StackLayer, layer_input: Tensor | PackedSpikes) -> Tensor:
    """Spikes per step of every input of a layer, (1, 1, *features)."""
    spikes = layer.time_first(layer_input)
    if isinstance(spikes, PackedSpikes):
        spikes = spikes.unpack(dtype_of(layer))
    return spikes.mean((0, 1), keepdim=True)


def _decays(plan: LayerPlan, *, inhibitory: bool) -> list[tuple[int, float, float]]:
    """(channels, decay_mem, decay_syn) of each population; of excitatory or inhibitory currents."""
    own = plan.inhibition
    if own is None:
        return [(plan.features[0], plan.decay_mem, plan.decay_syn)]
    decay_syn = own.decay_syn if inhibitory else plan.decay_syn
    neuron_decay_syn = own.neuron_decay_inhibitory if inhibitory else own.neuron_decay_syn
    return [
        (plan.emitted_features[0], plan.decay_mem, decay_syn),
        (own.channels, own.neuron_decay_mem, neuron_decay_syn),
    ]


def _integrals_per_step(
    plan: LayerPlan, dt: float, like: Tensor, *, inhibitory: bool
) -> tuple[Tensor, Tensor]:
    """eps_bar / dt and eps_hat / dt of each neuron's excitatory or inhibitory synapses.

    Shaped (channels, 1, ...).
    """
    bar: list[float] = []
    hat: list[float] = []
    for n_channels, decay_mem, decay_syn in _decays(plan, inhibitory=inhibitory):
        integrals = psp_integrals(-dt / math.log(decay_mem), -dt / math.log(decay_syn), dt)
        bar += [integrals.eps_bar / dt] * n_channels
        hat += [integrals.eps_hat / dt] * n_channels
    shape = _per_channel(plan)
    return like.new_tensor(bar).reshape(shape), like.new_tensor(hat).reshape(shape)


def _per_channel(plan: LayerPlan) -> tuple[int, ...]:
    """Shape in which one number a channel meets (*features,)."""
    return (-1, *(1 for _ in plan.features[1:]))


def _own_connection(plan: LayerPlan, kernel: tuple[int, int], n_sources: int) -> Connection:
    """Synapses from channels of the layer onto all of it: stride 1, "same" padding."""
    height, width = kernel
    in_shape = (n_sources, *plan.shape[1:])
    return Connection(in_shape, plan.shape, kernel, padding=(height // 2, width // 2))


def _mean_current(plan: LayerPlan, link: Connection, weight: Tensor, spikes: Tensor) -> Tensor:
    """Current (*features,) of one step of mean spikes (1, 1, *sources), by the reference."""
    synapse = LayerPlan("current", plan.features, link)
    return stack_trace(spikes, [synapse], [LayerTensors(weight)]).result.output[0, 0]
