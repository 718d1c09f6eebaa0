"""N-MNIST from files as they are distributed and from arrays of events, whole and damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastlif.data import EventRecordings, read_nmnist
from tests.camera_data import check_real, sample


def digit_events(seed: int) -> NDArray[np.int64]:  # (events, 4): x, y, polarity, microseconds
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 34, (2, 800))
    time = np.sort(generator.integers(0, 120_000, 800))
    return np.stack([x, y, generator.integers(0, 2, 800), time], axis=1)


def digit_bytes(events: NDArray[np.int64]) -> bytes:
    return b"".join(
        bytes([x, y]) + (polarity << 23 | time).to_bytes(3, "big")
        for x, y, polarity, time in events.tolist()
    )


def digit_spikes(events: NDArray[np.int64], start: int, n_steps: int, crop: int) -> torch.Tensor:
    side = 34 - 2 * crop
    dense = torch.zeros(n_steps, 2, side, side)
    for x, y, polarity, time in events.tolist():
        step = (time - start) // 1000
        if 0 <= step < n_steps and 0 <= x - crop < side and 0 <= y - crop < side:
            dense[step, polarity, y - crop, x - crop] = 1.0
    return dense


def write_digits(folder: Path) -> None:
    """Two recordings of each digit for training and one for the test, numbers in reverse order."""
    for part, count in (("Train", 2), ("Test", 1)):
        for label in range(10):
            (folder / part / str(label)).mkdir(parents=True, exist_ok=True)
            for copy in range(count):
                number = 10 * copy + 10 - label
                path = folder / part / str(label) / f"{number:05d}.bin"
                path.write_bytes(digit_bytes(digit_events(number)))


def write_digit_archives(folder: Path, **changed: Any) -> None:
    for part, count in (("train", 12), ("test", 3)):
        events = [digit_events(number) for number in range(count)]
        joined = np.concatenate(events)
        arrays: dict[str, Any] = {
            "x": joined[:, 0].astype(np.uint8),
            "y": joined[:, 1].astype(np.uint8),
            "p": joined[:, 2].astype(np.uint8),
            "t_us": joined[:, 3].astype(np.int32),
            "offsets": np.cumsum([0, *map(len, events)]),
            "labels": np.arange(count, dtype=np.uint8) % 10,
        }
        arrays.update(changed if part == "train" else {})
        chosen = {name: array for name, array in arrays.items() if array is not None}
        np.savez(folder / f"nmnist_{part}.npz", **chosen)


class TestDigits:
    def middle(self, data: EventRecordings, number: int) -> int:
        return max(int(data.lengths[number]) - 100_000, 0) // 2

    @pytest.mark.parametrize("crop", [0, 1])
    def test_binary_files(self, tmp_path: Path, crop: int) -> None:
        write_digits(tmp_path / "NMNIST")
        train, test = read_nmnist(tmp_path, duration=0.1, dt=1e-3, crop=crop)
        # By number: 1, 2, ... 20, of which the digits are 9, 8, ... 0 twice.
        assert train.targets.tolist() == [*range(9, -1, -1)] * 2
        assert test.targets.tolist() == [*range(9, -1, -1)]
        assert train.features == (2, 34 - 2 * crop, 34 - 2 * crop) and train.n_classes == 10
        for number in (0, 13):
            expected = digit_spikes(digit_events(number + 1), self.middle(train, number), 100, crop)
            assert expected.sum() > 500
            assert torch.equal(sample(train, number), expected)

    def test_overflow_of_time(self, tmp_path: Path) -> None:
        write_digits(tmp_path)
        late = np.array(
            [[1, 2, 1, 50], [0, 240, 0, 60], [3, 4, 0, 70], [9, 240, 1, 0], [5, 6, 1, 5]]
        )
        (tmp_path / "Test/9/00001.bin").write_bytes(digit_bytes(late))
        _, test = read_nmnist(tmp_path, n_samples=1)
        events = slice(int(test.offsets[0]), int(test.offsets[1]))
        assert test.times[events].tolist() == [50, 70 + 8192, 5 + 2 * 8192]
        assert test.neurons[events].tolist() == [(2 * 34 + 1) * 2 + 1, (4 * 34 + 3) * 2, 419]

    def test_archives(self, tmp_path: Path) -> None:
        write_digit_archives(tmp_path)
        train, test = read_nmnist(tmp_path, duration=0.1, dt=1e-3)
        assert train.targets.tolist() == [*range(10), 0, 1] and test.targets.tolist() == [0, 1, 2]
        for number in (0, 11):
            expected = digit_spikes(digit_events(number), self.middle(train, number), 100, 0)
            assert torch.equal(sample(train, number), expected)
        short, _ = read_nmnist(tmp_path, duration=0.1, dt=1e-3, n_samples=5)
        assert len(short) == 5
        assert torch.equal(sample(short, 4), sample(train, 4))

    def test_damaged_binary_files(self, tmp_path: Path) -> None:
        write_digits(tmp_path)
        path = tmp_path / "Train/3/00017.bin"
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        with pytest.raises(ValueError, match=r"00017\.bin: truncated: 2 bytes at byte 3995 are no"):
            read_nmnist(tmp_path)
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"00017\.bin: is empty"):
            read_nmnist(tmp_path)
        path.write_bytes(whole[:25] + bytes([34]) + whole[26:])
        with pytest.raises(ValueError, match=r"00017\.bin: event 5: x must lie in 0\.\.33, got 34"):
            read_nmnist(tmp_path)

    def test_damaged_archives(self, tmp_path: Path) -> None:
        write_digit_archives(tmp_path)
        path = tmp_path / "nmnist_train.npz"
        whole = path.read_bytes()
        for share in (0.0, 0.5, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=r"nmnist_train\.npz: not a readable archive"):
                read_nmnist(tmp_path)
        x = np.zeros(9600, np.uint8)
        x[8000] = 40
        late = np.zeros(9600, np.int64)
        late[900] = -3
        cases: list[tuple[dict[str, Any], str]] = [
            ({"x": x}, r"sample 10: event 0: x must lie in 0\.\.33, got 40"),
            ({"t_us": late}, r"sample 1: event 100: time .* got -3"),
            ({"p": np.full(9600, 7)}, r"sample 0: event 0: polarity must lie in 0\.\.1, got 7"),
            ({"y": x[:5]}, "must be equally long, got .*'y': 5"),
            ({"labels": np.full(12, 10)}, r"sample 0: label must lie in 0\.\.9, got 10"),
            ({"offsets": np.zeros(13, int)}, "number of entries, 9600, got 0..0"),
            ({"x": x.astype(float)}, "'x' must be a one-dimensional array"),
            ({"p": None}, "it has no array 'p'"),
        ]
        for changed, complaint in cases:
            write_digit_archives(tmp_path, **changed)
            with pytest.raises(ValueError, match=rf"nmnist_train\.npz: .*{complaint}"):
                read_nmnist(tmp_path)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"N-MNIST \(Train/LABEL/\*\.bin and"):
            read_nmnist(tmp_path)
        write_digits(tmp_path / "a")
        (tmp_path / "a/Test/4/00006.bin").unlink()
        with pytest.raises(FileNotFoundError, match=r"Test.4 holds no recording \*\.bin"):
            read_nmnist(tmp_path)
        (tmp_path / "b").mkdir()
        write_digit_archives(tmp_path / "b")
        (tmp_path / "b/nmnist_test.npz").unlink()
        with pytest.raises(FileNotFoundError, match=r"no file \*test\*\.npz with an array 't_us'"):
            read_nmnist(tmp_path / "b")
        np.savez(tmp_path / "b/other_train.npz", t_us=np.zeros(3))
        with pytest.raises(ValueError, match="nmnist_train.npz, other_train.npz"):
            read_nmnist(tmp_path / "b")


def test_real_digits() -> None:
    folder = os.environ.get("FASTLIF_DATA")
    if not folder:
        pytest.skip("set FASTLIF_DATA to a folder with N-MNIST to run this")
    try:
        train, test = read_nmnist(folder, n_samples=200)
    except FileNotFoundError as error:
        pytest.skip(f"FASTLIF_DATA has no N-MNIST: {error}")
    check_real(train, 10, seconds=(0.25, 0.4))
    check_real(test, 10, seconds=(0.25, 0.4))
