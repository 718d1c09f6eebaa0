"""Every figure draws from a table: panels, the paper's numbers, and what is missing is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastlif import plots
from fastlif.reproduce import EXPERIMENTS, Experiment, Options, Results, Sources, Table
from fastlif.reproduce.experiment import collect
from fastlif.reproduce.figures import inputs, theory
from fastlif.reproduce.paper import published
from tests.reproduction import made_up

TRAINED = [name for name, experiment in EXPERIMENTS.items() if experiment.plan is not None]
SMALL = Options(scale=0.05)
PANELS = {
    "table1": "", "fig3": "abcdefghi", "fig4": "abcdef", "fig5": "abcd", "fig6": "abcdef",
    "fig7": "abcd", "figS4": "abcde", "figS5": "ab", "figS6": "ab", "figS8": "abcdef",
    "figS9": "ab", "figS10": "abcd",
}  # fmt: skip


def drawn(experiment: Experiment, results: Results) -> Figure:
    """The figure, laid out."""
    with plots.style():
        figure = experiment.draw(results)
        figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    """All that is written in a figure."""
    cells = [
        cell.get_text()
        for ax in figure.axes
        for table in ax.tables
        for cell in table.get_celld().values()
    ]
    return [text.get_text() for text in (*figure.findobj(Text), *cells) if text.get_text()]


@pytest.mark.parametrize("name", TRAINED)
def test_a_figure_has_its_panels_and_says_its_scale(name: str) -> None:
    figure = drawn(EXPERIMENTS[name], made_up(EXPERIMENTS[name], SMALL))
    written = texts(figure)
    assert [letter for letter in PANELS[name] if letter not in written] == []
    assert any("scale 0.05" in text and "1 of 5 seeds" in text for text in written)
    assert len(figure.findobj(lambda part: hasattr(part, "get_ydata"))) > 0 or name == "table1"


@pytest.mark.parametrize("name", TRAINED)
def test_a_figure_of_nothing_is_still_a_figure(name: str) -> None:
    results = Results(Table(), {}, ("skipped all: no SHD data",))
    assert any("no SHD data" in text for text in texts(drawn(EXPERIMENTS[name], results)))


def test_the_papers_numbers_stand_beside_ours() -> None:
    table = texts(drawn(EXPERIMENTS["table1"], made_up(EXPERIMENTS["table1"], SMALL)))
    for mean, std in (("83.1", "1.2"), ("83.5", "1.3"), ("77.0", "2.9"), ("54.6", "37.1")):
        assert any(f"({mean} ± {std})" in text for text in table)
    bars = texts(drawn(EXPERIMENTS["fig6"], made_up(EXPERIMENTS["fig6"], SMALL)))
    assert {"83.1", "4.5", "77.0", "83.5", "86.4"} <= set(bars)
    example = texts(drawn(EXPERIMENTS["fig3"], made_up(EXPERIMENTS["fig3"], SMALL)))
    assert any("paper 97.3" in text for text in example)
    assert any("paper 65.5" in text for text in example)


def test_the_papers_numbers_are_of_its_own_conditions() -> None:
    known = published("test_accuracy", "conv-7", "Kaiming + homeostasis", None)
    assert known == (0.770, 0.029)
    assert published("test_accuracy", "conv-7", "fluctuation-driven", 0.2) is None
    assert published("test_accuracy", "conv-3", "Kaiming + homeostasis") is None


def test_means_and_kaiming_are_where_they_belong() -> None:
    results = made_up(EXPERIMENTS["fig4"], Options(scale=0.2, seeds=3))
    figure = drawn(EXPERIMENTS["fig4"], results)
    accuracies = figure.axes[0]
    lines = {str(line.get_label()): line for line in accuracies.get_lines()}
    found = results.table.where(metric="final_validation_accuracy", network="conv-7")
    of_target = found.where(condition="fluctuation-driven").over("target")
    x, y = lines["conv-7"].get_data()
    assert list(x) == [key[0] for key in of_target]
    assert list(y) == pytest.approx([100 * summary.mean for summary in of_target.values()])
    labels = [label.get_text() for label in accuracies.get_xticklabels()]
    assert labels[-1] == "Kaiming" and "1" in labels
    kaiming = 100 * found.where(condition="Kaiming").over()[()].mean
    points = [line.get_ydata() for line in accuracies.get_lines() if line.get_marker() == "s"]
    assert any(value == pytest.approx([kaiming]) for value in points)


def test_silent_layers_are_drawn_at_no_rate() -> None:
    results = made_up(EXPERIMENTS["fig4"], Options(scale=0.2))
    rows = [row for row in results.table if row["metric"] != "firing_rate" or row["layer"] != "7"]
    silent = [
        {**row, "value": 0.0}
        for row in results.table
        if row["metric"] == "firing_rate" and row["layer"] == "7"
    ]
    figure = drawn(EXPERIMENTS["fig4"], Results(Table([*rows, *silent])))
    rates, gradients = figure.axes[3], figure.axes[4]
    lines = [line for line in rates.get_lines() if len(np.atleast_1d(line.get_ydata())) == 7]
    assert len(lines) == 5 and all(line.get_ydata()[-1] == 0.0 for line in lines)
    assert rates.get_ylim()[0] == 0.0
    assert rates.get_yscale() == "symlog" and gradients.get_yscale() == "log"


def test_seeds_are_averaged_before_zeros_are_left_out() -> None:
    rows = [
        {"network": "dense", "condition": "fluctuation-driven", "stage": "initial",
         "metric": "weight_gradient", "layer": "1", "target": target, "seed": seed, "value": value}
        for target, values in ((0.1, (0.0, 0.0)), (1.0, (0.0, 4.0)))
        for seed, value in enumerate(values)
    ]  # fmt: skip
    figure = drawn(EXPERIMENTS["fig3"], Results(Table(rows)))
    (line,) = [
        line
        for ax in figure.axes
        for line in ax.get_lines()
        if line.get_label() == "hidden layer" and len(line.get_xdata()) == 2
    ]
    assert line.get_ydata() == pytest.approx([np.nan, 2.0], nan_ok=True)


def test_a_mean_says_over_how_many_runs_it_is() -> None:
    results = made_up(EXPERIMENTS["fig4"], Options(scale=0.2, seeds=3))
    rows = list(results.table)
    (late,) = [
        row
        for row in rows
        if (row["metric"], row["network"], row["target"]) == ("epochs_to_90", "conv-3", 1.0)
        and (row["condition"], row["seed"]) == ("fluctuation-driven", 2)
    ]
    assert not any("/3" in text for text in texts(drawn(EXPERIMENTS["fig4"], results)))
    late["value"] = None
    assert texts(drawn(EXPERIMENTS["fig4"], Results(Table(rows)))).count("2/3") == 1

    def failing(results: Results, **where: object) -> Results:
        """The results, the runs that are named having failed instead."""
        lost = results.table.where(**where)
        rows = [row for row in results.table if row not in lost.rows]
        failed = {row["label"]: row for row in lost}.values()
        rows += [{**row, "status": "failed", "metric": None, "value": None} for row in failed]
        return Results(Table(rows), {}, results.notes)

    plain = {"condition": "fluctuation-driven", "seed": 1}
    speed = failing(results, network="conv-3", target=1.0, **plain)
    axes = drawn(EXPERIMENTS["fig4"], speed).axes
    assert [text.get_text() for text in axes[2].texts].count("1/3") == 1
    kaiming = failing(results, network="conv-7", condition="Kaiming", seed=1)
    axes = drawn(EXPERIMENTS["fig4"], kaiming).axes
    assert [text.get_text() for text in axes[0].texts].count("2/3") == 1
    rates = made_up(EXPERIMENTS["figS4"], Options(scale=0.2, seeds=3))
    rates = failing(rates, network="conv-3", target=1.0, **plain)
    axes = drawn(EXPERIMENTS["figS4"], rates).axes
    assert [text.get_text() for text in axes[3].texts].count("2/3") == 1

    table = made_up(EXPERIMENTS["table1"], Options(seeds=3))
    rows = [
        {**row, "status": "failed", "metric": None, "value": None}
        if (row["network"], row["condition"], row["seed"]) == ("conv-7", "Kaiming", 1)
        else row
        for row in table.table
    ]
    written = texts(drawn(EXPERIMENTS["table1"], Results(Table(rows), {}, table.notes)))
    assert sum("(2 of 3 seeds)" in text for text in written) == 1


def test_a_band_over_layers_is_of_their_means() -> None:
    rows = [
        {"network": "conv-3", "condition": "fluctuation-driven", "target": 1.0, "label": f"{seed}",
         "metric": "test_firing_rate", "layer": str(layer), "seed": seed,
         "value": 10.0 * layer + seed}
        for layer in (1, 2, 3)
        for seed in (0, 2)
    ]  # fmt: skip
    summary = Table(rows).averaged("layer").over("target")[(1.0,)]
    assert (summary.mean, summary.n) == (21.0, 2)
    assert summary.std == pytest.approx(2.0**0.5)  # of 20 and 22


def test_figure_s4_averages_over_layers_before_it_shows_a_spread() -> None:
    results = made_up(EXPERIMENTS["figS4"], Options(scale=0.2, seeds=3))
    rows = [
        {**row, "value": 10.0 * float(row["layer"])}  # the same for all seeds
        if row["metric"] == "test_firing_rate"
        else row
        for row in results.table
    ]
    rates = drawn(EXPERIMENTS["figS4"], Results(Table(rows))).axes[3]
    assert rates.get_title().startswith("conv-3") and not rates.collections
    assert list(rates.get_lines()[0].get_ydata()) == pytest.approx([20.0] * 2)


def test_priming_stands_before_the_epochs_that_follow() -> None:
    options = Options(scale=0.5, seeds=1, targets=(0.2,))
    results = made_up(EXPERIMENTS["fig5"], options)
    figure = drawn(EXPERIMENTS["fig5"], results)
    primed = max(results.table.distinct("priming_epochs"))
    assert primed > 1
    lines = {str(line.get_label()): line.get_xdata() for line in figure.axes[0].get_lines()}
    assert lines["neither"][0] == lines["homeostasis"][0] == 1
    assert lines["priming"][0] == 1 - primed
    assert lines["priming"][-1] == lines["priming"][0] + len(lines["priming"]) - 1


def test_axes_say_of_which_epoch_an_accuracy_is() -> None:
    written = texts(drawn(EXPERIMENTS["figS6"], made_up(EXPERIMENTS["figS6"], SMALL)))
    assert {"validation accuracy\n(last epoch, %)", "test accuracy\n(best epoch, %)"} <= {*written}


def test_what_differs_from_the_authors_is_said(tmp_path: Path) -> None:
    def notes(name: str) -> str:
        experiment = EXPERIMENTS[name]
        return "\n".join(
            collect(experiment, experiment.planned(Options()), Sources(), tmp_path).notes
        )

    table = notes("table1")
    assert "10 % of the training samples of CIFAR-10 and DVS-Gesture for validation" in table
    assert "strength of homeostasis, 0.1, chosen here" in table and "SGD" not in table
    assert "learning rate 0.01 on Randman" in notes("figS5")
    assert "learning rate of SGD, 1, chosen here" in notes("figS9")
    assert "unlike" not in notes("figS6") and "nothing is left out" not in notes("figS6")


def test_theory_and_simulation_agree_without_the_reset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(theory, "N_STEPS", 1500)
    monkeypatch.setattr(theory, "N_NEURONS", 150)
    experiment = EXPERIMENTS["fig1"]
    plan = experiment.planned(Options(scale=0.2, seeds=1, targets=(0.2, 1.0)))
    results = collect(experiment, plan, Sources(), tmp_path)
    for target in (0.2, 1.0):
        found = results.table.where(target=target, metric="sigma_u").over("stage")
        assert found[("no reset",)].mean == pytest.approx(target, rel=0.08)
    assert found[("reset",)].mean < 0.9  # a neuron that spikes often is kept below
    density = results.arrays["sigma 1"]
    assert np.sum(density["free"] * np.diff(density["edges"])) == pytest.approx(1.0, abs=0.02)
    written = texts(drawn(experiment, results))
    assert {"a", "b", "c", "d"} <= set(written)


def test_the_papers_biases_of_real_data_and_data_that_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(inputs, "N_NEURONS", 100)
    experiment = EXPERIMENTS["fig2"]
    plan = experiment.planned(Options(seeds=1, targets=(1.0,)))
    results = collect(experiment, plan, Sources(), tmp_path)
    found = results.table.where(data="Randman", metric="sigma_u").over("stage")
    assert 0.6 < found[("data",)].mean < 0.95 < found[("Poisson",)].mean + 0.1
    (skipped,) = results.table.where(status="skipped")
    assert "no SHD data" in skipped["message"]
    written = texts(drawn(experiment, results))
    assert "no SHD data" in written and {"a", "b", "c", "d"} <= set(written)
