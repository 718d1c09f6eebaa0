"""DVS128 Gesture from files as they are distributed and as Tonic has them, whole and damaged."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastlif.data import DVS_GESTURE_CLASSES, read_dvs_gesture
from fastlif.data.aedat import read_aedat
from tests.camera_data import check_real, sample

HEADER = (
    b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n"
    b"#Start-Time: 2016-06-01 10:00:00 (TZ+0100)\r\n#!END-HEADER\r\n"
)

Events = list[tuple[int, int, int, int]]  # x, y, polarity, microseconds


def packet(
    events: Events, valid: bool = True, kind: int = 1, overflows: int = 0, spare: int = 0
) -> bytes:
    """A packet of AEDAT 3.1, with room for `spare` more events than it holds."""
    content = b"".join(
        struct.pack("<Ii", x << 17 | y << 2 | polarity << 1 | valid, time)
        for x, y, polarity, time in events
    )
    n_events = len(events)
    n_valid = n_events if valid else 0
    numbers = (kind, 1, 8, 4, overflows, n_events + spare, n_events, n_valid)
    return struct.pack("<hhiiiiii", *numbers) + content + bytes(8 * spare)


def some_events(n_events: int, start: int, end: int, seed: int) -> Events:
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 128, (2, n_events)).tolist()
    polarity = generator.integers(0, 2, n_events).tolist()
    return list(
        zip(x, y, polarity, np.sort(generator.integers(start, end, n_events)).tolist(), strict=True)
    )


def spikes_of(events: Events, start: int, n_steps: int, step_us: int, pixels: int) -> torch.Tensor:
    """(n_steps, 2, side, side): one event after the other."""
    dense = torch.zeros(n_steps, 2, 128 // pixels, 128 // pixels)
    for x, y, polarity, time in events:
        step = (time - start) // step_us
        if 0 <= step < n_steps:
            dense[step, polarity, y // pixels, x // pixels] = 1.0
    return dense


class TestAedat:
    def write(self, path: Path, *packets: bytes, header: bytes = HEADER) -> Path:
        path.write_bytes(header + b"".join(packets))
        return path

    def test_exact_values(self, tmp_path: Path) -> None:
        events = [(0, 127, 1, 5), (127, 0, 0, 2**31 - 1), (77, 3, 1, 9)]
        read = read_aedat(self.write(tmp_path / "a.aedat", packet(events[:2]), packet(events[2:])))
        assert list(zip(*(field.tolist() for field in read), strict=True)) == events

    def test_other_packets_invalid_events_and_spare_room_are_skipped(self, tmp_path: Path) -> None:
        kept = [(1, 2, 1, 30), (3, 4, 0, 31)]
        half = bytearray(packet(kept))
        half[24:28] = struct.pack("<i", 1)  # says that one of the two is valid
        half[28 + 8] &= 0xFE  # the second is not
        path = self.write(
            tmp_path / "a.aedat",
            packet([(9, 9, 1, 10)], kind=0),
            packet([(8, 8, 1, 20)], valid=False),
            bytes(half),
            packet(kept[1:], spare=3),
            packet([]),
        )
        read = read_aedat(path)
        assert read.time.tolist() == [30, 31] and read.x.tolist() == [1, 3]

    def test_time_beyond_31_bits(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path / "a.aedat", packet([(1, 1, 1, 7)]), packet([(1, 1, 1, 3)], overflows=2)
        )
        assert read_aedat(path).time.tolist() == [7, 2**32 + 3]

    def test_header_with_short_line_ends(self, tmp_path: Path) -> None:
        header = HEADER.replace(b"\r\n", b"\n")
        path = self.write(tmp_path / "a.aedat", packet([(5, 6, 1, 7)]), header=header)
        assert read_aedat(path).y.tolist() == [6]

    def test_a_file_without_events(self, tmp_path: Path) -> None:
        assert len(read_aedat(self.write(tmp_path / "a.aedat")).time) == 0

    def check(self, path: Path, *words: str) -> None:
        with pytest.raises(ValueError) as caught:
            read_aedat(path)
        for word in (str(path), *words):
            assert word in str(caught.value)

    def test_truncated(self, tmp_path: Path) -> None:
        first, second = packet(some_events(10, 0, 100, 1)), packet(some_events(10, 100, 200, 2))
        path, size = tmp_path / "a.aedat", len(HEADER) + len(first)
        self.write(path, first, second[:-3])
        end = size + len(second)
        self.check(path, f"packet at byte {size}: truncated", f"byte {end}, the file ends", "10 ev")
        self.write(path, first, second[:20])
        self.check(path, f"truncated: 20 bytes at byte {size} are no packet header")
        path.write_bytes(HEADER[:60])
        self.check(path, "no line #!END-HEADER", "truncated perhaps")
        path.write_bytes(b"")
        self.check(path, "must start with #!AER-DAT3.1")

    def test_wrong_content(self, tmp_path: Path) -> None:
        path, start = tmp_path / "a.aedat", len(HEADER)
        self.write(path, packet([(1, 1, 1, 1)]), header=HEADER.replace(b"3.1", b"2.0"))
        self.check(path, "must start with #!AER-DAT3.1", "AER-DAT2.0")
        self.write(path, packet([(1, 1, 1, 1)]), header=HEADER.replace(b"RAW", b"SerializedTS"))
        self.check(path, "must be in format RAW", "SerializedTS")
        for numbers, word in [
            ((-1, 1, 8, 4, 0, 1, 1, 1), "type -1"),
            ((1, 1, 0, 4, 0, 1, 1, 1), "0 bytes per event"),
            ((1, 1, 8, 4, 0, 1, 2, 1), "capacity 1, 2 events"),
            ((1, 1, 8, 4, 0, -5, -5, -5), "capacity -5"),
            ((1, 1, 8, 4, -1, 1, 1, 1), "-1 overflows"),
        ]:
            self.write(path, struct.pack("<hhiiiiii", *numbers) + bytes(8))
            self.check(path, f"packet at byte {start}: damaged header", word)
        self.write(path, struct.pack("<hhiiiiii", 1, 1, 16, 4, 0, 1, 1, 1) + bytes(16))
        self.check(path, "polarity events must have 8 bytes with the time at 4, got 16 and 4")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no file at .*a\.aedat"):
            read_aedat(tmp_path / "a.aedat")


LABELS = "class,startTime_usec,endTime_usec\n"
ROWS = [(1, 100_000, 160_000), (11, 180_000, 230_000), (8, 230_000, 290_000), (8, 300_000, 360_000)]


def write_trial(
    folder: Path, name: str, seed: int, rows: list[tuple[int, int, int]] = ROWS
) -> Events:
    events = some_events(3000, 0, 400_000, seed)
    packets = b"".join(packet(events[i : i + 700]) for i in range(0, 3000, 700))
    (folder / f"{name}.aedat").write_bytes(HEADER + packets)
    lines = "".join(f"{label},{start},{end}\n" for label, start, end in rows)
    (folder / f"{name}_labels.csv").write_text(LABELS + lines)
    return events


def write_trials(folder: Path) -> dict[str, Events]:
    folder.mkdir(parents=True, exist_ok=True)
    names = ["user02_led", "user01_natural", "user24_fluorescent"]
    (folder / "trials_to_train.txt").write_text("user02_led.aedat\r\nuser01_natural.aedat\r\n\r\n")
    (folder / "trials_to_test.txt").write_text("user24_fluorescent.aedat\n")
    return {name: write_trial(folder, name, seed) for seed, name in enumerate(names)}


class TestGestureTrials:
    def test_gestures_of_the_trials(self, tmp_path: Path) -> None:
        trials = write_trials(tmp_path / "DvsGesture")
        train, test = read_dvs_gesture(tmp_path, duration=0.06, dt=1e-3, drop=0.0)
        assert (train.n_classes, train.features) == (11, (2, 32, 32))
        assert DVS_GESTURE_CLASSES[7] == "arm roll"
        # In the order of the list; of a class listed twice the first line.
        assert train.targets.tolist() == [0, 10, 7, 0, 10, 7]
        assert test.targets.tolist() == [0, 10, 7]
        for data, number, name, row in [
            (train, 1, "user02_led", 1),
            (test, 2, "user24_fluorescent", 2),
        ]:
            _, start, end = ROWS[row]
            events = [one for one in trials[name] if start <= one[3] < end]
            assert len(events) > 300
            middle = start + max(int(data.lengths[number]) - 60_000, 0) // 2
            assert torch.equal(sample(data, number), spikes_of(events, middle, 60, 1000, 4))

    def test_every_line_and_full_resolution(self, tmp_path: Path) -> None:
        trials = write_trials(tmp_path)
        settings: dict[str, Any] = {"duration": 0.06, "dt": 1e-3, "drop": 0.0}
        train, _ = read_dvs_gesture(tmp_path, all_rows=True, downsample=1, **settings)
        assert train.targets.tolist() == [0, 10, 7, 7] * 2
        assert train.features == (2, 128, 128)
        events = [one for one in trials["user01_natural"] if 300_000 <= one[3] < 360_000]
        start = 300_000 + max(int(train.lengths[7]) - 60_000, 0) // 2
        assert torch.equal(sample(train, 7), spikes_of(events, start, 60, 1000, 1))

    def test_the_first_samples_alone(self, tmp_path: Path) -> None:
        write_trials(tmp_path)
        (tmp_path / "user01_natural.aedat").unlink()  # not needed for the first two
        train, test = read_dvs_gesture(tmp_path, n_samples=2)
        assert train.targets.tolist() == [0, 10] and len(test) == 2

    def test_a_gesture_ends_where_the_next_begins(self, tmp_path: Path) -> None:
        write_trials(tmp_path)
        rows = [(9, 300_000, 350_000), (1, 100_000, 399_000), (2, 200_000, 210_000)]
        write_trial(tmp_path, "user02_led", 0, rows)
        train, _ = read_dvs_gesture(tmp_path, n_samples=3)
        assert train.targets.tolist() == [8, 0, 1]
        assert train.lengths[1] <= 100_000 and train.lengths[1] > 95_000
        assert train.lengths[2] <= 10_000

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ("8,1", "line 4: must be class,startTime_usec,endTime_usec in integers, got '8,1'"),
            ("8,1,x", "line 4: must be class,startTime_usec,endTime_usec in integers"),
            ("0,1,2", r"line 4: class must lie in 1\.\.11, got 0"),
            ("12,1,2", r"line 4: class must lie in 1\.\.11, got 12"),
            ("8,20,20", "line 4: must end after it starts"),
            ("8,-20,20", "line 4: must end after it starts"),
        ],
    )
    def test_damaged_labels(self, tmp_path: Path, line: str, complaint: str) -> None:
        write_trials(tmp_path)
        path = tmp_path / "user01_natural_labels.csv"
        path.write_text(LABELS + "1,100,160000\n\n" + line + "\n")
        with pytest.raises(ValueError, match=rf"user01_natural_labels\.csv: {complaint}"):
            read_dvs_gesture(tmp_path)

    def test_labels_that_are_no_text(self, tmp_path: Path) -> None:
        write_trials(tmp_path)
        (tmp_path / "user01_natural_labels.csv").write_bytes(b"class\n\xff\xfe\x81\n")
        with pytest.raises(ValueError, match=r"natural_labels\.csv: line 2: must be class,start"):
            read_dvs_gesture(tmp_path)

    def test_partial_and_empty_files(self, tmp_path: Path) -> None:
        write_trials(tmp_path)
        labels = tmp_path / "user01_natural_labels.csv"
        labels.write_text(LABELS + "1,100,160000\n3,500000,600000\n")
        complaint = (
            r"user01_natural\.aedat: from 500000 to 600000 us .*line 3\): the recording has no"
        )
        with pytest.raises(ValueError, match=complaint):
            read_dvs_gesture(tmp_path)
        labels.write_text(LABELS)
        with pytest.raises(ValueError, match=r"user01_natural_labels\.csv: holds no label"):
            read_dvs_gesture(tmp_path)
        write_trials(tmp_path)
        (tmp_path / "user01_natural.aedat").write_bytes(HEADER + packet([(128, 3, 1, 110_000)]))
        with pytest.raises(
            ValueError, match=r"natural\.aedat: from .*event 0: x must lie in 0\.\.127"
        ):
            read_dvs_gesture(tmp_path)
        (tmp_path / "trials_to_test.txt").write_text("\n")
        with pytest.raises(ValueError, match=r"trials_to_test\.txt: lists no recording"):
            read_dvs_gesture(tmp_path, n_samples=1)

    def test_missing_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no data folder at"):
            read_dvs_gesture(tmp_path / "none")
        with pytest.raises(FileNotFoundError, match=r"DVS128 Gesture \(trials_to_train\.txt and"):
            read_dvs_gesture(tmp_path)
        for name in ("user01_natural_labels.csv", "user01_natural.aedat", "trials_to_test.txt"):
            write_trials(tmp_path)
            (tmp_path / name).unlink()
            with pytest.raises(FileNotFoundError, match=f"no file at .*{name}"):
                read_dvs_gesture(tmp_path)


def write_tonic(folder: Path, dtype: Any = np.float64) -> dict[str, Events]:
    """Three gestures for training and one for the test; times are whole milliseconds, as there."""
    trials = {}
    names = ["user02_led/2", "user01_led/10", "user01_led/9"]
    for seed, name in enumerate([*(f"Train/{name}" for name in names), "Test/user24_led/7"]):
        path = folder / f"ibmGesture{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        events = [(*one[:3], one[3] // 1000) for one in some_events(2000, 5000, 95_000, seed)]
        np.save(path, np.array(events, dtype=dtype))
        trials[name] = [(x, y, polarity, 1000 * time) for x, y, polarity, time in events]
    return trials


class TestGestureTonic:
    @pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16])
    def test_gestures(self, tmp_path: Path, dtype: Any) -> None:
        trials = write_tonic(tmp_path / "DVSGesture", dtype)
        train, test = read_dvs_gesture(tmp_path, duration=0.05, dt=2e-3, drop=0.0)
        assert train.targets.tolist() == [9, 10, 2] and test.targets.tolist() == [7]
        for data, number, name in [
            (train, 1, "Train/user01_led/10"),
            (test, 0, "Test/user24_led/7"),
        ]:
            first = trials[name][0][3]
            middle = first + (int(data.lengths[number]) - 50_000) // 2
            assert data.lengths[number] > 80_000
            assert torch.equal(sample(data, number), spikes_of(trials[name], middle, 25, 2000, 4))

    def test_structured_arrays_have_microseconds(self, tmp_path: Path) -> None:
        write_tonic(tmp_path)
        kind = np.dtype([("x", np.int16), ("y", np.int16), ("p", bool), ("t", np.int64)])
        events = some_events(2000, 5000, 95_000, 9)
        np.save(tmp_path / "ibmGestureTest/user24_led/7.npy", np.array(events, dtype=kind))
        _, test = read_dvs_gesture(tmp_path, duration=0.1, dt=1e-3, drop=0.0)
        assert torch.equal(sample(test, 0), spikes_of(events, events[0][3], 100, 1000, 4))

    def test_damage(self, tmp_path: Path) -> None:
        write_tonic(tmp_path)
        path = tmp_path / "ibmGestureTrain/user02_led/2.npy"
        whole = path.read_bytes()
        good = np.load(path)

        def check(complaint: str) -> None:
            with pytest.raises(ValueError, match=rf"user02_led.2\.npy: {complaint}"):
                read_dvs_gesture(tmp_path)

        for share in (0.0, 0.5, 0.999):
            path.write_bytes(whole[: int(share * len(whole))])
            check("not a readable array, truncated perhaps")
        np.save(path, np.array([{"not": "numbers"}], dtype=object), allow_pickle=True)
        check("not a readable array.*allow_pickle=False")
        np.save(path, good[:, :3])
        check(r"must be an array \(events, 4\).*got shape \(2000, 3\)")
        np.save(path, good[:0])
        check("holds no event")
        for column, value, complaint in [
            (0, 128, r"event 5: x must lie in 0\.\.127, got 128"),
            (1, np.nan, r"event 5: y must lie in 0\.\.127, got nan"),
            (2, 2, r"event 5: polarity must lie in 0\.\.1, got 2"),
            (3, np.inf, "event 5: time must be finite, got inf"),
            (3, 700_000, "the events span 700 s if their times are in milliseconds"),
        ]:
            bad = good.copy()
            bad[5, column] = value
            np.save(path, bad)
            check(complaint)
        path.write_bytes(whole)
        path.rename(path.with_name("11.npy"))
        with pytest.raises(ValueError, match=r"11\.npy: must be named by its class, 0\.npy to 10"):
            read_dvs_gesture(tmp_path)

    def test_missing(self, tmp_path: Path) -> None:
        write_tonic(tmp_path)
        (tmp_path / "ibmGestureTest/user24_led/7.npy").unlink()
        with pytest.raises(FileNotFoundError, match="ibmGestureTest holds no recording"):
            read_dvs_gesture(tmp_path)
        (tmp_path / "ibmGestureTest").rename(tmp_path / "other")
        with pytest.raises(FileNotFoundError, match="no data folder at .*ibmGestureTest"):
            read_dvs_gesture(tmp_path)


def test_real_gestures() -> None:
    folder = os.environ.get("FASTLIF_DATA")
    if not folder:
        pytest.skip("set FASTLIF_DATA to a folder with DVS128 Gesture to run this")
    try:
        train, test = read_dvs_gesture(folder, n_samples=33)
    except FileNotFoundError as error:
        pytest.skip(f"FASTLIF_DATA has no DVS128 Gesture: {error}")
    check_real(train, 11, seconds=(1.0, 30.0))
    check_real(test, 11, seconds=(1.0, 30.0))
