"""One sample on its way through a network: spikes, membranes, readout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fastlif.inspection import PopulationRecord, Recording
from fastlif.plots.style import (
    BLACK,
    COLUMN,
    GREY,
    LIGHT_GREY,
    POPULATION_COLORS,
    VERMILLION,
    figure,
    style,
)

MOST_ROWS = 250  # neurons of a raster; of more, as many are drawn, evenly spread
MOST_VECTOR_POINTS = 4000  # more spikes than this become pixels in a PDF
ROW_HEIGHT = 13.0  # mm
ROOM_FOR_LABEL = 0.13  # of the height of an axis: what a label needs in a low row


def raster(
    axes: Axes,
    spikes: Tensor,  # (time, neurons)
    dt: float,  # seconds
    *,
    color: str = BLACK,
) -> None:
    """A dot for each spike, time in ms on the x axis, neurons on the y axis.

    Of more than MOST_ROWS neurons only as many are drawn, evenly spread.
    """
    n_steps, n_neurons = spikes.shape
    rows = torch.linspace(0, n_neurons - 1, min(n_neurons, MOST_ROWS)).long()
    steps, places = torch.nonzero(spikes[:, rows], as_tuple=True)
    # A dot is as high as a row of a small layer, and never too small to print.
    size = float(np.clip(30.0 / n_neurons, 0.9, 2.0))
    axes.plot(
        steps.numpy() * dt * 1e3,
        rows[places].numpy(),
        linestyle="none",
        marker="o",
        markersize=size,
        markeredgewidth=0,
        color=color,
        rasterized=len(steps) > MOST_VECTOR_POINTS,
    )
    axes.set_xlim(0.0, n_steps * dt * 1e3)
    margin = 0.03 * n_neurons
    axes.set_ylim(-0.5 - margin, n_neurons - 0.5 + margin)
    axes.set_yticks([0, n_neurons - 1], ["1", str(n_neurons)])
    axes.set_xlabel("time (ms)")
    axes.set_ylabel("neuron")


def membrane_traces(
    axes: Axes,
    population: PopulationRecord,
    dt: float,
    *,
    n_neurons: int = 2,
    color: str = BLACK,
) -> None:
    """Membranes of some neurons above each other, with threshold, and lines for their spikes.

    The neurons are spread over those that fire, from few spikes to many; where too few of them
    fire, those that come closest to the threshold take their place.
    """
    threshold = population.threshold
    time = np.arange(len(population.membrane)) * dt * 1e3
    bases: list[float] = []
    offset = 0.0
    for column in _chosen_neurons(population, n_neurons):
        membrane = population.membrane[:, column].numpy() / threshold
        spikes = population.spikes[:, population.neurons[column]].numpy()
        lowest = min(0.0, float(membrane.min()))
        base = offset - lowest
        spike_height = max(0.8, 0.35 * (1.0 - lowest))  # to be seen beside large fluctuations
        axes.axhline(base + 1.0, color=GREY, linewidth=0.6, linestyle=(0, (3, 2)), zorder=1)
        axes.plot(time, base + np.minimum(membrane, 1.0), color=color, linewidth=0.7, zorder=2)
        axes.vlines(time[spikes], base + 1.0, base + 1.0 + spike_height, color=color, linewidth=0.7)
        bases.append(base)
        offset = base + 1.0 + spike_height + 0.5
    axes.set_xlim(0.0, len(time) * dt * 1e3)
    zero = "0" if 1.0 > ROOM_FOR_LABEL * offset else ""  # where the labels would not touch
    axes.set_yticks([base + 1.0 for base in bases], ["θ"] * len(bases))
    axes.set_yticks(bases, [zero] * len(bases), minor=True, fontsize=6.0)
    axes.tick_params(axis="y", which="minor", size=2.0)
    axes.set_ylim(-0.05 * offset, offset)
    axes.set_ylabel("$U$")
    axes.set_xlabel("time (ms)")


def readout_traces(
    axes: Axes,
    membrane: Tensor,  # (time, classes)
    dt: float,
    *,
    target: int | None = None,
) -> None:
    """Membranes of all readout units, and a dot at the maximum of each, which is its score.

    The one of the sample's class stands out, and so does the largest of the others.
    """
    membrane = membrane.detach()
    time = np.arange(len(membrane)) * dt * 1e3
    scores, best_steps = membrane.max(dim=0)
    others = [unit for unit in range(len(scores)) if unit != target]
    rival = max(others, key=lambda unit: float(scores[unit]), default=None)
    for unit in sorted(range(len(scores)), key=lambda unit: (unit == target, unit == rival)):
        color, width, label = LIGHT_GREY, 0.6, None
        if unit == target:
            color, width, label = VERMILLION, 1.1, f"class {unit} (true)"
        elif unit == rival:
            kind = "largest" if target is None else "largest other"
            color, width, label = BLACK, 0.8, f"class {unit} ({kind})"
        axes.plot(time, membrane[:, unit].numpy(), color=color, linewidth=width, label=label)
        if label is not None:
            step = int(best_steps[unit])
            axes.plot(time[step], float(scores[unit]), marker="o", color=color, clip_on=False)
    axes.set_xlim(0.0, len(time) * dt * 1e3)
    axes.set_xlabel("time (ms)")
    axes.set_ylabel("readout $U$")
    # Above the axes: membranes may be anywhere inside.
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, borderpad=0.0)


def raster_figure(recording: Recording, *, width: float = COLUMN) -> Figure:
    """Spikes of the input and of every layer above each other, and the readout's membranes."""
    with style():
        n_rows = len(recording.populations) + (recording.input is not None)
        ratios = [1.0] * n_rows + [1.4] * len(recording.readouts)
        made = figure(ROW_HEIGHT * sum(ratios) + 8.0, width)
        rows = _rows(made, ratios)
        if recording.input is not None:
            axes = rows.pop(0)
            raster(axes, recording.input, recording.dt, color=GREY)
            _label_row(axes, "input", _rate(recording.input, recording.dt))
        for population in recording.populations:
            axes = rows.pop(0)
            color = POPULATION_COLORS[population.population]
            raster(axes, population.spikes, recording.dt, color=color)
            _label_row(axes, _name(population), _rate(population.spikes, recording.dt))
        for name, membrane in recording.readouts.items():
            axes = rows.pop(0)
            readout_traces(axes, membrane, recording.dt, target=recording.target)
            axes.set_title(name, loc="left")
            axes.set_ylabel("$U$")
        _share_time(made)
    return made


