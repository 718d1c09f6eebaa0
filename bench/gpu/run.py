"""One case on one backend, from check to result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bench.cases import DT
from bench.check import SAMPLES, CheckFailed, network_plans
from bench.floors import (
    BACKWARD_OPERATIONS,
    FORWARD_OPERATIONS,
    KEPT_BYTES,
    Peak,
    Work,
    count_work,
)
from bench.gpu.cases import LayerCase, StepCase, firing
from bench.gpu.check import GRADIENT_TOLERANCE, TF32_TOLERANCE, check_network, check_stack
from bench.gpu.loop import DeviceLoop, check_loop
from bench.gpu.measure import (
    DeviceTrainer,
    cache_flusher,
    kernel_times,
    peak_memory,
    time_runs,
)
from bench.gpu.model import Estimate, predict_step
from bench.measure import Forward, Spread, StepSpread, fused_forward
from bench.networks import build_network, firing_rates, poisson_input
from fastlif import PackedSpikes, Sequential
from fastlif.ops import LayerTensors, stack

LOOP = "loop"  # the plain PyTorch loop, in place of a backend
TF32 = "-tf32"  # behind the name of a backend: products of the backward pass in TF32
LOOP_REPEATS = 5
SEEDED_SAMPLES = 16  # a layer's input repeats after so many samples


@dataclass(frozen=True)
class Prepared:
    """What all backends of a step case are given, on the CPU."""

    case: StepCase
    input: PackedSpikes
    weights: dict[str, Tensor]
    sigma_u: list[float]


@dataclass
class GpuResult:
    """Everything that is reported of a case on a backend; times in seconds."""

    case: str
    variant: str
    description: str
    check: dict[str, Any]
    densities: list[float]  # spikes per neuron and step: the input (0 for a current), then layers
    times: dict[str, Spread]  # by quantity
    goals: dict[str, float] = field(default_factory=dict)
    floors: dict[str, float] = field(default_factory=dict)
    predictions: dict[str, float] = field(default_factory=dict)
    kernels: list[dict[str, Any]] = field(default_factory=list)  # of one run, by the profiler
    predicted_kernels: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)  # shares, bytes
    limits: dict[str, float] = field(default_factory=dict)  # goals of numbers that should be low
    notes: list[str] = field(default_factory=list)


@contextmanager
def precision_of(variant: str) -> Iterator[float]:
    """PyTorch's setting for float32 products by the variant's name; the tolerance of gradients."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if variant.endswith(TF32) else "highest")
    try:
        yield GRADIENT_TOLERANCE if not variant.endswith(TF32) else TF32_TOLERANCE
    finally:
        torch.set_float32_matmul_precision(before)


def backend_of(variant: str, device: torch.device) -> str | None:
    """The `backend` argument; None rehearses the CPU kernels."""
    name = variant.removesuffix(TF32)
    return None if device.type == "cpu" and name == "cpu" else name


def prepare(case: StepCase) -> Prepared:
    """Input and weights with which every layer fires near 10 Hz."""
    input = poisson_input(case.case)
    model, sigma_u = build_network(case.case, input, case.tuning_samples)
    return Prepared(case, input, dict(model.state_dict()), sigma_u)


def build_trainer(
    prepared: Prepared, backend: str | None, device: torch.device
) -> tuple[DeviceTrainer, PackedSpikes]:
    """A trainer of the prepared network on a device, and its input there."""
    model = prepared.case.case.build(backend=backend, device=device)
    model.load_state_dict(prepared.weights)
    return _trainer(prepared.case, model, fused_forward(model), device), prepared.input.to(device)


