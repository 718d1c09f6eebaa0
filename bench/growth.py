"""`python -m bench growth`: how time and memory of a training step grow with its sizes.

A series changes one size of one network. Every point and side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.alone import Kept
from bench.check import CheckFailed
from bench.depth import GIB, Depth, Search, depth_text, quick_search, search_depth
from bench.floors import measure_peak
from bench.machine import OtherPrograms, describe_machine
from bench.measure import StepTime
from bench.points import SIDES, Footprint, Measured, Network, Point, measured
from bench.text import BUSY, machine_text
from fastlif.models import ConvSize, preset

DEEP = "layers"  # the search of bench.depth, beside the series
STEP_SECONDS = 11.0  # a step that is expected to take longer is left out
TURN_SECONDS = 0.3  # of steps of one point, before it is another's turn
LEAST_TURNS = {"fastlif": 3, "loop": 2}  # the loop takes most of the whole time
SIDE_SECONDS = 6.0  # of turns of all points of a side, after which they have enough
QUICK = 2, 32  # samples and steps


@dataclass(frozen=True)
class Series:
    """Networks that differ in one size."""

    name: str
    variable: str  # what changes, as a plot names it
    values: tuple[float, ...]
    quick_values: tuple[float, ...]
    base: Network
    vary: Callable[[Network, Any], Network]

    def quick(self) -> Series:
        """The same on a few samples."""
        base = self.base.with_input(*QUICK)
        return dataclasses.replace(self, base=base, values=self.quick_values)

    def network(self, value: float) -> Network:
        """The network of one point."""
        return self.vary(self.base, value)


_CONV3 = Network((1, 700), preset("shd-conv3").hidden, batch=64, n_steps=96)
_KEEPING = ConvSize(32, 5, 1, 2)  # its output is as long as its input
_DEEP = ConvSize(64, 5, 1, 2)

SERIES: dict[str, Series] = {
    series.name: series
    for series in (
        Series(
            "time",
            "steps",
            (320, 1000, 3200, 10000, 32000),
            (32, 64),
            dataclasses.replace(_CONV3, batch=32),
            lambda base, value: dataclasses.replace(base, n_steps=value),
        ),
        Series(
            "batch",
            "samples",
            (10, 30, 100, 300, 1000),
            (2, 4),
            dataclasses.replace(_CONV3, n_steps=704),
            lambda base, value: dataclasses.replace(base, batch=value),
        ),
        Series(
            "neurons",
            "length of a map",
            (16, 48, 160, 480, 1600),
            (16, 32),
            Network((16, 0), (_KEEPING, _KEEPING), batch=32, n_steps=96),
            lambda base, value: dataclasses.replace(base, input_features=(16, value)),
        ),
        Series(
            "width",
            "recurrent neurons of a dense layer",
            (128, 256, 512, 1024),
            (32, 64),
            Network((700,), (), batch=128, n_steps=96),
            lambda base, value: dataclasses.replace(base, hidden=(value,)),
        ),
        Series(
            "depth",
            "layers",
            (1, 2, 4, 8, 16),
            (1, 2),
            Network((64, 88), (), batch=8, n_steps=96),
            lambda base, value: dataclasses.replace(base, hidden=(_DEEP,) * value),
        ),
        Series(
            "density",
            "spikes per neuron and step",
            (0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
            (0.02, 0.1),
            _CONV3,
            lambda base, value: dataclasses.replace(base, input_density=value, density=value),
        ),
    )
}


@dataclass
class Plan:
    """How much may be measured; times in seconds."""

    repeats: int  # turns at most
    deadline: float  # of time.monotonic
    step_seconds: float = STEP_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether nothing more may begin."""
        return time.monotonic() > self.deadline


