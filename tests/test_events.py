"""The reader of SHD-layout event files: binning, splits, and what a damaged file says."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastlif.data import (
    EventDataset,
    find_event_files,
    mean_firing_rate,
    n_steps_of,
    read_event_splits,
    read_events,
    shift_features,
    train_validation_split,
)
from fastlif.spikes import PackedSpikes

Samples = list[NDArray[np.generic]]


def write_file(
    path: Path,
    times: Samples,
    units: Samples,
    labels: list[int],
    *,
    leave_out: str = "",
) -> Path:
    with h5py.File(path, "w") as file:
        for name, samples in (("spikes/times", times), ("spikes/units", units)):
            if name != leave_out:
                kind = h5py.vlen_dtype(samples[0].dtype)
                item = file.create_dataset(name, (len(samples),), dtype=kind)
                for index, sample in enumerate(samples):
                    item[index] = sample
        if leave_out != "labels":
            file["labels"] = np.array(labels, dtype=np.int64)
    return path


def some_events(n_samples: int = 6, n_units: int = 30) -> tuple[Samples, Samples, list[int]]:
    generator = np.random.default_rng(4)
    lengths = generator.integers(20, 60, n_samples)
    times: Samples = [np.sort(generator.uniform(0, 0.72, n)).astype(np.float16) for n in lengths]
    units: Samples = [generator.integers(0, n_units, n).astype(np.uint16) for n in lengths]
    return times, units, [index % 3 for index in range(n_samples)]


@pytest.fixture
def dataset(tmp_path: Path) -> EventDataset:
    return read_events(write_file(tmp_path / "a.h5", *some_events()), n_units=30)


def test_batch_holds_every_event_in_its_bin(dataset: EventDataset) -> None:
    times, units, labels = some_events()
    chosen = [4, 1, 1]
    dense = dataset.batch(chosen, 350, 2e-3).unpack()
    expected = torch.zeros(350, 3, 30)
    for column, sample in enumerate(chosen):
        for time, unit in zip(times[sample], units[sample], strict=True):
            step = int(float(time) / 2e-3)  # of the exact value of the float16 number
            if step < 350:
                expected[step, column, int(unit)] = 1.0
    assert torch.equal(dense, expected)
    assert 0.001 < dense.mean() < 0.5
    assert dataset.labels.tolist() == labels and dataset.n_classes == 3


def test_float16_times_are_converted_before_they_are_scaled(tmp_path: Path) -> None:
    # The float16 next to 0.542 s is 0.54199 s, step 270; scaled as a float16 it rounds to 271.
    times: Samples = [np.array([0.542], dtype=np.float16)]
    assert int(times[0][0] / np.float16(2e-3)) == 271
    path = write_file(tmp_path / "a.h5", times, [np.array([0], dtype=np.uint16)], [0])
    dense = read_events(path, n_units=1).batch([0], 350, 2e-3).unpack()
    assert dense.flatten().nonzero().flatten().tolist() == [270]


def test_times_on_a_bin_edge_fall_into_the_bin_they_start(tmp_path: Path) -> None:
    # In binary, k * 0.002 / 0.002 is below k for some of these.
    steps = np.arange(350)
    times: Samples = [steps * 2e-3]
    units: Samples = [np.zeros(350, dtype=np.uint16)]
    dataset = read_events(write_file(tmp_path / "a.h5", times, units, [0]), n_units=1)
    assert dataset.batch([0], 350, 2e-3).count() == 350


def test_duration_is_rounded_to_steps() -> None:
    assert int(0.7 / 2e-3) == 349
    assert n_steps_of(0.7, 2e-3) == 350
    assert n_steps_of(0.2, 2e-3) == 100
    with pytest.raises(ValueError, match="duration must be finite and > 0 seconds, got -1"):
        n_steps_of(-1.0, 2e-3)
    with pytest.raises(ValueError, match="dt must be at most the duration"):
        n_steps_of(1e-3, 1.0)


def test_late_and_repeated_events(tmp_path: Path) -> None:
    times: Samples = [np.array([0.0, 0.001, 0.5, 0.7, 1e9])]
    units: Samples = [np.array([2, 2, 1, 0, 0], dtype=np.uint16)]
    dataset = read_events(write_file(tmp_path / "a.h5", times, units, [0]), n_units=3)
    spikes = dataset.batch([0], 350, 2e-3)
    assert spikes.count() == 2
    assert spikes.unpack()[0, 0].tolist() == [0.0, 0.0, 1.0]


def test_pack_equals_batches_and_takes_a_feature_map(dataset: EventDataset) -> None:
    order = torch.tensor([3, 0, 5, 1])
    packed = dataset.pack(order, duration=0.7, dt=2e-3, features=(1, 30))
    assert packed.spikes.shape == (350, 4, 1, 30)
    batch = dataset.batch(order, 350, 2e-3)
    assert torch.equal(packed.spikes.unpack()[:, :, 0], batch.unpack())
    assert packed.labels.tolist() == dataset.labels[order].tolist()


def test_firing_rate_counts_spikes_per_unit_and_second(tmp_path: Path) -> None:
    times: Samples = [np.array([0.1, 0.2, 0.3]), np.array([0.1])]
    units: Samples = [np.array([0, 1, 1], dtype=np.uint8), np.array([0], dtype=np.uint8)]
    dataset = read_events(write_file(tmp_path / "a.h5", times, units, [0, 1]), n_units=4)
    spikes = dataset.batch([0, 1], 500, 2e-3)
    assert mean_firing_rate(spikes, 2e-3) == pytest.approx(4 / (2 * 4 * 1.0), rel=1e-12)
    with pytest.raises(ValueError, match="dt must be finite"):
        mean_firing_rate(spikes, 0.0)


def test_events_stay_as_small_as_on_disk(dataset: EventDataset) -> None:
    assert dataset.times.dtype == np.float16 and dataset.units.dtype == np.uint16


def test_samples_without_events_are_silent(tmp_path: Path) -> None:
    times: Samples = [np.array([], dtype=np.float16), np.array([0.1], dtype=np.float16)]
    units: Samples = [np.array([], dtype=np.uint16), np.array([1], dtype=np.uint16)]
    dataset = read_events(write_file(tmp_path / "a.h5", times, units, [0, 1]), n_units=2)
    assert dataset.batch([0, 1, 0], 100, 2e-3).unpack().sum(dim=(0, 2)).tolist() == [0.0, 1.0, 0.0]


def test_split_is_disjoint_complete_and_seeded() -> None:
    train, validation = train_validation_split(2250, seed=1)
    assert len(validation) == 225
    assert torch.cat((train, validation)).sort().values.tolist() == list(range(2250))
    again = train_validation_split(2250, seed=1)
    assert torch.equal(validation, again[1])
    other = train_validation_split(2250, seed=2)[1]
    assert not torch.equal(validation, other)
    assert len(np.intersect1d(validation, other)) < 60  # chance: 22.5
    assert len(train_validation_split(8156)[0]) == 7340  # SHD, Table 2
    assert [len(part) for part in train_validation_split(3)] == [2, 1]
    with pytest.raises(ValueError, match="n_samples must be at least 2"):
        train_validation_split(1)
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        train_validation_split(10, fraction=1.0)


def test_bad_requests_are_named(dataset: EventDataset) -> None:
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5, got 2\.\.6"):
        dataset.batch([2, 6], 350, 2e-3)
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5, got -1\.\.-1"):
        dataset.batch([-1], 350, 2e-3)
    with pytest.raises(ValueError, match=r"features must hold 30 units, got \(1, 31\)"):
        dataset.batch([0], 350, 2e-3, (1, 31))
    with pytest.raises(ValueError, match="dt must be finite and > 0 seconds, got nan"):
        dataset.batch([0], 350, float("nan"))


class TestDamagedFiles:
    def check(self, path: Path, *words: str, n_units: int = 30) -> None:
        with pytest.raises(ValueError) as caught:
            read_events(path, n_units=n_units)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        for word in words:
            assert word in message

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no event file at .*none\.h5"):
            read_events(tmp_path / "none.h5")

    def test_not_hdf5(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        path.write_bytes(b"spikes" * 100)
        self.check(path, "not a readable HDF5 file")

    @pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        path = write_file(tmp_path / "a.h5", *some_events(60))
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        self.check(path, "truncated")

    @pytest.mark.parametrize("name", ["spikes/times", "spikes/units", "labels"])
    def test_missing_dataset(self, tmp_path: Path, name: str) -> None:
        path = write_file(tmp_path / "a.h5", *some_events(), leave_out=name)
        self.check(path, f"'{name}'", "missing")

    def test_unit_out_of_range(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        units[2][7] = 30
        self.check(
            write_file(tmp_path / "a.h5", times, units, labels), "sample 2:", "0..29, got 30"
        )

    def test_negative_unit(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        units = [sample.astype(np.int16) for sample in units]
        units[0][0] = -1
        self.check(
            write_file(tmp_path / "a.h5", times, units, labels), "sample 0:", "0..29, got -1"
        )

    @pytest.mark.parametrize(
        ("value", "words"), [(-0.5, ">= 0 s, got -0.5"), (np.nan, "got nan"), (np.inf, "got inf")]
    )
    def test_bad_time(self, tmp_path: Path, value: float, words: str) -> None:
        times, units, labels = some_events()
        times[5][-1] = value
        self.check(write_file(tmp_path / "a.h5", times, units, labels), "sample 5:", words)

    def test_bad_time_after_an_empty_sample(self, tmp_path: Path) -> None:
        times: Samples = [np.array(t, dtype=np.float16) for t in ([0.1], [], [], [-1.0])]
        units: Samples = [np.array(u, dtype=np.uint16) for u in ([0], [], [], [0])]
        self.check(write_file(tmp_path / "a.h5", times, units, [0, 1, 2, 3]), "sample 3:")

    def test_lengths_differ(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        units[1] = units[1][:-1]
        n = len(times[1])
        path = write_file(tmp_path / "a.h5", times, units, labels)
        self.check(path, f"sample 1 has {n} times but {n - 1} units")

    def test_number_of_labels_differs(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        self.check(write_file(tmp_path / "a.h5", times, units, labels[:-1]), "got 6, 6 and 5")

    def test_negative_label(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        labels[3] = -2
        path = write_file(tmp_path / "a.h5", times, units, labels)
        self.check(path, "sample 3:", "label must be >= 0, got -2")

    def test_wrong_types(self, tmp_path: Path) -> None:
        times, units, labels = some_events()
        floats: Samples = [sample.astype(np.float32) for sample in units]
        self.check(write_file(tmp_path / "a.h5", times, floats, labels), "must hold integers")
        self.check(write_file(tmp_path / "b.h5", units, units, labels), "must hold floats")
        with h5py.File(tmp_path / "c.h5", "w") as file:
            file["spikes/times"] = np.zeros(6)
            file["spikes/units"] = np.zeros(6, dtype=np.uint16)
            file["labels"] = np.zeros(6, dtype=np.uint16)
        self.check(tmp_path / "c.h5", "variable-length")
        with h5py.File(tmp_path / "d.h5", "w") as file:
            file["spikes/times"] = np.zeros((6, 3))
        self.check(tmp_path / "d.h5", "one entry per sample, got shape (6, 3)")

    def test_no_samples(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("spikes/times", (0,), dtype=h5py.vlen_dtype(np.float16))
            file.create_dataset("spikes/units", (0,), dtype=h5py.vlen_dtype(np.uint16))
            file.create_dataset("labels", (0,), dtype=np.uint16)
        self.check(path, "holds no sample")


def test_find_event_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data folder"):
        find_event_files(tmp_path / "none")
    (tmp_path / "shd_train.h5").touch()
    with pytest.raises(FileNotFoundError, match=r"no file that matches \*test\*\.h5"):
        find_event_files(tmp_path)
    (tmp_path / "shd_test.h5").touch()
    assert [path.name for path in find_event_files(tmp_path)] == ["shd_train.h5", "shd_test.h5"]
    (tmp_path / "old_train.h5").touch()
    with pytest.raises(ValueError, match=r"old_train\.h5, shd_train\.h5"):
        find_event_files(tmp_path)


class TestSplits:
    settings = {"duration": 0.7, "dt": 2e-3, "n_units": 30, "features": (1, 30)}

    def write(self, folder: Path, part: str, n_samples: int, labels: list[int]) -> EventDataset:
        times, units, _ = some_events(n_samples)
        times = [sample + np.float16(0.01 * len(part)) for sample in times]  # unlike other parts'
        path = write_file(folder / f"ssc_{part}.h5", times, units, labels)
        return read_events(path, n_units=30)

    def test_given_validation_file(self, tmp_path: Path) -> None:
        parts = {
            "train": self.write(tmp_path, "train", 12, [34, *range(11)]),
            "valid": self.write(tmp_path, "valid", 5, [0, 34, 2, 3, 1]),
            "test": self.write(tmp_path, "test", 4, [0, 0, 1, 33]),
        }
        splits = read_event_splits(tmp_path, **self.settings)
        for split, events in zip(splits, parts.values(), strict=True):
            everything = events.batch(range(len(events)), 350, 2e-3, (1, 30))
            assert torch.equal(split.spikes.words, everything.words)
            assert split.targets.tolist() == events.labels.tolist()
        assert splits.train.n_classes == 35 and splits.train.features == (1, 30)

    def test_split_without_one(self, tmp_path: Path) -> None:
        events = self.write(tmp_path, "train", 20, [number % 4 for number in range(20)])
        self.write(tmp_path, "test", 4, [0, 1, 2, 3])
        splits = read_event_splits(tmp_path, **self.settings, seed=3)
        kept, held_out = train_validation_split(20, seed=3)
        for split, indices in zip(splits[:2], (kept, held_out), strict=True):
            expected = events.batch(indices, 350, 2e-3, (1, 30))
            assert torch.equal(split.spikes.words, expected.words)
            assert split.targets.tolist() == events.labels[indices].tolist()
        other = read_event_splits(tmp_path, **self.settings, seed=4)
        assert not torch.equal(other.validation.spikes.words, splits.validation.spikes.words)

    @pytest.mark.parametrize("part", ["valid", "test"])
    def test_unknown_class(self, tmp_path: Path, part: str) -> None:
        for name in ("train", "valid", "test"):
            self.write(tmp_path, name, 4, [0, 1, 2, 3 if name == part else 0])
        complaint = rf"ssc_{part}\.h5: largest label is 3, but ssc_train\.h5 has none above 2"
        with pytest.raises(ValueError, match=complaint):
            read_event_splits(tmp_path, **self.settings)

    def test_two_validation_files(self, tmp_path: Path) -> None:
        for name in ("train", "valid", "test", "old_valid"):
            self.write(tmp_path, name, 4, [0, 1, 2, 0])
        with pytest.raises(ValueError, match=r"one file that matches \*valid\*\.h5, found"):
            read_event_splits(tmp_path, **self.settings)


def test_shifted_channels() -> None:
    dense = (torch.rand(40, 4, 1, 30) < 0.3).float()
    moved = shift_features(PackedSpikes.pack(dense), torch.tensor([0, 3, -5, 40]))
    expected = torch.zeros_like(dense)
    expected[:, 0] = dense[:, 0]
    expected[:, 1, :, 3:] = dense[:, 1, :, :-3]
    expected[:, 2, :, :-5] = dense[:, 2, :, 5:]
    assert torch.equal(moved.unpack(), expected)
    assert expected[:, 1].sum() > 0
    with pytest.raises(ValueError, match=r"shifts must have shape \(4,\)"):
        shift_features(PackedSpikes.pack(dense), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"\(N,\) or \(1, N\)"):
        shift_features(PackedSpikes.pack(dense.view(40, 4, 2, 15)), torch.zeros(4).long())


def test_real_recordings() -> None:
    folder = os.environ.get("FASTLIF_DATA")
    if not folder:
        pytest.skip("set FASTLIF_DATA to a folder with real event files to run this")
    try:
        train_path, test_path = find_event_files(folder)
    except FileNotFoundError as error:
        pytest.skip(f"FASTLIF_DATA has no event files: {error}")
    for path in (train_path, test_path):
        dataset = read_events(path)
        chosen = torch.arange(0, len(dataset), max(1, len(dataset) // 50))
        spikes = dataset.batch(chosen, n_steps_of(0.7, 2e-3), 2e-3)
        assert 5.0 < mean_firing_rate(spikes, 2e-3) < 25.0
        dense = spikes.unpack()
        # Every event of one sample is in the bin of its exact time, and no bin is set besides.
        sample = int(chosen[-1])
        events = slice(int(dataset.offsets[sample]), int(dataset.offsets[sample + 1]))
        steps = (dataset.times[events].astype(np.float64) / 2e-3).astype(int)
        kept = steps < 350
        bins = set(zip(steps[kept].tolist(), dataset.units[events][kept].tolist(), strict=True))
        assert {tuple(pair) for pair in dense[:, -1].nonzero().tolist()} == bins
        assert 0.001 < dense.mean() < 0.1
