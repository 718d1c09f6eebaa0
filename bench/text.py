"""Results as text and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from bench.cases import Case
from bench.check import RATE_FACTOR, OpponentCheck
from bench.floors import Peak
from bench.machine import Machine
from bench.measure import StepSpread
from bench.opponents import OPPONENTS
from bench.run import Result, SideResult
from bench.worker import FASTLIF

# Above this share of the processor in other programs times are marked: threads that wait for one
# another lose far more than the share, loops over time most of all.
BUSY = 0.05


def machine_text(machine: Machine, peak: Peak) -> str:
    """Two lines that head every report."""
    return (
        f"{machine.cpu}, {machine.cores} cores (load {machine.load:.2f}), {machine.isa}, "
        f"{machine.threads} threads\n"
        f"torch {machine.torch}, fastlif {machine.fastlif}, commit {machine.commit}; peak "
        f"{2e-9 * peak.multiply_adds:.0f} GFLOP/s in a matrix product, "
        f"{1e-9 * peak.bytes:.1f} GB/s in a copy"
    )


def result_text(result: Result) -> str:
    """One case: what was checked, then one side a line, then what they cannot do."""
    rates = ", ".join(
        f"{rate:.1f} Hz ({density:.2%})"
        for rate, density in zip(
            (result.input_rate, *result.firing_rates), result.spike_densities, strict=True
        )
    )
    sigma_u = ", ".join(f"{sigma:.2f}" for sigma in result.sigma_u)
    lines = [
        ("checked", _check_text(result)),
        ("spikes", f"input, then layers: {rates}; sigma_u {sigma_u}"),
    ]
    for name, side in result.sides.items():
        lines.append((name, _side_text(result, name, side)))
        if side.difference:
            lines.append(("", side.difference))
        if side.check is not None:
            lines.append(("", _opponent_check_text(side.check)))
    lines.append(("floor", _floor_text(result)))
    lines += [(name, f"skipped: {reason}") for name, reason in result.skipped.items()]
    others = result.others_share
    if others is not None and others > BUSY:
        lines.append(
            (
                "WARNING",
                f"other programs used {others:.0%} of the processor: do not quote these times",
            )
        )
    head = f"{result.case.name}: {result.case.describe()}, {result.repeats} repeats, seconds"
    assert result.check.wrong_spikes == 0  # a result exists only where the check has passed
    return "\n".join([head, *(f"  {label:<16} {text}" for label, text in lines)])


def _check_text(result: Result) -> str:
    check = result.check
    return (
        f"against the float64 reference, {check.samples} samples x {check.steps} steps: no wrong "
        f"spike, output {check.output_error:.1e}, worst gradient {check.gradient_error:.1e} "
        f"({check.gradient_name})"
    )


def _opponent_check_text(check: OpponentCheck) -> str:
    text = f"checked: {check.against}"
    if check.output_error is not None:
        text += f": output {check.output_error:.1e}, worst gradient {check.gradient_error:.1e}"
    if check.firing_ratios is not None:
        ratios = ", ".join(f"{ratio:.2f}" for ratio in check.firing_ratios)
        text += f"; firing rates {ratios} times fastlif's (allowed: {RATE_FACTOR:g})"
    return text


def _side_text(result: Result, name: str, side: SideResult) -> str:
    case = result.case
    notes = [f"{side.ratio.median:.2f} x fastlif"]
    if name in OPPONENTS:
        notes[0] += f", {OPPONENTS[name].title}"
    else:
        packed = name == FASTLIF and not case.input_gradient
        notes[0] = "packed input" if packed else f"{notes[0]}, float input"
    if side.steps != case.n_steps:
        notes.append(f"measured over {side.steps} steps and scaled to {case.n_steps}")
    notes.append(f"kept {result.kept_per_neuron_step(name):.3f} bytes per neuron-step")
    memory = f"{_gigabytes(side.step_bytes)} during a step, peak RSS {_gigabytes(side.peak_rss)}"
    if side.memory_steps != side.steps:
        memory += f" over {side.memory_steps} steps"
    notes.append(memory)
    if side.launches is not None:
        notes.append(f"{side.launches} launches")
    if side.compile_seconds is not None:
        notes.append(f"compiled in {side.compile_seconds:.1f}")
    if side.import_seconds is not None:
        notes.append(f"imported in {side.import_seconds:.1f}")
    return f"{_times(side.times)} ({'; '.join(notes)})"


def _times(times: StepSpread) -> str:
    step = times.step
    return (
        f"step {step.median:.4f} [{step.smallest:.4f} - {step.largest:.4f}]: forward "
        f"{times.forward.median:.4f}, backward {times.backward.median:.4f}, optimizer "
        f"{times.optimizer.median:.4f}"
    )


def _floor_text(result: Result) -> str:
    work = result.work
    text = (
        f"{result.floor:.4f} counted ({1e-9 * work.dense:.2f} G dense, "
        f"{1e-9 * work.deliveries:.2f} G deliveries, {1e-9 * work.neurons:.2f} G in neurons, "
        f"{1e-9 * work.bytes:.2f} GB), share {result.share_of_floor:.0%}"
    )
    share = result.share_of_design_floor
    if share is not None:
        text += f"; {result.case.design_floor} by design, share {share:.0%}"
    return text


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{1e-9 * size:.2f} GB"


def case_text(case: Case) -> str:
    """One line of the list of cases."""
    return f"{case.name:<20} {case.describe()}"


def opponent_text(name: str) -> str:
    """One line of the list of opponents."""
    opponent = OPPONENTS[name]
    reason = opponent.missing()
    text = opponent.title if not opponent.difference else f"{opponent.title}: {opponent.difference}"
    return f"{name:<20} {text}" + ("" if reason is None else f" ({reason})")


def write_json(
    path: Path, command: str, machine: Machine, peak: Peak, results: Sequence[Result]
) -> None:
    """All numbers of a run."""
    content = {
        "command": command,
        "machine": dataclasses.asdict(machine),
        "peak": dataclasses.asdict(peak),
        "cases": [result.as_dict() for result in results],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
