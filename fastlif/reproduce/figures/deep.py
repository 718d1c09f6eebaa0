"""Figure 4 and S6: the deeper a convolutional network, the more its start matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlif import plots
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.panels import (
    NETWORK_COLORS,
    PAPER_COLOR,
    Series,
    accuracy_axis,
    by_layer,
    footnotes,
    letter,
    over_targets,
    paper_entry,
    paper_mark,
)
from fastlif.reproduce.paper import published
from fastlif.reproduce.plan import KAIMING, PLAIN, Plan
from fastlif.reproduce.table import Table
from fastlif.sweep.paper import paper_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DEPTHS", "FIGURE_4", "FIGURE_S6", "draw_accuracies"]

DEPTHS = {"conv-1": "shd-conv1", "conv-3": "shd-conv3", "conv-7": "shd-conv7"}
DEEPEST = ("conv-10", "shd-conv10")
COLORS = dict(zip((*DEPTHS, DEEPEST[0]), NETWORK_COLORS, strict=False))
FEEDFORWARD = "feed-forward"
# Targets of the panels by depth, as the paper has them.
BY_DEPTH = (0.2, 0.5, 1.0, 2.0, 20.0)
BEYOND_SMALL = 0.1  # from this scale on with ten layers and with feed-forward networks


def plan_4(plan: Plan) -> None:
    """Curves of three depths with Kaiming, test accuracy by depth, magnitudes by layer."""
    curves, kaiming = paper_sweep("4a"), paper_sweep("4a-kaiming")
    targets = plan.targets(curves.axes["sigma_u"])
    networks = {preset: network for network, preset in DEPTHS.items()}
    for preset in curves.presets:
        network, n_seeds = networks[preset], curves.n_seeds
        plan.add("abc", network, preset, targets=targets, n_seeds=n_seeds, **curves.settings)
        if preset in kaiming.presets:
            n_seeds = kaiming.n_seeds
            plan.add(
                "a", network, preset, KAIMING, targets=None, n_seeds=n_seeds, **kaiming.settings
            )
    plan.look("def", "conv-7", "shd-conv7", BY_DEPTH)
    plan.add("b", *DEEPEST, from_scale=BEYOND_SMALL)
    for network, preset in (*DEPTHS.items(), DEEPEST):
        plan.add("b", network, preset, FEEDFORWARD, recurrent=False, from_scale=BEYOND_SMALL)


def draw_4(results: Results) -> Figure:
    """Panels a to f of figure 4."""
    table, name = results.table, results.data_name("events")
    figure = plots.figure(117, plots.PAGE)
    axes = figure.subplots(2, 3)
    a, b, c, d, e, f = axes.flat
    draw_accuracies(a, table, name, DEPTHS)
    _draw_depths(b, table)
    _draw_speed(c, table)
    initial = table.where(network="conv-7", condition=PLAIN, stage="initial")
    for ax, metric, label in (
        (d, "firing_rate", "firing rate (Hz)"),
        (e, "surrogate_gradient", r"surrogate gradient $|\partial L/\partial S|$"),
        (f, "weight_gradient", r"weight update $\propto|\partial L/\partial W|$"),
    ):
        of_metric = initial.where(metric=metric)
        if not of_metric.values():
            absent(ax, "conv-7 was not looked at")
            continue
        # Silent layers are what the panel of rates is about: they stand on the foot of its axis.
        positive = metric != "firing_rate"
        by_layer(ax, of_metric, metric, readout=metric == "weight_gradient", positive=positive)
        ax.set_ylabel(label)
        if metric == "firing_rate":
            ax.set_yscale("symlog", linthresh=1.0)
            ax.set_ylim(bottom=0.0)
            ax.axhline(10.0, color="0.7", lw=0.8, ls=":", zorder=0)
        else:
            ax.set_yscale("log")
        ax.set_title("conv-7 before training", fontsize=7)
    if d.lines:
        legend(d, title=r"$\sigma_U$", fontsize=6, title_fontsize=6.5, ncol=2)
    for ax, panel in zip(axes.flat, "abcdef", strict=True):
        letter(ax, panel)
    footnotes(figure, results)
    return figure


def draw_accuracies(
    ax: Axes,
    table: Table,
    data: str,
    networks: dict[str, str],
    condition: str = PLAIN,
    metric: str = "final_validation_accuracy",
) -> None:
    """Accuracy against the target, a line for every network; Kaiming to the right."""
    kaiming = KAIMING if condition == PLAIN else None
    series = [
        Series(name, {"network": name, "condition": condition}, COLORS[name], kaiming=kaiming)
        for name in networks
    ]
    over_targets(ax, table, metric, series, factor=100.0)
    accuracy_axis(ax, metric, table)
    if any(published(metric, name, condition) for name in networks):
        paper_entry(ax, "SHD")
    legend(ax, fontsize=6, title=data, title_fontsize=6.5)


def _draw_depths(ax: Axes, table: Table) -> None:
    """Test accuracy against the number of hidden layers, at sigma_U = 1."""
    tested = table.where(metric="test_accuracy", target=1.0)
    names = [*DEPTHS, DEEPEST[0]]
    for condition, label, color, style in (
        (PLAIN, "recurrent", "#0072B2", "o-"),
        (FEEDFORWARD, FEEDFORWARD, "#D55E00", "s--"),
    ):
        found = tested.where(condition=condition).over("network")
        here = [name for name in names if (name,) in found]
        if not here:
            continue
        ax.errorbar(
            [names.index(name) for name in here],
            [100.0 * found[(name,)].mean for name in here],
            [100.0 * found[(name,)].std for name in here],
            fmt=style,
            ms=4,
            color=color,
            capsize=2,
            label=label,
        )
    for place, name in enumerate(names):
        known = published("test_accuracy", name, PLAIN)
        if known is not None:
            paper_mark(ax, place, 100.0 * known.mean, 100.0 * known.std)
    paper_entry(ax, "SHD, recurrent")
    accuracy_axis(ax, "test_accuracy", table)
    ax.set_xlim(-0.4, len(names) - 0.6)
    ax.set_xticks(range(len(names)), [name.removeprefix("conv-") for name in names])
    ax.set_xlabel(r"hidden layers ($\sigma_U$ = 1)")
    legend(ax, fontsize=6, loc="lower left")


def _draw_speed(ax: Axes, table: Table) -> None:
    """Epochs until the training accuracy is 90 %, of the seeds that get there."""
    shown = {name: preset for name, preset in DEPTHS.items() if name != "conv-7"}
    series = [
        Series(name, {"network": name, "condition": PLAIN}, COLORS[name], kaiming=None)
        for name in shown
    ]
    over_targets(ax, table, "epochs_to_90", series)
    for name in shown:
        runs = table.where(network=name, metric="epochs_to_90")
        if runs.rows and not runs.values():
            ax.plot([], [], color=COLORS[name], label=f"{name}: never reached")
    ax.set_ylabel("epochs to 90 % training accuracy", color="black")
    ax.set_ylim(bottom=0.0)
    ax.plot([], [], "*", ms=7, color="white", mec=PAPER_COLOR, label="paper (SHD)")
    legend(ax, fontsize=6)


FIGURE_4 = Experiment(
    name="fig4",
    title="Initialization of deep convolutional networks",
    plan=plan_4,
    draw=draw_4,
)


def plan_s6(plan: Plan) -> None:
    """Curves of feed-forward networks of three depths."""
    targets = plan.targets()
    for network, preset in DEPTHS.items():
        plan.add("ab", network, preset, FEEDFORWARD, targets=targets, recurrent=False)


def draw_s6(results: Results) -> Figure:
    """Validation and test accuracy of feed-forward networks."""
    figure = plots.figure(61, 0.7 * plots.PAGE)
    axes = figure.subplots(1, 2)
    for ax, panel, metric in zip(
        axes, "ab", ("final_validation_accuracy", "test_accuracy"), strict=True
    ):
        name = results.data_name("events")
        draw_accuracies(ax, results.table, name, DEPTHS, FEEDFORWARD, metric)
        letter(ax, panel)
    footnotes(figure, results)
    return figure


FIGURE_S6 = Experiment(
    name="figS6",
    title="Initialization of deep feed-forward convolutional networks",
    plan=plan_s6,
    draw=draw_s6,
)
