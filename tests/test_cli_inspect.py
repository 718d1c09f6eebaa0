"""`fastlif inspect`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from fastlif.cli import app
from fastlif.inspection import inspect
from fastlif.models import build
from fastlif.train import TrainConfig, default_config, load_task
from fastlif.train.checkpoint import load_checkpoint, restore_model, save_checkpoint

from .training import CHECKPOINT, run_train


def run_inspect(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def table_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "layers.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_start_is_looked_at_and_drawn(tmp_path: Path):
    out = tmp_path / "look"
    result = run_inspect("randman", "--n-samples", 40, "--sigma-u", 1.5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "hidden1" in result.output and "readout" in result.output
    assert "sigma_U" in result.output and "40 validation samples: loss" in result.output
    assert "warning" not in result.output
    hidden, readout = table_of(out)
    assert float(hidden["target_sigma_u"]) == 1.5
    assert float(hidden["predicted_sigma_u"]) == pytest.approx(1.5, rel=0.1)
    assert 1.0 < float(hidden["rate_hz"]) < 50.0
    assert float(readout["update_mean"]) > 0.0
    assert json.loads((out / "layers.json").read_text())["n_samples"] == 40
    pictures = [f"{name}.{end}" for name in ("depth", "membranes", "raster", "traces")
                for end in ("pdf", "png")]  # fmt: skip
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*pictures, "layers.csv", "layers.json"]
    )
    assert all((out / name).stat().st_size > 2000 for name in pictures)


def test_a_silent_layer_is_warned_of():
    result = run_inspect("randman", "--n-samples", 10, "--sigma-u", 0.01)
    assert result.exit_code == 0
    assert "warning: layer 'hidden1' is silent (0.0 Hz" in result.output
    assert "raise sigma_u" in result.output


def test_the_best_weights_of_a_run_are_looked_at(tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "look"
    command = ("randman", "--epochs", 2, "--n-samples", 60, "--seed", 3, "--out", run)
    assert run_train(*command).exit_code == 0
    saved = load_checkpoint(run / CHECKPOINT)
    saved.model = {name: torch.zeros_like(tensor) for name, tensor in saved.model.items()}
    saved.best_epoch, saved.epoch = 1, 2  # so that the last weights are not the best
    save_checkpoint(saved, run / CHECKPOINT)
    result = run_inspect("randman", "--checkpoint", run, "--n-samples", 99, "--out", out)
    assert result.exit_code == 0, result.output

    config = TrainConfig.from_dict(saved.settings)
    assert config.seed == 3 and config.n_samples == 60
    model = build("randman", recurrent=False)
    restore_model(model, saved.best_model, run / CHECKPOINT)
    task = load_task(config, None)
    inputs, _ = task.validation.select(torch.arange(len(task.validation)))
    (expected, _) = inspect(model, inputs).rows()
    hidden, _ = table_of(out)
    assert float(hidden["rate_hz"]) == pytest.approx(expected["rate_hz"], rel=1e-6)
    assert float(hidden["predicted_sigma_u"]) == pytest.approx(
        expected["predicted_sigma_u"], rel=1e-5
    )
    assert hidden["target_sigma_u"] == ""
    # The optimizer's state is that of the last epoch: at the best one a new optimizer steps, whose
    # first step moves every weight with a gradient by sqrt(2) times the learning rate.
    assert float(hidden["update_mean"]) == pytest.approx(2**0.5 * config.lr, rel=1e-3)

    command = ("randman", "--checkpoint", run, "--epoch", "last", "--out", out)
    assert run_inspect(*command).exit_code == 0
    hidden, _ = table_of(out)
    assert float(hidden["rate_hz"]) == 0.0
    assert float(hidden["weight_norm"]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("shd-conv4",), "preset must be one of"),
        (("shd-dense",), "needs data: give --data"),
        (("randman", "--checkpoint", "nowhere"), "no checkpoint at nowhere"),
        (("randman", "--sigma-u", "-1"), "sigma_u must be finite and > 0, got -1.0"),
        (("randman", "--initialization", "magic"), "initialization must be one of"),
        (("randman", "--n-samples", "5", "--sample", "5"), "sample must be below"),
        (("randman", "--epoch", "first"), "epoch must be best or last, got 'first'"),
        (("randman", "--epoch", "last"), "epoch is for --checkpoint, got 'last' without one"),
        (("randman", "--device", "abacus"), "device must be cpu, cuda or auto, got 'abacus'"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], words: str, monkeypatch):
    monkeypatch.delenv("FASTLIF_DATA", raising=False)
    result = run_inspect(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert words in result.stderr


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_one_line(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    result = run_inspect("randman", "--n-samples", 5, "--out", tmp_path / place)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert result.stderr.startswith(f"error: {tmp_path / 'file'}")
    assert len(result.stderr.splitlines()) == 1
    result = run_train("randman", "--epochs", 1, "--n-samples", 40, "--out", tmp_path / place)
    assert result.exit_code == 2 and result.stderr.startswith(f"error: {tmp_path / 'file'}")


@pytest.mark.parametrize("command", [["train", "randman"], ["reproduce", "figS5"]])
def test_every_command_refuses_a_device_alike(command: list[str]):
    result = CliRunner().invoke(app, [*command, "--device", "tpu"])
    assert result.exit_code == 2
    assert result.stderr == "error: device must be cpu, cuda or auto, got 'tpu'\n"


def test_a_checkpoint_fixes_the_settings(tmp_path: Path):
    run = tmp_path / "run"
    command = ("randman", "--epochs", 1, "--n-samples", 40, "--out", run)
    assert run_train(*command).exit_code == 0
    result = run_inspect("shd-dense", "--checkpoint", run)
    assert result.exit_code == 2 and "is of preset 'randman', not 'shd-dense'" in result.stderr
    result = run_inspect("randman", "--checkpoint", run, "--sigma-u", 2, "--skip")
    assert result.exit_code == 2
    assert "--sigma-u, --skip cannot be combined with --checkpoint" in result.stderr


def test_a_run_in_its_priming_has_no_best_weights(tmp_path: Path):
    run = tmp_path / "run"
    command = ("randman", "--epochs", 1, "--priming-epochs", 1, "--n-samples", 40, "--out", run)
    assert run_train(*command).exit_code == 0
    saved = load_checkpoint(run / CHECKPOINT)
    saved.epoch, saved.best_epoch, saved.best_model = 1, 0, {}
    save_checkpoint(saved, run / CHECKPOINT)
    result = run_inspect("randman", "--checkpoint", run)
    assert result.exit_code == 2 and "see --epoch last" in result.stderr
    result = run_inspect("randman", "--checkpoint", run, "--epoch", "last", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    # Supervised training begins with a new optimizer, whose first step is known.
    hidden, _ = table_of(tmp_path)
    lr = saved.settings["lr"]
    assert float(hidden["update_mean"]) == pytest.approx(2**0.5 * lr, rel=1e-3)


def test_settings_survive_a_checkpoint():
    config = default_config("shd-conv3")
    assert TrainConfig.from_dict(config.as_dict()) == config
    old = {name: value for name, value in config.as_dict().items() if name != "skip"}
    assert TrainConfig.from_dict(old) == config
    with pytest.raises(ValueError, match="settings must not hold colour"):
        TrainConfig.from_dict(config.as_dict() | {"colour": "blue"})
    with pytest.raises(ValueError, match="settings are incomplete: .*'epochs'"):
        TrainConfig.from_dict({"preset": "randman", "recurrent": False, "batch_size": 3})