def trace_figure(
    recording: Recording, *, n_neurons: int | None = None, width: float = COLUMN
) -> Figure:
    """Membranes of some neurons of every layer, with threshold and spikes.

    n_neurons: of each population; None shows more of them the fewer layers there are.
    """
    with style():
        n_rows = len(recording.populations)
        if n_neurons is None:
            n_neurons = 4 if n_rows == 1 else (3 if n_rows <= 3 else 2)
        made = figure((4.0 + 7.0 * n_neurons) * n_rows + 8.0, width)
        for axes, population in zip(
            _rows(made, [1.0] * n_rows), recording.populations, strict=True
        ):
            color = POPULATION_COLORS[population.population]
            membrane_traces(axes, population, recording.dt, n_neurons=n_neurons, color=color)
            _label_row(axes, _name(population), _rate(population.spikes, recording.dt))
        _share_time(made)
    return made


def _rows(made: Figure, ratios: Sequence[float]) -> list[Axes]:
    grid = made.add_gridspec(len(ratios), 1, height_ratios=ratios)
    return [made.add_subplot(grid[row, 0]) for row in range(len(ratios))]


def _label_row(axes: Axes, name: str, detail: str) -> None:
    axes.set_title(name, loc="left")
    axes.set_title(detail, loc="right", color=GREY, fontsize=6.0)


def _share_time(made: Figure) -> None:
    """One time axis below the last row, and labels of the other axis in line."""
    made.align_ylabels()
    rows = made.axes
    for axes in rows[:-1]:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)


def _name(population: PopulationRecord) -> str:
    if population.population == "all":
        return population.layer
    return f"{population.layer}, {population.population}"


def _rate(spikes: Tensor, dt: float) -> str:
    return f"{float(spikes.double().mean()) / dt:.1f} Hz"


def _chosen_neurons(population: PopulationRecord, n_neurons: int) -> list[int]:
    """Columns of the membranes to draw."""
    counts = population.spikes[:, population.neurons].sum(0)
    order = counts.argsort(stable=True)
    firing = order[counts[order] > 0]
    if len(firing) >= n_neurons:
        places = (torch.arange(n_neurons, dtype=torch.float64) + 0.5) / n_neurons * len(firing)
        return firing[places.long()].tolist()
    highest = population.membrane.amax(0).argsort(descending=True)
    return highest[:n_neurons].tolist()
