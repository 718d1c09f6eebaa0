"""Whose a sweep's folder is, whether there is room in it, its tables, and the time that is left."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fastlif.cli import app
from fastlif.cli.sweep_progress import ConsoleReporter
from fastlif.files import held_by_this_process
from fastlif.sweep import Resources, SweepSpec
from fastlif.sweep import run as run_module
from fastlif.sweep.driver import SweepStopped
from fastlif.sweep.folder import TRIALS_FOLDER, load_sweep
from fastlif.sweep.progress import Pace
from fastlif.sweep.records import Outcome, record
from fastlif.sweep.run import Summary, run_sweep
from fastlif.sweep.tables import PLACE_COLUMNS, Tables, read_epochs, read_trials
from fastlif.train import load_task, train
from tests.sweeps import GRID, tiny_sweep, tiny_trial

SWEEP = tiny_sweep(*(tiny_trial(number, sigma_u=1.0 + number) for number in range(3)))


@pytest.fixture(autouse=True)
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sweeps end before their first trial."""
    monkeypatch.setattr(run_module, "run_trials", lambda *arguments: None)
    pytest.importorskip("pyarrow", reason="tables need pyarrow: pip install 'fastlif[sweep]'")


def changed(number: int, **changes: Any) -> SweepSpec:
    """The sweep with one trial that is another."""
    trials = list(SWEEP.trials)
    config = dataclasses.replace(trials[number].config, **changes)
    trials[number] = dataclasses.replace(trials[number], config=config)
    return dataclasses.replace(SWEEP, trials=tuple(trials))


def test_two_sweeps_do_not_write_to_one_folder(tmp_path: Path) -> None:
    with held_by_this_process(tmp_path), pytest.raises(ValueError, match="in use by another"):
        run_sweep(SWEEP, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_folder_keeps_its_sweep(tmp_path: Path) -> None:
    run_sweep(SWEEP, tmp_path, resume=True)  # nothing there: it begins
    before = load_sweep(tmp_path)
    with pytest.raises(ValueError, match="already holds this sweep: resume it"):
        run_sweep(SWEEP, tmp_path)
    for other, difference in (
        (changed(1, lr=0.5), "in trial 1, lr is 0.01 there and 0.5 here"),
        (dataclasses.replace(SWEEP, trials=SWEEP.trials[:2]), "it has 3 trials, and this one 2"),
        (tiny_sweep(*(dataclasses.replace(t, name="x") for t in SWEEP.trials)), "other data"),
    ):
        for resume in (False, True):
            with pytest.raises(ValueError, match=f"holds another sweep, tiny: .*{difference}"):
                run_sweep(other, tmp_path, resume=resume)
    assert load_sweep(tmp_path) == before
    larger = dataclasses.replace(SWEEP, resources=Resources(memory=1 << 30))
    run_sweep(larger, tmp_path, resume=True)
    assert load_sweep(tmp_path)["resources"]["memory"] == 1 << 30


def test_a_disk_that_is_too_small_is_an_error_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 trials of 3840 parameters, five times in a checkpoint, that is there twice.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=500_000))
    with pytest.raises(ValueError, match=r"must have about 0\.00\d+ GB free for 3 trials, has"):
        run_sweep(SWEEP, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5_000_000))
    run_sweep(SWEEP, tmp_path)


def test_a_ray_client_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="address must be HOST:PORT of a cluster, or auto"):
        run_sweep(SWEEP, tmp_path, address="ray://head:10001")


def test_tables_are_made_from_the_folders(tmp_path: Path) -> None:
    folder = tmp_path / TRIALS_FOLDER
    first, second, _ = SWEEP.trials
    task = load_task(first.config, None)
    result = train(first.config, task, folder / first.name)
    record(folder / second.name, Outcome("failed", "why, so"), second.config, Resources())
    tables = Tables(SWEEP, tmp_path, folder)
    tables.write()
    rows, epochs = read_trials(tmp_path), read_epochs(tmp_path)
    assert [(row["number"], row["status"], row["message"]) for row in rows] == [
        (0, "finished", ""), (1, "failed", "why, so")
    ]  # fmt: skip
    assert [row["sigma_u"] for row in rows] == [1.0, 2.0]
    assert rows[0]["test_accuracy"] == result.test.accuracy and rows[0]["n_train"] == 53
    assert rows[1]["test_accuracy"] is None and rows[1]["epochs_done"] == 0
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    assert all(row["number"] == 0 and row["sigma_u"] == 1.0 for row in epochs)
    assert list(rows[0])[-len(PLACE_COLUMNS) :] == list(PLACE_COLUMNS)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")}
    assert before["trials.csv"].count(b"\n") == 3 and b'"why, so"' in before["trials.csv"]
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    Tables(SWEEP, tmp_path, folder).write()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


def test_progress_and_the_time_that_is_left() -> None:
    pace = Pace(SWEEP, {0: Outcome("failed", "before")})
    assert pace.progress().seconds_left is None
    pace.begun([1])
    pace.begun([2])
    pace.epoch_done(1, {"epoch": 1, "seconds": 10.0})
    progress = pace.progress()
    # Two epochs of trial 1 and three of trial 2, two at a time.
    assert (progress.running, progress.n_ended, progress.seconds_left) == (2, 1, 25.0)
    pace.ended(1, Outcome("finished"))
    pace.interrupted([2])
    assert pace.progress().ended == {"failed": 1, "finished": 1}
    assert pace.progress().running == 0 and pace.progress().seconds_left == 15.0

    together = Pace(SWEEP, {})
    together.begun([0, 1])
    together.epoch_done(1, {"epoch": 1, "seconds": 10.0})
    # One place: the seconds of each are its part of what both take.
    assert together.progress().running == 2 and together.progress().seconds_left == 80.0

    console = Console(record=True, force_terminal=False, width=100)
    with ConsoleReporter(console) as reporter:
        reporter.started(Pace(SWEEP, {}).progress())
        reporter.trial_ended(SWEEP.trials[1], Outcome("out of memory", "4 GB were not enough"))
        reporter._next_line = 0.0
        reporter.progressed(progress)
    assert console.export_text().splitlines() == [
        "3 trials",
        "1/3  0001-tiny  sigma_u 2, seed 0  out of memory: 4 GB were not enough",
        "1/3 done, 2 running, 1 failed, about 25 s left",
    ]


@pytest.mark.parametrize(
    ("ends_with", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command with --resume continues"),
        (SweepStopped("trial 0001-tiny: no data"), 2, "error: trial 0001-tiny: no data"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), 2, "a.csv: No space left"),
        (Summary({"finished": 2, "lost": 1}, ()), 1, "1 were lost"),
        (Summary({"finished": 2, "failed": 1}, (Path("t.csv"),)), 0, "2 finished, 1 failed; t.csv"),
    ],
)
def test_how_the_command_ends(
    ends_with: Any, status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*arguments: Any, **named: Any) -> Any:
        if isinstance(ends_with, BaseException):
            raise ends_with
        return ends_with

    monkeypatch.setattr(run_module, "run_sweep", ends)
    file = tmp_path / "tiny.yaml"
    file.write_text(GRID)
    result = CliRunner().invoke(app, ["sweep", str(file), "--out", str(tmp_path)])
    assert result.exit_code == status, result.output
    assert words in result.output and "Traceback" not in result.output
