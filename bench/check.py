"""Correctness before timing: no case prints a time unless this passes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import Case
from bench.loop import LoopNetwork
from fastlif import PackedSpikes, Sequential
from fastlif.layers import StackLayer
from fastlif.ops import LayerPlan, LayerTensors
from fastlif.ops.reference import stack
from tests.cases import Stack
from tests.compare import relative, replay

SAMPLES, STEPS = 3, 100
OUTPUT_TOLERANCE = 1e-4  # relative, in norm
GRADIENT_TOLERANCE = 1e-3  # membranes are kept in 16 bits
LOOP_TOLERANCE = 1e-9  # both sides in float64


class CheckFailed(Exception):
    """fastlif and the reference, or the loop and the reference, disagree."""


@dataclass(frozen=True)
class CheckResult:
    """Errors found on a slice of the case."""

    samples: int
    steps: int
    wrong_spikes: int  # that differ although |U - threshold| > 1e-5
    output_error: float
    gradient_error: float  # the worst
    gradient_name: str
    loop_error: float  # of the plain loop's scores and weight gradients


def network_plans(model: Sequential, input: PackedSpikes) -> tuple[LayerPlan, ...]:
    """What each layer of a network computes."""
    plans, features = [], input.features
    for layer in model:
        plans.append(layer.plan(features, input.n_steps))
        features = plans[-1].emitted_features
    return tuple(plans)


def network_tensors(model: Sequential, batch: int | None = None) -> tuple[LayerTensors, ...]:
    """Parameters of each layer, and for a batch the states it starts from; a pool has neither."""
    tensors = []
    for layer in model:
        if not isinstance(layer, StackLayer):
            tensors.append(LayerTensors())
        else:
            state = None if batch is None else layer.initial_state(batch)
            tensors.append(layer.tensors(state))
    return tuple(tensors)


def check(case: Case, model: Sequential, input: PackedSpikes) -> CheckResult:
    """Compare fastlif (float32, replayed spikes) and the loop (float64) with the reference.

    Raises CheckFailed when one of them is off.
    """
    spikes = input[:SAMPLES].unpack(torch.float64)[:STEPS]
    plans = network_plans(model, input)
    parameters = network_tensors(model)
    comparison = replay(Stack(plans, parameters, spikes), torch.float32, state=False)
    gradient_error, gradient_name = comparison.worst
    result = CheckResult(
        samples=spikes.shape[1],
        steps=spikes.shape[0],
        wrong_spikes=comparison.wrong_spikes,
        output_error=comparison.output_error,
        gradient_error=gradient_error,
        gradient_name=gradient_name,
        loop_error=_loop_error(model, plans, spikes),
    )
    quiet = min(comparison.firing)
    if (
        result.wrong_spikes
        or not result.output_error < OUTPUT_TOLERANCE
        or not result.gradient_error < GRADIENT_TOLERANCE
        or not result.loop_error < LOOP_TOLERANCE
        or not 0.005 < quiet < 0.5
    ):
        raise CheckFailed(f"case {case.name!r} is not timed: {result}, lowest firing {quiet:.4f}")
    return result


def _loop_error(model: Sequential, plans: tuple[LayerPlan, ...], spikes: Tensor) -> float:
    """Largest relative error of the loop's scores, spike counts and weight gradients."""
    ours, theirs = (copy.deepcopy(model).double() for _ in range(2))
    scores, counts = LoopNetwork(ours)(spikes)
    tensors = network_tensors(theirs, spikes.shape[1])
    expected = stack(spikes, plans, tensors)
    pairs = [(scores, expected.output), *zip(counts, expected.spike_counts, strict=True)]
    gradients = []
    for network, output, spike_counts in (
        (ours, scores, counts),
        (theirs, expected.output, expected.spike_counts),
    ):
        loss = output.square().sum() + sum(count.square().mean() for count in spike_counts)
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
    pairs += zip(*gradients, strict=True)
    return max(relative(a.detach(), b.detach()) for a, b in pairs)
