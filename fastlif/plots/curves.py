"""Curves over a setting: means over seeds, their spread, and how many seeds are behind a mean."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, NullLocator
from numpy.typing import NDArray

from fastlif.rows import Summary

# Of these the axis of sigma_U names those that it has, if it has more than MOST_TICKS values.
LANDMARKS = (0.01, 0.1, 0.2, 1.0, 10.0, 20.0)
MOST_TICKS = 5
ABSENT_WIDTH = 24  # letters of a line


def curve(
    axes: Axes,
    x: Sequence[float],
    summaries: Sequence[Summary],
    *,
    label: str,
    color: Any,
    line: str = "-",
    marker: str = "o",
    factor: float = 1.0,
    spread: Literal["std", "range"] = "std",
    positive: bool = False,
) -> None:
    """Means as a line and, where the seeds differ, a band around it.

    factor: of all numbers, 100 for percent.
    spread: of the band, a standard deviation to either side or from the lowest to the highest.
    positive: leave out means of 0, for an axis of logarithms.
    """
    means = drawable([one.mean * factor for one in summaries], positive=positive)
    axes.plot(x, means, line, color=color, marker=marker, ms=3.5, lw=1.2, label=label)
    if spread == "std":
        std = factor * np.asarray([one.std for one in summaries])
        low, high = means - std, means + std
    else:
        low = drawable([one.low * factor for one in summaries], positive=positive)
        high = drawable([one.high * factor for one in summaries], positive=positive)
    if any(one.n > 1 and one.high > one.low for one in summaries):
        axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)


def note_missing(
    axes: Axes, n_runs: int, x: float, summary: Summary, color: Any, factor: float = 1.0
) -> None:
    """Write at a mean over how many of the runs it is, as "2/3", if not all have the number."""
    if summary.n < n_runs:
        axes.annotate(
            f"{summary.n}/{n_runs}",
            (x, summary.mean * factor),
            xytext=(3.0, 3.0),
            textcoords="offset points",
            color=color,
            fontsize=5.5,
        )


def drawable(values: Sequence[float], *, positive: bool) -> NDArray[np.float64]:
    """The values, with gaps where one is not above 0 and `positive` asks for that."""
    found = np.asarray(values, dtype=np.float64)
    return np.where(found > 0.0, found, np.nan) if positive else found


def target_axis(
    axes: Axes, targets: Sequence[float], beside: tuple[float, str] | None = None
) -> None:
    """Ticks and the label of an axis of targets of sigma_U, ascending; the scale is the caller's.

    beside: place and name of what stands to the right of the targets, for lack of one.
    """
    axes.set_xlabel(r"target $\sigma_U$")
    shown = [target for target in LANDMARKS if target in targets]
    if len(targets) <= MOST_TICKS:
        shown = list(targets)
    elif 0.1 in shown and 0.2 in shown:
        shown.remove(0.2)
    if 10.0 in shown and 20.0 in shown:
        shown.remove(20.0)
    places, names = list(shown), [f"{target:g}" for target in shown]
    if beside is not None:
        places.append(beside[0])
        names.append(beside[1])
    if places:
        axes.set_xticks(places, names)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def percent_axis(axes: Axes, label: str, chance: float | None = None) -> None:
    """A y axis of accuracies in percent from 0, with a line for guessing, a share of 1."""
    axes.set_ylim(0.0, 103.0)
    axes.set_yticks(range(0, 101, 25))
    axes.set_ylabel(label)
    if chance is not None:
        axes.axhline(100.0 * chance, color="0.6", lw=0.8, ls=":", zorder=0)


def legend(axes: Axes, **settings: Any) -> None:
    """A legend of what is drawn, none of nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(**settings)


def absent(axes: Axes, text: str) -> None:
    """Say in the place of a panel why it is empty."""
    axes.set_axis_off()
    written = axes.text(
        0.5,
        0.5,
        textwrap.fill(text, ABSENT_WIDTH),
        ha="center",
        va="center",
        transform=axes.transAxes,
        color="0.4",
        fontsize=7,
    )
    written.set_in_layout(False)
