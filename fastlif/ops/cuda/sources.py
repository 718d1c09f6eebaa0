"""What a layer's synapses read: emitted spikes as words, and the parts of a readout with skips.

The current of a readout with skips is a sum of products, one for the layer before it and one for
each skip; each is that of a layer of kind "current", so that the kernels for these serve it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlif.ops.connection import dense_connection
from fastlif.ops.cuda.call import (
    FORWARD_ORDER,
    Call,
    address,
    kernel_plan,
    packed,
    side_by_side,
)
from fastlif.ops.dense import select_channels
from fastlif.ops.encoding import encode
from fastlif.ops.plan import LayerPlan, SourceColumns, source_columns
from fastlif.ops.remember import remembered
from fastlif.spikes import n_words

STEPS_OF_A_BLOCK = 8  # of a product, whose steps are as independent as samples


def stands_alone(plan: LayerPlan) -> bool:
    """Whether no other layer shares a launch with this one (csrc/cuda/launch.h)."""
    return plan.kind == "max_pool" or plan.inhibition is not None or bool(plan.skips)


def emitted_words(words: Tensor, plan: LayerPlan) -> Tensor:
    """Of the spikes of a layer those that leave it."""
    return select_channels(words, plan.shape[0], 0, plan.emitted_features[0])


def inhibitory_words(words: Tensor, plan: LayerPlan) -> Tensor:
    """Of the spikes of a layer those of its inhibitory neurons."""
    return select_channels(words, plan.shape[0], plan.emitted_features[0], plan.shape[0])


class Part(NamedTuple):
    """One source of a readout with skips."""

    columns: SourceColumns
    plan: LayerPlan  # from it to the readout, of kind "current"

    @property
    def layer(self) -> int:
        """Number of the layer that emits the spikes."""
        return self.columns.layer

    def weight(self, weight: Tensor) -> Tensor:
        """Its columns of the readout's weight, (classes, n), or of several networks'."""
        return weight[..., self.columns.first : self.columns.stop]

    def kernel_plan(self, call: Call) -> Any:
        """Its plan as the kernels' own tables."""
        return kernel_plan(call.kernels, *encode((self.plan,)))


@remembered
def readout_parts(plans: tuple[LayerPlan, ...]) -> tuple[Part, ...]:
    """The sources of the last layer: the layer before it, then its skips."""
    n_classes = plans[-1].shape[0]
    parts = []
    for columns in source_columns(plans, len(plans) - 1):
        link = dense_connection(plans[columns.layer].emitted_features, n_classes)
        parts.append(Part(columns, LayerPlan("current", (n_classes,), link)))
    return tuple(parts)


def readout_current(call: Call, words: list[Tensor], weight: Tensor, bias: Tensor) -> Tensor:
    """J of a readout with skips, flat (time, batch, classes), from the words of its sources."""
    # Steps stand in for samples there, so that no launch takes several networks.
    own_words = zip(*(call.samples_of_each(source) for source in words), strict=True)
    each = zip(own_words, call.weights_of_each(weight), call.weights_of_each(bias), strict=True)
    return side_by_side([_current_of_network(call, *own) for own in each])


def _current_of_network(
    call: Call, words: Sequence[Tensor], weight: Tensor, bias: Tensor
) -> Tensor:
    total: Tensor | None = None
    for part, source in zip(readout_parts(call.shapes.plans), words, strict=True):
        own_bias = bias if total is None else None
        current = _product(call, part, source, weight, own_bias)
        total = current if total is None else total.add_(current)
    assert total is not None
    return total


def _product(call: Call, part: Part, words: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W S + b of one source."""
    link = part.plan.feedforward
    assert link is not None
    steps, batch = call.shapes.n_steps, words.shape[1]
    # Steps t, t + 1, ... of one block are k apart in time: (t, j) of (steps / k, k) as a sample j.
    together = -(-steps // STEPS_OF_A_BLOCK)
    rows = -(-steps // together)
    masks = call.empty((rows * together, batch, n_words(words.shape[2])), torch.int32)
    masks[steps:] = 0
    call.masks(words, masks)
    current = call.empty((rows * together, batch, part.plan.features[0]))
    pointers = call.kernels.ForwardLayer()
    order = packed(part.weight(weight), link.weight_shape, FORWARD_ORDER)
    pointers.weight, pointers.bias = address(order), address(bias)
    pointers.output = current.data_ptr()
    sizes = call.common() | {"n_steps": rows, "batch": together * batch}
    call.kernels.stack_forward(
        part.kernel_plan(call), (0, 1), input_masks=masks.data_ptr(), layers=[pointers],
        shared_bytes=call.shared_bytes, networks=1, shared_input=False, **sizes,
    )  # fmt: skip
    return current[:steps]
