"""Event-camera recordings: binning against a naive one, dropping, cropping, and repeatability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastlif import extension
from fastlif.data import EventRecordings, SampleSource, Subset
from fastlif.data.recordings import CameraEvents, PixelGrid, collect
from fastlif.spikes import PackedSpikes

SENSOR = 12


def some_events(n_events: int, length: int, seed: int, sensor: int = SENSOR) -> CameraEvents:
    """Events over `length` microseconds, the last one at their end and in the sensor's middle."""
    generator = np.random.default_rng(seed)
    time = np.sort(generator.integers(0, length, n_events))
    time[-1] = length - 1
    x, y = generator.integers(0, sensor, (2, n_events)).astype(np.uint8)
    x[-1] = y[-1] = sensor // 2
    return CameraEvents(x, y, generator.integers(0, 2, n_events).astype(np.uint8), time)


def recordings(
    events: list[CameraEvents], grid: PixelGrid | None = None, **settings: float
) -> EventRecordings:
    grid = grid or PixelGrid(SENSOR)
    samples = [grid.place(one, 0, "here") for one in events]
    labels = [number % 3 for number in range(len(events))]
    return collect(samples, labels, grid, 3, **settings)


def naive(
    events: CameraEvents, grid: PixelGrid, start: int, step_us: int, n_steps: int
) -> NDArray[np.float32]:  # (n_steps, 2, side, side)
    """Spikes of a piece, event by event."""
    dense = np.zeros((n_steps, *grid.features), dtype=np.float32)
    for x, y, polarity, time in zip(*(field.tolist() for field in events), strict=True):
        column = (x - grid.crop) // grid.downsample
        row = (y - grid.crop) // grid.downsample
        step = (time - start) // step_us
        if 0 <= step < n_steps and 0 <= row < grid.side and 0 <= column < grid.side:
            dense[step, polarity, row, column] = 1.0
    return dense


def dense(source: SampleSource, chosen: list[int], seed: int | None = None) -> torch.Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    spikes, _ = source.select(torch.tensor(chosen), None, generator)
    assert isinstance(spikes, PackedSpikes)
    return spikes.unpack()


@pytest.mark.parametrize(
    "grid", [PixelGrid(12), PixelGrid(12, downsample=4), PixelGrid(12, crop=1, downsample=5)]
)
def test_evaluation_takes_the_middle_of_every_recording(grid: PixelGrid) -> None:
    lengths = [300_000, 90_001, 40_000, 100_000]  # two are shorter than the piece of 100 ms
    events = [some_events(300, length, seed) for seed, length in enumerate(lengths)]
    data = recordings(events, grid, duration=0.1, dt=2e-3, drop=0.0)
    assert data.lengths.tolist() == lengths
    chosen = [3, 0, 0, 2, 1]
    spikes = dense(data, chosen)
    assert spikes.shape == (50, 5, *grid.features)
    for column, sample in enumerate(chosen):
        start = max(lengths[sample] - 100_000, 0) // 2
        expected = naive(events[sample], grid, start, 2000, 50)
        assert torch.equal(spikes[:, column], torch.from_numpy(expected))
        assert 0.005 < expected.mean() < 0.5
    assert data.select(torch.tensor(chosen))[1].tolist() == [0, 0, 0, 2, 1]


def test_bins_are_exact_at_their_edges() -> None:
    # In binary 0.7 / 2e-3 is below 350 and k * 0.002 is below k / 500 for some k: here all are
    # whole microseconds. The event just before an edge is in the bin before.
    time = np.stack([2000 * np.arange(350), 2000 * np.arange(350) + 1999], axis=1).reshape(-1)
    zeros = np.zeros(700, dtype=np.int64)
    data = recordings([CameraEvents(zeros, zeros, zeros, time)], duration=0.7, drop=0.0)
    assert data.n_steps == 350
    assert data.select(torch.tensor([0]))[0].count() == 350
    shifted = CameraEvents(zeros[:350], zeros[:350], zeros[:350], time[::2] + 2000)
    data = recordings([shifted], duration=0.702, drop=0.0)
    spikes = dense(data, [0])[:, 0, 0, 0, 0]
    assert spikes.tolist() == [0.0] + [1.0] * 350


def test_polarity_row_and_column_keep_their_places() -> None:
    one = CameraEvents(np.array([7]), np.array([2]), np.array([1]), np.array([3000]))
    spikes = dense(recordings([one], duration=0.01, dt=1e-3, drop=0.0), [0])
    assert spikes.nonzero().tolist() == [[3, 0, 1, 2, 7]]
    merged = recordings([one], PixelGrid(12, downsample=4), duration=0.01, dt=1e-3, drop=0.0)
    assert dense(merged, [0]).nonzero().tolist() == [[3, 0, 1, 0, 1]]


