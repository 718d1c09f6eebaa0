"""Resuming a run after any interruption, and refusing checkpoints of something else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fastlif.files import LOCK_NAME, held_by_this_process, write_atomically
from fastlif.train.checkpoint import load_checkpoint
from tests.training import (
    CHECKPOINT,
    QUICK,
    assert_same_run,
    rows,
    run_train,
    scalars,
    write_events,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "tiny_train.h5", 60, seed=1)
    write_events(folder / "tiny_test.h5", 15, seed=2)
    return folder


@pytest.mark.parametrize("preset", ["shd-dense", "shd-conv1"])
def test_resumed_equals_uninterrupted(data: Path, tmp_path: Path, preset: str) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = (preset, "--data", data, "--recurrent", "--channel-shift", 9, *QUICK)
    assert run_train(*command, "--out", whole, "--epochs", 5).exit_code == 0
    assert run_train(*command, "--out", parts, "--epochs", 2).exit_code == 0
    assert len(rows(parts)) == 2
    result = run_train(*command, "--out", parts, "--epochs", 5, "--resume")
    assert result.exit_code == 0, result.output
    assert "continuing after epoch 2" in result.output
    assert_same_run(whole, parts)
    assert [step for step, _ in scalars(parts, "validation/accuracy")] == [1, 2, 3, 4, 5]


# Runs the command line and kills it, as kill -9 does, at the n-th call of a function.
KILLED_RUN = """
import os, pkgutil, signal, sys
target, calls, *arguments = sys.argv[1:]
owner, _, name = target.rpartition(".")
owner = pkgutil.resolve_name(owner)
original, left = getattr(owner, name), int(calls)

