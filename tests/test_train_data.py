"""What training makes of the data sets: which reader, what is held out, what is measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastlif.data import EventRecordings, ImageDataset, Subset
from fastlif.train import default_config, load_task, sample_duration
from tests.tiny_tasks import tiny_config, tiny_task
from tests.training import run_train, write_events


def write_digits(folder: Path, n_train: int = 20, n_test: int = 8) -> None:
    """N-MNIST as arrays: columns of a class see more events."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, n_samples in (("train", n_train), ("test", n_test)):
        labels = np.arange(n_samples) % 10
        n_events = 600
        x = (generator.normal(0, 3, (n_samples, n_events)) + 3 * labels[:, None] + 4) % 34
        np.savez(
            folder / f"nmnist_{part}.npz",
            x=x.astype(np.uint8).ravel(),
            y=generator.integers(0, 34, n_samples * n_events).astype(np.uint8),
            p=generator.integers(0, 2, n_samples * n_events).astype(np.uint8),
            t_us=np.sort(generator.integers(0, 300_000, (n_samples, n_events))).ravel(),
            offsets=np.arange(n_samples + 1) * n_events,
            labels=labels.astype(np.uint8),
        )


def write_gestures(folder: Path) -> None:
    """DVS128 Gesture as Tonic leaves it: two trials of three gestures for each part."""
    generator = np.random.default_rng(0)
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        for trial in ("user01_led", "user02_lab"):
            home = folder / part / trial
            home.mkdir(parents=True)
            for label in (0, 1, 2):
                events = generator.integers(0, 128, (900, 4)).astype(float)
                events[:, 2] = generator.integers(0, 2, 900)
                events[:, 3] = np.sort(generator.uniform(0, 1500, 900))  # ms
                np.save(home / f"{label}.npy", events)


def write_images(folder: Path, n_train: int = 20, n_test: int = 6) -> None:
    """CIFAR-10 as JPEG images: brighter by class."""
    folder.mkdir()
    for part, n_samples in (("train", n_train), ("test", n_test)):
        labels = np.arange(n_samples) % 10
        images = []
        for label in labels:
            buffer = io.BytesIO()
            Image.new("RGB", (32, 32), (25 * label, 100, 255 - 25 * label)).save(buffer, "JPEG")
            images.append(buffer.getvalue())
        np.savez(
            folder / f"cifar10_{part}.npz",
            jpeg_bytes=np.frombuffer(b"".join(images), dtype=np.uint8),
            offsets=np.cumsum([0, *map(len, images)]),
            labels=labels.astype(np.uint8),
        )


class TestWhichReader:
    def test_digits_for_a_preset_of_event_cameras(self, tmp_path: Path) -> None:
        write_digits(tmp_path / "digits")
        task = load_task(default_config("dvs-conv6"), tmp_path / "digits")
        assert (task.features, task.n_classes, task.duration) == ((2, 34, 34), 10, 0.3)
        parts = (task.train, task.validation, task.test)
        assert [len(part) for part in parts] == [18, 2, 8]
        # The bound on spike counts is one on rates: of 10 spikes in a second 3 are left in 0.3 s.
        assert sample_duration("dvs-conv6", tmp_path / "digits") == task.duration
        config = default_config("dvs-conv6", duration=task.duration)
        assert config.regularization.v_upper == pytest.approx(3.0)
        assert (
            sample_duration("dvs-conv6", tmp_path / "none")
            == sample_duration("dvs-conv6", None)
            == 1.0
        )
        assert default_config("dvs-conv6", duration=1.0) == default_config("dvs-conv6")
        recordings = task.train.source
        assert isinstance(recordings, EventRecordings) and recordings.drop == 0.0
        # 600 events, hardly two on one pixel in one step.
        assert task.input_rate(2e-3) == pytest.approx(600 / (2 * 34 * 34 * 0.3), rel=0.02)

    def test_gestures_for_a_preset_of_event_cameras(self, tmp_path: Path) -> None:
        write_gestures(tmp_path)
        task = load_task(default_config("dvs-conv8"), tmp_path)
        assert (task.features, task.n_classes, task.duration) == ((2, 32, 32), 11, 1.0)
        assert [len(part) for part in (task.train, task.validation, task.test)] == [5, 1, 6]
        # Two thirds of the time, half of the events.
        assert task.input_rate(2e-3) == pytest.approx(300 / (2 * 32 * 32), rel=0.1)

    def test_images(self, tmp_path: Path) -> None:
        write_images(tmp_path / "images")
        task = load_task(default_config("cifar-conv2"), tmp_path / "images")
        assert (task.features, task.n_classes, task.duration) == ((3, 32, 32), 10, 0.1)
        assert [len(part) for part in (task.train, task.validation, task.test)] == [18, 2, 6]
        assert isinstance(task.train.source, ImageDataset)
        assert task.input_rate(2e-3) is None
        assert task.summary(2e-3)["input_rate"] is None

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [("cifar-conv2", "CIFAR-10"), ("dvs-conv6", "DVS128 Gesture or N-MNIST")],
    )
    def test_missing_data(self, name: str, wanted: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=f"--data .*a folder with {wanted}"):
            load_task(default_config(name), None)
        with pytest.raises(FileNotFoundError, match=wanted.split(" or ")[0]):
            load_task(default_config(name), tmp_path)

    def test_held_out_samples_depend_on_the_data_seed(self, tmp_path: Path) -> None:
        write_digits(tmp_path / "digits", n_train=100)
        parts = []
        for seed in (0, 0, 1):
            task = load_task(tiny_config("dvs-conv6", data_seed=seed), tmp_path / "digits")
            assert isinstance(task.train, Subset) and isinstance(task.validation, Subset)
            parts.append(task.validation.indices.tolist())
            both = task.train.indices.tolist() + parts[-1]
            assert sorted(both) == list(range(100))
        assert parts[0] == parts[1] != parts[2]