def test_unsorted_events_are_sorted() -> None:
    events = some_events(500, 100_000, 3)
    order = np.random.default_rng(0).permutation(500)
    mixed = recordings([events.at(order)], duration=0.05, drop=0.0)
    assert torch.equal(dense(mixed, [0]), dense(recordings([events], duration=0.05, drop=0.0), [0]))


def test_evaluation_does_not_depend_on_the_batch() -> None:
    events = [some_events(2000, 200_000 + 1000 * seed, seed) for seed in range(6)]
    data = recordings(events, duration=0.1)
    everything = dense(data, [0, 1, 2, 3, 4, 5])
    assert torch.equal(dense(data, [0, 1, 2, 3, 4, 5]), everything)
    assert torch.equal(dense(data, [4, 1]), everything[:, [4, 1]])
    assert torch.equal(dense(data, [3]), everything[:, [3]])
    subset = Subset(data, torch.tensor([5, 2]))
    assert torch.equal(dense(subset, [1, 0]), everything[:, [2, 5]])


def test_evaluation_drops_an_event_from_every_piece_that_holds_it() -> None:
    events = [some_events(3000, 200_000, seed) for seed in range(2)]
    long = dense(recordings(events, duration=0.08), [0, 1])
    short = dense(recordings(events, duration=0.04), [0, 1])
    assert torch.equal(long[10:30], short)  # both from the middle, 20 ms apart
    assert 0.01 < short.mean() < 0.5


