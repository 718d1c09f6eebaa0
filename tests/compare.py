"""Replay comparison: a float64 reference whose reset and outputs use the tested spikes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlif.ops import reference, stack
from fastlif.ops.encoding import encode
from fastlif.ops.layout import StackOutputs
from fastlif.ops.plan import StackResult
from fastlif.ops.registration import flat_tensors
from fastlif.spikes import PackedSpikes

from .cases import Stack, layer_tensors, named_leaves
from .targets import BY_NAME, Target


def relative(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of `b`."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-30))


@dataclass
class Comparison:
    """What a replay comparison found."""

    wrong_spikes: int  # that differ although |U - threshold| > 1e-5
    output_error: float  # relative, over outputs, counts and final states
    gradient_errors: dict[str, float]
    firing: list[float]  # mean spikes per neuron and step of every spiking layer

    @property
    def worst(self) -> tuple[float, str]:
        """The largest gradient error and whose it is."""
        name = max(self.gradient_errors, key=self.gradient_errors.__getitem__)
        return self.gradient_errors[name], name


def loss(result: StackResult) -> Tensor:
    """A random linear function of everything a stack returns."""
    generator = torch.Generator().manual_seed(3)
    states = [tensor for state in result.states for tensor in state if tensor is not None]
    total = torch.zeros((), dtype=torch.float64)
    for tensor in (result.output, *result.spike_counts, *states):
        weights = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        total = total + (tensor.double() * weights.to(tensor.device)).sum().cpu()
    return total


def spikes_of_layers(case: Stack, input: Tensor, tensors: list, backend: str) -> list[Tensor]:
    """The spikes of every spiking layer, inhibitory neurons included, in float64 on the CPU."""
    flat = [t.detach() for layer in tensors for t in flat_tensors(layer, input)]
    options = (*encode(case.plans), tuple(input.shape), input.dtype, True, backend)
    outputs = StackOutputs.grouped(torch.ops.fastlif.stack_forward(input, flat, *options, True))
    return [
        PackedSpikes(layer.words, len(input), plan.features).unpack(input.dtype).double().cpu()
        for layer, plan in zip(outputs.layers, case.plans, strict=True)
        if plan.kind == "lif"
    ]


def replay(
    case: Stack,
    dtype: torch.dtype,
    *,
    exact: bool = False,
    state: bool = True,
    target: Target = BY_NAME["cpu"],
) -> Comparison:
    """Run a case on a backend and on the float64 reference that replays its spikes."""
    tensors = layer_tensors(case, dtype, dtype, state=state, device=target.device)
    input = case.input.to(target.device, dtype, copy=True).requires_grad_()
    result = stack(input, case.plans, tensors, exact_membrane=exact, backend=target.backend)
    spikes = spikes_of_layers(case, input.detach(), tensors, target.backend)

    wide_tensors = layer_tensors(case, torch.float64, dtype, state=state)
    wide_input = case.input.to(dtype).double().clone().requires_grad_()
    trace = reference.stack_trace(wide_input, case.plans, wide_tensors, replay_spikes=spikes)
    wrong = 0
    spiking = [p for p in case.plans if p.kind == "lif"]
    for plan, membrane, emitted in zip(spiking, trace.membranes, spikes, strict=False):
        away = (membrane - plan.threshold).abs() > 1e-5
        wrong += int((((membrane > plan.threshold) != emitted.bool()) & away).sum())
    loss(result).backward()
    loss(trace.result).backward()
    leaves, wide_leaves = named_leaves(tensors), named_leaves(wide_tensors)
    errors = {"input": relative(input.grad, wide_input.grad)}
    errors |= {name: relative(leaves[name].grad, wide_leaves[name].grad) for name in leaves}
    pairs = [(result.output, trace.result.output)]
    pairs += list(zip(result.spike_counts, trace.result.spike_counts, strict=True))
    for ours, theirs in zip(result.states, trace.result.states, strict=True):
        pairs += [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    output_error = max(relative(a.detach(), b.detach()) for a, b in pairs)
    return Comparison(wrong, output_error, errors, [float(s.mean()) for s in spikes])
