"""Results of a GPU as a table, with floor, prediction and goal, and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.floors import Peak
from bench.gpu.cases import DENSITIES, KEPT_GOAL, GpuCase, LayerCase, StepCase
from bench.gpu.model import Estimate, predict_step, total
from bench.gpu.run import GpuResult
from bench.machine import GpuMachine

KEPT = "kept bytes per neuron-step"
MOST_KERNELS = 8
HEAD = ("case", "variant", "quantity", "floor", "predicted", "goal", "measured", "range")


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A case on a backend that gives no numbers, and why."""

    case: str
    variant: str
    reason: str
    failed: bool  # a wrong result or a crash, not a lack of time


Entry = GpuResult | Skipped


def machine_text(machine: GpuMachine, peak: Peak) -> str:
    """What heads every report."""
    tensor = peak.dense_multiply_adds or peak.multiply_adds
    return (
        f"{machine.name}, driver {machine.driver}, CUDA {machine.cuda}, torch {machine.torch}, "
        f"triton {machine.triton}, commit {machine.commit}\n"
        f"measured: copy {1e-9 * peak.bytes:.0f} GB/s, products {2e-12 * peak.multiply_adds:.1f} "
        f"TFLOP/s in float32, {2e-12 * tensor:.0f} in TF32; clocks {machine.clocks}"
    )


def table(entries: Sequence[Entry]) -> str:
    """One quantity a line; what was not measured has no line but the reason."""
    rows: list[tuple[str, ...]] = [HEAD]
    for entry in entries:
        if isinstance(entry, Skipped):
            continue
        for quantity, spread in entry.times.items():
            rows.append(
                (
                    entry.case,
                    entry.variant,
                    quantity,
                    _duration(entry.floors.get(quantity)),
                    _duration(entry.predictions.get(quantity)),
                    _duration(entry.goals.get(quantity)),
                    _duration(spread.median),
                    f"{_duration(spread.smallest)} - {_duration(spread.largest)}",
                )
            )
        goals = {KEPT: KEPT_GOAL} | entry.goals | entry.limits
        for name, number in entry.numbers.items():
            goal = goals.get(name)
            rows.append(
                (
                    entry.case, entry.variant, name, "", "",
                    "" if goal is None else f"{goal:g}", f"{number:.3g}", "",
                )
            )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [_ratio_line(entry, entries) for entry in entries if _is_loop(entry)]
    lines += [
        f"{'FAILED' if e.failed else 'skipped'}: {e.case} {e.variant}: {e.reason}"
        for e in entries
        if isinstance(e, Skipped)
    ]
    return "\n".join(lines)


def kernel_table(result: GpuResult) -> str:
    """Kernels of a run by time, those that were predicted with what was predicted."""
    lines = [f"kernels of {result.case}, {result.variant}:"]
    predicted = {entry["kernel"]: entry for entry in result.predicted_kernels}
    for kernel in result.kernels[:MOST_KERNELS]:
        known = [p for name, p in predicted.items() if name in kernel["name"]]
        note = (
            f"  predicted {_duration(known[0]['seconds'])} ({known[0]['limit']})" if known else ""
        )
        lines.append(
            f"  {_duration(kernel['seconds']):>10}  {kernel['calls']:>4} x  "
            f"{kernel['name'][:70]}{note}"
        )
    others = sum(kernel["seconds"] for kernel in result.kernels[MOST_KERNELS:])
    if others:
        lines.append(f"  {_duration(others):>10}         all others")
    return "\n".join(lines)


