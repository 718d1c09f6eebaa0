"""Figure 3: one hidden layer learns from almost any start with small weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif import plots
from fastlif.models import preset
from fastlif.plots import InputTheory, absent, heat_map, legend, xi_lines
from fastlif.reproduce.examples import draw_example
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.panels import ACCURACIES, Series, compare, footnotes, letter, over_targets
from fastlif.reproduce.plan import PLAIN, Plan
from fastlif.sweep.paper import paper_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["DENSE", "FIGURE_3", "RANDMAN"]

RANDMAN, DENSE = "Randman dense", "dense"
GRID = "grid"  # the condition of runs with given mu_W and sigma_W


@dataclass(frozen=True)
class _Search:
    """The search over mu_W and sigma_W on one data set; its panel names the paper's sweep."""

    panel: str
    network: str
    preset: str

    @property
    def data(self) -> str:
        """Kind of data that the network is for."""
        return preset(self.preset).data


SEARCHES = (_Search("c", RANDMAN, "randman"), _Search("e", DENSE, "shd-dense"))


def plan_3(plan: Plan) -> None:
    """One run with examples on each data set, both searches, and the curves on SHD."""
    plan.add("ab", RANDMAN, "randman", records=("example",))
    plan.add("d", DENSE, "shd-dense", records=("example",))
    curve = paper_sweep("3f")
    plan.add(
        "fghi",
        DENSE,
        "shd-dense",
        targets=plan.targets(curve.axes["sigma_u"]),
        records=("initial",),
        n_seeds=curve.n_seeds,
        **curve.settings,
    )
    for search in SEARCHES:
        sweep = paper_sweep(f"3{search.panel}")
        means = plan.grid(sweep.axes["mu_w"], "mu_W")
        widths = plan.grid(sweep.axes["sigma_w"], "sigma_W")
        for mean in means:
            for width in widths:
                plan.add(
                    search.panel,
                    search.network,
                    search.preset,
                    GRID,
                    targets=None,
                    n_seeds=sweep.n_seeds,
                    mu_w=mean,
                    sigma_w=width,
                    **sweep.settings,
                )


def draw_3(results: Results) -> Figure:
    """Panels a to i of figure 3."""
    figure = plots.figure(178, plots.PAGE)
    rows: Any = figure.subfigures(3, 1, height_ratios=(1.1, 1.1, 0.85))
    upper = rows[0].add_gridspec(1, 3, width_ratios=(1.0, 1.0, 1.2))
    middle = rows[1].add_gridspec(1, 3, width_ratios=(1.0, 1.2, 1.0))
    for part, place, network, panel, stage in (
        (rows[0], upper[0, 0], RANDMAN, "a", "initial"),
        (rows[0], upper[0, 1], RANDMAN, "b", "trained"),
        (rows[1], middle[0, 0], DENSE, "d", "trained"),
    ):
        example = results.example(network=network, condition=PLAIN, target=1.0)
        title = _example_title(results, network, stage)
        letter(draw_example(part, place, example, stage, title), panel)
    for search, part, place in zip(SEARCHES, rows[:2], (upper[0, 2], middle[0, 1]), strict=True):
        ax = part.add_subplot(place)
        _draw_search(part, ax, results, search)
        letter(ax, search.panel)
    f = rows[1].add_subplot(middle[0, 2])
    compare(
        f, results.table, "final_validation_accuracy", DENSE, {PLAIN: results.data_name("events")}
    )
    letter(f, "f")
    _draw_magnitudes(list(rows[2].subplots(1, 3)), results)
    footnotes(figure, results)
    return figure


def _example_title(results: Results, network: str, stage: str) -> str:
    name = results.data_name("randman" if network == RANDMAN else "events")
    if stage == "initial":
        return f"{name}, before training"
    tested = results.table.where(
        network=network, condition=PLAIN, target=1.0, metric="test_accuracy"
    )
    known = {row["paper"] for row in tested if row.get("paper") is not None}
    if not tested.values():
        return f"{name}, after training"
    here = 100.0 * float(np.mean(tested.values()))
    paper = f"; paper {100.0 * known.pop():.1f}" if known else ""
    return f"{name}, after training\n(test, best epoch: {here:.1f} %{paper})"


def _draw_search(figure: SubFigure, ax: Axes, results: Results, search: _Search) -> None:
    """Validation accuracy of the last epoch over the grid and the lines of constant xi."""
    runs = results.table.where(network=search.network, condition=GRID)
    found = runs.where(metric="final_validation_accuracy").over("mu_w", "sigma_w")
    ax.set_title(results.data_name(search.data), fontsize=7)
    if not found:
        return absent(ax, f"no {results.data_name(search.data)} runs")
    values = {place: 100.0 * summary.mean for place, summary in found.items()}
    mesh = heat_map(ax, values)
    figure.colorbar(mesh, ax=ax, label=ACCURACIES["final_validation_accuracy"])
    rates = runs.where(metric="input_rate").values()
    if rates:
        xi_lines(ax, InputTheory(preset(search.preset).n_inputs, rates[0]))
    ax.set(xlabel=r"$\mu_W$", ylabel=r"$\sigma_W$")


def _draw_magnitudes(axes: list[Axes], results: Results) -> None:
    """Firing, gradients and updates of hidden layer and readout at the start of training."""
    initial = results.table.where(network=DENSE, condition=PLAIN, stage="initial")
    for ax, panel, metric, label in zip(
        axes,
        "ghi",
        ("firing_rate", "surrogate_gradient", "weight_gradient"),
        (
            "hidden rate (Hz)",
            r"gradient $|\partial L/\partial S|$, $|\partial L/\partial U|$",
            r"weight update $\propto|\partial L/\partial W|$",
        ),
        strict=True,
    ):
        letter(ax, panel)
        of_metric = initial.where(metric=metric)
        if not of_metric.values():
            absent(ax, f"no {results.data_name('events')} runs")
            continue
        series = [
            Series("hidden layer", {"layer": "1"}, "#0072B2", kaiming=None),
            Series("readout", {"layer": "readout"}, "#D55E00", kaiming=None),
        ]
        wanted = series if metric != "firing_rate" else series[:1]
        over_targets(ax, of_metric, metric, wanted, positive=metric != "firing_rate")
        ax.set_ylabel(label)
        if metric == "firing_rate":
            ax.set_yscale("symlog", linthresh=1.0)
            ax.set_ylim(bottom=0.0)
        else:
            ax.set_yscale("log")
            legend(ax, fontsize=6)


FIGURE_3 = Experiment(
    name="fig3",
    title="Initialization of networks with one hidden layer",
    plan=plan_3,
    draw=draw_3,
)
