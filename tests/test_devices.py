"""Packed spikes, data and training away from the CPU kernels: plain torch operations, any device.

They run on the CPU as well, where they are compared with the kernels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastlif import PackedSpikes, extension, graph
from fastlif.data import PackedDataset, shift_features
from fastlif.train import Task, parallel
from tests.test_graph import TapeRecorder
from tests.training import QUICK, assert_same_run, run_train, write_events

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FEATURES = [(5,), (3, 7), (2, 3, 4)]


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The torch operations on the CPU too."""
    monkeypatch.setattr(extension, "is_available", lambda name="": False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n_steps", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("features", FEATURES)
def test_packing_equals_the_kernels(
    device: str, n_steps: int, features: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = (torch.rand(n_steps, 3, *features) < 0.4).float()
    expected = PackedSpikes.pack(dense).words
    layouts = [dense, dense.double(), dense.half(), dense.bool(), dense.transpose(0, 1).contiguous()
               .transpose(0, 1)]  # fmt: skip
    monkeypatch.setattr(extension, "is_available", lambda name="": False)
    for given in layouts:
        for validate in (True, False):
            packed = PackedSpikes.pack(given.to(device), validate=validate)
            assert packed.device.type == device
            assert torch.equal(packed.words.cpu(), expected)
    assert torch.equal(packed.unpack().cpu(), dense)
    assert packed.count() == int(dense.sum())
    chosen = torch.tensor([2, 0])
    assert torch.equal(packed.select(chosen.to(device)).words.cpu(), expected[:, chosen])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [0.5, -1.0, 2.0, float("nan")])
def test_other_values_are_refused(device: str, value: float, no_kernels: None) -> None:
    dense = torch.zeros(40, 2, 5, device=device)
    dense[33, 1, 2] = value
    with pytest.raises(ValueError, match="dense must hold only 0 and 1"):
        PackedSpikes.pack(dense)
    assert PackedSpikes.pack(dense, validate=False).count() == 1


def test_the_default_device_does_not_move_what_is_on_the_cpu() -> None:
    dense = (torch.rand(40, 3, 5) < 0.4).float()
    step, unit, offsets = events((5,), 40)
    options: dict[str, Any] = {"n_steps": 40, "features": (5,)}
    expected = PackedSpikes.from_events(step, unit, offsets, **options).words
    with torch.device("meta"):
        assert torch.equal(PackedSpikes.pack(dense).unpack(), dense)
        assert torch.equal(PackedSpikes.from_events(step, unit, offsets, **options).words, expected)


def test_words_are_counted_bit_by_bit() -> None:
    words = torch.tensor([0, -1, -(2**31), 2**31 - 1, 0x01020408, 0x55555555], dtype=torch.int32)
    spikes = PackedSpikes(words.view(1, 1, 6), 32, (6,))
    assert spikes.count() == 0 + 32 + 1 + 31 + 4 + 16
    assert spikes.count() == int(spikes.unpack().sum())


def events(features: tuple[int, ...], n_steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Some too late, some too early, some twice; a sample without any."""
    size = int(torch.tensor(features).prod())
    step = torch.randint(-3, n_steps + 5, (400,))
    unit = torch.randint(size, (400,))
    step[-20:], unit[-20:] = step[-40:-20], unit[-40:-20]
    return step, unit, torch.tensor([0, 90, 90, 250, 400])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_events_equal_the_kernels(
    device: str, features: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"n_steps": 50, "features": features}
    step, unit, offsets = events(features, 50)
    expected = PackedSpikes.from_events(step, unit, offsets, **options)
    assert 100 < expected.count() < 400 and expected[1:2].count() == 0
    given = step.to(device, dtype), unit.to(device, dtype), offsets.to(device)
    for validate in (False, True):
        found = PackedSpikes.from_events(*given, **options, validate=validate)
        assert torch.equal(found.words.cpu(), expected.words)
    monkeypatch.setattr(extension, "is_available", lambda name="": False)
    found = PackedSpikes.from_events(*given, **options)
    assert torch.equal(found.words.cpu(), expected.words)


@pytest.mark.parametrize("device", DEVICES)
def test_unchecked_events_that_do_not_fit_are_dropped(device: str) -> None:
    step, unit, offsets = (
        torch.tensor(numbers, device=device)
        for numbers in ([0, 1, 2**40, 3, 2, 2], [1, 3, 0, -1, 2, 2**40 + 1], [0, 2, 4])
    )
    packed = PackedSpikes.from_events(step, unit, offsets, n_steps=4, features=(3,), validate=False)
    assert packed.unpack().nonzero().tolist() == [[0, 0, 1]]  # the others, or behind offsets[-1]
    with pytest.raises(ValueError, match="feature must be in"):
        PackedSpikes.from_events(step, unit, offsets, n_steps=4, features=(3,))
    with pytest.raises(ValueError, match="offsets must rise from 0 to the number of events, 6"):
        PackedSpikes.from_events(step, unit * 0, offsets, n_steps=4, features=(3,))
    with pytest.raises(ValueError, match="offsets must hold at least one number"):
        PackedSpikes.from_events(step, unit, offsets[:0], n_steps=4, features=(3,))


@pytest.mark.parametrize("device", DEVICES)
def test_a_data_set_hands_out_batches_on_a_device(device: str) -> None:
    dense = (torch.rand(40, 9, 6) < 0.3).float()
    data = PackedDataset(PackedSpikes.pack(dense), torch.arange(9))
    assert data.n_bytes == 2 * 9 * 6 * 4
    chosen = torch.tensor([7, 0, 3])
    for home in {"cpu", device}:
        spikes, labels = data.to(home).select(chosen.to(home), torch.device(device))
        assert spikes.device.type == labels.device.type == device
        assert torch.equal(spikes.unpack().cpu(), dense[:, chosen])
        assert labels.tolist() == chosen.tolist()
        moved = shift_features(spikes, torch.tensor([1, 0, -2], device=device))
        assert moved.unpack()[:, 0, 1:].cpu().equal(dense[:, 7, :-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("events")
    write_events(folder / "tiny_train.h5", 60, seed=1)
    write_events(folder / "tiny_test.h5", 15, seed=2)
    return folder


class TestTraining:
    @pytest.mark.parametrize("device", DEVICES)
    def test_recorded_steps_give_the_same_run(
        self, data: Path, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain, recorded = tmp_path / "plain", tmp_path / "recorded"
        # 54 samples in 5 batches: two sizes, so two graphs.
        command = ("shd-dense", "--data", data, "--epochs", 3, "--recurrent", "--device", device,
                   "--channel-shift", 9, *QUICK)  # fmt: skip
        steps: list[bool] = []

        class Counted(graph.GraphStep):
            def __call__(self, *batch: Any) -> Any:
                result = super().__call__(*batch)
                steps.append(self.captured)
                return result

        monkeypatch.setattr(
            parallel, "GraphStep", lambda *args, capture: Counted(*args, capture=False)
        )
        assert run_train(*command, "--out", plain).exit_code == 0
        assert steps == [False] * 15
        steps.clear()
        monkeypatch.setattr(
            parallel, "GraphStep", lambda *args, capture: Counted(*args, capture=True)
        )
        if device == "cpu":
            monkeypatch.setattr(graph, "_Recorder", TapeRecorder)
        result = run_train(*command, "--out", recorded)
        assert result.exit_code == 0, result.output
        assert steps.count(False) == 4 and steps.count(True) == 11
        assert_same_run(plain, recorded)

    def test_resuming_may_change_the_graph_but_not_the_device(
        self, data: Path, tmp_path: Path
    ) -> None:
        command = ("shd-dense", "--data", data, "--out", tmp_path / "run", *QUICK)
        first = run_train(*command, "--epochs", 1, "--no-graph", "--device", DEVICES[-1])
        assert first.exit_code == 0
        resumed = run_train(*command, "--epochs", 2, "--resume", "--device", "auto")
        assert resumed.exit_code == 0 and "epoch    2" in resumed.output
        if DEVICES[-1] == "cuda":
            other = run_train(*command, "--epochs", 3, "--resume", "--device", "cpu")
            assert other.exit_code == 2 and "device is 'cuda' there" in other.stderr

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there_is_named(self, data: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        result = run_train("shd-dense", "--data", data, "--out", out, "--device", "cuda", *QUICK)
        assert result.exit_code == 2
        assert re.search("device 'cuda' needs a GPU that torch .* can use", result.stderr)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_a_data_set_may_stay_in_memory(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there, here = tmp_path / "there", tmp_path / "here"
        command = ("shd-dense", "--data", data, "--epochs", 2, "--device", "cuda", *QUICK)
        assert run_train(*command, "--out", there).exit_code == 0
        monkeypatch.setattr(Task, "home", lambda task, device: torch.device("cpu"))
        assert run_train(*command, "--out", here).exit_code == 0
        assert_same_run(there, here)
