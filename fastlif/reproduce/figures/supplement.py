"""Supplementary figures S4, S5, S8, S9 and S10, as the paper's text defines them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastlif import plots
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.figures.deep import FEEDFORWARD
from fastlif.reproduce.figures.homeostasis import ONGOING, homeostasis
from fastlif.reproduce.figures.shallow import DENSE, RANDMAN
from fastlif.reproduce.panels import (
    NETWORK_COLORS,
    Series,
    by_layer,
    compare,
    footnotes,
    letter,
    over_targets,
)
from fastlif.reproduce.plan import PLAIN, Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_S10", "FIGURE_S4", "FIGURE_S5", "FIGURE_S8", "FIGURE_S9"]

UNBOUNDED = "no activity regularization"
RECURRENT = "recurrent"
SGD = "SGD"
SKIP = "skip connections"
SKIP_HOMEOSTASIS = "skip connections + homeostasis"
RESCALED, RESCALED_FEEDFORWARD = "rescaled surrogate", "rescaled surrogate, feed-forward"
SGD_FEEDFORWARD = "SGD, feed-forward"


def plan_s4(plan: Plan) -> None:
    """Dense and three-layer networks with and without the upper bound on firing rates."""
    targets = plan.targets()
    for panels, network, preset in (("abc", DENSE, "shd-dense"), ("de", "conv-3", "shd-conv3")):
        plan.add(panels, network, preset, targets=targets)
        plan.add(panels, network, preset, UNBOUNDED, targets=targets, upper_strength=0.0)


def draw_s4(results: Results) -> Figure:
    """Firing rates and accuracies after training."""
    figure = plots.figure(112, plots.PAGE)
    rows: Any = figure.subfigures(2, 1)
    upper, lower = rows
    axes = [*upper.subplots(1, 3), *lower.subplots(1, 3)]
    axes.pop().set_axis_off()
    conditions = {PLAIN: "bounded at 10 Hz", UNBOUNDED: "not bounded"}
    for ax, condition in ((axes[0], PLAIN), (axes[1], UNBOUNDED)):
        _draw_rates(ax, results, DENSE, {condition: conditions[condition]})
    compare(axes[2], results.table, "final_validation_accuracy", DENSE, conditions)
    _draw_rates(axes[3], results, "conv-3", conditions)
    compare(axes[4], results.table, "final_validation_accuracy", "conv-3", conditions)
    names = ("dense, bounded", "dense, not bounded", "dense", "conv-3", "conv-3")
    for ax, name in zip(axes, names, strict=True):
        ax.set_title(f"{name}, {results.data_name('events')}", fontsize=7)
    return _finished(figure, axes, "abcde", results)


def _draw_rates(ax: Axes, results: Results, network: str, conditions: dict[str, str]) -> None:
    """Rate on test samples after training, mean over the hidden layers."""
    series = [
        Series(label, {"network": network, "condition": name}, NETWORK_COLORS[i], kaiming=None)
        for i, (name, label) in enumerate(conditions.items())
    ]
    # Over the layers first, so that the band is the seeds'.
    of_network = results.table.where(network=network)
    over_targets(ax, of_network.averaged("layer"), "test_firing_rate", series)
    ax.axhline(10.0, color="0.7", lw=0.8, ls=":", zorder=0)
    ax.set_ylabel("rate after training (Hz)")
    ax.set_ylim(bottom=0.0)
    if len(conditions) > 1:
        legend(ax, fontsize=6)


def plan_s5(plan: Plan) -> None:
    """Recurrent networks with one hidden layer on both data sets."""
    targets = plan.targets()
    for panels, network, preset in (("a", RANDMAN, "randman"), ("b", DENSE, "shd-dense")):
        plan.add(panels, network, preset, RECURRENT, targets=targets, recurrent=True)


def draw_s5(results: Results) -> Figure:
    """Validation accuracy against the target."""
    figure, axes = _row_of(2)
    for ax, network, kind in zip(axes, (RANDMAN, DENSE), ("randman", "events"), strict=True):
        name = results.data_name(kind)
        compare(
            ax,
            results.table,
            "final_validation_accuracy",
            network,
            {RECURRENT: f"recurrent, {name}"},
        )
    return _finished(figure, axes, "ab", results)


def plan_s8(plan: Plan) -> None:
    """The seven-layer network with the usual and the rescaled surrogate."""
    targets = plan.targets()
    records = ("initial", "trained")
    for panels, plain, rescaled, recurrent in (
        ("abc", PLAIN, RESCALED, True),
        ("def", FEEDFORWARD, RESCALED_FEEDFORWARD, False),
    ):
        for condition, rescale in ((plain, False), (rescaled, True)):
            plan.add(
                panels,
                "conv-7",
                "shd-conv7",
                condition,
                targets=targets,
                records=records,
                recurrent=recurrent,
                rescale_surrogate=rescale,
            )


def draw_s8(results: Results) -> Figure:
    """Accuracy, and surrogate gradients by depth before and after training."""
    figure = plots.figure(112, plots.PAGE)
    axes = figure.subplots(2, 3)
    table = results.table
    for row, (plain, rescaled, title) in enumerate(
        (
            (PLAIN, RESCALED, "recurrent"),
            (FEEDFORWARD, RESCALED_FEEDFORWARD, "feed-forward"),
        )
    ):
        conditions = {plain: "usual surrogate", rescaled: "rescaled"}
        compare(axes[row, 0], table, "final_validation_accuracy", "conv-7", conditions)
        axes[row, 0].set_title(f"conv-7 {title}, {results.data_name('events')}", fontsize=7)
        for column, stage in ((1, "initial"), (2, "trained")):
            ax = axes[row, column]
            found = table.where(condition=rescaled, stage=stage, metric="surrogate_gradient")
            if not found.values():
                absent(ax, "no runs")
                continue
            by_layer(ax, found, "surrogate_gradient", readout=False)
            ax.set(yscale="log", ylabel=r"rescaled $|\partial L/\partial S|$")
            when = "before" if stage == "initial" else "after"
            ax.set_title(f"{title}, {when} training", fontsize=7)
            if column == 2:
                legend(
                    ax,
                    title=r"$\sigma_U$",
                    fontsize=5.5,
                    title_fontsize=6,
                    loc="center left",
                    bbox_to_anchor=(1.0, 0.5),
                )
    return _finished(figure, list(axes.flat), "abcdef", results)


def plan_s9(plan: Plan) -> None:
    """The three-layer network trained with SMORMS3 and with plain gradient descent."""
    targets = plan.targets()
    for panels, plain, sgd, recurrent in (
        ("a", PLAIN, SGD, True),
        ("b", FEEDFORWARD, SGD_FEEDFORWARD, False),
    ):
        plan.add(panels, "conv-3", "shd-conv3", plain, targets=targets, recurrent=recurrent)
        plan.add(
            panels,
            "conv-3",
            "shd-conv3",
            sgd,
            targets=targets,
            recurrent=recurrent,
            optimizer="sgd",
        )


def draw_s9(results: Results) -> Figure:
    """Validation accuracy of both optimizers, recurrent and feed-forward."""
    figure, axes = _row_of(2)
    for ax, plain, sgd, title in (
        (axes[0], PLAIN, SGD, "recurrent"),
        (axes[1], FEEDFORWARD, SGD_FEEDFORWARD, "feed-forward"),
    ):
        conditions = {plain: "SMORMS3", sgd: "SGD"}
        compare(ax, results.table, "final_validation_accuracy", "conv-3", conditions)
        ax.set_title(f"conv-3 {title}, {results.data_name('events')}", fontsize=7)
    return _finished(figure, axes, "ab", results)


def plan_s10(plan: Plan) -> None:
    """The three-layer network with and without skip connections and homeostasis."""
    targets = plan.targets()
    conditions: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("bcd", PLAIN, {}),
        ("bd", SKIP, {"skip": True}),
        ("cd", ONGOING, homeostasis()),
        ("cd", SKIP_HOMEOSTASIS, {"skip": True, **homeostasis()}),
    )
    for panels, condition, changes in conditions:
        plan.add(panels, "conv-3", "shd-conv3", condition, targets=targets, **changes)


def draw_s10(results: Results) -> Figure:
    """The scheme and the accuracies."""
    figure, axes = _row_of(4)
    _draw_skips(axes[0])
    labels = {
        PLAIN: "neither",
        SKIP: "skip",
        ONGOING: "homeostasis",
        SKIP_HOMEOSTASIS: "skip + homeostasis",
    }
    for ax, metric, shown in (
        (axes[1], "final_validation_accuracy", (PLAIN, SKIP)),
        (axes[2], "final_validation_accuracy", (PLAIN, ONGOING, SKIP_HOMEOSTASIS)),
        (axes[3], "test_accuracy", tuple(labels)),
    ):
        compare(ax, results.table, metric, "conv-3", {name: labels[name] for name in shown})
        ax.set_title(f"conv-3, {results.data_name('events')}", fontsize=7)
    return _finished(figure, axes, "abcd", results)


def _draw_skips(ax: Axes) -> None:
    """Layers from left to right; every hidden one reaches the readout."""
    ax.set_axis_off()
    names = ("input", "1", "2", "3", "readout")
    for place, name in enumerate(names):
        ax.text(
            place,
            0.0,
            name,
            ha="center",
            va="center",
            fontsize=6.5,
            rotation=90 if len(name) > 1 else 0,
            bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": "0.4"},
        )
        if place:
            ax.annotate(
                "",
                (place - 0.25, 0.0),
                (place - 0.75, 0.0),
                arrowprops={"arrowstyle": "-|>", "color": "0.3"},
            )
    for start in (1, 2):
        ax.annotate(
            "",
            (4.0, 0.28),
            (start, 0.12),
            arrowprops={
                "arrowstyle": "-|>",
                "color": NETWORK_COLORS[0],
                "connectionstyle": "arc3,rad=-0.45",
            },
        )
    ax.set(xlim=(-0.6, 4.6), ylim=(-0.6, 1.2))


def _row_of(n_panels: int) -> tuple[Figure, list[Axes]]:
    figure = plots.figure(58, min(1.0, 0.35 * n_panels) * plots.PAGE)
    axes = figure.subplots(1, n_panels)
    return figure, list(axes)


def _finished(figure: Figure, axes: list[Axes], panels: str, results: Results) -> Figure:
    for ax, panel in zip(axes, panels, strict=True):
        letter(ax, panel)
    footnotes(figure, results)
    return figure


FIGURE_S4 = Experiment("figS4", "Activity regularization", draw_s4, plan_s4)
FIGURE_S5 = Experiment("figS5", "Recurrent networks with one hidden layer", draw_s5, plan_s5)
FIGURE_S8 = Experiment("figS8", "Rescaled surrogate gradients", draw_s8, plan_s8)
FIGURE_S9 = Experiment("figS9", "Optimizers and the sensitivity to the start", draw_s9, plan_s9)
FIGURE_S10 = Experiment("figS10", "Skip connections to the readout", draw_s10, plan_s10)