def slope(values: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Of the line through log(seconds) over log(values), by least squares; None of one point."""
    if len(values) < 2:
        return None
    x, y = ([math.log(value) for value in given] for given in (values, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def run_series(series: Series, plan: Plan) -> dict[str, Any]:
    """Measure all points; what is left out is listed with the reason.

    The points of a side take turns, so that slow and fast phases of the machine meet all of them;
    the slope is the median of the slopes of the rounds. A side's next step is expected to take as
    much longer as the value is larger, and left out when that is more than `plan.step_seconds`.
    """
    points: dict[float, dict[str, Any]] = {}
    skipped: list[dict[str, Any]] = []
    slopes: dict[str, float | None] = {}
    for side in SIDES:
        with ExitStack() as processes:
            found = _prepare(series, side, plan, processes, skipped)
            turns, others_share = _take_turns(found, side, plan)
            for value, (point, footprint) in found.items():
                one = measured(footprint, turns[value], point.ask("densities"))
                points.setdefault(value, {})[side] = dataclasses.asdict(one)
                print(point_text(series, value, side, one), flush=True)
        by_round = [
            slope(list(turns), [own.step for own in one])
            for one in zip(*turns.values(), strict=True)
        ]
        known = [one for one in by_round if one is not None]
        slopes[side] = statistics.median(known) if known else None
        if others_share is not None and others_share > BUSY:
            print(f"  WARNING: other programs used {others_share:.0%} of the processor")
    shown = ", ".join(f"{side} {one:.3f}" for side, one in slopes.items() if one is not None)
    print(f"  log-log slope of the step over {series.variable}: {shown or 'too few points'}")
    return {
        "name": series.name,
        "variable": series.variable,
        "case": dataclasses.asdict(series.network(series.values[-1])),
        "points": [{"value": value, "sides": points[value]} for value in sorted(points)],
        "slope": slopes,
        "skipped": skipped,
    }


def _prepare(
    series: Series,
    side: str,
    plan: Plan,
    processes: ExitStack,
    skipped: list[dict[str, Any]],
) -> dict[float, tuple[Kept, Footprint]]:
    """The points of a side, each checked and in a process that lives as long as `processes`."""
    found: dict[float, tuple[Kept, Footprint]] = {}
    seconds: dict[float, float] = {}
    for value in series.values:
        if reason := _reason_to_skip(seconds, value, plan):
            skipped.append({"side": side, "value": value, "reason": reason})
            continue
        point = processes.enter_context(Kept(Point, series.network(value), side))
        footprint = point.ask("footprint")
        found[value], seconds[value] = (point, footprint), footprint.first_step
    return found


def _take_turns(
    found: dict[float, tuple[Kept, Footprint]], side: str, plan: Plan
) -> tuple[dict[float, list[StepTime]], float | None]:
    """The turns of all points, round after round, and the share of the processor others used."""
    turns: dict[float, list[StepTime]] = {value: [] for value in found}
    others = OtherPrograms(
        lambda: sum(point.ask("processor_seconds") for point, _ in found.values())
    )
    end = time.monotonic() + SIDE_SECONDS
    for n_done in range(plan.repeats):
        if n_done >= LEAST_TURNS[side] and time.monotonic() > end:
            break
        for value, (point, _) in found.items():
            turns[value].append(point.ask("turn", TURN_SECONDS))
    return turns, others.share()


def _reason_to_skip(known: dict[float, float], value: float, plan: Plan) -> str:
    if plan.is_over:
        return "the time for the whole command was over"
    if known:
        last, seconds = list(known.items())[-1]
        expected = seconds * value / last
        if expected > plan.step_seconds:
            return f"a step was expected to take {expected:.0f} s"
    return ""


def point_text(series: Series, value: float, side: str, point: Measured) -> str:
    """One line: time, kept bytes, and what the step took beside these."""
    step = point.times.step
    text = (
        f"  {series.name} {value:<6g} {side:<8} {step.median:.4f} s [{step.smallest:.4f} - "
        f"{step.largest:.4f}], kept {1e-6 * point.kept_bytes:.1f} MB"
    )
    if point.peak_rss is not None and point.resident_before is not None:
        beside = point.peak_rss - point.resident_before - point.kept_bytes
        text += f", peak {1e-6 * point.peak_rss:.0f} MB, {1e-6 * beside:.0f} beside both"
    return text


def run_search(search: Search, plan: Plan) -> dict[str, Any]:
    """The depth of every side that fits into the limit."""
    print(
        f"{DEEP}: recurrent conv layers, batch {search.batch}, {search.n_steps} steps, within "
        f"{search.limit / GIB:.2f} GiB",
        flush=True,
    )
    depths: dict[str, Depth] = {}
    for side in SIDES:
        depths[side] = search_depth(search, side, plan.deadline)
        print(depth_text(side, depths[side], search.limit), flush=True)
    return {
        "search": dataclasses.asdict(search),
        "sides": {side: dataclasses.asdict(depth) for side, depth in depths.items()},
    }


def add_parser(commands: Any) -> None:
    """The subcommand `growth`."""
    names = (*SERIES, DEEP)
    growth = commands.add_parser("growth", help="time and memory over the sizes of a step")
    growth.add_argument("series", nargs="*", metavar="SERIES", help=f"of {', '.join(names)}")
    growth.add_argument("--threads", type=int, help="CPU threads (default: 2; 1 with --quick)")
    growth.add_argument("--repeats", type=int, help="turns of a point at most (default: 7)")
    growth.add_argument(
        "--minutes", type=float, default=15.0, help="after which nothing more begins (default: 15)"
    )
    growth.add_argument(
        "--memory", type=float, default=20.0, help=f"limit of {DEEP} in GiB (default: 20)"
    )
    growth.add_argument(
        "--deep-stride", type=int, choices=(1, 2), default=1, help=f"of deep layers in {DEEP}"
    )
    growth.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    growth.add_argument("--quick", action="store_true", help="tiny: times nothing useful")
    growth.set_defaults(main=main, error=growth.error)


def main(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Run the series asked for; the exit status is 1 when a point fails its check."""
    chosen = options.series or [*SERIES, DEEP]
    unknown = [name for name in chosen if name not in (*SERIES, DEEP)]
    if unknown:
        options.error(f"unknown series {unknown[0]!r}: choose from {', '.join((*SERIES, DEEP))}")
    defaults = (3, 1) if options.quick else (7, 2)
    repeats, threads = (
        default if value is None else value
        for value, default in zip((options.repeats, options.threads), defaults, strict=True)
    )
    for name, number in (("repeats", repeats), ("threads", threads)):
        if number < 1:
            options.error(f"--{name} must be at least 1, got {number}")
    if not options.minutes > 0 or not options.memory > 0:
        options.error("--minutes and --memory must be above 0")
    torch.set_num_threads(threads)
    plan = Plan(repeats, time.monotonic() + 60 * options.minutes)
    machine, peak = describe_machine(), measure_peak(quick=options.quick)
    print(machine_text(machine, peak), flush=True)
    content: dict[str, Any] = {
        "command": f"python -m bench {shlex.join(given)}",
        "machine": dataclasses.asdict(machine),
        "peak": dataclasses.asdict(peak),
        "series": [],
    }
    try:
        for name in chosen:
            if name == DEEP:
                content[DEEP] = run_search(_search(options), plan)
                continue
            series = SERIES[name].quick() if options.quick else SERIES[name]
            content["series"].append(run_series(series, plan))
    except (CheckFailed, ValueError) as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def _search(options: argparse.Namespace) -> Search:
    if options.quick:
        return quick_search()
    return Search(int(options.memory * GIB), deep_stride=options.deep_stride)
