"""Firing rates, gradients and weight updates by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from fastlif.inspection import LayerGradients, Magnitude, ModelReport
from fastlif.plots.style import (
    BLACK,
    COLUMN,
    LIGHT_GREY,
    PAGE,
    POPULATION_COLORS,
    VERMILLION,
    figure,
    panel_label,
    style,
)

LEAST_RANGE = 100.0  # highest over lowest value of a logarithmic axis

MAGNITUDES: dict[str, tuple[str, Callable[[LayerGradients], Magnitude | None]]] = {
    "output": (r"mean $|\partial L / \partial S|$", lambda own: own.output),
    "gradient": (r"mean $|\partial L / \partial W|$", lambda own: own.total("gradient")),
    "update": (r"mean $|\Delta W|$ of one step", lambda own: own.total("update")),
}


def rates_by_depth(axes: Axes, report: ModelReport) -> None:
    """Mean firing rate of every population, and the range of 80 % of its neurons."""
    kinds = dict.fromkeys(activity.population for activity in report.activities)
    for kind in kinds:
        places, means, low, high = [], [], [], []
        for place, layer in enumerate(report.layers, start=1):
            for part in layer.populations:
                if part.activity.population == kind:
                    rates = part.activity.neuron_rates.numpy()
                    places.append(place)
                    means.append(part.activity.firing_rate)
                    low.append(float(np.quantile(rates, 0.1)))
                    high.append(float(np.quantile(rates, 0.9)))
        shift = {"excitatory": -0.08, "inhibitory": 0.08}.get(kind, 0.0)  # bars side by side
        x = np.array(places) + shift
        color = POPULATION_COLORS[kind]
        alone = kind == "all"
        bars = {"color": LIGHT_GREY} if alone else {"color": color, "alpha": 0.35}
        range_label = "10–90 % of neurons" if alone else ""
        axes.vlines(x, low, high, linewidth=3.0, label=range_label, **bars)
        axes.plot(x, means, marker="o", color=color, label="mean" if alone else kind)
    axes.set_ylim(0.0, 1.3 * axes.get_ylim()[1])
    axes.set_ylabel("firing rate (Hz)")
    _layer_axis(axes, [layer.name for layer in report.layers])
    axes.legend(loc="upper left")


def silent_by_depth(axes: Axes, report: ModelReport) -> None:
    """Shares of neurons that never fire and of those that fire nearly always."""
    places = np.arange(1, len(report.layers) + 1)
    for label, color, name in (("silent", BLACK, "silent"), ("saturated", VERMILLION, "saturated")):
        shares = []
        for layer in report.layers:
            sizes = [part.activity.n_neurons for part in layer.populations]
            parts = [getattr(part.activity, name) for part in layer.populations]
            shares.append(100.0 * float(np.average(parts, weights=sizes)))
        axes.plot(places, shares, marker="o", color=color, label=label, clip_on=False)
    axes.set_ylim(0.0, 100.0)
    axes.set_ylabel("neurons (%)")
    _layer_axis(axes, [layer.name for layer in report.layers])
    axes.legend(loc="best")


def magnitudes_by_depth(
    axes: Axes,
    report: ModelReport,
    kind: str = "output",
    *,
    color: str = BLACK,
    label: str | None = None,
) -> None:
    """Mean size of gradients or of weight updates of every layer and readout, on a log scale.

    kind: "output", the gradient with respect to what a layer emits; "gradient", that of its
        weights; "update", what one optimizer step adds to them. A triangle at the lower end of the
        axis stands for exactly 0.

    Several reports, of different initializations say, can share the axes. Raises ValueError for
    another kind, and for a report without gradients.
    """
    if kind not in MAGNITUDES:
        raise ValueError(f"kind must be one of {', '.join(MAGNITUDES)}, got {kind!r}")
    title, of = MAGNITUDES[kind]
    layers = report.all_layers()
    if any(layer.gradients is None for layer in layers):
        raise ValueError("report must hold gradients: give targets to inspect")
    found = [None if layer.gradients is None else of(layer.gradients) for layer in layers]
    values = np.array([np.nan if one is None else one.mean for one in found])
    places = np.arange(1, len(layers) + 1)
    above = np.where(values > 0.0, values, np.nan)
    axes.set_yscale("log")
    axes.plot(places, above, marker="o", color=color, label=label)
    zeros = places[values == 0.0]
    if len(zeros):
        floor = axes.get_xaxis_transform()
        heights = np.zeros(len(zeros))
        axes.plot(zeros, heights, "v", color=color, clip_on=False, transform=floor)
    low, high = axes.get_ylim()
    if high < LEAST_RANGE * low:  # the scale shall have two labels
        middle = np.sqrt(low * high)
        axes.set_ylim(middle / LEAST_RANGE**0.5, middle * LEAST_RANGE**0.5)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(title)
    _layer_axis(axes, [layer.name for layer in layers])


def depth_figure(report: ModelReport, *, width: float | None = None) -> Figure:
    """Rates, silent and saturated neurons, and if the report has them gradients and updates."""
    with style():
        panels: list[Callable[[Axes], None]] = [
            lambda axes: rates_by_depth(axes, report),
            lambda axes: silent_by_depth(axes, report),
        ]
        if report.loss is not None:
            panels += [
                lambda axes: magnitudes_by_depth(axes, report, "output"),
                lambda axes: magnitudes_by_depth(axes, report, "update"),
            ]
        made = figure(45.0, width or (PAGE if len(panels) > 2 else COLUMN))
        for letter, axes, draw in zip(
            "abcd", made.subplots(1, len(panels), squeeze=False)[0], panels, strict=False
        ):
            draw(axes)
            panel_label(axes, letter)
    return made


def _layer_axis(axes: Axes, names: Sequence[str]) -> None:
    """A tick for each layer: hidden ones by number, others by their first letters."""
    labels = []
    for number, name in enumerate(names, start=1):
        labels.append("R" if name.lower().endswith("readout") else str(number))
    axes.set_xticks(range(1, len(names) + 1), labels)
    axes.set_xlim(0.5, len(names) + 0.5)
    axes.set_xlabel("layer" + (" (R: readout)" if "R" in labels else ""))
