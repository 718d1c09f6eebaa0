"""`python -m bench report`: the README's account of speed and its plots, from bench/results/*.json.

Every number between the two markers in README.md comes from these files, and so do the plots. A
file of `python -m bench run --json` becomes a table, one of `python -m bench growth --json` a list
of slopes and depths.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.machine import ROOT
from bench.plots import draw, fingerprint, made_from
from bench.stored import (
    YARDSTICKS,
    BadResults,
    Content,
    median,
    opponents,
    own_side,
    ratio,
    read_results,
    step_bytes,
    title,
)
from bench.text import BUSY

RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
BEGIN = "<!-- speed: begin; written by `python -m bench report` -->"
END = "<!-- speed: end -->"


def seconds_text(seconds: float) -> str:
    """Three digits in milliseconds or seconds."""
    if seconds >= 0.9995:
        return f"{seconds:.{2 if seconds < 9.995 else 1}f} s"
    milliseconds = 1e3 * seconds
    digits = 0 if milliseconds >= 99.95 else 1 if milliseconds >= 9.995 else 2
    return f"{milliseconds:.{digits}f} ms"


def bytes_text(size: float | None) -> str:
    """Megabytes or gigabytes."""
    if size is None:
        return "unknown"
    if size >= 1e9:
        return f"{1e-9 * size:.2f} GB"
    return f"{1e-6 * size:.{0 if size >= 1e7 else 1}f} MB"


def machine_text(content: Content) -> str:
    """One sentence on where and with what the numbers were made."""
    machine = content["machine"]
    where = machine.get("cpu", "unknown")
    if "threads" in machine:
        plural = "" if machine["threads"] == 1 else "s"
        where = f"{machine['threads']} thread{plural}, {machine['isa']}, {where}"
    if "name" in machine:
        where = f"{machine['name']}, {where}"
    return f"{where}; torch {machine['torch']}, commit {machine['commit']}; `{content['command']}`."


def run_tables(content: Content) -> list[str]:
    """The cases of a run, those beside one opponent alone in a table of their own."""
    several = [case for case in content["cases"] if len(opponents(case)) > 1]
    others = [case for case in content["cases"] if len(opponents(case)) <= 1]
    return [_run_table(cases) for cases in (several, others) if cases]


def _run_table(cases: Sequence[Content]) -> str:
    """fastlif's times, the others' and by how much these are longer."""
    names = list(dict.fromkeys(name for case in cases for name in opponents(case)))
    head = ["one training step", "batch, steps", "fastlif", *map(title, names)]
    head += ["fastest opponent", "share of floor", "memory of a step", "of the opponents, least"]
    rows = [_row(case, names) for case in cases]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(case: Content, names: Sequence[str]) -> list[str]:
    sizes, own, others = case["case"], own_side(case["sides"]), opponents(case)
    step = own["times"]["step"]
    spread = f"{seconds_text(step['smallest'])} - {seconds_text(step['largest'])}"
    row = [
        sizes["name"] + (" (busy machine)" if (case.get("others_share") or 0.0) > BUSY else ""),
        f"{sizes['batch']}, {sizes['n_steps']}",
        f"{seconds_text(median(own))} [{spread}]",
    ]
    for name in names:
        side = others.get(name)
        row.append("-" if side is None else f"{seconds_text(median(side))}, {_ratio(own, side)}")
    rivals = {name: side for name, side in others.items() if name not in YARDSTICKS}
    fastest = min((ratio(own, side) for side in rivals.values()), default=None)
    row.append("-" if fastest is None else f"**{fastest:.1f}x**")
    row.append(f"{case['floor'] / median(own):.0%}")
    row.append(_memory_text(own))
    return [*row, _least_memory(own, rivals, sizes["n_steps"])]


def _ratio(own: Content, other: Content) -> str:
    return f"{ratio(own, other):.1f}x"


def _memory_text(side: Content) -> str:
    """What a step takes, and the peak of the whole process."""
    return f"{bytes_text(step_bytes(side))} ({bytes_text(side['peak_rss'])})"


def _least_memory(own: Content, sides: dict[str, Content], n_steps: int) -> str:
    """The same of the side whose step takes least, and how many times fastlif's that is.

    Where its memory was measured over fewer steps than all, these in place of how many times.
    """
    known = {name: step_bytes(side) for name, side in sides.items()}
    sizes = {name: size for name, size in known.items() if size is not None}
    if not sizes:
        return "-"
    name = min(sizes, key=lambda name: sizes[name])
    steps, mine = sides[name].get("memory_steps", n_steps), step_bytes(own)
    text = _memory_text(sides[name])
    if steps != n_steps:
        return f"{text}, {steps} steps alone"
    return text if not mine else f"{text}, **{sizes[name] / mine:.1f}x**"


def run_notes(content: Content) -> list[str]:
    """What has no room in the table: other equations, fewer steps, compilation, what is missing."""
    notes: dict[str, None] = {}
    shortened: dict[str, None] = {}
    for case in content["cases"]:
        for name, side in opponents(case).items():
            if side.get("difference"):
                notes[f"{title(name)}: {side['difference']}."] = None
            steps = side.get("steps", case["case"]["n_steps"])
            if steps != case["case"]["n_steps"]:
                shortened[f"{case['case']['name']} ({steps})"] = None
            if side.get("compile_seconds"):
                seconds = seconds_text(side["compile_seconds"])
                notes[f"{case['case']['name']}, {title(name)}: compiled in {seconds}."] = None
        for name, reason in case.get("skipped", {}).items():
            notes[f"{case['case']['name']}, {title(name)}: {reason}."] = None
    if shortened:
        notes[f"Opponents timed over fewer steps and scaled: {', '.join(shortened)}."] = None
    return list(notes)


def growth_table(content: Content) -> str:
    """The slopes of all series, and fastlif's memory at both ends of each."""
    sides = list(dict.fromkeys(side for one in content["series"] for side in one["slope"]))
    head = ["a step's time over", "from", "to", *map(title, sides)]
    lines = [[*head, "fastlif keeps", "and takes beside"]]
    lines.append(["---"] * len(lines[0]))
    for series in content["series"]:
        values = [point["value"] for point in series["points"]]
        cells = [_slope_text(series, side, max(values)) for side in sides]
        ends = [series["points"][index]["sides"].get("fastlif") for index in (0, -1)]
        kept = " to ".join(bytes_text(end and end["kept_bytes"]) for end in ends)
        beside = " to ".join(bytes_text(end and bytes_beside(end)) for end in ends)
        lines.append(
            [series["variable"], f"{min(values):g}", f"{max(values):g}", *cells, kept, beside]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _slope_text(series: Content, side: str, last: float) -> str:
    """A slope, and the largest value it was measured at where that is not the series' last."""
    slope = series["slope"].get(side)
    if slope is None:
        return "-"
    largest = max(point["value"] for point in series["points"] if side in point["sides"])
    return f"{slope:.2f}" + (f" (up to {largest:g})" if largest < last else "")


def bytes_beside(side: Content) -> int | None:
    """What a step took beside what the process held before and what it kept for backward."""
    size = step_bytes(side)
    return None if size is None else max(0, size - side["kept_bytes"])


def depth_text(content: Content) -> str:
    """How many layers fit, in a sentence."""
    search, parts = content["layers"]["search"], []
    for side, depth in content["layers"]["sides"].items():
        if depth["n_layers"] is None:
            parts.append(f"{title(side)} none that was confirmed")
        else:
            at_least = "" if depth["is_largest"] else "at least "
            parts.append(f"{title(side)} {at_least}**{depth['n_layers']}**")
    limit = f"{search['limit'] / (1 << 30):.4g} GiB"
    sizes = f"width 64, batch {search['batch']}, {search['n_steps']} steps"
    return f"Recurrent conv layers whose step fits into {limit} ({sizes}): {', '.join(parts)}."


def speed_text(results: dict[str, Content], folder: str) -> str:
    """All that stands between the markers; `folder` holds the plots, relative to the README."""
    parts = []
    for name, content in results.items():
        if content.get("cases"):
            notes = [f"- {note}" for note in run_notes(content)]
            parts += [*run_tables(content), _columns_text() + machine_text(content)]
            parts += ["\n".join(notes)] if notes else []
        if content.get("series"):
            parts += [growth_table(content), "Log-log slopes. " + machine_text(content)]
        if "layers" in content:
            parts.append(depth_text(content))
        parts += [f"![{alt}]({folder}/{file})" for file, alt in plot_files(name, content).items()]
    return "\n\n".join(parts)


def _columns_text() -> str:
    return (
        "Medians, fastlif's with the smallest and the largest; of the others also how many times "
        "longer they take, the median over turns side by side. Memory is what a training step "
        "takes beside what the process held before it (in brackets the peak of the process, "
        "PyTorch included). "
    )


def plot_files(name: str, content: Content) -> dict[str, str]:
    """Names of the plots of a results file and what they show."""
    files = {}
    if content.get("cases"):
        files[f"{name}-ratios.svg"] = "How many times longer other libraries take"
    if content.get("series"):
        files[f"{name}-time.svg"] = "Time of a training step over its sizes"
        files[f"{name}-memory.svg"] = "Memory of a training step over depth"
    return files


def replaced(readme: str, text: str) -> str:
    """The README with `text` between the markers; BadResults unless each marker is there once."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise BadResults(f"the README must have one line {BEGIN!r} and one {END!r} behind it")
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise BadResults(f"the README's line {END!r} must stand behind {BEGIN!r}")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def add_parser(commands: Any) -> None:
    """The subcommand `report`."""
    command = commands.add_parser("report", help="write the README's speed table and plots")
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of JSON files")
    command.add_argument("--readme", type=Path, default=README, help="file with the markers")
    command.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if something is stale"
    )
    command.set_defaults(main=main)


def main(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Write the report, or look whether it is what the results give."""
    try:
        results = read_results(options.results)
        readme = options.readme.read_text()
        folder = _relative(options.results, options.readme.parent)
        expected = replaced(readme, speed_text(results, folder))
    except (BadResults, OSError) as problem:
        print(f"report: {problem}", file=sys.stderr)
        return 1
    if options.check:
        stale = [str(options.readme)] if expected != readme else []
        stale += [str(path) for path in stale_plots(results, options.results)]
        for one in stale:
            print(f"stale: {one}: run `python -m bench report`", file=sys.stderr)
        return 1 if stale else 0
    for name, content in results.items():
        draw(name, content, plot_files(name, content), options.results)
    options.readme.write_text(expected)
    return 0


def stale_plots(results: dict[str, Content], folder: Path) -> list[Path]:
    """Plots that are missing or were made from other results."""
    stale = []
    for name, content in results.items():
        for file in plot_files(name, content):
            if made_from(folder / file) != fingerprint(content):
                stale.append(folder / file)
    return stale


def _relative(folder: Path, start: Path) -> str:
    resolved = folder.resolve()
    if start.resolve() not in resolved.parents:
        raise BadResults(f"the results must be in a folder below the README's, {start}")
    return resolved.relative_to(start.resolve()).as_posix()
