"""Figure 5: homeostasis wakes up layers that a small start leaves silent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif import plots
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.panels import NETWORK_COLORS, compare, footnotes, letter
from fastlif.reproduce.plan import PLAIN, Plan
from fastlif.sweep.paper import PaperSweep, paper_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_5", "ONGOING", "homeostasis"]

NETWORK, PRESET = "conv-3", "shd-conv3"
ONGOING, PRIMING = "homeostasis", "priming"
COLORS = dict(zip((PLAIN, ONGOING, PRIMING), NETWORK_COLORS, strict=False))
SMALL = 0.2  # the target whose firing rates are shown


def homeostasis() -> dict[str, Any]:
    """Settings of homeostasis wherever the paper has it: those of figure 5b."""
    sweep = paper_sweep("5b")
    return {"lower_strength": max(sweep.axes["lower_strength"]), **sweep.settings}


def plan_5(plan: Plan) -> None:
    """The three-layer network with neither, with ongoing homeostasis and with priming."""
    ongoing, priming = paper_sweep("5b"), paper_sweep("5c")
    primed = {"priming_epochs": max(priming.axes["priming_epochs"]), **priming.settings}
    conditions: tuple[tuple[str, str, PaperSweep, dict[str, Any]], ...] = (
        ("abcd", PLAIN, ongoing, {}),
        ("abd", ONGOING, ongoing, homeostasis()),
        ("acd", PRIMING, priming, primed),
    )
    for panels, condition, sweep, changes in conditions:
        plan.add(
            panels,
            NETWORK,
            PRESET,
            condition,
            targets=plan.targets(sweep.axes["sigma_u"]),
            records=("curves",),
            n_seeds=sweep.n_seeds,
            **changes,
        )


def draw_5(results: Results) -> Figure:
    """Panels a to d of figure 5."""
    figure = plots.figure(58, plots.PAGE)
    axes = figure.subplots(1, 4)
    a, b, c, d = axes
    _draw_rates(a, results)
    name = results.data_name("events")
    for ax, metric, others in (
        (b, "final_validation_accuracy", (ONGOING,)),
        (c, "final_validation_accuracy", (PRIMING,)),
        (d, "test_accuracy", (ONGOING, PRIMING)),
    ):
        conditions = {PLAIN: "neither"} | {other: other for other in others}
        compare(ax, results.table, metric, NETWORK, conditions, colors=COLORS)
        ax.set_title(f"{NETWORK}, {name}", fontsize=7)
    for ax, panel in zip(axes, "abcd", strict=True):
        letter(ax, panel)
    footnotes(figure, results)
    return figure


def _draw_rates(ax: Axes, results: Results) -> None:
    """Firing rate of the last hidden layer over the epochs, for a start that leaves it silent."""
    curves = results.table.where(metric="epoch_firing_rate", target=SMALL)
    layers = curves.distinct("layer")
    if not layers:
        return absent(ax, f"no run at $\\sigma_U$ = {SMALL:g}")
    last, begin = max(layers, key=str), 0
    for condition, color in COLORS.items():
        found = curves.where(condition=condition, layer=last).over("stage")
        if found:
            epochs = sorted(found, key=lambda key: int(key[0]))
            mean = np.array([found[key].mean for key in epochs])
            # Priming comes first: its epochs count down to the supervised ones.
            primed = max(curves.where(condition=condition).distinct("priming_epochs"), default=0)
            begin = max(begin, primed)
            x = [int(key[0]) - primed for key in epochs]
            ax.plot(x, mean, color=color, label="neither" if condition == PLAIN else condition)
    if begin:
        ax.axvline(0.5, color="0.7", lw=0.8, ls=":", zorder=0)
    ax.set(
        xlabel="epoch (priming below 1)" if begin else "epoch", ylabel=f"rate of layer {last} (Hz)"
    )
    ax.set_title(f"$\\sigma_U$ = {SMALL:g}", fontsize=7)
    ax.set_ylim(bottom=0.0)
    legend(ax, fontsize=6)


FIGURE_5 = Experiment(
    name="fig5",
    title="Homeostatic plasticity and priming",
    plan=plan_5,
    draw=draw_5,
)
