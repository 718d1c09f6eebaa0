"""Spikes and membranes of every neuron at every step, from the kernels.

They are what the forward pass keeps for the backward pass, so that looking costs no more than
training does, and far less than the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastlif.ops import autocast, reference
from fastlif.ops.checks import check_inputs
from fastlif.ops.encoding import encode
from fastlif.ops.engines import AUTO, steps_outermost
from fastlif.ops.layout import StackOutputs
from fastlif.ops.plan import LayerPlan, LayerTensors
from fastlif.ops.registration import flat_tensors, tensor_dtype
from fastlif.spikes import PackedSpikes


class Observation(NamedTuple):
    """What the neurons of one "lif" layer did, inhibitory ones included."""

    spikes: Tensor  # S[0 .. T-1], (time, batch, *features)
    membrane: Tensor  # U[0 .. T-1], (time, batch, *features)


@torch.no_grad()
def observe(
    input: Tensor | PackedSpikes,  # (time, batch, *features)
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    *,
    backend: str | None = None,
) -> list[Observation]:
    """Run a stack as `fastlif.ops.stack` does, and return one Observation per "lif" layer.

    Nothing is differentiated. Raises as `stack`.
    """
    input = check_inputs(autocast.promoted(input, tensors), plans, tensors, backend)
    dtype = tensor_dtype(input, tensors)
    with autocast.off(input.device):
        if backend == "reference":
            dense = input.unpack(dtype) if isinstance(input, PackedSpikes) else input
            trace = reference.stack_trace(dense, plans, tensors)
            spiking = [plan.kind == "lif" for plan in plans if plan.kind not in _WITHOUT_MEMBRANE]
            membranes = [u for u, is_lif in zip(trace.membranes, spiking, strict=True) if is_lif]
            return [Observation(*pair) for pair in zip(trace.spikes, membranes, strict=True)]
        flat_input = input.words if isinstance(input, PackedSpikes) else input
        flat = [t.detach() for layer in tensors for t in flat_tensors(layer, flat_input)]
        # With a differentiated reset the kernels keep U as it would be without the last reset.
        plans = [replace(plan, detach_reset=True) for plan in plans]
        options = (*encode(plans), tuple(input.shape), dtype, True, backend or AUTO)
        result = torch.ops.fastlif.stack_forward(flat_input.detach(), flat, *options, True)
        outermost = steps_outermost(backend or AUTO, input.device)
        n_steps = input.shape[0]
        found = []
        for layer, plan in zip(StackOutputs.grouped(result).layers, plans, strict=True):
            if plan.kind == "lif":
                spikes = PackedSpikes(layer.words, n_steps, plan.features).unpack(dtype)
                kept = layer.kept if outermost else layer.kept.transpose(0, 1)
                membrane = _channels_first(kept, plan) + plan.threshold
                found.append(Observation(spikes, membrane))
        return found


_WITHOUT_MEMBRANE = ("current", "max_pool")  # kinds that the reference has no trace of


def _channels_first(values: Tensor, plan: LayerPlan) -> Tensor:
    """(time, batch, N channels last) as (time, batch, *features)."""
    channels, *rest = plan.features
    if not rest:
        return values
    return values.unflatten(2, (*rest, channels)).movedim(-1, 2)
