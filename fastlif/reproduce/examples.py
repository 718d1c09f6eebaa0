"""A sample's way through a network: input, hidden layers and readout, one above the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif.plots import absent
from fastlif.plots.style import POPULATION_COLORS, VERMILLION
from fastlif.reproduce.experiment import Arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["draw_example"]

MOST_NEURONS = 150  # of a population that are shown, evenly spread
TARGET_COLOR = VERMILLION


def draw_example(
    figure: Figure | SubFigure, place: Any, example: Arrays, stage: str, title: str
) -> Axes:
    """Rasters and the readout's membranes from the arrays of `record_example`.

    place: of the figure's grid. stage: "initial" or "trained".
    Returns the uppermost axes.
    """
    rasters = {
        key.removeprefix(f"{stage}."): array
        for key, array in example.items()
        if key.startswith(f"{stage}.") and not key.endswith(".readout")
    }
    readout = example.get(f"{stage}.readout")
    if readout is None:
        ax = figure.add_subplot(place)
        absent(ax, f"{title}:\nno example")
        return ax
    heights = [*(0.5 if "_" in name else 1.0 for name in rasters), 0.8]
    parts = place.subgridspec(len(heights), 1, height_ratios=heights, hspace=0.05)
    time = 1e3 * float(example["dt"]) * np.arange(len(readout))
    axes = [figure.add_subplot(parts[i, 0]) for i in range(len(heights))]
    for ax, (name, raster) in zip(axes, rasters.items(), strict=False):
        _draw_raster(ax, time, raster, name, _population(name, rasters))
        ax.tick_params(labelbottom=False)
    _draw_readout(axes[-1], time, readout, int(example["target"]))
    for ax in axes:
        ax.set_xlim(0.0, time[-1])
    axes[-1].set_xlabel("time (ms)")
    axes[0].set_title(title, fontsize=7)
    return axes[0]


def _population(name: str, rasters: Arrays) -> str:
    """Kind of a raster's neurons, as the colors of `fastlif.plots` name them."""
    if name.endswith("_inhibitory"):
        return "inhibitory"
    return "excitatory" if f"{name}_inhibitory" in rasters else "all"


def _draw_raster(ax: Axes, time: Any, raster: Any, name: str, population: str) -> None:
    n_neurons = raster.shape[1]
    kept = np.unique(np.linspace(0, n_neurons - 1, min(n_neurons, MOST_NEURONS)).astype(int))
    steps, neurons = np.nonzero(raster[:, kept])
    color = POPULATION_COLORS[population]
    size = 2.0 if len(kept) < 60 else 0.9
    ax.plot(time[steps], neurons, "o", ms=size, mew=0, color=color, rasterized=True)
    ax.set_ylim(-1, len(kept))
    ax.set_yticks([])
    label = f"layer {name}" if name.isdigit() else name
    short = {"excitatory": "exc.", "inhibitory": "inh."}.get(population, label)
    ax.set_ylabel(short, fontsize=6.5)


def _draw_readout(ax: Axes, time: Any, membranes: Any, target: int) -> None:
    """The membrane of the right class in color."""
    for unit in range(membranes.shape[1]):
        if unit != target:
            ax.plot(time, membranes[:, unit], color="0.7", lw=0.6)
    if target >= 0:
        ax.plot(time, membranes[:, target], color=TARGET_COLOR, lw=1.2)
    ax.set_ylabel("readout", fontsize=6.5)
    ax.set_yticks([])
