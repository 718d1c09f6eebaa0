"""Figure 5: homeostasis wakes up layers that a small start leaves silent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastlif import plots
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.panels import NETWORK_COLORS, compare, footnotes, letter
from fastlif.reproduce.plan import PLAIN, PRIMING_EPOCHS, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_5", "HOMEOSTASIS", "ONGOING"]

NETWORK, PRESET = "conv-3", "shd-conv3"
ONGOING, PRIMING = "homeostasis", "priming"
# Every neuron is to spike once (eq 24); the paper does not print the strength. At 1 it hides the
# supervised loss from seven layers for many epochs, at 0.1 they learn from the second one on.
HOMEOSTASIS: dict[str, Any] = {"lower_strength": 0.1, "v_lower": 1.0}
COLORS = dict(zip((PLAIN, ONGOING, PRIMING), NETWORK_COLORS, strict=False))
SMALL = 0.2  # the target whose firing rates are shown


def plan_5(plan: Plan) -> None:
    """The three-layer network with neither, with ongoing homeostasis and with priming."""
    targets = plan.targets()
    records = ("curves",)
    plan.add("abcd", NETWORK, PRESET, targets=targets, records=records)
    plan.add("abd", NETWORK, PRESET, ONGOING, targets=targets, records=records, **HOMEOSTASIS)
    plan.add(
        "acd",
        NETWORK,
        PRESET,
        PRIMING,
        targets=targets,
        records=records,
        priming_epochs=PRIMING_EPOCHS,
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
