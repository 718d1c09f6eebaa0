"""What a stack of layers computes, as plain numbers: shapes, decays and options, checked once.

A stack is a sequence of `LayerPlan`s, whose synapses are `Connection`s. Plans hold no tensors;
parameters and states travel beside them as `LayerTensors`. `fastlif.ops.encoding` turns plans into
what an operation's schema can carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlif.ops.connection import Connection, check_ints, check_map, check_windows
from fastlif.ops.remember import remembered
from fastlif.spikes import spatial_shape

KINDS = ("lif", "readout_max", "readout_trace", "current", "max_pool")
EMITS_SPIKES = ("lif", "max_pool")  # kinds that another layer can follow
MOST_LAYERS_SKIPPED_FROM = 62  # their indices are bits of one number in the encoding


class LIFState(NamedTuple):
    """State of one layer between two steps, (batch, *features) each; None stands for zeros."""

    membrane: Tensor | None = None  # U[n]
    synaptic_current: Tensor | None = None  # I[n]
    pending_current: Tensor | None = None  # J[n-1], injected at the last step; used when delay = 1
    inhibitory_current: Tensor | None = None  # H[n], of a layer with inhibition
    pending_inhibitory: Tensor | None = None  # K[n-1], likewise with delay = 1


class LayerTensors(NamedTuple):
    """Parameters and initial state of one layer.

    Of several networks: parameters (networks, ...), states (networks * batch, *features).
    """

    weight: Tensor | None = None  # (out, in), (out, in, k) or (out, in, kh, kw)
    bias: Tensor | None = None  # (out channels,)
    recurrent_weight: Tensor | None = None  # (N, N), (C, C, k) or (C, C, kh, kw); row = target
    state: LIFState | None = None
    inhibitory_weight: Tensor | None = None  # likewise, from the inhibitory neurons of the layer


def common_dtype(tensors: Sequence[LayerTensors]) -> torch.dtype | None:
    """The dtype of the parameters and states of a stack, which agree; None without any."""
    for layer in tensors:
        weights = (layer.weight, layer.bias, layer.recurrent_weight, layer.inhibitory_weight)
        for tensor in (*weights, *(layer.state or ())):
            if tensor is not None:
                return tensor.dtype
    return None


class StackResult(NamedTuple):
    """Output of the last layer, spike counts of "lif" layers and final state of every layer.

    The output of a layer with inhibition is that of its excitatory neurons; its counts and state
    are those of all of them.
    """

    output: Tensor  # (time, batch, *features), or (batch, *features) for "readout_max"
    spike_counts: tuple[Tensor, ...]  # one per "lif" layer, (batch, *features)
    states: tuple[LIFState, ...]  # one per layer


@dataclass(frozen=True)
class Inhibition:
    """The inhibitory neurons of a layer that obeys Dale's law, and their synapses (eqs 12 to 19).

    They are the last `channels` channels of the layer; the others are excitatory. Their spikes
    reach all neurons of the layer, through a current of its own that is subtracted, and nothing
    outside it. Decays are per step. Raises ValueError when a value is out of range.
    """

    channels: int
    kernel: tuple[int, int]  # of their synapses: stride 1, "same" padding; (1, 1) if dense
    decay_syn: float  # of the inhibitory current of excitatory neurons
    neuron_decay_mem: float  # of the inhibitory neurons' own membrane
    neuron_decay_syn: float  # of their excitatory current
    neuron_decay_inhibitory: float  # of their inhibitory current

    def __post_init__(self) -> None:
        check_ints("channels", (self.channels,), 1, 1)
        check_ints("kernel", self.kernel, 2, 1)
        names = ("decay_syn", "neuron_decay_mem", "neuron_decay_syn", "neuron_decay_inhibitory")
        for name in names:
            _check_decay(name, getattr(self, name))


def _check_decay(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:  # also refuses NaN
        raise ValueError(f"{name} must be finite, >= 0 and < 1, got {value}")


def surrogate_scale(threshold: float, slope: float, *, rescale: bool) -> float:
    """Surrogate derivative at the threshold: 1, or what makes it 1 at rest (U = 0) by eq 29."""
    return (slope * threshold + 1.0) ** 2 if rescale else 1.0


def readout_kind(reduction: str) -> str:
    """Kind of a readout plan: "max" -> "readout_max", "none" -> "readout_trace"."""
    kinds = {"max": "readout_max", "none": "readout_trace"}
    if reduction not in kinds:
        raise ValueError(f"reduction must be 'max' or 'none', got {reduction!r}")
    return kinds[reduction]


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a stack. Raises ValueError when a value is out of range or two disagree.

    Kinds: "lif" emits spikes; "readout_max" and "readout_trace" integrate without spikes and give
    the maximum over time of the membrane, or all of it; "current" is a synapse alone, whose output
    is the injected current J. "max_pool" has no neurons: it emits a spike where any source in its
    window does, `feedforward` being the geometry of the windows.

    A stack can be that of several networks of one shape, each with parameters of its own: their
    samples lie one network behind the other in the batch.
    """

    kind: str
    features: tuple[int, ...]  # all neurons of one sample: (N,), (C, L) or (C, H, W)
    feedforward: Connection | None = None  # None: the input is a current (batch, *features)
    recurrent_kernel: tuple[int, int] | None = None  # stride 1, "same" padding; (1, 1) if dense
    decay_mem: float = 0.0  # exp(-dt / tau_mem), per step
    decay_syn: float = 0.0  # exp(-dt / tau_syn), per step
    threshold: float = 1.0
    surrogate_slope: float = 20.0
    surrogate_scale: float = 1.0  # surrogate derivative at the threshold
    detach_reset: bool = True
    delay: int = 0
    inhibition: Inhibition | None = None  # with it, recurrent synapses come from excitatory neurons
    skips: tuple[int, ...] = ()  # layers of the stack a readout hears besides the one before it
    networks: int = 1
    shared_input: bool = False  # of a first layer: every network gets all samples of the input

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        shape = spatial_shape(self.features)
        check_ints("features", self.features, len(self.features), 1)
        check_map("features", shape)
        for name in ("decay_mem", "decay_syn"):
            _check_decay(name, getattr(self, name))
        for name in ("threshold", "surrogate_slope", "surrogate_scale"):
            value = getattr(self, name)
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be finite and > 0, got {value}")
        if not isinstance(self.detach_reset, bool):
            raise ValueError(f"detach_reset must be True or False, got {self.detach_reset!r}")
        check_ints("networks", (self.networks,), 1, 1)
        if self.delay not in (0, 1):
            raise ValueError(f"delay must be 0 or 1, got {self.delay!r}")
        if self.feedforward is not None and self.feedforward.out_shape != shape:
            raise ValueError(
                f"features {self.features} must match the connection's out_shape, "
                f"got {self.feedforward.out_shape}"
            )
        if self.kind in ("current", "max_pool") and self.feedforward is None:
            raise ValueError(f"kind {self.kind!r} needs a feedforward connection, got None")
        if self.kind == "max_pool":
            self._check_pooling()
        if self.recurrent_kernel is not None:
            self._check_recurrence("recurrent_kernel", self.recurrent_kernel)
        if self.inhibition is not None:
            self._check_recurrence("inhibition.kernel", self.inhibition.kernel)
            if self.inhibition.channels >= shape[0]:
                raise ValueError(
                    f"inhibition.channels must leave some of the {shape[0]} channels excitatory, "
                    f"got {self.inhibition.channels}"
                )
        self._check_skips()

    def _check_pooling(self) -> None:
        assert self.feedforward is not None
        link = self.feedforward
        if link.in_shape[0] != link.out_shape[0]:
            raise ValueError(
                f"max_pool must keep the channels, got {link.in_shape[0]} to {link.out_shape[0]}"
            )
        if any(2 * p > k for p, k in zip(link.padding, link.kernel, strict=True)):
            raise ValueError(
                f"padding of max_pool must be at most half the kernel {link.kernel}, "
                f"got {link.padding}"
            )
        check_windows(link.in_shape[1:], link.kernel, link.stride, link.padding, link.dilation)

    def _check_recurrence(self, name: str, kernel: tuple[int, int]) -> None:
        if self.kind != "lif":
            raise ValueError(f"only a 'lif' layer can have {name}, got kind {self.kind!r}")
        check_ints(name, kernel, 2, 1)
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0:
            raise ValueError(f"{name} must be odd in both dimensions, got {kernel}")
        flat_dims = 3 - len(self.features)  # (N,): both kernel sizes are 1; (C, L): the first one
        if any(size != 1 for size in kernel[:flat_dims]):
            raise ValueError(
                f"{name} must be 1 along the dimensions that features {self.features} "
                f"do not have, got {kernel}"
            )

    def _check_skips(self) -> None:
        if not self.skips:
            return
        if self.kind not in ("readout_max", "readout_trace") or self.feedforward is None:
            raise ValueError(f"only a readout with synapses can have skips, got {self.kind!r}")
        most = MOST_LAYERS_SKIPPED_FROM
        check_ints("skips", self.skips, len(self.skips), 0)
        if list(self.skips) != sorted(set(self.skips)) or self.skips[-1] >= most:
            raise ValueError(
                f"skips must be ascending layer numbers below {most}, each once, got {self.skips}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Features as (channels, height, width)."""
        return spatial_shape(self.features)

    @property
    def emitted_features(self) -> tuple[int, ...]:
        """Features of the layer's output: without the inhibitory neurons."""
        hidden = 0 if self.inhibition is None else self.inhibition.channels
        return (self.features[0] - hidden, *self.features[1:])

    @property
    def emitted_shape(self) -> tuple[int, int, int]:
        """`emitted_features` as (channels, height, width): the input of the next layer."""
        return spatial_shape(self.emitted_features)

    @property
    def recurrent_weight_shape(self) -> tuple[int, int, int, int] | None:
        """The 4-d view of the recurrent weight: (C, C or excitatory C, kernel height, width)."""
        if self.recurrent_kernel is None:
            return None
        return (self.features[0], self.emitted_features[0], *self.recurrent_kernel)

    @property
    def inhibitory_weight_shape(self) -> tuple[int, int, int, int] | None:
        """The 4-d view of the inhibitory weight: (C, inhibitory C, kernel height, width)."""
        if self.inhibition is None:
            return None
        return (self.features[0], self.inhibition.channels, *self.inhibition.kernel)


@remembered
def layer_plan(*args: Any, **kwargs: Any) -> LayerPlan:
    """`LayerPlan(...)`, checked once for the same arguments."""
    return LayerPlan(*args, **kwargs)


def check_stack(plans: Sequence[LayerPlan]) -> None:
    """ValueError unless the layers can follow one another."""
    if not plans:
        raise ValueError("plans must hold at least one layer, got none")
    if plans[0].kind == "max_pool":
        raise ValueError(
            "a stack must not begin with a 'max_pool' layer: it pools spikes of a layer"
        )
    for index, plan in enumerate(plans):
        if plan.networks != plans[0].networks or (index and plan.shared_input):
            raise ValueError(
                f"layer {index} must be of {plans[0].networks} networks, as layer 0 is, without "
                f"shared_input, got {plan.networks} and {plan.shared_input}"
            )
        if plan.skips and plan.skips[-1] >= index - 1:
            raise ValueError(
                f"skips of layer {index} must be layers before layer {index - 1}, got {plan.skips}"
            )
    for index, (source, target) in enumerate(zip(plans, plans[1:], strict=False)):
        if source.kind not in EMITS_SPIKES:
            raise ValueError(f"layer {index} of kind {source.kind!r} must be the last of its stack")
        if target.feedforward is None:
            raise ValueError(
                f"layer {index + 1} needs a feedforward connection, got None: "
                "only the first layer can take a current"
            )
        if target.feedforward.in_shape != source.emitted_shape:
            raise ValueError(
                f"layer {index + 1} expects input of shape {target.feedforward.in_shape}, "
                f"but layer {index} has {source.emitted_shape}"
            )


class SourceColumns(NamedTuple):
    """What a layer with synapses hears, and the columns of its flattened weight that are for it."""

    layer: int  # in the stack; -1 is the input
    first: int
    stop: int


@remembered
def source_columns(plans: tuple[LayerPlan, ...], index: int) -> tuple[SourceColumns, ...]:
    """Sources of a layer of a stack, in the order of its weight: the layer before it, its skips."""
    plan = plans[index]
    assert plan.feedforward is not None
    found = [SourceColumns(index - 1, 0, plan.feedforward.fan_in)]
    for layer in plan.skips:
        first = found[-1].stop
        found.append(SourceColumns(layer, first, first + math.prod(plans[layer].emitted_features)))
    return tuple(found)
