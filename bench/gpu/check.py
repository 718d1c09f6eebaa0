"""Correctness on the device before timing: no time is given for a result that failed here.

A small batch is compared with the float64 reference that replays its spikes, forward and every
gradient. Then the whole batch: its first samples must be the small batch's, bit for bit, and where
the CPU kernels give the same scores and spike counts bit for bit, gradients must be close to
theirs. Where they do not, a rounding at the threshold has changed all that follows, and the report
says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.check import OUTPUT_TOLERANCE, SAMPLES, CheckFailed, network_plans, network_tensors
from fastlif import PackedSpikes, Sequential, extension
from fastlif.ops import LayerTensors, LIFState, StackResult, reference, stack
from tests.cases import Stack, layer_tensors, named_leaves
from tests.compare import loss, relative

GRADIENT_TOLERANCE = 1e-3  # membranes are kept in 16 bits
TF32_TOLERANCE = 1e-2  # a mantissa of 10 bits in the products of the backward pass
BATCH_TOLERANCE = 1e-3  # sums in another order; the spikes are equal


@dataclass(frozen=True)
class DeviceCheck:
    """Errors found on a backend."""

    samples: int
    steps: int
    wrong_spikes: int  # that differ although |U - threshold| > 1e-5
    output_error: float
    gradient_error: float  # the worst
    gradient_name: str
    lowest_firing: float  # spikes per neuron and step of the quietest layer
    # Of the whole batch; None where it was not compared.
    batch_matches_samples: bool | None = None
    bitwise_as_cpu: bool | None = None
    cpu_gradient_error: float | None = None  # only where the scores are bitwise the same


def check_stack(
    case: Stack,  # on the CPU, float64 or float32
    *,
    backend: str | None,
    device: torch.device,
    packed: bool,
    tolerance: float = GRADIENT_TOLERANCE,
) -> DeviceCheck:
    """Compare a stack on a device with the reference, its spikes replayed.

    `packed` gives it the input as PackedSpikes, whose gradient then is not looked at. Raises
    CheckFailed.
    """
    leaves = layer_tensors(case, torch.float32, torch.float32, state=False)
    moved = [_to(tensors, device) for tensors in leaves]
    input = case.input.to(torch.float32).clone().requires_grad_(not packed)
    given: Tensor | PackedSpikes = input.to(device)
    if packed:
        given = PackedSpikes.pack(input).to(device)
    result = _to_cpu(stack(given, case.plans, moved, backend=backend))
    spikes = []
    with torch.no_grad():
        for end, plan in enumerate(case.plans, start=1):
            if plan.kind == "lif":
                part = stack(given, case.plans[:end], moved[:end], backend=backend)
                spikes.append(part.output.cpu())

    wide = layer_tensors(case, torch.float64, torch.float32, state=False)
    wide_input = input.detach().double().requires_grad_(not packed)
    trace = reference.stack_trace(
        wide_input, case.plans, wide, replay_spikes=[emitted.double() for emitted in spikes]
    )
    wrong = 0
    spiking = [plan for plan in case.plans if plan.kind == "lif"]
    for plan, membrane, emitted in zip(spiking, trace.membranes, spikes, strict=False):
        away = (membrane - plan.threshold).abs() > 1e-5
        wrong += int((((membrane > plan.threshold) != emitted.bool()) & away).sum())
    pairs = [(result.output, trace.result.output)]
    pairs += list(zip(result.spike_counts, trace.result.spike_counts, strict=True))
    for ours, theirs in zip(result.states, trace.result.states, strict=True):
        pairs += [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None]
    loss(result).backward()
    loss(trace.result).backward()
    ours, theirs = named_leaves(leaves), named_leaves(wide)
    errors = {name: relative(ours[name].grad, theirs[name].grad) for name in ours}
    if not packed:
        errors["input"] = relative(input.grad, wide_input.grad)
    name = max(errors, key=errors.__getitem__)
    found = DeviceCheck(
        samples=case.input.shape[1],
        steps=case.input.shape[0],
        wrong_spikes=wrong,
        output_error=max(relative(a.detach(), b.detach()) for a, b in pairs),
        gradient_error=errors[name],
        gradient_name=name,
        lowest_firing=min(float(emitted.mean()) for emitted in spikes),
    )
    if (
        found.wrong_spikes
        or not found.output_error < OUTPUT_TOLERANCE
        or not all(error < tolerance for error in errors.values())
        or not 0.002 < found.lowest_firing < 0.5
    ):
        raise CheckFailed(f"backend {backend!r} is not timed: {found}")
    return found


def check_network(
    model: Sequential,  # on the device
    cpu_model: Sequential,  # the same network on the CPU
    input: PackedSpikes,  # on the CPU
    *,
    steps: int,
    backend: str | None,
    device: torch.device,
    tolerance: float = GRADIENT_TOLERANCE,
) -> DeviceCheck:
    """`check_stack` on a part of the input, then the whole batch. Raises CheckFailed."""
    part = input[:SAMPLES].unpack(torch.float32)[:steps]
    parameters = network_tensors(cpu_model)
    case = Stack(network_plans(cpu_model, input), parameters, part)
    found = check_stack(case, backend=backend, device=device, packed=True, tolerance=tolerance)

    score, counts, gradients = _run(model, input.to(device))
    few, few_counts, _ = _run(model, input[:SAMPLES].to(device))
    matches = torch.equal(score[: len(few)], few) and all(
        torch.equal(a[: len(few)], b) for a, b in zip(counts, few_counts, strict=True)
    )
    bitwise = error = None
    if extension.is_available():
        cpu_score, cpu_counts, cpu_gradients = _run(cpu_model, input)
        bitwise = torch.equal(score, cpu_score) and all(
            torch.equal(a, b) for a, b in zip(counts, cpu_counts, strict=True)
        )
        if bitwise:
            error = max(relative(a, b) for a, b in zip(gradients, cpu_gradients, strict=True))
    allowed = BATCH_TOLERANCE if tolerance == GRADIENT_TOLERANCE else tolerance
    # The Triton kernels do not promise that the batch leaves the order of sums alone.
    promised = matches or backend == "triton"
    if not promised or (error is not None and not error < allowed):
        raise CheckFailed(
            f"backend {backend!r} is not timed: the first samples of the whole batch "
            f"{'are' if matches else 'are not'} those of a small one, gradients of the whole "
            f"batch differ from the CPU's by {error}"
        )
    return replace(
        found, batch_matches_samples=matches, bitwise_as_cpu=bitwise, cpu_gradient_error=error
    )


def _run(model: Sequential, input: PackedSpikes) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Scores, spike counts and gradients of all parameters, on the CPU."""
    scores, _, counts = model(input, return_spike_counts=True)
    value = scores.square().sum() + sum(count.square().mean() for count in counts)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return scores.detach().cpu(), [c.detach().cpu() for c in counts], [g.cpu() for g in gradients]


def _to(tensors: LayerTensors, device: torch.device) -> LayerTensors:
    """On the device, with gradients flowing back to the given ones."""
    weights = tensors._replace(state=None)
    return LayerTensors(*(None if t is None else t.to(device) for t in weights))


def _to_cpu(result: StackResult) -> StackResult:
    return StackResult(
        result.output.cpu(),
        tuple(count.cpu() for count in result.spike_counts),
        tuple(
            LIFState(*(None if t is None else t.cpu() for t in state)) for state in result.states
        ),
    )
