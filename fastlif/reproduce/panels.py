"""Parts that the figures share: curves over targets, magnitudes by depth, bars beside the paper's.

All of them draw from a table, so that a figure can be drawn again, or from other numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif.plots import curve, drawable, legend, note_missing, percent_axis, target_axis
from fastlif.plots.style import CYCLE
from fastlif.reproduce.experiment import Results
from fastlif.reproduce.paper import published
from fastlif.reproduce.plan import KAIMING, PLAIN
from fastlif.reproduce.table import Table
from fastlif.rows import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "ACCURACIES",
    "NETWORK_COLORS",
    "PAPER_COLOR",
    "Series",
    "accuracy_axis",
    "bars",
    "by_layer",
    "compare",
    "footnotes",
    "letter",
    "over_targets",
    "paper_entry",
    "paper_mark",
    "target_colors",
]

# Of the validation accuracy the paper reports that of the last epoch; ours of test samples is with
# the weights of the epoch that was best on validation.
ACCURACIES = {
    "final_validation_accuracy": "validation accuracy\n(last epoch, %)",
    "test_accuracy": "test accuracy\n(best epoch, %)",
}
PAPER_COLOR = "0.35"
NETWORK_COLORS = CYCLE
KAIMING_GAP = 5.0  # Kaiming stands this factor to the right of the largest target
LINE_OF_NOTES = 0.16  # inches


@dataclass(frozen=True)
class Series:
    """Runs that make one line: the values of the columns that single them out, and its look."""

    label: str
    where: Mapping[str, Any]
    color: str
    style: str = "-"
    marker: str = "o"
    kaiming: str | None = KAIMING  # condition shown beside the axis of targets, if there are runs


def letter(ax: Axes, name: str) -> None:
    """The letter of a panel, left above its axes."""
    ax.annotate(
        name,
        (0.0, 1.0),
        xytext=(-24.0, 5.0),
        xycoords="axes fraction",
        textcoords="offset points",
        fontweight="bold",
        fontsize=10,
    )


def footnotes(figure: Figure | SubFigure, results: Results) -> None:
    """What differs from the paper, in small print below the figure."""
    import textwrap

    lines = [line for note in results.notes for line in textwrap.wrap(note, 150)]
    for number, line in enumerate(lines):
        figure.text(
            0.01,
            -0.01 - number * LINE_OF_NOTES / figure.bbox.height * figure.dpi,
            line,
            ha="left",
            va="top",
            fontsize=6.5,
            color="0.25",
        )


def accuracy_axis(ax: Axes, metric: str, table: Table) -> None:
    """An axis of accuracies in percent from 0, with the line of guessing if all guess alike."""
    classes = set(table.where(metric="n_classes").values())
    chance = 1.0 / classes.pop() if len(classes) == 1 else None
    percent_axis(ax, ACCURACIES[metric], chance)


def over_targets(
    ax: Axes,
    table: Table,
    metric: str,
    series: Sequence[Series],
    *,
    factor: float = 1.0,
    positive: bool = False,
) -> None:
    """Mean over seeds against the target of sigma_U, with their standard deviation as a band.

    Kaiming initialization, which has no target, stands to the right of them. A star with the color
    of the line is what the paper prints. `positive` leaves out means of 0, for an axis of
    logarithms. A mean over fewer runs than the table has says so, as "2/5".
    """
    of_metric = table.where(metric=metric)
    targets = sorted(of_metric.distinct("target"))
    right = (targets[-1] if targets else 1.0) * KAIMING_GAP
    has_kaiming = False
    for one in series:
        found = of_metric.where(**one.where).over("target")
        points = [(key[0], summary) for key, summary in found.items() if key[0] is not None]
        if points:
            curve(
                ax,
                [x for x, _ in points],
                [summary for _, summary in points],
                label=one.label,
                color=one.color,
                line=one.style,
                marker=one.marker,
                factor=factor,
                positive=positive,
            )
            for x, of_target in points:
                runs = table.where(**one.where, target=x).distinct("label")
                note_missing(ax, len(runs), x, of_target, one.color, factor)
        if one.kaiming is not None:
            conditions = {**one.where, "condition": one.kaiming, "target": None}
            summary = of_metric.where(**conditions).over("condition").get((one.kaiming,))
            if summary is not None:
                has_kaiming = True
                _point(ax, right, summary, one.color, factor)
                n_runs = len(table.where(**conditions).distinct("label"))
                note_missing(ax, n_runs, right, summary, one.color, factor)
        network, condition = one.where.get("network", ""), one.where.get("condition", PLAIN)
        known = published(metric, network, condition)
        if known is not None:
            paper_mark(ax, 1.0, known.mean * factor, known.std * factor, one.color)
    ax.set_xscale("log")
    target_axis(ax, targets, (right, "Kaiming") if has_kaiming else None)
    if has_kaiming:
        ax.axvline(right / KAIMING_GAP**0.5, color="0.85", lw=0.8, zorder=0)


def compare(
    ax: Axes,
    table: Table,
    metric: str,
    network: str,
    conditions: Mapping[str, str],
    *,
    colors: Mapping[str, str] | None = None,
) -> None:
    """Accuracy of a network against the target, a line for every condition.

    conditions: of the table, with what the legend calls them.
    colors: by condition; None takes those of `NETWORK_COLORS` in order.
    """
    if colors is None:
        colors = dict(zip(conditions, NETWORK_COLORS, strict=False))
    series = [
        Series(
            label,
            {"network": network, "condition": condition},
            colors[condition],
            kaiming=None,
        )
        for condition, label in conditions.items()
    ]
    over_targets(ax, table, metric, series, factor=100.0)
    accuracy_axis(ax, metric, table.where(network=network))
    if any(published(metric, network, condition) for condition in conditions):
        paper_entry(ax, "SHD")
    legend(ax, fontsize=6)


def _point(ax: Axes, x: float, summary: Summary, color: str, factor: float) -> None:
    ax.errorbar(
        x,
        summary.mean * factor,
        summary.std * factor if summary.n > 1 else None,
        fmt="s",
        ms=4,
        color=color,
        mfc="white",
        capsize=2,
        lw=1,
    )


def paper_mark(ax: Axes, x: float, mean: float, std: float, color: str = PAPER_COLOR) -> None:
    """A number of the paper: a star with its standard deviation."""
    ax.errorbar(
        x,
        mean,
        std or None,
        fmt="*",
        ms=8,
        color=color,
        mec="black",
        mew=0.5,
        ecolor="black",
        elinewidth=0.7,
        capsize=2,
        zorder=5,
    )


def paper_entry(ax: Axes, name: str) -> None:
    """An entry for the paper's numbers in the legend of a panel."""
    ax.plot([], [], "*", ms=7, color="white", mec="black", mew=0.6, label=f"paper ({name})")


