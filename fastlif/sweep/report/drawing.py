"""Pictures of a sweep's accuracies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif import plots
from fastlif.plots.style import CYCLE
from fastlif.rows import Rows, Summary
from fastlif.sweep.report.layout import TARGET, WEIGHTS, Layout, combinations, is_log
from fastlif.sweep.report.results import FINISHED, METRICS, STOPPED, WAITING, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

PERCENT = 100.0
MOST_COLUMNS = 3
PANEL_HEIGHT = 58.0  # mm
FULL_GRID = 0.5  # of its places: a map with fewer is one of points
SYMBOLS = {
    TARGET: r"target $\sigma_U$",
    "mu_w": r"$\mu_W$",
    "sigma_w": r"$\sigma_W$",
    "lr": "learning rate",
}


def draw(results: Results, layout: Layout, metrics: Sequence[str]) -> Figure:
    """A panel for every metric, of a map for every value of the other options besides.

    Raises:
        ValueError: the layout has no picture.
    """
    if layout.kind == "none":
        raise ValueError("layout must be of a picture, got one without")
    groups = combinations(results.rows, layout.others) if layout.kind == "map" else [{}]
    panels = [(metric, group) for group in groups for metric in metrics]
    with plots.style():
        return _figure(results, layout, panels, len(metrics))


def _figure(
    results: Results, layout: Layout, panels: Sequence[tuple[str, dict[str, Any]]], n_metrics: int
) -> Figure:
    """Panels of a metric and a group each: those of a group in a row, as far as the page goes."""
    n_columns = min(MOST_COLUMNS, n_metrics)
    n_rows = math.ceil(len(panels) / n_columns)
    room = 0.6 if layout.kind == "curve" and layout.others else 0.0  # for the legend
    width = plots.PAGE * min(MOST_COLUMNS, n_columns + room) / MOST_COLUMNS
    figure = plots.figure(PANEL_HEIGHT * n_rows, width)
    for number, (metric, group) in enumerate(panels, start=1):
        ax = figure.add_subplot(n_rows, n_columns, number)
        of_panel = results.rows.where(metric=metric, **group)
        if layout.kind == "curve":
            _draw_curves(ax, of_panel, layout, metric, results.chance)
        else:
            _draw_map(ax, of_panel, layout, metric, results)
            if group:
                ax.set_title(_label(group))
    if layout.kind == "curve":
        _legend_beside(figure, layout)
    figure.suptitle(results.title())
    return figure


def _legend_beside(figure: Figure, layout: Layout) -> None:
    """One legend for all panels, where it hides nothing; none of a single line."""
    entries: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    if layout.others or len(entries) > 1:
        title = SYMBOLS.get(layout.others[0], layout.others[0]) if len(layout.others) == 1 else None
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", title=title)


def _draw_curves(ax: Axes, rows: Rows, layout: Layout, metric: str, chance: float | None) -> None:
    """A line for every combination of the other options, with the range over the seeds."""
    (name,) = layout.axes
    groups = combinations(rows, layout.others)
    for group, color in zip(groups, _colors(groups, layout.others), strict=True):
        of_line = rows.where(**group)
        found = of_line.over(name)
        x = [key[0] for key in found]
        summaries = list(found.values())
        label = _label(group, values_only=len(layout.others) == 1)
        plots.curve(ax, x, summaries, label=label, color=color, factor=PERCENT, spread="range")
        for place, summary in zip(x, summaries, strict=True):
            n_trials = len(of_line.where(**{name: place}))
            plots.note_missing(ax, n_trials, place, summary, color, PERCENT)
        _draw_stopped(ax, of_line, name, color)
    values = sorted(rows.distinct(name))
    if is_log(name, values):
        ax.set_xscale("log")
    if name == TARGET:
        plots.target_axis(ax, values)
    else:
        ax.set_xlabel(SYMBOLS.get(name, name))
    plots.percent_axis(ax, METRICS[metric], chance)
    if any(row["stopped_at"] is not None for row in rows):
        ax.plot([], [], "o", ms=2.5, mfc="none", mew=0.6, color="0.3", label="stopped early")


def _draw_stopped(ax: Axes, rows: Rows, name: str, color: Any) -> None:
    """What trials had reached that the scheduler stopped: they are in no mean."""
    stopped = [row for row in rows if row["stopped_at"] is not None]
    if stopped:
        ax.plot(
            [row[name] for row in stopped],
            [PERCENT * row["stopped_at"] for row in stopped],
            "o",
            ms=2.5,
            mfc="none",
            mew=0.6,
            color=color,
        )


def _draw_map(ax: Axes, rows: Rows, layout: Layout, metric: str, results: Results) -> None:
    """Means over seeds in color; marks where trials are missing; of weights the theory's lines."""
    x_name, y_name = layout.axes
    found = rows.over(x_name, y_name)
    values = {key: PERCENT * summary.mean for key, summary in found.items()}
    stopped = Rows({**row, "value": row["stopped_at"]} for row in rows).over(x_name, y_name)
    values = {key: PERCENT * one.mean for key, one in stopped.items()} | values
    places = [tuple(place.values()) for place in combinations(rows, layout.axes)]
    x, y = rows.distinct(x_name), rows.distinct(y_name)
    log = (is_log(x_name, x), is_log(y_name, y))
    ax.set(xlabel=SYMBOLS.get(x_name, x_name), ylabel=SYMBOLS.get(y_name, y_name))
    if not values:
        return plots.absent(ax, "no trial has ended with a score")
    is_grid = len(places) >= FULL_GRID * len(x) * len(y)
    if is_grid:  # the same places, whatever is missing
        drawn: Any = plots.heat_map(ax, dict.fromkeys(places, np.nan) | values, log=log)
    else:
        drawn = plots.scatter_map(ax, values, log=log)
    ax.figure.colorbar(drawn, ax=ax, label=METRICS[metric])
    _mark(ax, rows, layout, found, is_grid)
    if layout.axes == WEIGHTS and (theory := results.theory_of(rows)) is not None:
        plots.xi_lines(ax, theory, "white" if is_grid else "black")


