"""Several processes for one network: what one process would compute, written and said once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fastlif.cli import app
from fastlif.files import held_by_this_process
from fastlif.spikes import PackedSpikes
from fastlif.train import Processes
from fastlif.train.batches import epoch_generator, training_batches
from tests.parallel_worker import EXACT, work
from tests.tiny_tasks import tiny_task
from tests.training import CHECKPOINT, QUICK, assert_same_run, rows, run_train, write_events

N_STEPS = 20
LAUNCHER = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "tiny_train.h5", 60, seed=1)
    write_events(folder / "tiny_test.h5", 15, seed=2)
    return folder


def launch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in two processes, as torchrun starts them."""
    return subprocess.run(
        [*LAUNCHER, "-m", "fastlif", *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def errors(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error")]


@pytest.fixture(scope="module")
def command(data: Path) -> tuple[object, ...]:
    # Not SMORMS3 nor Adam: their steps are as large where a gradient is all rounding.
    return (
        "shd-dense", "--data", data, "--channel-shift", 9, "--optimizer", "sgd",
        "--upper-strength", 0.1, "--v-upper", 1, *QUICK,
    )  # fmt: skip


@pytest.fixture(scope="module")
def out(command: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two processes."""
    out = tmp_path_factory.mktemp("runs") / "two"
    result = launch("train", *command, "--epochs", 4, "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch    1") == result.stdout.count("test accuracy") == 1
    return out


class TestTorchrun:
    """54 training samples in five batches: shares of 6 and 5, and 20 steps in four epochs."""

    def test_the_losses_are_those_of_one_process(
        self, command: tuple[object, ...], out: Path, tmp_path: Path
    ) -> None:
        alone = tmp_path / "one"
        assert run_train(*command, "--epochs", 4, "--out", alone).exit_code == 0
        first, second = rows(alone), rows(out)
        assert len(first) == len(second) == N_STEPS // 5
        assert float(first[-1]["train_loss"]) < 0.8 * float(first[0]["train_loss"])
        for one, two in zip(first, second, strict=True):
            assert one["train_accuracy"] == two["train_accuracy"]
            assert one["validation_accuracy"] == two["validation_accuracy"]
            for name in ("train_loss", "train_penalty", "validation_loss", "rate_hidden1_hz"):
                assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-5), name
                assert float(one[name]) > 0
        results = [json.loads((folder / "result.json").read_text()) for folder in (alone, out)]
        assert results[0]["settings"] == results[1]["settings"]
        assert results[0]["best_epoch"] == results[1]["best_epoch"]
        assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
        assert results[0]["test_loss"] == pytest.approx(results[1]["test_loss"], rel=1e-5)

    def test_files_are_written_once(self, out: Path) -> None:
        assert sorted(path.name for path in out.iterdir()) == [
            ".lock", CHECKPOINT, "epochs.csv", "result.json", "tensorboard"
        ]  # fmt: skip
        assert len(list((out / "tensorboard").iterdir())) == 1

    def test_a_folder_in_use_ends_both_with_one_message(
        self, command: tuple[object, ...], tmp_path: Path
    ) -> None:
        with held_by_this_process(tmp_path):
            result = launch("train", *command, "--out", tmp_path)
        assert result.returncode != 0
        (message,) = errors(result.stderr)
        assert f"{tmp_path} is in use by another process" in message


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done all of `parallel_worker`."""
    folder = tmp_path_factory.mktemp("both")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return folder


class TestTwoProcesses:
    @pytest.mark.parametrize("name", EXACT)
    def test_compute_what_one_does(self, both: Path, name: str) -> None:
        """Every loss, optimizer and kind of data, to the rounding of float64."""
        self.assert_close(both / "one" / name, both / "two" / name)

    def test_take_turns_with_one(self, both: Path) -> None:
        self.assert_close(both / "one" / "shd-dense", both / "turns")

    def assert_close(self, one: Path, two: Path) -> None:
        first, second = (load_file(folder / CHECKPOINT) for folder in (one, two))
        assert first.keys() == second.keys()
        changed = False
        for name, tensor in first.items():
            assert torch.allclose(tensor, second[name], rtol=1e-9, atol=1e-12), name
            changed |= not torch.equal(tensor, second[name])
        assert changed  # two did not do the same as one by not sharing anything
        for row, other in zip(rows(one), rows(two), strict=True):
            for name in row.keys() - {"phase", "seconds"}:
                exact = name.endswith("accuracy") or name == "epoch"
                tolerance = 0.0 if exact else 1e-6 if name.startswith("rate") else 1e-12
                assert float(other[name]) == pytest.approx(float(row[name]), rel=tolerance), name

    def test_resume_with_the_same_bits(self, both: Path) -> None:
        assert_same_run(both / "whole", both / "parts")
        assert not (both / "nowhere").exists()

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("lock", "lock is in use by another process"),
            ("again", "whole already holds a run"),
            ("missing", "no checkpoint at"),
            ("damaged", "damaged checkpoint"),
            ("batch", "batch_size must be at least as many as the processes, 2,"),
            ("uneven", "the smallest batch of training must be at least"),
            ("validation", "the validation samples must be at least as many as the processes, 2,"),
            ("seed", "seed is 0 in process 0 and 1 in process 1"),
            ("weights", "weights is '"),
            ("loss", "loss must stay finite"),
            ("disk", "No space left on device"),
        ],
    )
    def test_fail_together(self, both: Path, name: str, words: str) -> None:
        told = [json.loads((both / f"failures{rank}.json").read_text())[name] for rank in (0, 1)]
        assert all(words in message for message in told), told
        assert not (both / name / "result.json").exists() or name == "again"

    def test_notice_that_the_other_is_gone(self, both: Path) -> None:
        assert "another of the 2 processes has ended" in (both / "deserted").read_text()


@pytest.mark.parametrize(("n_samples", "count"), [(12, 1), (11, 2), (10, 4), (2, 3)])
def test_shares_are_all_of_a_batch(n_samples: int, count: int) -> None:
    shares = [range(n_samples)[Processes(rank, count).share(n_samples)] for rank in range(count)]
    assert [sample for share in shares for sample in share] == list(range(n_samples))
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1 and lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("name", ["shd-dense", "cifar-conv2", "dvs-conv6"])
def test_a_share_holds_the_samples_of_the_whole_batch(name: str) -> None:
    source = tiny_task(name, recordings=name.startswith("dvs")).train
    shift = 5 if name == "shd-dense" else 0

    def batches(processes: Processes) -> list[tuple[torch.Tensor, torch.Tensor]]:
        found = training_batches(
            source,
            5,
            epoch_generator(1, 2),
            torch.device("cpu"),
            channel_shift=shift,
            share=processes.share,
        )
        return [
            (x.unpack() if isinstance(x, PackedSpikes) else x.transpose(0, 1), targets)
            for x, targets in found
        ]

    parts = [batches(Processes(rank, 2)) for rank in (0, 1)]
    for whole, first, second in zip(batches(Processes()), *parts, strict=True):
        assert whole[0].count_nonzero() > 0
        assert torch.equal(torch.cat([first[0], second[0]], dim=1), whole[0])
        assert torch.equal(torch.cat([first[1], second[1]]), whole[1])


@pytest.mark.parametrize("arguments", [("inspect", "randman"), ("reproduce", "fig3"), ("info",)])
def test_other_commands_want_one_process(arguments: tuple[str, ...]) -> None:
    env = {"TORCHELASTIC_RUN_ID": "0", "WORLD_SIZE": "2"}
    first, second = (
        CliRunner().invoke(app, arguments, env=env | {"RANK": rank}) for rank in ("0", "1")
    )
    assert first.exit_code == 2
    assert f"fastlif {arguments[0]} runs in one process, torchrun started 2" in first.stderr
    assert second.exit_code == 0 and second.output == ""
