"""Experiments from their runs to table and figure: resumed, failed, skipped, recorded."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import fastlif
from fastlif.cli import app
from fastlif.files import held_by_this_process
from fastlif.init import psp_integrals, recurrent_distributions
from fastlif.models import Regularization
from fastlif.reproduce import EXPERIMENTS, Experiment, Options, Sources, Table, reproduce
from fastlif.reproduce import runs as runs_module
from fastlif.reproduce.experiment import collect
from fastlif.reproduce.figures.supplement import draw_s5
from fastlif.reproduce.plan import Plan
from fastlif.reproduce.recording import record_layers
from fastlif.reproduce.runs import Run, outcome, run_arrays, run_rows
from fastlif.train import EpochRecord, Task, TrainingFailed, default_config, load_task, train

SMALL = ("--epochs", "2", "--samples", "120", "--batch-size", "60", "--seeds", "1")
TARGETS = (0.5, 1.0)


@pytest.fixture(scope="module")
def task() -> Task:
    """A small part of Randman, generated once."""
    config = default_config("randman")
    whole = load_task(config, None)
    few = torch.arange(120)
    parts = [
        type(part)(part.spikes.select(few), part.labels[few])
        for part in (whole.train, whole.validation, whole.test)
    ]
    return Task(*parts, whole.n_classes, whole.duration)


@pytest.fixture(autouse=True)
def small_data(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastlif.train.task.load_task", lambda config, folder: task)


class Quiet:
    """A Progress that keeps what it is told, and interrupts when asked to."""

    def __init__(self, interrupt_run: int | None = None) -> None:
        self.interrupt_run = interrupt_run
        self.told: list[tuple[str, str]] = []

    @contextmanager
    def run(self, run: Run, number: int, total: int, hours_left: float) -> Iterator[Quiet]:
        self.told.append(("begun", run.label()))
        self.number = number
        yield self

    def run_done(self, run: Run, status: str, detail: str) -> None:
        self.told.append((status, detail))

    def run_kept(self, run: Run, status: str) -> None:
        self.told.append(("kept", run.label()))

    def run_skipped(self, run: Run, reason: str) -> None:
        self.told.append(("skipped", reason))

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        self.told.append(("epochs done", str(epochs_done)))

    def batch_done(self) -> None:
        pass

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        if self.number == self.interrupt_run and record.epoch == 1:
            raise KeyboardInterrupt


def options(**changes: object) -> Options:
    sizes = {"epochs": 2, "seeds": 1, "targets": TARGETS, "batch_size": 60, "only": ("a",)}
    return Options(**{**sizes, **changes})  # type: ignore[arg-type]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)], env={"FASTLIF_DATA": ""})


def test_the_command_makes_table_and_figure_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("figS5", "--only", "a", "--targets", "0.5,1", *SMALL, "--out", tmp_path)
    result = command(*arguments)
    assert result.exit_code == 0, result.output
    assert "run 2 of 2" in result.output and "2 finished" in result.output
    stem = "figS5-seeds1-epochs2-samples120-targets0.5_1-batch60-only-a"
    table = Table.read(tmp_path / f"{stem}.csv")
    assert table.distinct("target") == [0.5, 1.0] and table.distinct("seed") == [0]
    for metric in ("test_accuracy", "validation_accuracy", "train_accuracy", "n_parameters"):
        assert len(table.where(metric=metric).values()) == 2
    (log,) = {path.parent for path in tmp_path.glob("runs/*sigma1-*/epochs.csv")}
    with open(log / "epochs.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    (final,) = table.where(metric="final_validation_accuracy", target=1.0)
    assert final["value"] == float(last["validation_accuracy"]) and final["stage"] == "last epoch"
    assert table.where(metric="test_accuracy").distinct("stage") == ["best epoch"]
    (parameters,) = set(table.where(metric="n_parameters").values())
    assert parameters == 20 * 128 + 128 * 128 + 128 * 10
    row = table.rows[0]
    assert (row["preset"], row["recurrent"], row["epochs"], row["n_samples"]) == (
        "randman", True, 2, 120
    )  # fmt: skip
    assert "2 of 200 epochs" in row["shrunk"] and "only a" in row["shrunk"]
    assert (tmp_path / f"{stem}.pdf").stat().st_size > 5000
    assert (tmp_path / f"{stem}.png").stat().st_size > 5000

    content = (tmp_path / f"{stem}.csv").read_bytes()
    monkeypatch.setattr(runs_module, "train", None)  # must not be called
    again = command(*arguments)
    assert again.exit_code == 0 and again.output.count("finished before") == 2
    assert (tmp_path / f"{stem}.csv").read_bytes() == content
    assert not list(tmp_path.glob("figS5.*"))  # the names of the full experiment


def test_an_interrupted_reproduction_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    figure = EXPERIMENTS["figS5"]
    reproduce(figure, options(), Sources(), tmp_path / "whole", Quiet())

    with pytest.raises(KeyboardInterrupt):
        reproduce(figure, options(), Sources(), tmp_path / "cut", Quiet(interrupt_run=2))
    name = f"figS5{options().suffix()}.csv"
    partial = Table.read(tmp_path / "cut" / name)
    assert partial.distinct("target") == [0.5]  # the finished run is in the table already
    after = Quiet()
    reproduce(figure, options(), Sources(), tmp_path / "cut", after)
    kinds = [kind for kind, _ in after.told]
    assert kinds == ["kept", "begun", "epochs done", "finished"]
    assert after.told[2] == ("epochs done", "1")
    tables = [(tmp_path / part / name).read_bytes() for part in ("whole", "cut")]
    assert tables[0] == tables[1]


def test_a_failed_run_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_once(config, *arguments, **more):  # type: ignore[no-untyped-def]
        if config.sigma_u == 0.5:
            raise TrainingFailed("the loss must stay finite, got nan")
        return train(config, *arguments, **more)

    monkeypatch.setattr(runs_module, "train", fails_once)
    first = Quiet()
    out = reproduce(EXPERIMENTS["figS5"], options(), Sources(), tmp_path, first)
    assert ("failed", "the loss must stay finite, got nan") in first.told
    assert out.statuses == {"finished": 1, "failed": 1, "skipped": 0}
    table = Table.read(out.table)
    (failed,) = table.where(status="failed")
    assert failed["target"] == 0.5 and failed["value"] is None
    assert failed["message"] == "the loss must stay finite, got nan"
    assert table.where(metric="test_accuracy").distinct("target") == [1.0]
    again = Quiet()
    reproduce(EXPERIMENTS["figS5"], options(), Sources(), tmp_path, again)
    assert [kind for kind, _ in again.told] == ["kept", "kept"]
    arguments = ("--only", "a", "--targets", "0.5,1", "--epochs", 2, "--seeds", 1)
    result = command("figS5", *arguments, "--batch-size", 60, "--out", tmp_path)
    assert result.exit_code == 1 and "1 finished, 1 failed" in result.output


def test_two_reproductions_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with held_by_this_process(tmp_path):
        result = command("figS5", "--only", "a", *SMALL, "--out", tmp_path)
    assert result.exit_code == 2 and "is in use by another process" in result.output
    assert not list(tmp_path.rglob("result.json"))


def test_the_table_says_what_code_made_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = reproduce(EXPERIMENTS["figS5"], options(), Sources(), tmp_path, Quiet())
    first = Table.read(out.table)
    assert first.distinct("torch") == [torch.__version__]
    assert first.distinct("fastlif") == [fastlif.__version__]
    experiment, sources = EXPERIMENTS["figS5"], Sources()
    plan = experiment.planned(options())
    folder = tmp_path / "runs"
    assert "different versions" not in str(collect(experiment, plan, sources, folder).notes)
    path = next(folder.glob("*/result.json"))
    result = json.loads(path.read_text())
    result["versions"]["commit"] = "1e5"  # looks like a number
    path.write_text(json.dumps(result))
    results = collect(experiment, plan, sources, folder)
    assert any("made by different versions" in note and "1e5" in note for note in results.notes)
    del result["versions"]  # a run from before they were kept
    path.write_text(json.dumps(result))
    notes = collect(experiment, plan, sources, folder).notes
    assert any("an unknown version" in note for note in notes)
    result["versions"] = {"fastlif": "1", "torch": "1e3", "commit": "1e5"}
    path.write_text(json.dumps(result))
    table = tmp_path / "again.csv"
    table.write_text(results.table.text())
    assert "1e5" in Table.read(table).distinct("commit")


def test_recorded_gradients_are_those_of_the_loss_with_its_bounds(task: Task) -> None:
    config = dataclasses.replace(default_config("randman"), n_samples=120, batch_size=60)
    found = []
    for strength in (0.0, 10.0):
        bounds = Regularization(upper_strength=strength, v_upper=0.0)
        rows = record_layers(dataclasses.replace(config, regularization=bounds), task, None)
        found.append({(row["metric"], row["layer"]): row["value"] for row in rows})
    free, bounded = found
    for metric in ("surrogate_gradient", "weight_gradient"):
        assert bounded[metric, "1"] > 2 * free[metric, "1"]
    assert bounded["firing_rate", "1"] == free["firing_rate", "1"]


def test_a_result_outranks_a_failure(tmp_path: Path) -> None:
    run = EXPERIMENTS["figS5"].planned(options()).runs[0]
    (tmp_path / "failed.json").write_text("{}")
    assert outcome(run, tmp_path) == "failed"
    (tmp_path / "result.json").write_text("{}")
    assert outcome(run, tmp_path) == "finished"


@pytest.mark.parametrize("what", ["fastlif.train.task.load_task", "fastlif.reproduce.runs.train"])
def test_what_a_user_can_mend_is_not_recorded_as_a_failure(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*arguments: object, **more: object) -> None:
        raise ValueError("damaged file")

    monkeypatch.setattr(what, refuses)
    with pytest.raises(ValueError, match="damaged file"):
        reproduce(EXPERIMENTS["figS5"], options(), Sources(), tmp_path, Quiet())
    assert not list(tmp_path.rglob("failed.json"))


def test_a_target_out_of_reach_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: object, **more: object) -> None:
        psp = psp_integrals(20e-3, 10e-3, 2e-3)
        recurrent_distributions((20,), (), 5.0, psp, sigma_u=1e-6, mu_u=0.9)

    monkeypatch.setattr(runs_module, "train", unreachable)
    out = reproduce(EXPERIMENTS["figS5"], options(), Sources(), tmp_path, Quiet())
    assert out.statuses["failed"] == 2


def test_runs_without_data_are_skipped_and_said_so(tmp_path: Path) -> None:
    progress = Quiet()
    sizes = options(only=("a", "b"))
    out = reproduce(EXPERIMENTS["figS5"], sizes, Sources(), tmp_path, progress)
    reason = "no SHD data: give --data-shd FOLDER with one *train*.h5 and one *test*.h5"
    assert progress.told[:2] == [("skipped", reason)] * 2
    assert out.statuses == {"finished": 2, "failed": 0, "skipped": 2}
    rows = Table.read(out.table).where(status="skipped").rows
    assert [row["message"] for row in rows] == [reason] * 2


def test_without_any_data_nothing_is_written(tmp_path: Path) -> None:
    result = command("fig4", "--out", tmp_path / "no")
    assert result.exit_code == 2
    assert "fig4 has nothing to show: no SHD data: give --data-shd" in result.output
    assert not (tmp_path / "no").exists()


def test_a_dry_run_lists_runs_and_makes_none(tmp_path: Path) -> None:
    result = command("figS5", "--dry-run", "--scale", 0.05, *SMALL, "--out", tmp_path / "no")
    assert result.exit_code == 0, result.output
    assert "2 of 4 runs to make, about" in result.output and "no data" in result.output
    assert "Recurrent networks with one hidden layer" in result.output
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig9",), "name must be one of table1, fig1"),
        (("fig4", "--scale", "2"), "scale must lie in (0, 1], got 2.0"),
        (("fig4", "--targets", "1;2"), "targets must be numbers with commas between"),
        (("fig4", "--data", "nowhere"), "nowhere: no such folder"),
        (("fig4", "--only", "conv-7", "--only", "conv7"), "networks of fig4, got conv7"),
        (("fig1", "--only", "a"), "only must not be given for fig1, which has no runs"),
        (("fig4", "--only", "z"), "only must name panels or networks of fig4, got z"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, tmp_path: Path) -> None:
    result = command(*arguments, "--out", tmp_path)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_what_is_recorded_besides_the_scores(tmp_path: Path) -> None:
    def plan(plan: Plan) -> None:
        records = ("initial", "trained", "example", "curves")
        plan.add("a", "Randman dense", "randman", records=records)

    experiment = Experiment("own", "a run with all records", draw_s5, plan)
    reproduce(experiment, options(), Sources(), tmp_path, Quiet())
    (run,) = experiment.planned(options()).runs
    folder = tmp_path / "runs" / run.folder_name(Sources())
    assert outcome(run, folder) == "finished"
    table = Table(run_rows(run, folder))
    for stage in ("initial", "trained"):
        found = table.where(stage=stage)
        assert 0.5 < found.where(metric="firing_rate", layer="1").values()[0] < 100.0
        for metric in ("surrogate_gradient", "weight_gradient", "weight_update"):
            values = found.where(metric=metric, layer=("1", "readout")).values()
            assert len(values) == 2 and all(value > 0.0 for value in values), metric
    curves = table.where(metric="epoch_firing_rate")
    assert [(row["stage"], row["layer"]) for row in curves] == [("1", "1"), ("2", "1")]
    arrays = run_arrays(run, folder)
    assert arrays["initial.input"].shape == (100, 20)
    assert arrays["trained.1"].shape == (100, 128) and arrays["trained.1"].any()
    assert arrays["trained.readout"].shape == (100, 10)
    # Training changed the readout, and the record is of both states.
    assert (arrays["trained.readout"] != arrays["initial.readout"]).any()


def test_a_look_at_the_start_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "train", None)  # must not be called

    def plan(plan: Plan) -> None:
        plan.look("d", "Randman dense", "randman", (0.01, 1.0))

    experiment = Experiment("own", "a look", draw_s5, plan)
    out = reproduce(experiment, options(only=()), Sources(), tmp_path, Quiet())
    table = Table.read(out.table)
    rates = table.where(metric="firing_rate", layer="1").over("target")
    assert rates[(0.01,)].mean == 0.0 and rates[(1.0,)].mean > 1.0
    gradients = table.where(metric="surrogate_gradient", layer="1").values()
    assert len(gradients) == 2 and all(value > 0.0 for value in gradients)
    settings = json.loads(next(tmp_path.glob("runs/*/activity-initial.json")).read_text())
    assert {row["layer"] for row in settings["rows"]} == {"1", "readout"}
    assert settings["versions"]["torch"] == torch.__version__
