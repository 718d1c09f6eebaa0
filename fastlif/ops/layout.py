"""Shapes and grouping of the tensors that go into and come out of the raw operations.

The raw operations take and return flat lists of tensors, in which an empty tensor stands for an
absent one: nine per layer going in (weight, bias, recurrent weight, inhibitory weight and the five
initial states of `LIFState`), eight coming out (`LayerOutputs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fastlif.ops.encoding import decode
from fastlif.ops.plan import EMITS_SPIKES, LayerPlan
from fastlif.spikes import n_words

Item = TypeVar("Item")

TENSORS_PER_LAYER = 9
FIRST_STATE = 4  # index of the first state among them
OUTPUTS_PER_LAYER = 8
GRADS_PER_LAYER = 6  # of counts and the five final states


def per_layer(tensors: Sequence[Item], size: int = TENSORS_PER_LAYER) -> Iterator[Sequence[Item]]:
    """The flat list, the tensors of a layer at a time."""
    for start in range(0, len(tensors), size):
        yield tensors[start : start + size]


def kept_dtype(dtype: torch.dtype, exact: bool) -> torch.dtype:
    """Dtype in which U - threshold is kept for the backward pass."""
    return dtype if exact or dtype == torch.float64 else torch.float16


class LayerOutputs(NamedTuple):
    """What the forward pass gives per layer; empty where the kind of layer has none."""

    kept: Tensor  # (batch, steps, N), on a GPU (steps, batch, N), N channels last: U - threshold
    words: Tensor  # int32 (words, batch, neurons channels last): spikes
    counts: Tensor  # (batch, *features)
    membrane: Tensor  # (batch, *features), final, as the two below
    synaptic_current: Tensor
    pending_current: Tensor  # only with delay 1
    inhibitory_current: Tensor  # only with inhibition
    pending_inhibitory: Tensor  # only with both


class Saved(NamedTuple):
    """The outputs of the forward pass that the backward pass reads."""

    best_step: Tensor
    input_words: Tensor
    is_binary: Tensor
    kept: Sequence[Tensor]
    words: Sequence[Tensor]

    def flat(self) -> list[Tensor]:
        """As the raw backward operation takes it."""
        return [*self[:3], *self.kept, *self.words]

    def spikes_into(self, layer: int, input: Tensor) -> Tensor | None:
        """Words of the spikes that drove a layer of the stack; None when numbers did.

        Those of a source with inhibition hold its inhibitory neurons too.
        """
        if layer > 0:
            return self.words[layer - 1]
        if input.dtype == torch.int32:
            return input.contiguous()
        return self.input_words if bool(self.is_binary) else None

    @staticmethod
    def grouped(flat: Sequence[Tensor]) -> Saved:
        """The inverse of `flat`."""
        layers = (len(flat) - 3) // 2
        return Saved(flat[0], flat[1], flat[2], flat[3 : 3 + layers], flat[3 + layers :])


class StackOutputs(NamedTuple):
    """What the forward pass gives."""

    output: Tensor
    best_step: Tensor  # int32 (batch, *features): step of the maximum of a "readout_max"
    input_words: Tensor  # int32: the input packed, when it was dense and binary
    is_binary: Tensor  # bool (1,), on the CPU always
    layers: list[LayerOutputs]

    def saved(self) -> Saved:
        """What of it the backward pass reads."""
        kept = [layer.kept for layer in self.layers]
        words = [layer.words for layer in self.layers]
        return Saved(self.best_step, self.input_words, self.is_binary, kept, words)

    def flat(self) -> list[Tensor]:
        """As the raw operation returns it."""
        return [*self[:4], *(tensor for layer in self.layers for tensor in layer)]

    @staticmethod
    def grouped(flat: Sequence[Tensor]) -> StackOutputs:
        """The inverse of `flat`."""
        layers = [LayerOutputs(*group) for group in per_layer(flat[4:], OUTPUTS_PER_LAYER)]
        return StackOutputs(flat[0], flat[1], flat[2], flat[3], layers)


@dataclass(frozen=True)
class StackShapes:
    """Shapes of all tensors of one call; sizes may be symbolic."""

    ints: tuple[int, ...]  # the encoded plans
    floats: tuple[float, ...]
    n_steps: int
    batch: int  # of all networks
    input: tuple[int, ...]  # (time, batch, *features), whether packed or not
    dtype: torch.dtype
    steps_outermost: bool = False  # layout of what is kept for backward

    @property
    def plans(self) -> tuple[LayerPlan, ...]:
        """The layers."""
        return decode(self.ints, self.floats)

    @property
    def networks(self) -> int:
        """Whose samples are the batch, one network behind the other."""
        return self.plans[0].networks

    @property
    def shares_input(self) -> bool:
        """Whether all samples of the input are for every network."""
        return self.plans[0].shared_input

    @property
    def output(self) -> tuple[int, ...]:
        """Of the last layer's output."""
        last = self.plans[-1]
        per_sample = (self.batch, *last.emitted_features)
        return per_sample if last.kind == "readout_max" else (self.n_steps, *per_sample)

    @property
    def best_step(self) -> tuple[int, ...]:
        """Of the step of each score."""
        last = self.plans[-1]
        return (self.batch, *last.features) if last.kind == "readout_max" else (0,)

    @property
    def input_words(self) -> tuple[int, ...]:
        """Of the packed input; a current is not packed."""
        link = self.plans[0].feedforward
        if link is None:
            return (0,)
        channels, height, width = link.in_shape
        return (n_words(self.n_steps), self.input[1], channels * height * width)

    def neurons(self, plan: LayerPlan) -> int:
        """Number of neurons of a layer."""
        channels, height, width = plan.shape
        return channels * height * width

    def kept(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of U - threshold; a differentiated reset needs U[T] too."""
        if plan.kind != "lif":
            return (0,)
        rows = self.n_steps if plan.detach_reset else self.n_steps + 1
        first, second = (rows, self.batch) if self.steps_outermost else (self.batch, rows)
        return (first, second, self.neurons(plan))

    def words(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the packed spikes."""
        if plan.kind not in EMITS_SPIKES:
            return (0,)
        return (n_words(self.n_steps), self.batch, self.neurons(plan))

    def counts(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the spike counts."""
        return (self.batch, *plan.features) if plan.kind == "lif" else (0,)

    def state(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the final membrane and of the final synaptic current."""
        stateless = plan.kind in ("current", "max_pool")
        return (0,) if stateless else (self.batch, *plan.features)

    def pending(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the final pending current."""
        return self.state(plan) if plan.delay else (0,)

    def inhibitory(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the final inhibitory current."""
        return self.state(plan) if plan.inhibition else (0,)

    def pending_inhibitory(self, plan: LayerPlan) -> tuple[int, ...]:
        """Of the final pending inhibitory current."""
        return self.pending(plan) if plan.inhibition else (0,)
