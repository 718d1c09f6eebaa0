"""Figure 6 and Table 1: two initializations on three data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastlif import plots
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Results
from fastlif.reproduce.figures.homeostasis import homeostasis
from fastlif.reproduce.panels import accuracy_axis, bars, footnotes, letter
from fastlif.reproduce.paper import published
from fastlif.reproduce.plan import KAIMING, PLAIN, Plan
from fastlif.reproduce.sources import DATA_SETS
from fastlif.rows import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURE_6", "TABLE_1"]

KAIMING_HOMEOSTASIS = "Kaiming + homeostasis"
CONDITIONS = (KAIMING, KAIMING_HOMEOSTASIS, PLAIN)


@dataclass(frozen=True)
class _Column:
    """A column of Table 1 and the panel of figure 6 that shows it."""

    panel: str  # empty: in the table only
    network: str
    preset: str
    data: str
    layers: int
    homeostasis: bool  # deep enough for Kaiming to need it
    from_scale: float = 0.0


COLUMNS = (
    _Column("a", "conv-3", "shd-conv3", "events", 3, False),
    _Column("b", "conv-7", "shd-conv7", "events", 7, True),
    _Column("", "conv-10", "shd-conv10", "events", 10, False, 0.1),
    _Column("c", "CIFAR conv-2", "cifar-conv2", "images", 2, False),
    _Column("d", "CIFAR conv-4", "cifar-conv4", "images", 4, True),
    _Column("e", "DVS conv-6", "dvs-conv6", "event_camera", 6, False),
    _Column("f", "DVS conv-8", "dvs-conv8", "event_camera", 8, True),
)


def _add(plan: Plan, column: _Column, panels: str) -> None:
    size: dict[str, Any] = {"from_scale": column.from_scale}
    plan.add(panels, column.network, column.preset, **size)
    kaiming: dict[str, Any] = {"targets": None, "initialization": "kaiming", **size}
    plan.add(panels, column.network, column.preset, KAIMING, **kaiming)
    if column.homeostasis:
        changes = kaiming | homeostasis()
        plan.add(panels, column.network, column.preset, KAIMING_HOMEOSTASIS, **changes)


def plan_6(plan: Plan) -> None:
    """The columns of Table 1 that figure 6 shows."""
    for column in COLUMNS:
        if column.panel:
            _add(plan, column, column.panel)


def plan_table_1(plan: Plan) -> None:
    """All columns of Table 1, and ten layers, which the text has."""
    for column in COLUMNS:
        _add(plan, column, column.panel)


def draw_6(results: Results) -> Figure:
    """Bars of test accuracies, those of the paper beside ours."""
    shown = [column for column in COLUMNS if column.panel]
    figure = plots.figure(71, 1.15 * plots.PAGE)
    axes = figure.subplots(
        1, len(shown), width_ratios=[3 if column.homeostasis else 2 for column in shown]
    )
    for ax, column in zip(axes, shown, strict=True):
        conditions = [c for c in CONDITIONS if column.homeostasis or c != KAIMING_HOMEOSTASIS]
        letter(ax, column.panel)
        missing = results.table.where(network=column.network, status="skipped").distinct("message")
        name = results.data_name(column.data)
        ax.set_title(f"{name}\n{column.layers} layers", fontsize=7)
        if missing:
            absent(ax, f"no {DATA_SETS[column.data].name} data")
            continue
        bars(ax, results.table, column.network, conditions, "test_accuracy")
        accuracy_axis(ax, "test_accuracy", results.table.where(network=column.network))
        ax.set_ylim(0.0, 118.0)
        ax.tick_params(axis="x", labelrotation=90, labelsize=6)
        if column.panel != "a":
            ax.set_ylabel("")
    legend(axes[0], fontsize=5.5, loc="lower left", bbox_to_anchor=(-0.1, 1.2))
    footnotes(figure, results)
    return figure


def draw_table_1(results: Results) -> Figure:
    """The table, ours above the paper's in every cell."""
    figure = plots.figure(56, 1.15 * plots.PAGE)
    ax = figure.subplots()
    ax.set_axis_off()
    cells = [[_cell(results, column, condition) for column in COLUMNS] for condition in CONDITIONS]
    headings = [f"{results.data_name(c.data)}\n$n_H$ = {c.layers}" for c in COLUMNS]
    table = ax.table(
        cells,
        rowLabels=["Kaiming", "Kaiming & hom.", r"fluct.-driven, $\sigma_U$ = 1"],
        colLabels=headings,
        cellLoc="center",
        loc="center",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(7)
    table.scale(1.0, 2.6)
    ax.set_title(
        "Test accuracy (%) of the best epoch on validation: here, and in brackets in the paper",
        fontsize=8,
    )
    footnotes(figure, results)
    return figure


def _cell(results: Results, column: _Column, condition: str) -> str:
    runs = results.table.where(network=column.network, condition=condition)
    tested = runs.where(metric="test_accuracy").values()
    known = published("test_accuracy", column.network, condition)
    if tested:
        here = _percent(Summary.of(tested), len(runs.distinct("label")))
    elif runs.where(status="failed").rows:
        here = "failed"
    elif runs.where(status="skipped").rows:
        here = "no data"
    else:
        here = "–"
    there = "–" if known is None else f"{100 * known.mean:.1f} ± {100 * known.std:.1f}"
    return f"{here}\n({there})"


def _percent(summary: Summary, n_runs: int) -> str:
    """Mean and standard deviation over the seeds; how many they are if that is not obvious."""
    mean = f"{100.0 * summary.mean:.1f}"
    if summary.n > 1:
        mean = f"{mean} ± {100.0 * summary.std:.1f}"
    if summary.n < n_runs:
        return f"{mean} ({summary.n} of {n_runs} seeds)"
    return mean if summary.n > 1 else f"{mean} (1 seed)"


FIGURE_6 = Experiment(
    name="fig6",
    title="Fluctuation-driven initialization across data sets",
    plan=plan_6,
    draw=draw_6,
)
TABLE_1 = Experiment(
    name="table1",
    title="Test accuracies of two initializations on three data sets",
    plan=plan_table_1,
    draw=draw_table_1,
)