class TestLimitedSamples:
    def test_events(self, tmp_path: Path) -> None:
        write_events(tmp_path / "a_train.h5", 60, seed=1)
        write_events(tmp_path / "a_test.h5", 15, seed=2)
        for limit, sizes in ((20, [18, 2, 15]), (10, [9, 1, 10]), (500, [54, 6, 15])):
            task = load_task(tiny_config("shd-dense", n_samples=limit, dt=0.02), tmp_path)
            assert [len(part) for part in (task.train, task.validation, task.test)] == sizes
            assert task.features == (700,) and task.n_classes == 3
        whole = load_task(tiny_config("shd-dense", dt=0.02), tmp_path)
        rates = [one.input_rate(0.02) for one in (task, whole)]
        assert rates[0] == pytest.approx(rates[1])

    def test_digits(self, tmp_path: Path) -> None:
        write_digits(tmp_path / "digits")
        task = load_task(tiny_config("dvs-conv6", n_samples=10), tmp_path / "digits")
        assert [len(part) for part in (task.train, task.validation, task.test)] == [9, 1, 8]


def test_rate_of_recordings_is_that_of_all_their_spikes() -> None:
    task = tiny_task("dvs-conv6", recordings=True)
    spikes, _ = task.train.select(torch.arange(12))
    assert task.input_rate(2e-3) == pytest.approx(spikes.unpack().mean().item() / 2e-3, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "write", "options"),
    [
        ("dvs-conv6", write_digits, ("--dt", "0.02", "--skip")),
        ("cifar-conv2", write_images, ("--dt", "0.01", "--initialization", "kaiming")),
    ],
)
def test_command_line_trains_on_planes(
    name: str, write: object, options: tuple[object, ...], tmp_path: Path
) -> None:
    write(tmp_path / "data", 8, 2)  # type: ignore[operator]
    command = (name, "--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1)
    result = run_train(*command, *options, "--batch-size", 4, "--threads", 1)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "run" / "result.json").read_text())
    assert content["data"]["n_train"] == 7
    assert content["data"]["n_inputs"] == (2 * 34 * 34 if name == "dvs-conv6" else 3 * 32 * 32)
    assert content["settings"]["skip"] is ("--skip" in options)
    assert "encoder" in content["populations"] or name == "dvs-conv6"


def test_command_line_takes_every_option(tmp_path: Path) -> None:
    write_events(tmp_path / "a_train.h5", 24, seed=1)
    write_events(tmp_path / "a_test.h5", 6, seed=2)
    command = ("shd-dense", "--data", tmp_path, "--out", tmp_path / "run", "--epochs", 1)
    options = {
        "--optimizer": "sgd",
        "--initialization": "normal",
        "--mu-w": 0.01,
        "--sigma-w": 0.2,
        "--lower-strength": 2.0,
        "--v-lower": 3.0,
        "--upper-strength": 0.0,
        "--priming-epochs": 1,
        "--n-samples": 12,
        "--dt": 0.02,
        "--threads": 1,
    }
    flat = [part for pair in options.items() for part in pair]
    result = run_train(*command, *flat, "--rescale-surrogate")
    assert result.exit_code == 0, result.output
    assert "epoch    1  priming" in result.output
    settings = json.loads((tmp_path / "run" / "result.json").read_text())["settings"]
    expected = {
        name.lstrip("-").replace("-", "_"): value
        for name, value in options.items()
        if name != "--threads"
    }
    assert {name: settings[name] for name in expected} == expected
    assert settings["rescale_surrogate"] is True and settings["lr"] == 1.0
    assert run_train("shd-dense", "--optimizer", "lion").exit_code == 2


def test_command_line_warns_of_a_silent_layer_in_one_line(tmp_path: Path) -> None:
    write_events(tmp_path / "a_train.h5", 24, seed=1)
    write_events(tmp_path / "a_test.h5", 6, seed=2)
    command = ("shd-dense", "--data", tmp_path, "--out", tmp_path / "run", "--epochs", 1)
    result = run_train(*command, "--dt", 0.02, "--sigma-u", 0.01, "--threads", 1)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "warning" in line.lower()]
    assert line.startswith("warning: layer 'hidden1' is silent") and "raise its sigma_u" in line
