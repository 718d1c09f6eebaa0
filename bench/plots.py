"""Plots of results as small SVG files that name the results they were made from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.stored import Content, opponents, own_side, ratio, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SERIES_SHOWN = ("time", "batch", "neurons", "depth", "width", "density")
PANEL = 50.0  # mm, height of a row of panels
FINGERPRINT = re.compile(r"results ([0-9a-f]{64})")


def fingerprint(content: Content) -> str:
    """Of all numbers of a results file, whatever the file's layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def made_from(path: Path) -> str | None:
    """Fingerprint of the results a plot was made from; None without a plot that says so."""
    if not path.exists():
        return None
    found = FINGERPRINT.search(path.read_text())
    return found and found[1]


def draw(name: str, content: Content, files: Sequence[str] | dict[str, str], folder: Path) -> None:
    """Draw the plots called NAME-ratios.svg, NAME-time.svg and NAME-memory.svg of `files`."""
    kinds: dict[str, Callable[[Content], Figure]] = {
        "ratios": ratios,
        "time": time_over_sizes,
        "memory": memory_over_depth,
    }
    for kind, make in kinds.items():
        if f"{name}-{kind}.svg" in files:
            _save(make, content, folder / f"{name}-{kind}.svg")


def _save(make: Callable[[Content], Figure], content: Content, path: Path) -> None:
    import matplotlib

    from fastlif.plots.style import style

    with style(), matplotlib.rc_context({"svg.hashsalt": "fastlif", "savefig.dpi": 72}):
        # Without the date, the same results give the same file.
        about = {"Date": None, "Description": f"results {fingerprint(content)}"}
        make(content).savefig(path, format="svg", metadata=about)


def ratios(content: Content) -> Figure:
    """Bars: how many times longer than fastlif every opponent takes, by case, side by side."""
    from fastlif.plots.style import BLACK, CYCLE, GREY, PAGE, figure

    cases = content["cases"]
    names = list(dict.fromkeys(name for case in cases for name in opponents(case)))
    colors = (*CYCLE[1:], GREY)
    made = figure(PANEL + 15.0, PAGE)
    axes = made.add_subplot()
    begins, end = [], 0  # places of the first bar of every case, and one behind the last
    for case in cases:
        begins.append(end)
        end += len(opponents(case)) + 1
    for index, name in enumerate(names):
        places, heights = [], []
        for begin, case in zip(begins, cases, strict=True):
            others = opponents(case)
            if name in others:
                places.append(begin + list(others).index(name))
                heights.append(ratio(own_side(case["sides"]), others[name]))
        color = colors[index % len(colors)]
        bars = axes.bar(places, heights, label=title(name), color=color)
        axes.bar_label(bars, fmt="%.1f", fontsize=5.0)
    axes.axhline(1.0, color=BLACK, linewidth=0.6)
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.margins(y=0.15)
    middles = [
        begin + (len(opponents(case)) - 1) / 2 for begin, case in zip(begins, cases, strict=True)
    ]
    labels = [case["case"]["name"] for case in cases]
    axes.set_xticks(middles, labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_ylabel("training step, times fastlif's")
    axes.legend(ncols=3)
    return made


def time_over_sizes(content: Content) -> Figure:
    """A panel a series: seconds of a step, fastlif and the others, both axes logarithmic."""
    from fastlif.plots.style import PAGE, figure

    series = {one["name"]: one for one in content["series"]}
    shown = [series[name] for name in SERIES_SHOWN if name in series]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    made = figure(rows * PANEL, PAGE)
    for index, one in enumerate(shown):
        axes = made.add_subplot(rows, columns, index + 1)
        _lines(axes, one, lambda side: side["times"]["step"]["median"])
        slope = one["slope"].get("fastlif")
        axes.set_title(one["name"] + ("" if slope is None else f", fastlif's slope {slope:.2f}"))
        axes.set_ylabel("training step (s)")
    made.axes[0].legend()
    return made


def memory_over_depth(content: Content) -> Figure:
    """Peak and kept memory over the number of layers; without that series, over the first one."""
    from fastlif.plots.style import COLUMN, figure

    series = {one["name"]: one for one in content["series"]}
    chosen = series.get("depth", content["series"][0])
    made = figure(PANEL, COLUMN)
    axes = made.add_subplot()
    _lines(axes, chosen, lambda side: _in_megabytes(side["peak_rss"]), ", peak")
    kept = {"linestyle": "--", "marker": "."}
    _lines(axes, chosen, lambda side: _in_megabytes(side["kept_bytes"]), ", kept", **kept)
    axes.set_ylabel("memory (MB)")
    axes.legend()
    return made


def _in_megabytes(size: int | None) -> float | None:
    return None if size is None else 1e-6 * size


def _lines(
    axes: Axes,
    series: Content,
    number: Callable[[Content], float | None],
    suffix: str = "",
    **look: Any,
) -> None:
    """A line a side; what a side has no number for is left out."""
    from fastlif.plots.style import CYCLE

    sides = list(dict.fromkeys(side for point in series["points"] for side in point["sides"]))
    for index, side in enumerate(sides):
        pairs = [
            (point["value"], number(point["sides"][side]))
            for point in series["points"]
            if side in point["sides"]
        ]
        known = [(value, found) for value, found in pairs if found is not None]
        settings: Any = {"marker": "o", "color": CYCLE[index % len(CYCLE)]} | look
        axes.plot(
            *zip(*known, strict=True) if known else ((), ()), label=title(side) + suffix, **settings
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [point["value"] for point in series["points"]]
    axes.set_xticks(values, [f"{value:g}" for value in values])
    axes.set_xticks([], minor=True)
    _plain_numbers(axes.yaxis)
    axes.set_xlabel(series["variable"])


def _plain_numbers(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, 0.02 and not 2 x 10^-2; fewer over many decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
