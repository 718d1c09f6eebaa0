"""Several networks of one shape in one launch, beside one of them, from check to result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.check import CheckFailed
from bench.gpu.cases import PackCase
from bench.gpu.check import check_network
from bench.gpu.measure import DeviceTrainer, peak_memory
from bench.gpu.run import GpuResult, Prepared, backend_of, build_trainer, precision_of
from bench.measure import Spread, fused_forward
from fastlif import PackedSpikes, Sequential, give_gradients, side_by_side
from fastlif.losses import max_over_time_cross_entropy, upper_bound


class PackTrainer(DeviceTrainer):
    """Training steps of networks side by side on the same samples."""

    def __init__(self, networks: Sequence[Sequential], case: PackCase, device: torch.device):
        step = case.step.case
        targets = step.targets()
        assert targets is not None
        self.networks = networks
        self.model = side_by_side(networks)
        super().__init__(
            fused_forward(self.model),
            nn.ModuleList(networks),
            step.network.regularization,
            targets.to(device),
            device,
        )
        self.optimizer.register_step_pre_hook(lambda *_: give_gradients(self.model, self.networks))

    def loss(self, input: Tensor | PackedSpikes) -> Tensor:
        """The sum of what each network's loss is."""
        count, bounds, targets = len(self.networks), self.bounds, self.targets
        assert bounds is not None and targets is not None
        scores, _, counts = self.model(input, return_spike_counts=True, shared_input=True)
        upper = upper_bound(
            counts, bounds.v_upper, bounds.upper_strength, bounds.upper_per, networks=count
        )
        return (max_over_time_cross_entropy(scores, targets, networks=count) + upper).sum()


def run_pack(
    case: PackCase, prepared: Prepared, variant: str, device_name: str, repeats: int
) -> GpuResult:
    """Check and time a step of all networks, and of one. Raises instead of timing what is wrong."""
    device, step = torch.device(device_name), case.step
    backend = backend_of(variant, device)
    with precision_of(variant) as tolerance:
        networks = [step.case.build(backend=backend, device=device) for _ in range(case.networks)]
        for number, network in enumerate(networks):
            # As if the inputs were others: the layers fire as often.
            network.load_state_dict(
                {name: weight.roll(number, -1) for name, weight in prepared.weights.items()}
            )
        cpu_model = step.case.build()
        cpu_model.load_state_dict(prepared.weights)
        check = check_network(
            networks[0], cpu_model, prepared.input, steps=step.check_steps, backend=backend,
            device=device, tolerance=tolerance,
        )  # fmt: skip
        single, given = build_trainer(prepared, backend, device)
        together = PackTrainer(networks, case, device)
        _check_bits(together, given)
        result = GpuResult(
            case.name,
            variant,
            f"{case.networks} networks, each {step.case.describe()}",
            dataclasses.asdict(check),
            [],
            times={
                "step": _steps(together, given, repeats),
                "step of one": _steps(single, given, repeats),
            },
        )
        if device.type == "cuda":
            result.times["graph step"] = Spread.of(together.graph_times(given, repeats))
            result.times["graph step of one"] = Spread.of(single.graph_times(given, repeats))
        for quantity in ("step", "graph step"):
            if quantity in result.times:
                one = result.times[f"{quantity} of one"].median
                result.goals[quantity] = case.goal * one
                result.numbers[f"{quantity}, times one"] = result.times[quantity].median / one
        memory = peak_memory(lambda: together.whole_step(given), device)
        if memory is not None:
            result.numbers["peak memory, GB"] = 1e-9 * memory.peak
    return result


def _steps(trainer: DeviceTrainer, input: PackedSpikes, repeats: int) -> Spread:
    return Spread.of(times.step for times in trainer.times(input, repeats))


def _check_bits(together: PackTrainer, input: PackedSpikes) -> None:
    """That every network gets the scores and the gradients that it gets alone."""
    count = len(together.networks)
    scores, _, _ = together.model(input, return_spike_counts=True, shared_input=True)
    scores.square().sum().backward()
    for number, network in enumerate(together.networks):
        own, _, _ = network(input, return_spike_counts=True)
        parameters = list(network.parameters())
        expected = torch.autograd.grad(own.square().sum(), parameters)
        found = [joined.grad[number] for joined in together.model.parameters()]
        same = torch.equal(scores.chunk(count)[number], own)
        if not same or not all(map(torch.equal, found, expected)):
            raise CheckFailed(f"network {number} of {count} is not timed: not what it is alone")
    for joined in together.model.parameters():
        joined.grad = None