def run_step(
    prepared: Prepared, variant: str, device_name: str, repeats: int, peak: Peak
) -> GpuResult:
    """Check and time a training step. Raises instead of timing what is wrong or cannot run."""
    device = torch.device(device_name)
    step, case, input = prepared.case, prepared.case.case, prepared.input
    cpu_model = case.build()
    cpu_model.load_state_dict(prepared.weights)
    if variant == LOOP:
        return _run_loop(step, cpu_model, input, device)
    backend = backend_of(variant, device)
    model = case.build(backend=backend, device=device)
    model.load_state_dict(prepared.weights)
    with precision_of(variant) as tolerance:
        check = check_network(
            model, cpu_model, input, steps=step.check_steps, backend=backend, device=device,
            tolerance=tolerance,
        )  # fmt: skip
        given = input.to(device)
        input_density = input.count() / math.prod(input.shape)
        densities = [input_density, *(rate * DT for rate in firing_rates(model, given))]
        plans = network_plans(model, input)
        trainer = _trainer(step, model, fused_forward(model), device)
        result = GpuResult(
            step.name, variant, case.describe(), dataclasses.asdict(check), densities, times={}
        )
        _add_memory(result, trainer, given, plans)
        spread = StepSpread.of(trainer.times(given, repeats))
        for part in ("forward", "backward", "optimizer", "step"):
            result.times[part] = getattr(spread, part)
        if device.type == "cuda":
            attempt(result, "graph", lambda: _add_graph(result, trainer, given, repeats))
        _add_kernels(result, lambda: trainer.whole_step(given), device)
        trainer.reset()
    tf32 = variant.endswith(TF32)
    floor = count_work(plans, densities, case.batch, case.n_steps).seconds(peak)
    estimates = predict_step(plans, densities, case.batch, case.n_steps, tf32=tf32)
    quantity = "graph step" if "graph step" in result.times else "step"
    result.floors[quantity] = floor
    if variant.removesuffix(TF32) == "cuda" and step.is_predicted:
        result.predictions[quantity] = sum(estimate.seconds for estimate in estimates)
        result.predicted_kernels = _described(estimates)
    if step.goal is not None:
        result.goals[quantity] = step.goal
    return result


def run_layer(
    case: LayerCase, variant: str, device_name: str, repeats: int, peak: Peak
) -> GpuResult:
    """Check and time one layer in both directions."""
    device = torch.device(device_name)
    backend = backend_of(variant, device)
    with precision_of(variant) as tolerance:
        samples, steps = min(SAMPLES, case.batch), min(100, case.n_steps)
        small = case.stack(batch=samples, n_steps=steps)
        check = check_stack(
            small, backend=backend, device=device, packed=False, tolerance=tolerance
        )
        distinct = min(SEEDED_SAMPLES, case.batch)
        seeded = case.stack(batch=distinct, n_steps=case.n_steps)
        rounds = math.ceil(case.batch / distinct)
        current = seeded.input.to(device).repeat(1, rounds, 1)[:, : case.batch].contiguous()
        current.requires_grad_()
        weight = seeded.parameters[0].recurrent_weight
        own = None if weight is None else weight.to(device).requires_grad_()
        tensors = [LayerTensors(recurrent_weight=own)]

        def forward() -> Tensor:
            return stack(current, seeded.plans, tensors, backend=backend).output

        spikes = forward()
        repeated = spikes[:, distinct : 2 * distinct]
        if not torch.equal(spikes[:, : repeated.shape[1]], repeated):
            raise CheckFailed(f"variant {variant!r}: equal samples of a batch differ")
        gradient = torch.randn(spikes.shape, device=device) / case.neurons
        leaves = [current] if own is None else [current, own]

        def backward() -> object:
            return torch.autograd.grad(spikes, leaves, gradient, retain_graph=True)

        flush = cache_flusher(device)
        result = GpuResult(
            case.name,
            variant,
            f"{case.neurons} neurons, batch {case.batch}, {case.n_steps} steps",
            dataclasses.asdict(check),
            [0.0, firing(spikes)],
            times={
                "forward": Spread.of(time_runs(forward, device, repeats, before=flush)),
                "backward": Spread.of(time_runs(backward, device, repeats, before=flush)),
            },
        )
        _add_kernels(result, lambda: (forward(), backward()), device)
    _add_layer_numbers(result, case, peak)
    return result


def _add_layer_numbers(result: GpuResult, case: LayerCase, peak: Peak) -> None:
    """Shares of the copy bandwidth for a scan, time per step for a recurrent layer."""
    backend, tf32 = result.variant.removesuffix(TF32), result.variant.endswith(TF32)
    predictions = case.predictions(result.densities[1], backend, tf32)
    predicted = backend in ("cuda", "triton")
    for part, estimates in predictions.items() if predicted else ():
        result.predicted_kernels += _described(estimates)
        result.predictions[part] = sum(estimate.seconds for estimate in estimates)
    work = case.batch * case.n_steps * case.neurons
    if case.recurrent:
        both = Spread(
            *(
                sum(getattr(result.times[part], name) for part in ("forward", "backward"))
                / case.n_steps
                for name in ("median", "smallest", "largest")
            )
        )
        result.times["per step"] = both
        floor = _recurrent_work(case, result.densities[1]).seconds(peak)
        result.floors["per step"] = floor / case.n_steps
        if predicted:
            result.predictions["per step"] = sum(result.predictions.values()) / case.n_steps
        if case.goal is not None:
            result.goals["per step"] = case.goal
        return
    # The spikes that the operation hands out are floats, written after the kernel.
    moved = {"forward": 4 + KEPT_BYTES, "backward": 4 + 4 + KEPT_BYTES}
    for part, per_neuron_step in moved.items():
        n_bytes = work * per_neuron_step
        result.floors[part] = n_bytes / peak.bytes
        names = (f"scan_{part}", f"lif_{part}")  # in CUDA and in Triton
        kernel = [k for k in result.kernels if any(name in k["name"] for name in names)]
        if kernel:
            seconds = sum(k["seconds"] for k in kernel)
            result.numbers[f"{part} kernel, GB/s"] = 1e-9 * n_bytes / seconds
            result.numbers[f"{part} kernel, share of copy"] = n_bytes / seconds / peak.bytes
        operation = n_bytes + (work * (4 + 1 / 8) if part == "forward" else 0)
        share = operation / result.times[part].median / peak.bytes
        result.numbers[f"{part} operation, share of copy"] = share
        if case.goal is not None:
            result.goals[f"{part} kernel, share of copy"] = case.goal