def test_evaluation_drops_the_same_share_but_not_the_same_events() -> None:
    # The same 4000 events, each at a pixel and step of its own, as two samples.
    step, pixel = np.divmod(np.arange(4000), SENSOR**2)
    events = CameraEvents(pixel % SENSOR, pixel // SENSOR, step % 2, 2000 * step)
    data = recordings([events, events], duration=2e-3 * (step[-1] + 1), drop=0.3)
    kept = dense(data, [0, 1]).flatten(2).transpose(0, 1).flatten(1)  # (sample, step and pixel)
    counts = kept.sum(dim=1)
    spread = math.sqrt(4000 * 0.3 * 0.7)
    assert ((counts - 0.7 * 4000).abs() < 5 * spread).all()
    both = float((kept[0] * kept[1]).sum())
    assert abs(both - 0.49 * 4000) < 5 * math.sqrt(4000 * 0.49 * 0.51)
    whole = dense(recordings([events, events], duration=2e-3 * (step[-1] + 1), drop=0.0), [0, 1])
    assert whole.sum() == 8000


def test_training_draws_events_and_starts_anew() -> None:
    events = [some_events(3000, 400_000, seed) for seed in range(3)]
    data = recordings(events, duration=0.1)
    first = dense(data, [0, 1, 2], seed=5)
    assert torch.equal(dense(data, [0, 1, 2], seed=5), first)
    assert not torch.equal(dense(data, [0, 1, 2], seed=6), first)
    generator = torch.Generator().manual_seed(5)
    again, _ = data.select(torch.arange(3), None, generator)
    assert torch.equal(again.unpack(), first)
    more, _ = data.select(torch.arange(3), None, generator)  # the generator has moved on
    assert not torch.equal(more.unpack(), first)


def test_random_pieces_are_pieces_of_the_recording() -> None:
    # One event each millisecond, at pixels that number the milliseconds of a recording of 100.
    number = np.arange(100)
    events = CameraEvents(number % SENSOR, number // SENSOR, 0 * number, 1000 * number)
    data = recordings([events], duration=0.02, dt=1e-3, drop=0.0)
    starts = []
    for seed in range(400):
        spikes = dense(data, [0], seed)[:, 0, 0].flatten(1)  # (step, row and column)
        found = spikes.nonzero()
        # Successive events in successive steps; a start between two may lose one at an end.
        assert 19 <= len(found) <= 20
        assert (found.diff(dim=0) == 1).all()
        starts.append(int(found[0, 1]))
    assert min(starts) <= 2 and max(starts) >= 78  # the last piece starts at 80 ms
    # Uniform over 80 ms: the mean of 400 has a standard deviation of 80 / sqrt(12 * 400).
    assert abs(np.mean(starts) - 40) < 5 * 80 / math.sqrt(12 * 400)
    assert abs(np.std(starts) - 80 / math.sqrt(12)) < 3


def test_dropped_share_in_training() -> None:
    step, pixel = np.divmod(np.arange(20_000), SENSOR**2)
    events = CameraEvents(pixel % SENSOR, pixel // SENSOR, 0 * pixel, 2000 * step)
    for drop in (0.2, 0.5, 0.9):
        data = recordings([events], duration=2e-3 * (step[-1] + 1), drop=drop)
        kept = [float(dense(data, [0], seed).sum()) for seed in range(5)]
        spread = math.sqrt(20_000 * drop * (1 - drop))
        assert all(abs(count - (1 - drop) * 20_000) < 5 * spread for count in kept)
        assert len(set(kept)) > 1
        # Neighbours in the list of events are dropped independently of each other.
        row = dense(data, [0], 0)[:, 0, 0].flatten()[:20_000].double()
        together = float(((row[1:] - row.mean()) * (row[:-1] - row.mean())).mean() / row.var())
        assert abs(together) < 5 / math.sqrt(20_000)


def test_samples_without_events_are_silent() -> None:
    nothing = CameraEvents(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
    data = recordings([nothing, some_events(300, 50_000, 0), nothing], duration=0.02)
    assert data.lengths.tolist() == [0, 50_000, 0]
    for seed in (None, 3):
        counts = dense(data, [2, 1, 0, 2], seed).sum(dim=(0, 2, 3, 4))
        assert counts[1] > 0 and counts[[0, 2, 3]].tolist() == [0, 0, 0]
    silent = recordings([nothing], duration=0.02)
    assert dense(silent, [0]).sum() == 0


def test_events_take_six_bytes() -> None:
    data = recordings([some_events(1000, 100_000, 1)])
    source: SampleSource = data
    assert source.n_bytes == 6 * 1000
    assert source.features == (2, 12, 12) and source.n_classes == 3 and len(source) == 1
    wide = PixelGrid(200)
    times, neurons = wide.place(some_events(1000, 100_000, 1, sensor=200), 0, "here")
    assert neurons.dtype == torch.int32 and int(neurons.max()) > 2**15
    assert (times.dtype, data.neurons.dtype) == (torch.int32, torch.int16)
    last = CameraEvents(np.array([127]), np.array([127]), np.array([1]), np.array([0]))
    assert PixelGrid(128).place(last, 0, "here")[1].tolist() == [2**15 - 1]


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_the_same_batch_on_any_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recordings([some_events(2000, 200_000, seed) for seed in range(4)], duration=0.1)
    chosen, there = torch.tensor([2, 0, 3]), torch.device(device)
    expected = [dense(data, chosen.tolist(), seed) for seed in (None, 7)]
    sent, targets = data.select(chosen, there)
    assert sent.device.type == device and targets.tolist() == [2, 0, 0]
    assert torch.equal(sent.unpack().cpu(), expected[0])
    # Without the CPU kernels the CPU runs what a GPU does.
    monkeypatch.setattr(extension, "is_available", lambda name="": False)
    for seed, spikes in zip((None, 7), expected, strict=True):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        made, targets = data.to(there).select(chosen.to(there), None, generator)
        assert made.device.type == device and targets.device.type == device
        assert torch.equal(made.unpack().cpu(), spikes)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dt": 2.5e-6}, "dt must be a whole number of microseconds, got 2.5e-06 s"),
        ({"dt": 1e-7}, "dt must be a whole number of microseconds"),
        ({"dt": 0.0}, "dt must be finite and > 0 seconds"),
        ({"duration": 1e-4}, "dt must be at most the duration"),
        ({"drop": 1.0}, r"drop must lie in \[0, 1\), got 1.0"),
        ({"drop": -0.1}, r"drop must lie in \[0, 1\), got -0.1"),
        ({"drop": math.nan}, r"drop must lie in \[0, 1\), got nan"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        recordings([some_events(10, 1000, 0)], **settings)


def test_bad_grids_and_parts_are_named() -> None:
    with pytest.raises(ValueError, match="downsample must divide the 34 pixels of a side, got 4"):
        PixelGrid(34, downsample=4)
    with pytest.raises(ValueError, match="downsample must divide the 12 pixels of a side, got 0"):
        PixelGrid(12, downsample=0)
    with pytest.raises(ValueError, match="crop must leave some of 12 pixels .* got 6"):
        PixelGrid(12, crop=6)
    data = recordings([some_events(10, 1000, 0)])
    with pytest.raises(ValueError, match="offsets must have 1 entries for 0 targets, got 2"):
        EventRecordings(data.times, data.neurons, data.offsets, data.targets[:0], (2, 12, 12), 3)
    with pytest.raises(ValueError, match="number of events, got 10, 9 and 10"):
        EventRecordings(data.times, data.neurons[1:], data.offsets, data.targets, (2, 12, 12), 3)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("x", 12, r"there: event 4: x must lie in 0\.\.11, got 12"),
        ("y", -1, r"there: event 4: y must lie in 0\.\.11, got -1"),
        ("polarity", 2, r"there: event 4: polarity must lie in 0\.\.1, got 2"),
        ("time", -5, r"there: event 4: time .* must lie in 0\.\.2147483646, got -5"),
        ("time", 2**31, "there: event 4: time .* got 2147483648"),
    ],
)
def test_events_off_the_sensor_are_named(field: str, value: int, complaint: str) -> None:
    events = some_events(10, 1000, 0)
    column = getattr(events, field).astype(np.int64)
    column[4] = value
    with pytest.raises(ValueError, match=complaint):
        PixelGrid(12).place(events._replace(**{field: column}), 0, "there")
