"""The paper's sweeps: files that run, and the grids and settings of the reproduction."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastlif.cli import app
from fastlif.reproduce import EXPERIMENTS, Options
from fastlif.sweep import SweepSpec, read_spec
from fastlif.sweep.paper import paper_sweep, paper_sweeps, sweep_path

from .training import write_events

ROOT = Path(__file__).resolve().parent.parent
TRIALS = {
    "3c": 64, "3e": 64, "3f": 120, "4a": 180, "4a-kaiming": 15, "5b": 120, "5c": 120, "7c": 120,
    "7d": 120,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for part in ("train", "test"):
        write_events(folder / f"made_{part}.h5", 12, seed=0)
    return folder


def spec(name: str, data: Path) -> SweepSpec:
    return read_spec(sweep_path(f"paper:{name}"), data=data)


def test_all_sweeps_are_known():
    assert paper_sweeps() == tuple(TRIALS)
    command = CliRunner().invoke(app, ["sweep", "run", "--help"], terminal_width=200)
    shown = " ".join(command.output.replace("│", " ").split())
    for name in TRIALS:
        assert name in shown


@pytest.mark.parametrize("name", TRIALS)
def test_every_sweep_can_run(name, data):
    sweep = spec(name, data)
    assert sweep.name == f"figure{name}"
    assert len(sweep.trials) == TRIALS[name]
    documented = (ROOT / "docs" / "sweeps.md").read_text().splitlines()
    (row,) = [line for line in documented if line.startswith(f"| `paper:{name}` |")]
    assert row.endswith(f"| {TRIALS[name]} |")


@pytest.mark.parametrize("name", TRIALS)
def test_the_reproduction_trains_what_the_sweep_does(name, data):
    planned = EXPERIMENTS[f"fig{name[0]}"].planned(Options(only=(name[1],)))
    reproduced = {run.config for run in planned.runs if run.trained}
    trials = {trial.config for trial in spec(name, data).trials}
    # Its panel of figure 3f is on one data set, as in the paper.
    if name == "3f":
        trials = {config for config in trials if config.preset == "shd-dense"}
    assert trials <= reproduced
    if name[0] != "4":  # whose panel a has two sweeps
        assert trials == reproduced


def test_hours_on_a_gpu_are_not_made_up(data, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep_path("paper:4a").read_text() + "resources: {gpus: 0.25}\n")
    command = ["sweep", str(file), "--data", str(data), "--dry-run", "--out", str(tmp_path)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "180 trials, on a GPU: not yet measured" in " ".join(shown.output.split())
    assert "about" not in shown.output
    there = tmp_path / "trials" / "0000"
    there.mkdir(parents=True)
    settings = {"preset": "shd-conv1", "recurrent": True, "device": "cuda"}
    result = {"settings": settings, "seconds_per_epoch": 1.0, "data": {"n_train": 11}}
    (there / "result.json").write_text(json.dumps(result))
    shown = CliRunner().invoke(app, command)
    assert "60 of networks that were timed take" in " ".join(shown.output.split())


def test_a_sweep_of_the_paper_that_there_is_not_is_refused():
    assert sweep_path("mine.yaml") == Path("mine.yaml")
    with pytest.raises(ValueError, match="paper:3c, .*; got 'paper:9z'"):
        sweep_path("paper:9z")


def test_a_missing_package_is_named_by_the_reproduction(monkeypatch):
    paper_sweep.cache_clear()
    for module in ("fastlif.sweep.document", "yaml.composer", "yaml"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fastlif.sweep.document")
    done = CliRunner().invoke(app, ["reproduce", "fig5", "--dry-run"])
    assert done.exit_code == 2
    assert "need the packages of pip install 'fastlif[sweep]'" in done.output
