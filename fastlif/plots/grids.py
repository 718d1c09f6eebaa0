"""A number over two settings, and where theory puts the threshold among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from numpy.typing import NDArray

from fastlif.init import psp_integrals

XI_LINES = (1.0, 2.0, 3.0)
EMPTY = "0.75"  # of a cell without a value; white lines are seen on it


@dataclass(frozen=True)
class InputTheory:
    """What the theory of one layer's membranes asks for: its inputs and its time constants.

    rate is the mean firing rate of an input in Hz, times are in seconds.
    """

    n_inputs: int
    rate: float
    tau_mem: float = 20e-3
    tau_syn: float = 10e-3
    dt: float = 2e-3


def heat_map(
    axes: Axes,
    values: Mapping[tuple[float, float], float],
    *,
    log: tuple[bool, bool] = (False, True),
    limits: tuple[float, float] | None = (0.0, 100.0),
) -> QuadMesh:
    """Cells around every (x, y) in the color of its value; NaN and what is not there stay empty.

    log: whether x and y are spaced by their logarithms.
    limits: of the colors; None goes by the values.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("values must hold at least one combination, got none")
    x, y = (sorted({key[i] for key in values}) for i in range(2))
    cells = np.full((len(y), len(x)), np.nan)
    for (column, row), value in values.items():
        cells[y.index(row), x.index(column)] = value
    low, high = (None, None) if limits is None else limits
    axes.set_facecolor(EMPTY)
    mesh = axes.pcolormesh(
        _edges(x, log[0]),
        _edges(y, log[1]),
        cells,
        vmin=low,
        vmax=high,
        cmap="viridis",
        rasterized=True,
    )
    axes.set(xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    return mesh


def scatter_map(
    axes: Axes,
    values: Mapping[tuple[float, float], float],
    *,
    log: tuple[bool, bool] = (False, True),
    limits: tuple[float, float] | None = (0.0, 100.0),
) -> PathCollection:
    """A point at every (x, y) in the color of its value, for combinations that form no grid.

    log, limits: as of `heat_map`.
    """
    low, high = (None, None) if limits is None else limits
    x, y = np.array(list(values)).T
    points = axes.scatter(
        x, y, c=list(values.values()), s=14, vmin=low, vmax=high, cmap="viridis", edgecolors="none"
    )
    axes.set(xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    return points


def xi_lines(axes: Axes, theory: InputTheory, color: str = "white") -> None:
    """Where (mu_W, sigma_W) put the threshold xi standard deviations above the mean (eq 7).

    On an axis of mu_W (x) and one of sigma_W (y), whose limits stay. White is for cells, another
    color for points on white.
    """
    psp = psp_integrals(theory.tau_mem, theory.tau_syn, theory.dt)
    inputs_rate = theory.n_inputs * theory.rate
    limits = axes.get_xlim(), axes.get_ylim()
    mean = np.linspace(*limits[0], 2000)
    distance = 1.0 - inputs_rate * mean * psp.eps_bar
    for xi, style in zip(XI_LINES, ("-", "--", ":"), strict=True):
        variance = (distance / xi) ** 2 / (inputs_rate * psp.eps_hat) - mean**2
        inside = (variance > 0.0) & (distance > 0.0)
        width = np.sqrt(np.where(inside, variance, np.nan))
        axes.plot(mean, width, style, color=color, lw=1.0, label=f"$\\xi$ = {xi:g}")
    axes.set(xlim=limits[0], ylim=limits[1])
    axes.legend(
        fontsize=5.5,
        loc="upper right",
        frameon=True,
        labelcolor=color,
        facecolor="0.3" if color == "white" else "white",
        framealpha=0.6,
        edgecolor="none",
    )


def _edges(centres: list[float], log: bool) -> NDArray[np.float64]:
    """Borders of cells around the values of an axis; a single one lies in the middle of its cell.

    On an axis of logarithms a cell reaches as far to either side as the logarithm says.
    """
    places: Any = np.log(centres) if log else np.asarray(centres, dtype=np.float64)
    if len(places) == 1:
        half = 0.5 if log else 0.5 * (abs(places[0]) or 1.0)
        edges = places[0] + np.array([-half, half])
    else:
        middle = 0.5 * (places[1:] + places[:-1])
        edges = np.concatenate([[2 * places[0] - middle[0]], middle, [2 * places[-1] - middle[-1]]])
    return np.exp(edges) if log else edges
