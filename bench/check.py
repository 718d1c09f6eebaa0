"""Correctness before timing: no side of a case prints a time unless this passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import DT, Case
from bench.opponents import Opponent
from bench.opponents.rule import Rule, trace
from fastlif import PackedSpikes, Sequential
from fastlif.layers import StackLayer
from fastlif.ops import LayerPlan, LayerTensors
from fastlif.ops.reference import stack, stack_trace
from tests.cases import Stack
from tests.compare import relative, replay

SAMPLES = 3
OUTPUT_TOLERANCE = 1e-4  # relative, in norm
GRADIENT_TOLERANCE = 1e-3  # fastlif keeps membranes in 16 bits
LOOP_TOLERANCE = 1e-9  # both sides in float64
THRESHOLD_TOLERANCE = 1e-5
LOWEST_FIRING = 0.25  # of the wanted rate: layers are silent at first
# Between firing rates of other equations and of fastlif's. In deep networks small differences grow;
# the time that opponents take does not depend on how many spikes there are.
RATE_FACTOR = 10.0


class CheckFailed(Exception):
    """A side and the reference disagree."""


@dataclass(frozen=True)
class CheckResult:
    """Errors of fastlif on a slice of the case."""

    samples: int
    steps: int
    wrong_spikes: int  # that differ although |U - threshold| > 1e-5
    output_error: float
    gradient_error: float  # the worst
    gradient_name: str


@dataclass(frozen=True)
class OpponentCheck:
    """What was compared of an opponent on the same slice, with which result."""

    against: str  # in words
    wrong_spikes: int | None = None  # that differ although |U - threshold| > 1e-5
    output_error: float | None = None  # relative, of scores
    gradient_error: float | None = None  # the worst, of the input and all parameters
    firing_ratios: list[float] | None = None  # of spikes over fastlif's, every spiking layer


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
    """Compare fastlif (float32) with the float64 reference that replays its spikes.

    Raises CheckFailed when it is off.
    """
    spikes = check_slice(case, input, torch.float64)
    plans = network_plans(model, input)
    comparison = replay(Stack(plans, network_tensors(model), spikes), torch.float32, state=False)
    gradient_error, gradient_name = comparison.worst
    result = CheckResult(
        samples=spikes.shape[1],
        steps=spikes.shape[0],
        wrong_spikes=comparison.wrong_spikes,
        output_error=comparison.output_error,
        gradient_error=gradient_error,
        gradient_name=gradient_name,
    )
    quiet = min(comparison.firing)
    if (
        result.wrong_spikes
        or not result.output_error < OUTPUT_TOLERANCE
        or not result.gradient_error < GRADIENT_TOLERANCE
        or not LOWEST_FIRING * case.target_rate * DT < quiet < 0.5
    ):
        raise CheckFailed(f"case {case.name!r} is not timed: {result}, lowest firing {quiet:.4f}")
    return result


def check_slice(case: Case, input: PackedSpikes, dtype: torch.dtype) -> Tensor:
    """The spikes that checks run on."""
    return input[:SAMPLES].unpack(dtype)[: case.check_steps]


def check_opponent(
    case: Case, opponent: Opponent, model: Sequential, input: PackedSpikes
) -> OpponentCheck:
    """Compare an opponent with the reference, or with what it is said to compute instead.

    The plain loop runs free in float64. Others run in float32 and a float64 reference replays
    their spikes: fastlif's where they compute the same, else the opponent's own `rule`, and then
    their firing rates must be like fastlif's. Of what is no neuron (`rule` None) finite numbers,
    shapes and gradients are checked. Raises CheckFailed.
    """
    spikes = check_slice(case, input, torch.float32)
    plans = network_plans(model, input)
    if opponent.name == "loop":
        result = _check_exactly(opponent, model, plans, spikes)
    elif opponent.rule is None:
        result = _check_shapes(opponent, model, plans, spikes)
    else:
        result = _check_by_replay(opponent, opponent.rule, model, plans, spikes)
    exact = opponent.name == "loop"
    limits = (
        (result.output_error, LOOP_TOLERANCE if exact else OUTPUT_TOLERANCE),
        (result.gradient_error, LOOP_TOLERANCE if exact else GRADIENT_TOLERANCE),
    )
    ratios = result.firing_ratios or []
    if (
        result.wrong_spikes
        or any(number is not None and not number < limit for number, limit in limits)
        or any(not 1 / RATE_FACTOR < ratio < RATE_FACTOR for ratio in ratios)
    ):
        raise CheckFailed(f"{opponent.name} is not timed on case {case.name!r}: {result}")
    return result


def _check_exactly(
    opponent: Opponent, model: Sequential, plans: Sequence[LayerPlan], spikes: Tensor
) -> OpponentCheck:
    """Scores, spike counts and gradients in float64 beside the reference's, neither replayed."""
    spikes = spikes.double().requires_grad_()
    ours, theirs = opponent.build(model).double(), copy.deepcopy(model).double()
    scores, counts = ours(spikes)
    expected = stack(spikes, plans, network_tensors(theirs, spikes.shape[1]))
    pairs = [(scores, expected.output), *zip(counts, expected.spike_counts, strict=True)]
    output_error = max(relative(a.detach(), b.detach()) for a, b in pairs)
    gradients = [
        torch.autograd.grad(
            _scalar(output, spike_counts),
            [spikes, *(p for _, p in sorted(network.named_parameters()))],
        )
        for network, output, spike_counts in (
            (ours.layers, scores, counts),
            (_indexed(theirs), expected.output, expected.spike_counts),
        )
    ]
    return OpponentCheck(
        against="the reference, both in float64",
        output_error=output_error,
        gradient_error=max(relative(a, b) for a, b in zip(*gradients, strict=True)),
    )


