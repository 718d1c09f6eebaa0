"""`fastlif sweep FILE --dry-run`."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner, Result

import fastlif.sweep.estimate
from fastlif.cli import app
from tests.sweep_files import RIGHT, event_folder, write


def run(*arguments: object, env: dict[str, str | None] | None = None) -> Result:
    environment = {"COLUMNS": "200", "FASTLIF_DATA": None, **(env or {})}
    return CliRunner().invoke(app, ["sweep", *map(str, arguments)], env=environment)


def test_a_dry_run_lists_the_trials_and_their_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(fastlif.sweep.estimate, "at_once", lambda _: 4)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, RIGHT.replace("epochs: 4", "epochs: 3600"))
    result = run(path, "--dry-run")
    assert result.exit_code == 0, result.output
    lines = [line.strip("│ ").split() for line in result.output.splitlines() if "│" in line]
    listed = [[cell for cell in line if cell != "│"] for line in lines]
    assert len(listed) == 12
    assert listed[0][1:] == ["0.5", "0.001", "0", "3600", "0.8"]
    assert listed[11][0].startswith("0011-") and listed[11][1:4] == ["1", "0.1", "1"]
    assert "12 trials, about 9.6 h in all; this machine runs 4 at a time, in 2.4 h." in (
        result.output
    )
    assert "Times are rough" in result.output and "ASHA" not in result.output
    assert list(tmp_path.iterdir()) == [path]  # nothing was written


def test_of_many_trials_the_first_and_the_last_are_listed(tmp_path):
    text = RIGHT.replace("seeds: 2", "seeds: 100\nscheduler: {asha: {grace_epochs: 1}}")
    result = run("--dry-run", write(tmp_path, text))
    assert result.exit_code == 0, result.output
    rows = [line for line in result.output.splitlines() if line.startswith("│")]
    assert [row[2:7] for row in rows[:2] + rows[-2:]] == ["0000-", "0001-", "0598-", "0599-"]
    assert len(rows) < 20 and "600 trials" in result.output and "ASHA stops" in result.output


@pytest.mark.parametrize(("n", "part"), [(0, "does not have what one"), (1, "one at a time")])
def test_a_machine_for_one_trial_or_none(tmp_path, monkeypatch, n, part):
    monkeypatch.setattr(fastlif.sweep.estimate, "at_once", lambda _: n)
    assert part in run(write(tmp_path, RIGHT), "--dry-run").output


def test_mistakes_end_the_command_before_anything_starts(tmp_path):
    text = RIGHT.replace("0.5", "-1").replace("epochs: 4", "epochs: 0")
    result = run(write(tmp_path, text), "--out", tmp_path / "out")
    assert result.exit_code == 2
    path = tmp_path / "sweep.yaml"
    assert result.stderr.splitlines() == [
        f"error: {path} has 2 mistakes",
        f"{path}:3: settings.epochs: must be at least 1, got 0",
        f"{path}:5: search.sigma_u[0]: must be finite and > 0, got -1.0",
    ]
    assert not (tmp_path / "out").exists()
    assert "nowhere.yaml: No such file" in run("nowhere.yaml").stderr


def test_the_folder_of_the_data_is_the_options_the_files_or_the_environments(tmp_path):
    folder, nowhere = event_folder(tmp_path / "data"), tmp_path / "nowhere"
    text = RIGHT.replace("randman", "shd-dense")
    without, right, wrong = (f"{text}{end}" for end in ("", "data: data\n", "data: x\n"))
    for text, option, variable, works in (
        (without, None, None, False),
        (without, None, folder, True),
        (without, folder, nowhere, True),
        (right, None, nowhere, True),
        (right, nowhere, folder, False),
        (wrong, None, folder, False),
        (wrong, folder, None, True),
    ):
        arguments = [] if option is None else ["--data", option]
        environment = {} if variable is None else {"FASTLIF_DATA": str(variable)}
        result = run(write(tmp_path, text), "--dry-run", *arguments, env=environment)
        assert result.exit_code == (0 if works else 2), (text, option, variable, result.output)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml.composer", None)
    monkeypatch.delitem(sys.modules, "fastlif.sweep.document", raising=False)
    monkeypatch.delitem(sys.modules, "fastlif.sweep.reading", raising=False)
    result = run(write(tmp_path, RIGHT), "--dry-run")
    assert result.exit_code == 2
    assert "pip install 'fastlif[sweep]'" in result.stderr and "yaml" in result.stderr


def test_help_says_how_to_run_a_file():
    result = run("--help")
    assert result.exit_code == 0 and "FILE | COMMAND" in result.output
    assert "--dry-run" in run("run", "--help").output