def _recurrent_work(case: LayerCase, density: float) -> Work:
    """Least work of a recurrent layer whose current is given: `count_work` without a synapse."""
    steps = case.batch * case.n_steps
    synapses = case.neurons**2
    return Work(
        deliveries=2 * density * synapses * steps,
        dense=synapses * steps,
        neurons=case.neurons * (FORWARD_OPERATIONS + BACKWARD_OPERATIONS) * steps,
        bytes=case.neurons * (4 + 4 + 4 + 2 * KEPT_BYTES) * steps,
    )


def _trainer(
    step: StepCase,
    network: torch.nn.Module,
    forward: Forward,
    device: torch.device,
) -> DeviceTrainer:
    targets = torch.randint(
        step.case.network.n_classes,
        (step.case.batch,),
        generator=torch.Generator().manual_seed(2),
    ).to(device)
    return DeviceTrainer(forward, network, step.case.network.regularization, targets, device)


def _run_loop(
    step: StepCase, model: Sequential, input: PackedSpikes, device: torch.device
) -> GpuResult:
    """The plain loop's step; over `loop_steps` steps, scaled to all."""
    case = step.case
    error = check_loop(model, input[:SAMPLES], step.check_steps)
    on_device = case.build(device=device)
    on_device.load_state_dict(model.state_dict())
    trainer = _trainer(step, on_device, DeviceLoop(on_device), device)
    given = input.unpack()[: case.loop_steps].to(device)
    scale = case.n_steps / case.loop_steps
    times = [time.scaled(scale) for time in trainer.times(given, LOOP_REPEATS)]
    spread = StepSpread.of(times)
    result = GpuResult(
        step.name, LOOP, case.describe(), {"loop_error": error}, [],
        times={part: getattr(spread, part) for part in ("forward", "backward", "step")},
    )  # fmt: skip
    if scale != 1:
        result.notes.append(f"measured over {case.loop_steps} steps, scaled to {case.n_steps}")
    memory = peak_memory(lambda: trainer.whole_step(given), device)
    if memory is not None:
        result.numbers["peak memory, GB"] = 1e-9 * memory.peak
    return result


def _add_memory(result: GpuResult, trainer: DeviceTrainer, input: PackedSpikes, plans: Any) -> None:
    neurons = sum(math.prod(plan.features) for plan in plans if plan.kind == "lif")
    neuron_steps = neurons * input.n_steps * len(input)
    kept = trainer.kept_bytes(input)
    result.numbers["kept bytes per neuron-step"] = kept / neuron_steps
    memory = peak_memory(lambda: trainer.whole_step(input), trainer.device)
    trainer.reset()
    if memory is not None:
        result.numbers["peak memory, GB"] = 1e-9 * memory.peak
        result.numbers["memory before a step, GB"] = 1e-9 * memory.before


def _add_graph(
    result: GpuResult, trainer: DeviceTrainer, input: PackedSpikes, repeats: int
) -> None:
    result.times["graph step"] = Spread.of(trainer.graph_times(input, repeats))


def _add_kernels(result: GpuResult, run: Callable[[], object], device: torch.device) -> None:
    def add() -> None:
        result.kernels = [dataclasses.asdict(time) for time in kernel_times(run, device)]

    attempt(result, "profiler", add)


def attempt(result: GpuResult, what: str, action: Callable[[], None]) -> None:
    """A part without which the rest still counts; its failure is noted."""
    try:
        action()
    except RuntimeError as error:
        result.notes.append(f"{what}: {error}")


def _described(estimates: list[Estimate]) -> list[dict[str, Any]]:
    return [
        {
            "kernel": estimate.kernel,
            "seconds": estimate.seconds,
            "limit": estimate.limit,
            "terms": estimate.terms,
            "launches": estimate.launches,
        }
        for estimate in estimates
    ]