def predictions(cases: Sequence[GpuCase]) -> str:
    """What an H100 should take, kernel by kernel with the term that decides, at 12 and 10 Hz."""
    lines = []
    for case in cases:
        for tf32 in (False, True):
            groups: dict[str, list[Estimate]] = {}
            if isinstance(case, StepCase) and case.is_predicted:
                plans = case.plans()
                densities = (DENSITIES[0], *(DENSITIES[1] for _ in plans[1:]))
                sizes = (case.case.batch, case.case.n_steps)
                groups["cuda"] = predict_step(plans, densities, *sizes, tf32=tf32)
            elif isinstance(case, LayerCase) and (case.recurrent or not tf32):
                for backend in ("cuda", "triton"):
                    parts = case.predictions(DENSITIES[1], backend, tf32)
                    groups[backend] = [estimate for part in parts.values() for estimate in part]
            for backend, estimates in groups.items():
                mode = "TF32" if tf32 else "float32"
                seconds = total(estimates)
                per_step = ""
                if isinstance(case, LayerCase) and case.recurrent:
                    per_step = f", {_duration(seconds / case.n_steps)} a step"
                lines.append(f"{case.name} {backend} {mode}: {_duration(seconds)}{per_step}")
                for estimate in estimates:
                    terms = ", ".join(f"{n} {_duration(s)}" for n, s in estimate.terms.items())
                    lines.append(
                        f"  {estimate.kernel:<16} {_duration(estimate.seconds):>9}  "
                        f"{estimate.launches} launches; {terms}"
                    )
    return "\n".join(lines)


def misses(entries: Sequence[Entry]) -> list[str]:
    """Goals that no variant of a case reaches, with the best that was measured."""
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for entry in entries:
        if isinstance(entry, Skipped):
            continue
        for name, limit in ({KEPT: KEPT_GOAL} | entry.limits).items():
            if name in entry.numbers:
                _keep_best(best, (entry.case, name), limit, entry.numbers[name], lower=True)
        for name, goal in entry.goals.items():
            if name in entry.times:
                value = entry.times[name].median
                _keep_best(best, (entry.case, name), goal, value, lower=True)
            elif name in entry.numbers:
                _keep_best(best, (entry.case, name), goal, entry.numbers[name], lower=False)
    return [
        f"{case}, {name}: {value:.4g}, goal {abs(goal):.4g}"
        for (case, name), (goal, value) in best.items()
        if (value > goal if goal > 0 else value < -goal)
    ]


def _keep_best(
    best: dict[tuple[str, str], tuple[float, float]],
    key: tuple[str, str],
    goal: float,
    value: float,
    *,
    lower: bool,
) -> None:
    """A goal that a number must exceed is kept negative."""
    signed = goal if lower else -goal
    if key not in best or (value < best[key][1]) == lower:
        best[key] = (signed, value)


def as_json(
    command: str,
    machine: GpuMachine,
    peak: Peak,
    entries: Sequence[Entry],
    *,
    rehearsal: bool,
) -> dict[str, Any]:
    """All numbers of a run."""
    return {
        "command": command,
        "rehearsal": rehearsal,
        "machine": dataclasses.asdict(machine),
        "peak": dataclasses.asdict(peak),
        "results": [dataclasses.asdict(e) for e in entries if isinstance(e, GpuResult)],
        "skipped": [dataclasses.asdict(e) for e in entries if isinstance(e, Skipped)],
        "misses": misses(entries),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write it whole or not at all: the run may be ended at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)


def _is_loop(entry: Entry) -> bool:
    return isinstance(entry, GpuResult) and entry.variant == "loop"


def _ratio_line(loop: Entry, entries: Sequence[Entry]) -> str:
    assert isinstance(loop, GpuResult)
    ours = [
        (entry.times.get("graph step", entry.times["step"]).median, entry.variant)
        for entry in entries
        if isinstance(entry, GpuResult) and entry is not loop and entry.case == loop.case
    ]
    note = "".join(f", {note}" for note in loop.notes)
    if not ours:
        return f"{loop.case}: plain loop {_duration(loop.times['step'].median)}{note}"
    fastest, variant = min(ours)
    ratio = loop.times["step"].median / fastest
    return f"{loop.case}: the plain loop takes {ratio:.1f} times as long as {variant}{note}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 1e-4:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
