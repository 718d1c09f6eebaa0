"""Distributions of membranes beside what theory expects of them."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastlif.inspection import Membranes, ModelReport
from fastlif.plots.style import BLACK, BLUE, GREY, LIGHT_GREY, PAGE, VERMILLION, figure, style

MOST_COLUMNS = 4
ROOM_ABOVE = 1.5  # height of the y axis over the highest expected density


def membrane_histogram(
    axes: Axes,
    membranes: Membranes,
    *,
    threshold: float = 1.0,
    target: tuple[float, float] | None = None,  # (mu_U, sigma_U) that the initialization aimed at
) -> None:
    """Density of U over neurons, samples and steps, without and with reset, and as predicted.

    "predicted" has a Gaussian for each neuron, from its weights and the rates of its inputs. The
    y axis ends above what is expected: the peak of neurons at rest may be cut off.
    """
    histogram = membranes.histogram
    edges = histogram.edges.numpy()
    centres = 0.5 * (edges[1:] + edges[:-1])
    free = histogram.free.numpy()
    axes.stairs(free, edges, fill=True, color=LIGHT_GREY, label="no reset")
    axes.stairs(histogram.reset.numpy(), edges, color=BLUE, linewidth=0.8, label="with reset")
    highest = float(np.quantile(free, 0.98))
    if histogram.predicted is not None:
        predicted = histogram.predicted.numpy()
        axes.plot(centres, predicted, color=VERMILLION, linewidth=1.1, label="predicted")
        highest = max(highest, float(np.quantile(predicted, 0.98)))
    if target is not None and target[1] > 0.0:
        gaussian = _gaussian(centres, *target)
        axes.plot(centres, gaussian, color=BLACK, linestyle="--", linewidth=0.9, label="target")
        highest = max(highest, float(gaussian.max()))
    axes.axvline(threshold, color=GREY, linestyle=":", linewidth=0.9, label="threshold")
    if highest > 0.0:
        axes.set_ylim(0.0, ROOM_ABOVE * highest)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("membrane $U$")
    axes.set_ylabel("density")


def membrane_figure(report: ModelReport, *, width: float = PAGE) -> Figure:
    """A histogram for every population of a module; one legend for all."""
    with style():
        parts = [(layer, part) for layer in report.layers for part in layer.populations]
        n_columns = min(MOST_COLUMNS, len(parts))
        n_rows = math.ceil(len(parts) / n_columns)
        # Narrow figures stay legible: a panel is at most a quarter of the page wide.
        made = figure(36.0 * n_rows + 8.0, max(60.0, width * n_columns / MOST_COLUMNS))
        grid = made.add_gridspec(n_rows, n_columns)
        for number, (layer, part) in enumerate(parts):
            axes = made.add_subplot(grid[number // n_columns, number % n_columns])
            target = None
            if layer.target_mu_u is not None and layer.target_sigma_u is not None:
                target = (layer.target_mu_u, layer.target_sigma_u)
            membrane_histogram(axes, part.membranes, threshold=layer.threshold, target=target)
            kind = part.activity.population
            axes.set_title(layer.name if kind == "all" else f"{layer.name}, {kind}")
            _note_sigma(axes, part.membranes)
            if number % n_columns:
                axes.set_ylabel("")
            if number < (n_rows - 1) * n_columns:
                axes.set_xlabel("")
        handles, labels = made.axes[0].get_legend_handles_labels()
        if len(parts) < n_rows * n_columns:  # a place is left
            corner = made.add_subplot(grid[n_rows - 1, n_columns - 1])
            corner.axis("off")
            corner.legend(handles, labels, loc="center")
        else:
            made.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    return made


def _note_sigma(axes: Axes, membranes: Membranes) -> None:
    text = rf"$\sigma_U$ {membranes.sigma_u:.2f}"
    if membranes.predicted_sigma_u is not None:
        text += f"\npred. {membranes.predicted_sigma_u:.2f}"
    axes.text(0.97, 0.97, text, transform=axes.transAxes, ha="right", va="top", fontsize=6.0)


def _gaussian(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))
