"""One case from check to result."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cases import DT, Case, build_network, firing_rates, poisson_input
from bench.check import CheckResult, check, network_plans
from bench.floors import Peak, Work, count_work
from bench.loop import LoopNetwork
from bench.machine import OtherPrograms
from bench.measure import StepSpread, StepTime, Trainer, peak_rss
from fastlif import PackedSpikes


@dataclass(frozen=True)
class Result:
    """Everything that is reported of a case; times in seconds."""

    case: Case
    repeats: int
    check: CheckResult
    sigma_u: list[float]
    input_rate: float  # Hz
    firing_rates: list[float]  # Hz, of every spiking layer
    spike_densities: list[float]  # spikes per neuron and step: the input, then every spiking layer
    packed: StepSpread  # fastlif, input as PackedSpikes
    dense: StepSpread  # fastlif, input as a float tensor
    loop: StepSpread  # plain PyTorch, scaled from case.loop_steps to case.n_steps
    work: Work
    floor: float
    kept_bytes: int
    kept_bytes_per_neuron_step: float
    loop_kept_bytes_per_neuron_step: float
    peak_rss: int | None  # bytes, of fastlif's steps with packed input
    loop_peak_rss: int | None  # of the loop's steps, over case.loop_steps
    others_share: float | None  # of the processor, used by other programs meanwhile

    @property
    def ratio(self) -> float:
        """How many times longer the loop takes than fastlif, both median."""
        return self.loop.step.median / self.packed.step.median

    @property
    def share_of_floor(self) -> float:
        """Counted floor over measured time."""
        return self.floor / self.packed.step.median

    @property
    def share_of_design_floor(self) -> float | None:
        """Floor of the design over measured time."""
        floor = self.case.design_floor
        return None if floor is None else floor / self.packed.step.median

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        derived = ("ratio", "share_of_floor", "share_of_design_floor")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def run_case(case: Case, repeats: int, peak: Peak) -> Result:
    """Check, then time. Raises CheckFailed instead of giving times of wrong results."""
    input = poisson_input(case)
    model, sigma_u = build_network(case, input)
    checked = check(case, model, input)
    targets = torch.randint(
        case.network.n_classes, (case.batch,), generator=torch.Generator().manual_seed(2)
    )
    bounds = case.network.regularization

    def forward(spikes: Tensor | PackedSpikes) -> tuple[Tensor, list[Tensor]]:
        output, _, counts = model(spikes, return_spike_counts=True)
        return output, counts

    fused = Trainer(forward, model, bounds, targets)
    loop_model = copy.deepcopy(model)
    loop = Trainer(LoopNetwork(loop_model), loop_model, bounds, targets)

    # Memory first: the peak must not include the dense input.
    fused_peak = peak_rss(lambda: fused.step(input))
    kept = fused.kept_bytes(input)
    dense_input = input.unpack()
    loop_input = dense_input[: case.loop_steps]
    loop_peak = peak_rss(lambda: loop.step(loop_input))
    loop_kept = loop.kept_bytes(loop_input)
    fused.step(dense_input)

    others = OtherPrograms()
    times: dict[str, list[StepTime]] = {"packed": [], "dense": [], "loop": []}
    for _ in range(repeats):
        times["packed"].append(fused.step(input))
        times["dense"].append(fused.step(dense_input))
        times["loop"].append(loop.step(loop_input).scaled(case.n_steps / case.loop_steps))
    others_share = others.share()

    plans = network_plans(model, input)
    rates = firing_rates(model, input)
    input_density = input.count() / math.prod(input.shape)
    densities = [input_density, *(rate * DT for rate in rates)]
    work = count_work(plans, densities, case.batch, case.n_steps)
    neurons = sum(math.prod(plan.features) for plan in plans if plan.kind == "lif")
    return Result(
        case=case,
        repeats=repeats,
        check=checked,
        sigma_u=sigma_u,
        input_rate=input_density / DT,
        firing_rates=rates,
        spike_densities=densities,
        packed=StepSpread.of(times["packed"]),
        dense=StepSpread.of(times["dense"]),
        loop=StepSpread.of(times["loop"]),
        work=work,
        floor=work.seconds(peak),
        kept_bytes=kept,
        kept_bytes_per_neuron_step=kept / (neurons * case.batch * case.n_steps),
        loop_kept_bytes_per_neuron_step=loop_kept / (neurons * case.batch * case.loop_steps),
        peak_rss=fused_peak,
        loop_peak_rss=loop_peak,
        others_share=others_share,
    )
