"""The report of a sweep: which picture it has, what is drawn and what is printed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from fastlif.cli import app
from fastlif.sweep import read_spec
from fastlif.sweep.folder import claim
from fastlif.sweep.report import METRICS, Layout, draw, layout_of, read_results

from .sweep_results import ended, grid, results

TARGETS = (0.2, 1.0, 5.0)
MANY = [0.001 * i for i in range(1, 13)]
WEIGHTS = {"mu_w": (-1.0, 0.0, 1.0), "sigma_w": (0.01, 0.1, 1.0, 10.0)}
BOTH = ("final_validation_accuracy", "test_accuracy")


def layout(axes: Mapping[str, Any], *over: str) -> Layout:
    return layout_of(results(list(axes), grid(axes)).rows, list(axes), over)


@pytest.mark.parametrize(
    ("axes", "over", "kind", "expected", "others"),
    [
        ({"sigma_u": TARGETS}, (), "curve", ("sigma_u",), ()),
        ({"preset": ["a", "b"], "sigma_u": TARGETS}, (), "curve", ("sigma_u",), ("preset",)),
        ({"sigma_u": TARGETS, "lr": (1e-3, 1e-2)}, (), "curve", ("sigma_u",), ("lr",)),
        (WEIGHTS, (), "map", ("mu_w", "sigma_w"), ()),
        ({"preset": ["a", "b"]} | WEIGHTS, (), "map", ("mu_w", "sigma_w"), ("preset",)),
        ({"lr": (1e-3, 1e-2)}, (), "curve", ("lr",), ()),
        ({"lr": (1e-3, 1e-2), "dt": (1e-3, 2e-3)}, (), "map", ("lr", "dt"), ()),
        ({"sigma_u": TARGETS, "lr": MANY}, (), "map", ("sigma_u", "lr"), ()),
        ({"sigma_u": TARGETS, "lr": (1e-3, 1e-2)}, ("lr",), "curve", ("lr",), ("sigma_u",)),
        ({"sigma_u": TARGETS, "lr": (1e-3, 1e-2)}, ("lr", "sigma_u"), "map", ("lr", "sigma_u"), ()),
        ({"sigma_u": TARGETS, "lr": (1e-3,)}, (), "curve", ("sigma_u",), ()),
        ({"preset": ["a", "b"]}, (), "none", (), ()),
        ({"n_samples": [None, 100, 200]}, (), "none", (), ()),
        ({"lr": (1, 2), "dt": (1, 2), "epochs": (1, 2)}, (), "none", (), ()),
    ],
)  # fmt: skip
def test_what_is_varied_decides_on_the_picture(axes, over, kind, expected, others):
    found = layout(axes, *over)
    assert (found.kind, found.axes, found.others) == (kind, expected, others)
    assert bool(found.reason) == (kind == "none")


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (("dt",), r"over must name options .* varies \(sigma_u\), got 'dt'"),
        (("preset",), "got 'preset'"),
        (("sigma_u", "sigma_u"), "one option or two"),
        (("sigma_u", "lr", "dt"), "one option or two"),
    ],
)
def test_axes_that_there_are_not_are_refused(over, message):
    with pytest.raises(ValueError, match=message):
        layout({"preset": ["a", "b"], "sigma_u": TARGETS}, *over)


def test_a_curve_has_means_and_ranges_of_the_finished_trials():
    axes = {"preset": ["randman", "shd-dense"], "sigma_u": TARGETS}
    planned = grid(axes)
    lost = {(t["preset"], t["sigma_u"]): t["number"] for t in planned}[("randman", 1.0)]
    found = results(list(axes), planned, lambda t: "failed" if t["number"] == lost else "finished")
    figure = draw(found, layout_of(found.rows, list(axes)), BOTH)
    validation, test = figure.axes
    assert [ax.get_ylabel() for ax in figure.axes] == [METRICS[name] for name in BOTH]
    assert validation.get_xscale() == "log" and len(validation.collections) == 2
    lines = [line for line in validation.lines if len(line.get_xdata()) == len(TARGETS)]
    assert [line.get_label() for line in lines] == ["randman", "shd-dense"]
    expected = found.rows.where(metric=BOTH[0], preset="randman").over("sigma_u")
    assert list(lines[0].get_ydata()) == [100.0 * one.mean for one in expected.values()]
    band = validation.collections[0].get_paths()[0].get_extents()
    assert band.ymax == pytest.approx(100.0 * max(one.high for one in expected.values()))
    assert [text.get_text() for text in validation.texts] == ["2/3"]
    assert figure.get_suptitle() == "made-up: 17 of 18 trials finished"


def test_a_map_has_the_lines_of_theory_and_marks_what_is_missing():
    def status(trial: Mapping[str, Any]) -> str:
        if trial["mu_w"] == 1.0:
            return "failed" if trial["sigma_w"] > 1.0 else "waiting"
        return "stopped" if trial["sigma_w"] == 10.0 else "finished"

    found = results(list(WEIGHTS), grid(WEIGHTS), status)
    figure = draw(found, layout_of(found.rows, list(WEIGHTS)), BOTH[:1])
    ax = figure.axes[0]
    labels = [line.get_label() for line in ax.lines if str(line.get_label()).startswith("$")]
    assert labels == [rf"$\xi$ = {xi}" for xi in (1, 2, 3)]
    cells = ax.collections[0].get_array()
    assert cells.shape == (4, 3) and cells.mask[:, 2].all() and not cells.mask[:, :2].any()
    markers = [line.get_marker() for line in ax.lines]
    assert markers.count("x") == 1 and markers.count(".") == 2
    assert ax.get_xlim() == (-1.5, 1.5)


def test_theory_is_silent_on_convolutions_and_recurrence():
    for fixed in ({"preset": "shd-conv1"}, {"recurrent": True}):
        found = results(list(WEIGHTS), grid(WEIGHTS, **fixed))
        assert found.theory_of(found.rows) is None
    found = results(list(WEIGHTS), grid(WEIGHTS))
    theory = found.theory_of(found.rows)
    assert theory is not None and theory.n_inputs == 20 and theory.rate == 5.0


def test_trials_that_form_no_grid_are_points():
    planned = [
        grid({}, 1)[0] | {"number": i, "name": str(i), "mu_w": 0.1 * i, "sigma_w": 0.5 + i}
        for i in range(10)
    ]
    found = results(list(WEIGHTS), planned)
    figure = draw(found, layout_of(found.rows, list(WEIGHTS)), BOTH)
    assert len(figure.axes[0].collections[0].get_offsets()) == 10


def test_settings_count_their_trials_and_the_best_come_first():
    planned = grid({"sigma_u": TARGETS})
    found = results(
        ["sigma_u"], planned, lambda t: "out of memory" if t["number"] in (0, 4) else "finished"
    )
    settings = found.settings()
    assert [(one.n_finished, one.n_trials) for one in settings] == [(2, 3), (2, 3), (3, 3)]
    assert settings[0].summaries["test_accuracy"].n == 2
    (trouble,) = found.troubles().items()
    assert trouble[0] == ("out of memory", "the loss must stay finite, got nan")
    assert [trial["number"] for trial in trouble[1]] == [0, 4]
    scores = [trial["validation_accuracy"] for trial in found.best(4)]
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of six trials: four finished, one failed, one not begun."""
    file = tmp_path / "sweep.yaml"
    file.write_text("preset: randman\nsearch: {sigma_u: [0.2, 1, 5]}\nseeds: 2\n")
    folder = tmp_path / "out"
    spec = read_spec(file)
    folder.mkdir()
    claim(spec, folder)
    rows = [
        ended({**t.config.as_dict(), **t.options, "number": t.number, "name": t.name}, status)
        for t, status in zip(spec.trials, ["finished"] * 4 + ["failed"], strict=False)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "trials.parquet")
    return folder