def killing(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, killing)
from fastlif.cli import app
app(arguments)
"""


def test_resume_after_kill_minus_9_at_any_moment(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ("shd-dense", "--data", data, "--epochs", 8, *QUICK)
    assert run_train(*command, "--out", whole).exit_code == 0
    kills = (  # five batches an epoch; an epoch replaces the checkpoint, then the CSV file
        ("fastlif.train.progress:ConsoleReporter.batch_done", 13, 2),  # in the third epoch
        ("os.replace", 4, 3),  # resumed: CSV, checkpoint, CSV, [checkpoint]
        ("os.replace", 3, 4),  # resumed: CSV, checkpoint, [CSV]
        ("os.fsync", 3, 4),  # resumed: CSV and its folder, [checkpoint]
    )
    for number, (target, calls, epochs_done) in enumerate(kills):
        arguments = ["train", *map(str, command), "--out", str(killed)]
        arguments += ["--resume"] if number else []
        process = subprocess.run(
            [sys.executable, "-c", KILLED_RUN, target, str(calls), *arguments],
            capture_output=True,
            text=True,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert load_checkpoint(killed / CHECKPOINT).epoch == epochs_done
    # TensorBoard orders its files by the second they were begun in. Any new process starts later
    # than that, but the last part of this run is in a process that started long ago.
    time.sleep(1.1)
    result = run_train(*command, "--out", killed, "--resume")
    assert result.exit_code == 0, result.output
    assert_same_run(whole, killed)
    assert [step for step, _ in scalars(killed, "train/loss")] == list(range(1, 9))
    assert [path.name for path in killed.glob(".*")] == [LOCK_NAME]  # nothing half written


def test_ctrl_c_says_how_to_go_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    command = ("shd-dense", "--data", data, "--epochs", 4, *QUICK)
    assert run_train(*command, "--out", whole).exit_code == 0
    steps = 0

    def interrupted(self: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 12:  # five batches an epoch: in the third epoch
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastlif.train.progress.ConsoleReporter.batch_done", interrupted)
        result = run_train(*command, "--out", out)
    assert result.exit_code == 130
    assert "--resume continues" in result.output
    assert len(rows(out)) == 2 and not (out / "result.json").exists()
    assert run_train(*command, "--out", out, "--resume").exit_code == 0
    assert_same_run(whole, out)


def test_csv_is_restored_from_the_checkpoint(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("shd-dense", "--data", data, "--out", out, *QUICK)
    assert run_train(*command, "--epochs", 3).exit_code == 0
    table = rows(out)
    lines = (out / "epochs.csv").read_text().splitlines(keepends=True)
    # As if the run was killed after the checkpoint, and as if somebody had appended to the file.
    for damaged in (lines[:3], lines + lines[-1:]):
        (out / "epochs.csv").write_text("".join(damaged))
        assert run_train(*command, "--epochs", 3, "--resume").exit_code == 0
        assert rows(out) == table


def test_a_second_run_does_not_overwrite_the_first(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("shd-dense", "--data", data, "--out", out, "--epochs", 1, *QUICK)
    assert run_train(*command).exit_code == 0
    before = (out / CHECKPOINT).read_bytes()
    result = run_train(*command)
    assert result.exit_code == 2 and "already holds a run" in result.stderr
    assert (out / CHECKPOINT).read_bytes() == before


class TestForeignCheckpoints:
    @pytest.fixture
    def out(self, data: Path, tmp_path: Path) -> Path:
        out = tmp_path / "run"
        result = run_train("shd-dense", "--data", data, "--out", out, "--epochs", 1, *QUICK)
        assert result.exit_code == 0
        return out

    def refused(self, out: Path, data: Path, *arguments: object) -> str:
        before = (out / CHECKPOINT).read_bytes()
        command = ("--data", data, "--out", out, "--epochs", 2, "--resume", *QUICK)
        result = run_train(*arguments, *command)
        assert result.exit_code == 2
        assert "Traceback" not in result.output and result.stderr.count("\n") == 1
        assert (out / CHECKPOINT).read_bytes() == before
        return result.stderr

    def test_of_another_preset(self, out: Path, data: Path) -> None:
        message = self.refused(out, data, "shd-conv1")
        assert "belongs to another run" in message
        assert "preset is 'shd-dense' there and 'shd-conv1' here" in message

    def test_of_other_settings(self, out: Path, data: Path) -> None:
        message = self.refused(out, data, "shd-dense", "--recurrent", "--lr", "0.1")
        assert "recurrent is False there and True here" in message
        assert "lr is 0.005 there and 0.1 here" in message

    def test_of_other_data(self, out: Path, tmp_path: Path) -> None:
        write_events(tmp_path / "other_train.h5", 50, seed=5, n_classes=4)
        write_events(tmp_path / "other_test.h5", 8, seed=6, n_classes=4)
        message = self.refused(out, tmp_path, "shd-dense")
        assert "n_classes is 3 there and 4 here" in message

    def test_with_other_tensors(self, out: Path, data: Path) -> None:
        tensors = load_file(out / CHECKPOINT)
        tensors["model/hidden1.weight"] = tensors["model/hidden1.weight"][:64].contiguous()
        metadata = self.metadata(out)
        save_file(tensors, out / CHECKPOINT, metadata)
        message = self.refused(out, data, "shd-dense")
        assert "hidden1.weight has shape (64, 700) instead of (128, 700)" in message

    def test_of_before_there_were_such_settings(self, out: Path, data: Path) -> None:
        metadata = self.metadata(out)
        state = json.loads(metadata["state"])
        for name in ("optimizer", "initialization", "mu_w", "sigma_w", "distribution", "skip"):
            del state["settings"][name]
        for name in ("rescale_surrogate", "priming_epochs", "n_samples"):
            del state["settings"][name]
        state["settings"]["v_lower"] = 0.0  # of a bound that the run does not have
        for row in state["history"]:
            del row["phase"]
        save_file(
            load_file(out / CHECKPOINT), out / CHECKPOINT, metadata | {"state": json.dumps(state)}
        )
        message = self.refused(out, data, "shd-dense", "--optimizer", "adam", "--lr", "5e-3")
        assert "optimizer is 'smorms3' there and 'adam' here" in message
        message = self.refused(out, data, "shd-dense", "--lower-strength", "1")
        assert "v_lower is 0.0 there and 1.0 here" in message
        command = ("shd-dense", "--data", data, "--out", out, "--epochs", 2, "--resume", *QUICK)
        result = run_train(*command)
        assert result.exit_code == 0, result.output
        assert [row["phase"] for row in rows(out)] == ["supervised"] * 2

    def test_of_another_program(self, out: Path, data: Path) -> None:
        save_file({"weight": torch.zeros(3)}, out / CHECKPOINT)
        assert "not a training checkpoint of fastlif" in self.refused(out, data, "shd-dense")

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_truncated(self, out: Path, data: Path, share: float) -> None:
        whole = (out / CHECKPOINT).read_bytes()
        (out / CHECKPOINT).write_bytes(whole[: int(share * len(whole))])
        assert "damaged checkpoint" in self.refused(out, data, "shd-dense")

    def test_that_is_a_pickle_is_not_executed(self, out: Path, data: Path, tmp_path: Path) -> None:
        witness = tmp_path / "executed"

        class Harmful:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (witness,))

        torch.save(Harmful(), out / CHECKPOINT)
        assert "damaged checkpoint" in self.refused(out, data, "shd-dense")
        assert not witness.exists()

    def test_that_is_missing(self, data: Path, tmp_path: Path) -> None:
        result = run_train(
            "shd-dense", "--data", data, "--out", tmp_path / "none", "--resume", *QUICK
        )
        assert result.exit_code == 2 and "no checkpoint at" in result.stderr

    def metadata(self, out: Path) -> dict[str, str]:
        with safe_open(out / CHECKPOINT, framework="pt") as file:
            return file.metadata()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_in_use_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with held_by_this_process(out):
        result = run_train("shd-dense", "--data", data, "--out", out, *QUICK)
        assert result.exit_code == 2 and f"{out} is in use by another process" in result.stderr
        assert not (out / CHECKPOINT).exists()
    assert run_train("shd-dense", "--data", data, "--out", out, *QUICK).exit_code == 0