def target_colors(targets: Sequence[float]) -> dict[float, Any]:
    """A color for every target, from dark (small) to bright (large)."""
    from matplotlib import colormaps

    shades = colormaps["plasma"](np.linspace(0.0, 0.85, max(2, len(targets))))
    return {target: shades[i] for i, target in enumerate(sorted(targets))}


def by_layer(
    ax: Axes, table: Table, metric: str, *, readout: bool = True, positive: bool = True
) -> None:
    """A magnitude against depth, a line for every target of sigma_U.

    positive: leave out means of 0, for an axis of logarithms; else they stand on its foot.
    """
    of_metric = table.where(metric=metric)
    targets = sorted(of_metric.distinct("target"))
    colors = target_colors(targets)
    names: dict[str, None] = {}
    for target in targets:
        found = of_metric.where(target=target).over("layer")
        layers = _in_order([str(key[0]) for key in found], readout=readout)
        names |= dict.fromkeys(layers)
        by_name = {str(key[0]): summary for key, summary in found.items()}
        summaries = [by_name[name] for name in layers]
        # A layer without spikes has no weight update behind it: a gap on an axis of logarithms.
        mean = drawable([s.mean for s in summaries], positive=positive)
        places = [list(names).index(name) for name in layers]
        line = {"ms": 3, "lw": 1.1, "color": colors[target], "clip_on": positive}
        ax.plot(places, mean, "o-", label=f"{target:g}", **line)
        if any(s.n > 1 for s in summaries):
            low = drawable([s.low for s in summaries], positive=positive)
            high = drawable([s.high for s in summaries], positive=positive)
            ax.fill_between(places, low, high, color=colors[target], alpha=0.15, lw=0)
    ax.set_xticks(range(len(names)), [_short(name) for name in names])
    ax.set_xlabel("hidden layer")


def _in_order(layers: Sequence[str], *, readout: bool) -> list[str]:
    """Hidden layers by number, the readout last."""
    numbered = sorted((n for n in layers if n != "readout"), key=lambda n: float(n))
    return [*numbered, *(["readout"] if readout and "readout" in layers else [])]


def _short(name: str) -> str:
    return "out" if name == "readout" else name


def bars(ax: Axes, table: Table, network: str, conditions: Sequence[str], metric: str) -> None:
    """Accuracies of a network under conditions, a dot for every seed, beside the paper's."""
    of_network = table.where(network=network, metric=metric)
    for place, condition in enumerate(conditions):
        color = NETWORK_COLORS[place]
        runs = of_network.where(condition=condition)
        values = [100.0 * value for value in runs.values()]
        if values:
            summary = Summary.of(values)
            error = summary.std if summary.n > 1 else None
            ax.bar(place - 0.2, summary.mean, 0.38, yerr=error, color=color, capsize=2, alpha=0.85)
            spread = np.linspace(-0.08, 0.08, len(values)) if len(values) > 1 else [0.0]
            ax.plot(place - 0.2 + np.asarray(spread), values, ".", ms=3, color="black")
            _number_above(ax, place - 0.2, summary.mean, error or 0.0)
        else:
            ax.text(place - 0.2, 3.0, "no run", rotation=90, ha="center", va="bottom", fontsize=6)
        known = published(metric, network, condition)
        if known is not None:
            ax.bar(
                place + 0.2,
                100.0 * known.mean,
                0.38,
                yerr=100.0 * known.std or None,
                facecolor="white",
                edgecolor=color,
                hatch="////",
                capsize=2,
                lw=0.8,
            )
            _number_above(ax, place + 0.2, 100.0 * known.mean, 100.0 * known.std)
    ax.bar([np.nan], [np.nan], color="0.5", label="here")
    ax.bar([np.nan], [np.nan], facecolor="white", edgecolor="0.5", hatch="////", label="paper")
    ax.set_xticks(range(len(conditions)), [c.replace(" + ", "\n+ ") for c in conditions])
    ax.tick_params(axis="x", length=0)


def _number_above(ax: Axes, x: float, value: float, error: float) -> None:
    """A bar's value, written upwards above its error."""
    ax.text(
        x, value + error + 2.0, f"{value:.1f}", ha="center", va="bottom", rotation=90, fontsize=5.5
    )