def test_the_command_prints_tables_and_writes_a_picture(sweep: Path):
    done = CliRunner().invoke(app, ["sweep", "report", str(sweep)])
    assert done.exit_code == 0, done.output
    assert "6 trials, 4 finished, 1 failed, 1 waiting" in done.output
    assert "failed: the loss must stay finite, got nan (0004-" in done.output
    assert "2 of 2" in done.output and "0 of 2" in done.output
    assert (sweep / "report.pdf").is_file() and (sweep / "report.png").is_file()
    assert read_results(sweep).counts() == {"finished": 4, "failed": 1, "waiting": 1}


def test_the_command_writes_where_it_is_told(sweep: Path, tmp_path: Path):
    picture = tmp_path / "curve.svg"
    command = ["sweep", "report", str(sweep), "--metric", "train_accuracy", "--out", str(picture)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert b"training accuracy" in picture.read_bytes()
    assert not (sweep / "report.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "loss"], "metric must be one of final_validation_accuracy"),
        (["--over", "lr"], "varies (sigma_u), got 'lr'"),
        (["--out", "picture.gif"], "must end in one of .pdf, .png, .svg, got '.gif'"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(sweep: Path, options, message):
    done = CliRunner().invoke(app, ["sweep", "report", str(sweep), *options])
    assert done.exit_code == 2 and message in done.output


def test_a_folder_without_a_sweep_is_named(tmp_path: Path):
    done = CliRunner().invoke(app, ["sweep", "report", str(tmp_path)])
    assert done.exit_code == 2 and f"no sweep in {tmp_path}" in done.output
