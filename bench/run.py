"""One case from check to result."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import DT, Case
from bench.check import CheckResult, OpponentCheck, check, network_plans
from bench.floors import Peak, Work, count_work
from bench.machine import OtherPrograms
from bench.measure import Spread, StepSpread, StepTime
from bench.networks import build_network, firing_rates, poisson_input
from bench.opponents import OPPONENTS
from bench.worker import (
    FASTLIF,
    FASTLIF_FLOAT,
    Facts,
    Memory,
    SideFailed,
    Worker,
    import_seconds,
    save_network,
)


@dataclass(frozen=True)
class SideResult:
    """What is reported of fastlif or of an opponent; times in seconds."""

    times: StepSpread  # scaled from `steps` to the steps of the case
    ratio: Spread  # of its time to fastlif's in the same round, step by step
    steps: int  # that were run
    kept_bytes: int  # by autograd between forward and backward, over `steps`
    memory_steps: int  # that a step was given whose memory was measured
    peak_rss: int | None  # bytes, of the whole process during that step
    resident_before: int | None  # of the process before that step: PyTorch, data and parameters
    launches: int | None  # of a training step over `steps`
    compile_seconds: float | None
    import_seconds: float | None  # beyond torch's; None if it imports nothing else
    difference: str  # "" if it computes what fastlif computes
    check: OpponentCheck | None  # of opponents

    @property
    def step_bytes(self) -> int | None:
        """Memory that a step takes beside what the process held before it."""
        if self.peak_rss is None or self.resident_before is None:
            return None
        return self.peak_rss - self.resident_before


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
    neurons: int  # of all spiking layers
    work: Work
    floor: float
    sides: dict[str, SideResult]
    skipped: dict[str, str]  # opponents that did not run, and why
    others_share: float | None  # of the processor, used by other programs meanwhile

    @property
    def fastlif(self) -> SideResult:
        """fastlif as it is meant to be used."""
        return self.sides[FASTLIF]

    @property
    def share_of_floor(self) -> float:
        """Counted floor over measured time."""
        return self.floor / self.fastlif.times.step.median

    @property
    def share_of_design_floor(self) -> float | None:
        """Floor of the design over measured time."""
        floor = self.case.design_floor
        return None if floor is None else floor / self.fastlif.times.step.median

    def kept_per_neuron_step(self, name: str) -> float:
        """Bytes that a side keeps for the backward pass, per neuron, sample and step."""
        side = self.sides[name]
        return side.kept_bytes / (self.neurons * self.case.batch * side.steps)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        derived = ("share_of_floor", "share_of_design_floor")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}


def run_case(
    case: Case, repeats: int, peak: Peak, opponents: Sequence[str] = tuple(OPPONENTS)
) -> Result:
    """Check, then time. Raises CheckFailed instead of giving times of wrong results."""
    input = poisson_input(case)
    model, sigma_u = build_network(case, input)
    checked = check(case, model, input)
    plans = network_plans(model, input)
    skipped: dict[str, str] = {}
    for name in opponents:
        reason = OPPONENTS[name].missing() or OPPONENTS[name].refuses(plans)
        if reason is not None:
            skipped[name] = reason
    fused = [FASTLIF]
    if case.is_key and not case.input_gradient:
        fused.append(FASTLIF_FLOAT)
    names = [*fused, *(name for name in opponents if name not in skipped)]
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "network.pt"
        save_network(saved, model, input)
        sides, others_share = _time_sides(case, names, saved, repeats, skipped)
    rates = firing_rates(model, input)
    input_density = input.count() / math.prod(input.shape)
    densities = [input_density, *(rate * DT for rate in rates)]
    work = count_work(
        plans, densities, case.batch, case.n_steps, input_gradient=case.input_gradient
    )
    return Result(
        case=case,
        repeats=repeats,
        check=checked,
        sigma_u=sigma_u,
        input_rate=input_density / DT,
        firing_rates=rates,
        spike_densities=densities,
        neurons=sum(math.prod(plan.features) for plan in plans if plan.kind == "lif"),
        work=work,
        floor=work.seconds(peak),
        sides=sides,
        skipped=skipped,
        others_share=others_share,
    )


def _time_sides(
    case: Case, names: Sequence[str], saved: Path, repeats: int, skipped: dict[str, str]
) -> tuple[dict[str, SideResult], float | None]:
    """The sides in turn, round after round; an opponent that fails is added to `skipped`."""
    workers: dict[str, Worker] = {}
    times: dict[str, list[StepTime]] = {}
    facts: dict[str, Facts] = {}
    memory: dict[str, Memory] = {}

    def ask(name: str, request: str) -> Any:
        """The answer; None where an opponent has failed, which then is out."""
        try:
            return workers[name].ask(request)
        except SideFailed as failure:
            if name not in OPPONENTS:
                raise
            skipped[name] = f"failed: {failure}"
            workers.pop(name).close()
            return None

    with ExitStack() as open_workers:
        for name in names:
            workers[name] = open_workers.enter_context(Worker(name, case, saved))
            if (taken := ask(name, "memory")) is None:
                continue
            if (found := ask(name, "prepare")) is not None:
                memory[name], facts[name], times[name] = taken, found, []
        others = OtherPrograms(
            lambda: sum(ask(name, "processor_seconds") or 0.0 for name in list(workers))
        )
        for _ in range(repeats):
            for name in list(workers):
                turn = ask(name, "turn")
                if turn is not None:
                    times[name].append(turn)
        others_share = others.share()
    sides = {
        name: SideResult(
            times=StepSpread.of(times[name]),
            ratio=Spread.of(
                one.step / own.step for one, own in zip(times[name], times[FASTLIF], strict=True)
            ),
            import_seconds=_import_seconds(name),
            difference=OPPONENTS[name].difference if name in OPPONENTS else "",
            **vars(memory[name]),
            **vars(facts[name]),
        )
        for name in facts
        if name not in skipped
    }
    return sides, others_share


def _import_seconds(name: str) -> float | None:
    module = OPPONENTS[name].imports if name in OPPONENTS else "fastlif"
    return None if module is None else import_seconds(module)
