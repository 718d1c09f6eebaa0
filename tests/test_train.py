"""Training through the command line: what it writes, what it learns, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fastlif.cli import app
from fastlif.files import LOCK_NAME
from fastlif.models import PRESETS, build
from fastlif.train import default_config, initialize
from fastlif.train.batches import epoch_batches, epoch_generator
from fastlif.train.checkpoint import load_checkpoint
from tests.training import (
    CHECKPOINT,
    QUICK,
    assert_same_run,
    rows,
    run_train,
    scalars,
    without_seconds,
    write_events,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "tiny_train.h5", 60, seed=1)
    write_events(folder / "tiny_test.h5", 15, seed=2)
    return folder


@pytest.mark.parametrize("kind", ["--feedforward", "--recurrent"])
def test_a_run_learns_and_writes_its_files(data: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    result = run_train("shd-dense", "--data", data, "--out", out, "--epochs", 12, kind, *QUICK)
    assert result.exit_code == 0, result.output
    assert "test accuracy" in result.output and "epoch   12" in result.output

    table = rows(out)
    assert [int(row["epoch"]) for row in table] == list(range(1, 13))
    assert float(table[-1]["train_loss"]) < 0.7 * float(table[0]["train_loss"])
    assert float(table[-1]["train_accuracy"]) > 0.6
    assert all(0.5 < float(row["rate_hidden1_hz"]) < 25.0 for row in table)
    assert all(float(row["seconds"]) > 0 for row in table)

    summary = json.loads((out / "result.json").read_text())
    assert summary["test_accuracy"] > 0.5
    assert summary["epochs"] == 12
    assert summary["data"]["n_classes"] == 3 and summary["data"]["n_validation"] == 6
    scores = [(float(r["validation_accuracy"]), -float(r["validation_loss"])) for r in table]
    assert summary["best_epoch"] == 1 + scores.index(max(scores))
    assert summary["validation_accuracy"] == max(scores)[0]
    n_recurrent = 128 * 128 if kind == "--recurrent" else 0
    assert summary["n_parameters"] == 700 * 128 + n_recurrent + 128 * 3

    logged = scalars(out, "train/loss")
    assert [step for step, _ in logged] == list(range(1, 13))
    assert [value for _, value in logged] == pytest.approx(
        [float(row["train_loss"]) for row in table], rel=1e-5
    )
    assert scalars(out, "test/accuracy")[0][0] == summary["best_epoch"]
    assert sorted(path.name for path in out.iterdir()) == [
        LOCK_NAME, CHECKPOINT, "epochs.csv", "result.json", "tensorboard"
    ]  # fmt: skip


def test_the_test_score_is_that_of_the_best_epoch(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run_train("shd-dense", "--data", data, "--out", out, "--epochs", 6, *QUICK)
    assert result.exit_code == 0
    best = json.loads((out / "result.json").read_text())
    checkpoint = load_checkpoint(out / CHECKPOINT)
    assert checkpoint.best_epoch == best["best_epoch"]
    # The best epoch's weights are those with which a run of that many epochs ends.
    short = tmp_path / "short"
    command = ("shd-dense", "--data", data, "--out", short, "--epochs", best["best_epoch"])
    assert run_train(*command, *QUICK).exit_code == 0
    for name, tensor in load_checkpoint(short / CHECKPOINT).model.items():
        assert torch.equal(tensor, checkpoint.best_model[name])
    assert json.loads((short / "result.json").read_text())["test_loss"] == best["test_loss"]


def test_seed_decides_everything(data: Path, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    for out, seed in zip(outs, (3, 3, 4), strict=True):
        command = ("shd-dense", "--data", data, "--out", out, "--epochs", 2, "--seed", seed)
        assert run_train(*command, *QUICK).exit_code == 0
    assert_same_run(outs[0], outs[1])
    assert without_seconds(rows(outs[0])) != without_seconds(rows(outs[2]))


class TestBadRequests:
    def refused(self, *arguments: object, env: dict[str, str] | None = None) -> str:
        result = run_train(*arguments, env=env)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        return result.stderr

    def test_unknown_preset_lists_the_names(self, tmp_path: Path) -> None:
        message = self.refused("shd-conv4", "--out", tmp_path)
        assert "'shd-conv4'" in message
        assert all(name in message for name in PRESETS)

    def test_missing_data(self, tmp_path: Path) -> None:
        message = self.refused("shd-dense", "--out", tmp_path, env={"FASTLIF_DATA": ""})
        assert "--data" in message and "*train*.h5" in message
        message = self.refused("shd-dense", "--out", tmp_path, "--data", tmp_path / "none")
        assert "no data folder" in message

    def test_data_folder_from_the_environment(self, data: Path, tmp_path: Path) -> None:
        command = ("shd-dense", "--out", tmp_path / "run", "--epochs", 1, "--quiet", *QUICK)
        result = run_train(*command, env={"FASTLIF_DATA": str(data)})
        assert result.exit_code == 0 and "epoch    1" not in result.output

    def test_damaged_data(self, data: Path, tmp_path: Path) -> None:
        whole = (data / "tiny_train.h5").read_bytes()
        (tmp_path / "a_train.h5").write_bytes(whole[: len(whole) // 2])
        (tmp_path / "a_test.h5").write_bytes((data / "tiny_test.h5").read_bytes())
        message = self.refused("shd-dense", "--data", tmp_path, "--out", tmp_path / "run")
        assert "a_train.h5" in message and "truncated" in message

    def test_labels_only_in_the_test_file(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "a_train.h5").write_bytes((data / "tiny_train.h5").read_bytes())
        write_events(tmp_path / "a_test.h5", 8, seed=1, n_classes=4)
        message = self.refused("shd-dense", "--data", tmp_path, "--out", tmp_path / "run", *QUICK)
        assert "a_test.h5: largest label is 3" in message

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--epochs", 0, "epochs must be at least 1, got 0"),
            ("--batch-size", -3, "batch_size must be at least 1, got -3"),
            ("--lr", "nan", "lr must be finite and > 0, got nan"),
            ("--sigma-u", 0, "sigma_u must be finite and > 0, got 0.0"),
            ("--dt", "inf", "dt must be finite and > 0, got inf"),
            ("--upper-strength", -5, "upper_strength must be finite and >= 0, got -5.0"),
            ("--seed", -1, "seed must be at least 0, got -1"),
            ("--backend", "abacus", "abacus"),
        ],
    )
    def test_numbers_out_of_range(
        self, data: Path, tmp_path: Path, option: str, value: object, words: str
    ) -> None:
        command = ["shd-dense", "--data", data, "--out", tmp_path / "run", *QUICK]
        assert words in self.refused(*command, option, value)

    def test_loss_that_is_not_finite(self, data: Path, tmp_path: Path) -> None:
        command = ("shd-dense", "--data", data, "--out", tmp_path / "run", *QUICK)
        message = self.refused(*command, "--upper-strength", "1e38", "--v-upper", "0")
        assert "loss must stay finite" in message and "inf in epoch 1" in message


def test_randman_runs_without_data(tmp_path: Path) -> None:
    command = ("randman", "--epochs", 2, "--out", tmp_path / "run", "--dt", "4e-3")
    result = run_train(*command, "--threads", 1)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "result.json").read_text())
    assert summary["data"]["n_train"] == 8000
    assert summary["data"]["input_rate"] == pytest.approx(5.0)
    assert summary["n_parameters"] == 3840
    table = rows(tmp_path / "run")
    assert float(table[1]["train_loss"]) < float(table[0]["train_loss"])
    assert 2.0 < float(table[0]["rate_hidden1_hz"]) < 20.0


def test_initialization_follows_the_preset() -> None:
    config = default_config("randman")
    model = build("randman")
    hidden, readout = initialize(model, config, input_rate=5.0)
    assert hidden.sigma_u == 1.0 and readout.sigma_u == pytest.approx(1.0, rel=1e-6)
    assert model.hidden1.weight.std().item() == pytest.approx(hidden.sigma_w, rel=0.05)
    assert model.readout.weight.std().item() == pytest.approx(readout.sigma_w, rel=0.05)
    conv = build("shd-conv3")
    *layers, readout = initialize(conv, default_config("shd-conv3"), input_rate=8.0)
    assert [layer.rate for layer in layers] == [8.0] * 3
    assert readout.sigma_w == pytest.approx(320**-0.5)
    assert conv.readout.weight.std().item() == pytest.approx(320**-0.5, rel=0.05)


def test_batches_cover_an_epoch_evenly_and_depend_on_seed_and_epoch_alone() -> None:
    def batches(seed: int, epoch: int) -> tuple[torch.Tensor, ...]:
        return epoch_batches(2025, 6, epoch_generator(seed, epoch))

    first = batches(1, 3)
    assert [len(batch) for batch in first] == [338, 338, 338, 337, 337, 337]
    assert torch.cat(first).sort().values.tolist() == list(range(2025))
    assert torch.equal(torch.cat(first), torch.cat(batches(1, 3)))
    for seed, epoch in ((1, 4), (2, 3), (3, 1)):
        assert not torch.equal(torch.cat(first), torch.cat(batches(seed, epoch)))


def test_info_lists_the_backends() -> None:
    result = CliRunner().invoke(app, ["info"])
    assert result.exit_code == 0
    assert "reference" in result.output and "cpu" in result.output