def _check_by_replay(
    opponent: Opponent,
    rule: Rule,
    model: Sequential,
    plans: Sequence[LayerPlan],
    spikes: Tensor,
) -> OpponentCheck:
    network = opponent.build(model)
    spikes = spikes.clone().requires_grad_()
    wide_spikes = spikes.detach().double().requires_grad_()
    emitted = network.emitted(spikes)
    n_spiking = sum(plan.kind == "lif" for plan in plans)
    given = [s.detach().double() for s in emitted[:n_spiking]]
    wide = _indexed(copy.deepcopy(model).double())
    tensors = network_tensors(wide, spikes.shape[1])
    output, counts, membranes = _expected(rule, plans, tensors, wide_spikes, given)
    wrong = 0
    spiking = [plan for plan in plans if plan.kind == "lif"]
    for plan, membrane, own in zip(spiking, membranes, given, strict=False):
        away = (membrane - plan.threshold).abs() > THRESHOLD_TOLERANCE
        wrong += int((((membrane > plan.threshold) != own.bool()) & away).sum())
    theirs = dict(network.named_parameters())
    names = [name for name, _ in wide.named_parameters()]
    ours = [theirs[f"layers.{name}"] for name in names]
    scales = getattr(network, "scales", {})
    own_counts = [s.sum(0) for s in emitted[:n_spiking]]
    gradients = torch.autograd.grad(_scalar(emitted[-1], own_counts), [spikes, *ours])
    wanted = torch.autograd.grad(_scalar(output, counts), [wide_spikes, *wide.parameters()])
    errors = [
        relative(gradient * scales.get(f"layers.{name}", 1.0), other)
        for name, gradient, other in zip(["input", *names], gradients, wanted, strict=True)
    ]
    firing = None
    if not rule.is_fastlif:
        with torch.no_grad():
            reference = stack(wide_spikes, plans, tensors).spike_counts
        firing = [
            float(s.sum()) / max(1.0, float(count.sum()))
            for s, count in zip(given, reference, strict=True)
        ]
    same = "the reference" if rule.is_fastlif else "the reference changed as the difference says"
    return OpponentCheck(
        against=f"{same}, float64 with its spikes replayed",
        wrong_spikes=wrong,
        output_error=relative(emitted[-1].detach(), output.detach()),
        gradient_error=max(errors),
        firing_ratios=firing,
    )


def _expected(
    rule: Rule,
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    spikes: Tensor,
    replayed: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Output, spike counts and membranes of the reference, or of a rule that is not fastlif's."""
    if rule.is_fastlif:
        found = stack_trace(spikes, plans, tensors, replay_spikes=replayed)
        return found.result.output, found.result.spike_counts, found.membranes
    changed = trace(rule, plans, tensors, spikes, replayed)
    counts = [s.sum(0) for s in changed.emitted[: len(replayed)]]
    return changed.emitted[-1], counts, changed.membranes


def _check_shapes(
    opponent: Opponent, model: Sequential, plans: Sequence[LayerPlan], spikes: Tensor
) -> OpponentCheck:
    network = opponent.build(model)
    scores, counts = network(spikes)
    expected = [(spikes.shape[1], *plan.features) for plan in plans if plan.kind == "lif"]
    loss = _scalar(scores, counts)
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    if (
        not bool(loss.isfinite())
        or [tuple(count.shape) for count in counts] != expected
        or any(g is None or not bool(g.isfinite().all()) or not bool(g.any()) for g in gradients)
    ):
        raise CheckFailed(f"{opponent.name} is not timed: its loss, shapes or gradients are wrong")
    return OpponentCheck(against="finite loss, shapes, a gradient for every parameter")


def _scalar(output: Tensor, counts: Sequence[Tensor]) -> Tensor:
    """A function of all that a network returns in which every spike has a weight of its own."""
    total = output.new_zeros(())
    generator = torch.Generator().manual_seed(3)
    for tensor in (output, *counts):
        weights = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
        total = total + (tensor * weights.to(tensor)).sum() / tensor.shape[-1]
    return total


def _indexed(model: Sequential) -> Sequential:
    """The same layers, named by their numbers as an opponent's are."""
    return Sequential(*model)
