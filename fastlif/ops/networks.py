"""Stacks of several networks: their parts, and how an engine for one network runs several.

Parameters have a leading dimension of networks. Samples lie one network behind the other in the
batch: sample s of N belongs to network s // (N / networks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastlif.ops.encoding import encode
from fastlif.ops.layout import (
    FIRST_STATE,
    TENSORS_PER_LAYER,
    LayerOutputs,
    Saved,
    StackOutputs,
    StackShapes,
)
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState
from fastlif.ops.remember import remembered


@remembered
def of_one_network(plans: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """What each of the networks computes by itself."""
    return tuple(replace(plan, networks=1, shared_input=False) for plan in plans)


@remembered
def of_networks(plan: LayerPlan, networks: int, shared_input: bool) -> LayerPlan:
    """A layer of several networks, from that of one."""
    return replace(plan, networks=networks, shared_input=shared_input)


def tensors_of_network(tensors: LayerTensors, network: int, networks: int) -> LayerTensors:
    """Parameters and state of one of the networks, views of a layer's."""
    state = tensors.state
    if state is not None:
        state = LIFState(*(t if t is None else t.chunk(networks)[network] for t in state))
    own = {name: t if t is None else t[network] for name, t in tensors._asdict().items()}
    return LayerTensors(**(own | {"state": state}))


def forward_of(run: Callable[..., StackOutputs]) -> Callable[..., StackOutputs]:
    """An engine's forward pass for several networks, one after the other.

    Each gives what it gives alone, unless dense input is binary for some of the networks only: it
    then counts as numbers for all of them in the backward pass.
    """

    def forward(
        input: Tensor,
        tensors: Sequence[Tensor],
        shapes: StackShapes,
        *,
        exact: bool,
        keep: bool,
    ) -> StackOutputs:
        parts = _Parts(shapes)
        results = [
            run(
                parts.of_input(input, network),
                parts.of_tensors(tensors, network),
                parts.shapes,
                exact=exact,
                keep=keep,
            )
            for network in range(shapes.networks)
        ]
        words = [result.input_words for result in results]
        return StackOutputs(
            _joined([result.output for result in results], parts.output_dim),
            _joined([result.best_step for result in results], 0),
            words[0] if shapes.shares_input else _joined(words, 1),
            torch.stack([result.is_binary for result in results]).all(0),
            [
                LayerOutputs(
                    _joined([own.kept for own in layer], parts.kept_dim),
                    _joined([own.words for own in layer], 1),
                    *(_joined(own, 0) for own in list(zip(*layer, strict=True))[2:]),
                )
                for layer in zip(*(result.layers for result in results), strict=True)
            ],
        )

    return forward


def backward_of(run: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """An engine's backward pass for several networks, one after the other."""

    def backward(
        grad_output: Tensor,
        grad_layers: Sequence[Tensor],
        input: Tensor,
        tensors: Sequence[Tensor],
        saved: Saved,
        shapes: StackShapes,
        *,
        exact: bool,
        needs: Sequence[bool],
    ) -> list[Tensor]:
        parts = _Parts(shapes)
        results = [
            run(
                parts.of(grad_output, parts.output_dim, network),
                [parts.of(grad, 0, network) for grad in grad_layers],
                parts.of_input(input, network),
                parts.of_tensors(tensors, network),
                parts.of_saved(saved, network),
                parts.shapes,
                exact=exact,
                needs=needs,
            )
            for network in range(shapes.networks)
        ]
        inputs, *own = (list(grads) for grads in zip(*results, strict=True))
        if shapes.shares_input:
            grad_input = torch.stack(inputs).sum(0)
        else:
            grad_input = _joined(inputs, 1)
        grads = []
        for index, group in enumerate(own):
            is_state = index % TENSORS_PER_LAYER >= FIRST_STATE
            absent = not needs[1 + index]
            grads.append(_joined(group, 0) if is_state or absent else torch.stack(group))
        return [grad_input, *grads]

    return backward


class _Parts:
    """What belongs to one network of the tensors of a call."""

    def __init__(self, shapes: StackShapes) -> None:
        self._networks = shapes.networks
        self._shares_input = shapes.shares_input
        batch = shapes.batch // shapes.networks
        self.shapes = StackShapes(
            *encode(of_one_network(shapes.plans)),
            shapes.n_steps,
            batch,
            (shapes.n_steps, batch, *shapes.input[2:]),
            shapes.dtype,
            shapes.steps_outermost,
        )
        self.output_dim = 0 if shapes.plans[-1].kind == "readout_max" else 1
        self.kept_dim = 1 if shapes.steps_outermost else 0

    def of(self, tensor: Tensor, dim: int, network: int) -> Tensor:
        """A network's samples; an empty tensor stands for an absent one."""
        if tensor.numel() == 0:
            return tensor
        return tensor.chunk(self._networks, dim)[network].contiguous()

    def of_input(self, input: Tensor, network: int) -> Tensor:
        """Input or its words."""
        return input if self._shares_input else self.of(input, 1, network)

    def of_tensors(self, tensors: Sequence[Tensor], network: int) -> list[Tensor]:
        """Parameters and initial states."""
        return [
            self.of(tensor, 0, network)
            if index % TENSORS_PER_LAYER >= FIRST_STATE or tensor.numel() == 0
            else tensor[network]
            for index, tensor in enumerate(tensors)
        ]

    def of_saved(self, saved: Saved, network: int) -> Saved:
        """What the forward pass of a network kept."""
        return Saved(
            self.of(saved.best_step, 0, network),
            self.of_input(saved.input_words, network),
            saved.is_binary,
            [self.of(kept, self.kept_dim, network) for kept in saved.kept],
            [self.of(words, 1, network) for words in saved.words],
        )


def _joined(parts: Sequence[Any], dim: int) -> Tensor:
    """The networks' samples side by side."""
    return torch.cat(list(parts), dim) if parts[0].numel() else parts[0]
