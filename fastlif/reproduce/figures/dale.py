"""Figure 7: networks that obey Dale's law, from the same targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlif import plots
from fastlif.plots import legend
from fastlif.plots.style import POPULATION_COLORS
from fastlif.reproduce.examples import draw_example
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.panels import (
    NETWORK_COLORS,
    Series,
    accuracy_axis,
    footnotes,
    letter,
    over_targets,
    paper_entry,
)
from fastlif.reproduce.paper import published
from fastlif.reproduce.plan import PLAIN, Plan
from fastlif.sweep.paper import paper_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_7"]

# Panel, which names the paper's sweep, the Dalian network and its counterpart.
PAIRS = (("c", "Dalian dense", "dense-160"), ("d", "Dalian conv-3", "conv-3"))
EXCITATORY, INHIBITORY = POPULATION_COLORS["excitatory"], POPULATION_COLORS["inhibitory"]


def plan_7(plan: Plan) -> None:
    """Curves of both Dalian networks and of their counterparts, and an example."""
    sweeps = [paper_sweep(f"7{panel}") for panel, *_ in PAIRS]
    curves = [plan.targets(sweep.axes["sigma_u"]) for sweep in sweeps]
    plan.add("b", "Dalian dense", "shd-dalian", records=("example",))
    for (panel, *networks), sweep, targets in zip(PAIRS, sweeps, curves, strict=True):
        for network, preset in zip(networks, sweep.presets, strict=True):
            plan.add(
                panel, network, preset, targets=targets, n_seeds=sweep.n_seeds, **sweep.settings
            )


def draw_7(results: Results) -> Figure:
    """Panels a to d of figure 7; c and d hold validation and test accuracy."""
    figure = plots.figure(122, plots.PAGE)
    grid = figure.add_gridspec(2, 4)
    a = figure.add_subplot(grid[0, :2])
    _draw_scheme(a)
    letter(a, "a")
    example = results.example(network="Dalian dense", condition=PLAIN, target=1.0)
    title = f"Dalian dense after training, {results.data_name('events')}"
    letter(draw_example(figure, grid[0, 2:], example, "trained", title), "b")
    for row, (panel, dalian, other) in enumerate(PAIRS):
        for column, metric in enumerate(("final_validation_accuracy", "test_accuracy")):
            ax = figure.add_subplot(grid[1, 2 * row + column])
            _draw_pair(ax, results, metric, dalian, other)
            if column == 0:
                letter(ax, panel)
    footnotes(figure, results)
    return figure


def _draw_pair(ax: Axes, results: Results, metric: str, dalian: str, other: str) -> None:
    series = [
        Series(name, {"network": name, "condition": PLAIN}, color, kaiming=None)
        for name, color in zip((dalian, other), NETWORK_COLORS, strict=False)
    ]
    over_targets(ax, results.table, metric, series, factor=100.0)
    accuracy_axis(ax, metric, results.table)
    if any(published(metric, name, PLAIN) for name in (dalian, other)):
        paper_entry(ax, "SHD")
    legend(ax, fontsize=5.5)


def _draw_scheme(ax: Axes) -> None:
    """The populations of a Dalian layer and who excites or inhibits whom."""
    from matplotlib.patches import Circle

    ax.set_axis_off()
    ax.set_aspect("equal")
    places = {"in": (0.0, 0.5), "E": (1.6, 0.95), "I": (1.6, 0.05), "out": (3.2, 0.95)}
    colors = {"in": EXCITATORY, "E": EXCITATORY, "I": INHIBITORY, "out": "0.4"}
    names = {"in": "input", "E": "E", "I": "I", "out": "next\nlayer"}
    for key, (x, y) in places.items():
        ax.add_patch(Circle((x, y), 0.24, facecolor="white", edgecolor=colors[key], lw=1.5))
        ax.text(x, y, names[key], ha="center", va="center", fontsize=6.5, color=colors[key])
    for start, end, bend in (
        ("in", "E", 0.0),
        ("in", "I", 0.0),
        ("E", "I", 0.28),
        ("I", "E", 0.28),
        ("E", "out", 0.0),
    ):
        _arrow(ax, places[start], places[end], colors[start], bend, start == "I")
    for key, side in (("E", 1.0), ("I", -1.0)):
        x, y = places[key]
        _loop(ax, x, y, side, colors[key], key == "I")
    ax.text(3.2, 0.05, "4 E : 1 I\nweights $\\geq$ 0", ha="center", va="center", fontsize=6.5)
    ax.set(xlim=(-0.5, 3.7), ylim=(-0.75, 1.75))


def _arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str,
    bend: float,
    inhibitory: bool,
) -> None:
    """A connection; a bar at its end is an inhibitory one."""
    ax.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "|-|,widthA=0,widthB=0.3" if inhibitory else "-|>",
            "color": color,
            "connectionstyle": f"arc3,rad={bend}",
            "shrinkA": 13,
            "shrinkB": 13,
            "lw": 1.2,
        },
    )


def _loop(ax: Axes, x: float, y: float, side: float, color: str, inhibitory: bool) -> None:
    """A connection of a population to itself, above (side 1) or below it."""
    ax.annotate(
        "",
        (x + 0.13, y + side * 0.22),
        (x - 0.13, y + side * 0.22),
        arrowprops={
            "arrowstyle": "|-|,widthA=0,widthB=0.3" if inhibitory else "-|>",
            "color": color,
            "connectionstyle": f"arc3,rad={-side * 1.9}",
            "shrinkA": 0,
            "shrinkB": 0,
            "lw": 1.2,
        },
    )


FIGURE_7 = Experiment(
    name="fig7",
    title="Networks that obey Dale's law",
    plan=plan_7,
    draw=draw_7,
)
