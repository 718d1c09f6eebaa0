"""Results as text and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from bench.cases import Case
from bench.floors import Peak
from bench.machine import Machine
from bench.measure import StepSpread
from bench.run import Result

# Above this share of the processor in other programs times are marked: threads that wait for one
# another lose far more than the share, the loop most of all.
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
    """One case, one property a line."""
    case, check = result.case, result.check
    rates = ", ".join(
        f"{rate:.1f} Hz ({density:.2%})"
        for rate, density in zip(
            (result.input_rate, *result.firing_rates), result.spike_densities, strict=True
        )
    )
    sigma_u = ", ".join(f"{sigma:.2f}" for sigma in result.sigma_u)
    scale = ""
    if case.loop_steps != case.n_steps:
        scale = f", measured over {case.loop_steps} steps and scaled to {case.n_steps}"
    lines = [
        ("checked", _check_text(result)),
        ("spikes", f"input, then layers: {rates}; sigma_u {sigma_u}"),
        ("fastlif", _times(result.packed, "packed input")),
        ("fastlif", _times(result.dense, "float input")),
        ("loop", _times(result.loop, f"plain PyTorch{scale}")),
        ("ratio", f"the loop takes {result.ratio:.1f} times as long"),
        ("floor", _floor_text(result)),
        (
            "memory",
            f"kept for backward {result.kept_bytes_per_neuron_step:.3f} bytes per neuron-step "
            f"(loop {result.loop_kept_bytes_per_neuron_step:.1f}); peak RSS "
            f"{_gigabytes(result.peak_rss)} (loop over {case.loop_steps} steps "
            f"{_gigabytes(result.loop_peak_rss)})",
        ),
    ]
    others = result.others_share
    if others is not None and others > BUSY:
        lines.append(
            (
                "WARNING",
                f"other programs used {others:.0%} of the processor: do not quote these times",
            )
        )
    head = f"{case.name}: {case.describe()}, {result.repeats} repeats, seconds"
    assert check.wrong_spikes == 0  # a result exists only where the check has passed
    return "\n".join([head, *(f"  {label:<8} {text}" for label, text in lines)])


def _check_text(result: Result) -> str:
    check = result.check
    return (
        f"against the float64 reference, {check.samples} samples x {check.steps} steps: no wrong "
        f"spike, output {check.output_error:.1e}, worst gradient {check.gradient_error:.1e} "
        f"({check.gradient_name}); loop {check.loop_error:.1e}"
    )


def _times(times: StepSpread, note: str) -> str:
    step = times.step
    return (
        f"step {step.median:.4f} [{step.smallest:.4f} - {step.largest:.4f}]: forward "
        f"{times.forward.median:.4f}, backward {times.backward.median:.4f}, optimizer "
        f"{times.optimizer.median:.4f} ({note})"
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
    return f"{case.name:<16} {case.describe()}"


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