def _mark(
    ax: Axes,
    rows: Rows,
    layout: Layout,
    found: Mapping[tuple[Any, ...], Summary],
    is_grid: bool,
) -> None:
    """Over how many of the seeds a mean is, if not all.

    Where there is none, a cross where trials failed, a dot where they were stopped early.
    """
    limits = ax.get_xlim(), ax.get_ylim()
    for place in combinations(rows, layout.axes):
        trials = rows.where(**place)
        x, y = place.values()
        summary = found.get((x, y))
        if summary is None:
            statuses = set(trials.distinct("status")) - {FINISHED, WAITING}
            if STOPPED in statuses:
                ax.plot(x, y, ".", ms=3, color="0.4")
            elif statuses:
                ax.plot(x, y, "x", ms=4, mew=0.8, color="0.4")
        elif summary.n < len(trials) and is_grid:
            color = "white" if PERCENT * summary.mean < 60.0 else "black"
            text = f"{summary.n}/{len(trials)}"
            ax.text(x, y, text, ha="center", va="center", fontsize=4.5, color=color)
    ax.set(xlim=limits[0], ylim=limits[1])


def _colors(groups: Sequence[Mapping[str, Any]], others: Sequence[str]) -> list[Any]:
    """Shades for the values of one option with numbers, colors that differ for all else."""
    from matplotlib import colormaps

    values = [group[others[0]] for group in groups] if len(others) == 1 else []
    if len(values) > 1 and all(type(value) in (int, float) for value in values):
        shades = colormaps["plasma"](np.linspace(0.0, 0.85, len(values)))
        return [shades[sorted(values).index(value)] for value in values]
    if len(groups) <= len(CYCLE):
        return list(CYCLE[: len(groups)])
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, len(groups))))


def _label(group: Mapping[str, Any], *, values_only: bool = False) -> str:
    """The values of options in words, with the options' names unless a title has them."""
    texts = {name: f"{v:g}" if type(v) in (int, float) else str(v) for name, v in group.items()}
    if values_only:
        return ", ".join(texts.values())
    return ", ".join(
        text if name == "preset" else f"{name} = {text}" for name, text in texts.items()
    )
