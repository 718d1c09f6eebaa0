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
from bench.gpu.run import (
    GpuResult,
    Prepared,
    attempt,
    backend_of,
    build_trainer,
    precision_of,
)
from bench.measure import Spread
from fastlif import PackedSpikes, Sequential, give_gradients, side_by_side


class PackTrainer(DeviceTrainer):
    """Training steps of networks side by side on the same samples."""

    def __init__(
        self, networks: Sequence[Sequential], single: DeviceTrainer, device: torch.device
    ) -> None:
        """`single` trains one network like them."""
        self.members = networks
        self.model = side_by_side(networks)
        assert single.bounds is not None and single.targets is not None
        super().__init__(
            self._forward, nn.ModuleList(networks), single.bounds, single.targets, device,
            networks=len(networks),
        )  # fmt: skip
        self.optimizer.register_step_pre_hook(lambda *_: give_gradients(self.model, self.members))

    def _forward(self, input: Tensor | PackedSpikes) -> tuple[Tensor, list[Tensor]]:
        output, _, counts = self.model(input, return_spike_counts=True, shared_input=True)
        return output, counts

    def check(self, single: DeviceTrainer, input: PackedSpikes) -> None:
        """Raise CheckFailed unless each network gets the loss and gradients that it gets alone.

        `single` ends up with the last network's weights.
        """
        count = len(self.members)
        self.loss(input).backward()
        found = [joined.grad for joined in self.model.parameters()]
        for joined in self.model.parameters():
            joined.grad = None
        scores, counts = self._forward(input)
        for number, network in enumerate(self.members):
            with torch.no_grad():
                torch._foreach_copy_(single.parameters, list(network.parameters()))
            own_scores, own_counts = single.forward(input)
            grads = torch.autograd.grad(single.loss(input), single.parameters)
            same = [
                (scores.chunk(count)[number], own_scores),
                *((a.chunk(count)[number], b) for a, b in zip(counts, own_counts, strict=True)),
                *((a[number], b) for a, b in zip(found, grads, strict=True) if a is not None),
            ]
            if not all(torch.equal(a, b) for a, b in same):
                raise CheckFailed(
                    f"network {number} of {count} is not timed: not the bits that it has alone"
                )


def run_pack(
    case: PackCase, prepared: Prepared, variant: str, device_name: str, repeats: int
) -> GpuResult:
    """Check and time a step of all networks, and of one. Raises instead of timing what is wrong."""
    device, network_case = torch.device(device_name), case.step.case
    backend = backend_of(variant, device)
    with precision_of(variant) as tolerance:
        networks = []
        for number in range(case.networks):
            network = network_case.build(backend=backend, device=device)
            # As if the inputs were others: the layers fire as often.
            weights = {name: value.roll(number, -1) for name, value in prepared.weights.items()}
            network.load_state_dict(weights)
            networks.append(network)
        cpu_model = network_case.build()
        cpu_model.load_state_dict(prepared.weights)
        check = check_network(
            networks[0], cpu_model, prepared.input, steps=case.step.check_steps, backend=backend,
            device=device, tolerance=tolerance,
        )  # fmt: skip
        single, given = build_trainer(prepared, backend, device)
        together = PackTrainer(networks, single, device)
        together.check(single, given)
        single.reset()
        result = GpuResult(
            case.name,
            variant,
            f"{case.networks} networks, each {network_case.describe()}",
            dataclasses.asdict(check),
            [],
            times={
                "step": _steps(together, given, repeats),
                "step of one": _steps(single, given, repeats),
            },
        )

        def add_graphs() -> None:
            for name, trainer in (("graph step", together), ("graph step of one", single)):
                result.times[name] = Spread.of(trainer.graph_times(given, repeats))

        if device.type == "cuda":
            attempt(result, "graph", add_graphs)
        memory = peak_memory(lambda: together.whole_step(given), device)
        if memory is not None:
            result.numbers["peak memory, GB"] = 1e-9 * memory.peak
    quantity = "graph step" if "graph step of one" in result.times else "step"
    ratio = result.times[quantity].median / result.times[f"{quantity} of one"].median
    result.numbers[f"{quantity}, times one"] = ratio
    if case.goal_ratio is not None:
        result.limits[f"{quantity}, times one"] = case.goal_ratio
    return result


def _steps(trainer: DeviceTrainer, input: PackedSpikes, repeats: int) -> Spread:
    return Spread.of(times.step for times in trainer.times(input, repeats))
