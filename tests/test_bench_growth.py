"""Growth of time and memory, and the depth that fits: points, series, the search, processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import time

import pytest
import torch

import bench.depth
import bench.growth
import bench.points
import tests.compare
from bench.__main__ import main
from bench.alone import Died, Kept, alone
from bench.check import CheckFailed
from bench.depth import Attempt, Search, attempt, confirm, deep_layers, search_depth
from bench.growth import SERIES, Plan, Series, run_series, slope
from bench.measure import StepTime
from bench.points import (
    Footprint,
    Network,
    Point,
    check_network,
    measured,
    random_input,
    release_freed_memory,
    resident_bytes,
    tuned_network,
)
from fastlif import extension
from fastlif.models import ConvSize, preset

pytestmark = pytest.mark.skipif(not extension.is_available(), reason="needs the compiled extension")

CONV = Network((2, 30), (ConvSize(8, 5, 1, 2), ConvSize(16, 5, 2, 2)), batch=4, n_steps=64)
DENSE = Network((40,), (32,), batch=4, n_steps=64)
MB = 1 << 20
linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_slope_of_a_power_and_of_too_little():
    values = [1, 10, 100]
    assert slope(values, [2 * value**1.5 for value in values]) == pytest.approx(1.5)
    assert slope([1, 10, 100], [1.0, 10.0, 400.0]) == pytest.approx(1.301, abs=1e-3)
    assert slope([3], [1.0]) is None


@pytest.mark.parametrize("network", [CONV, DENSE, dataclasses.replace(DENSE, density=0.2)])
def test_every_layer_fires_at_the_density_asked_for(network):
    model = tuned_network(dataclasses.replace(network, input_density=0.1))
    long = dataclasses.replace(network, input_density=0.1).with_input(16, 200)
    spikes = random_input(long)
    assert spikes.shape == (200, 16, *network.input_features)
    assert spikes.count() / spikes.unpack().numel() == pytest.approx(0.1, rel=0.05)
    counts = model(spikes, return_spike_counts=True).spike_counts
    for count in counts:
        assert float(count.detach().mean()) / 200 == pytest.approx(network.density, rel=0.4)
    again = tuned_network(dataclasses.replace(network, input_density=0.1))
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_a_density_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="must fire at 0.9"):
        tuned_network(dataclasses.replace(DENSE, density=0.9))


def measure(network, side):
    """A point by itself, in two turns of a step."""
    point = Point(network, side)
    footprint = point.footprint()
    assert footprint.first_step > 0
    return measured(footprint, [point.turn(0.0), point.turn(0.0)], point.densities())


def test_a_turn_is_the_median_of_its_steps():
    point = Point(DENSE, "fastlif")
    seconds = iter([3.0, 1.0, 2.0, 9.0])

    def step(input):
        taken = next(seconds)
        time.sleep(0.04)
        return StepTime(taken, 0.0, 0.0)

    point._trainer.step = step
    assert point.turn(0.1).step == 2.0


def test_a_point_has_times_and_memory_of_both_sides():
    ours, loop = (measure(CONV, side) for side in ("fastlif", "loop"))
    neuron_steps = (8 * 30 + 16 * 15) * 4 * 64
    assert 2.125 <= ours.kept_bytes / neuron_steps < 3.0
    assert loop.kept_bytes / neuron_steps > 8
    for found in (ours, loop):
        step = found.times.step
        assert found.repeats == 2 and 0 < step.smallest <= step.median <= step.largest
        assert len(found.densities) == 2 and all(0.005 < one < 0.05 for one in found.densities)
        if found.peak_rss is not None:
            assert found.peak_rss >= found.resident_before > 0
    assert ours.densities == pytest.approx(loop.densities, abs=2e-3)
    with pytest.raises(ValueError, match="must be one of fastlif, loop; got 'norse'"):
        measure(CONV, "norse")


@linux
def test_a_step_takes_little_beside_what_it_keeps():
    network = dataclasses.replace(CONV, input_features=(2, 150)).with_input(8, 640)
    found = alone(measure, network, "fastlif")
    assert found.kept_bytes > 20 * MB
    assert abs(found.peak_rss - found.resident_before - found.kept_bytes) < 10 * MB


def hold_and_release() -> tuple[int, int]:
    """Resident bytes before and after giving back memory that lies between what is in use."""
    blocks = [torch.ones(2048) for _ in range(8000)]
    kept = blocks[::50]
    del blocks
    before = resident_bytes()
    release_freed_memory()
    assert len(kept) == 160
    return before, resident_bytes()


@linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_goes_back_to_the_system():
    before, after = alone(hold_and_release)
    assert before - after > 30 * MB


@pytest.mark.parametrize("side", ["fastlif", "loop"])
def test_a_side_that_is_off_is_not_timed(monkeypatch, side):
    model = tuned_network(CONV)
    check_network(CONV, model, side)
    module = tests.compare.reference if side == "fastlif" else bench.points
    name = "stack_trace" if side == "fastlif" else "stack"
    original = getattr(module, name)

    def off(spikes, plans, *given, **options):
        changed = [dataclasses.replace(plan, decay_syn=plan.decay_syn + 1e-3) for plan in plans]
        return original(spikes, changed, *given, **options)

    monkeypatch.setattr(module, name, off)
    with pytest.raises(CheckFailed, match="not timed"):
        Point(CONV, side)


def test_series_change_one_size_over_about_two_decades():
    for series in SERIES.values():
        networks = [dataclasses.asdict(series.network(value)) for value in series.values]
        names = {name for one in networks for name in one if one[name] != networks[0][name]}
        assert names <= {"density", "input_density"} or len(names) == 1
    for name in ("time", "batch", "neurons"):
        values = SERIES[name].values
        assert values[-1] / values[0] >= 100
    fan_in = {
        layer.fan_in
        for value in (16, 160)
        for layer in SERIES["neurons"].network(value).build()[1:2]
    }
    assert len(fan_in) == 1


class FakePoint:
    """Of a machine that works at half its speed every second round. A Kept of it."""

    def __init__(self, make, network, side):
        assert make is Point
        self.seconds = network.n_steps * (1e-3 if side == "fastlif" else 2e-2)
        self.turns = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def ask(self, method, *arguments):
        if method == "footprint":
            return Footprint(self.seconds, 10, 300, 200)
        if method == "turn":
            self.turns += 1
            return StepTime(self.seconds * (1 + self.turns % 2), 0.0, 0.0)
        return {"densities": [0.02], "processor_seconds": 0.0}[method]


def test_points_that_take_too_long_are_left_out_and_listed(monkeypatch):
    monkeypatch.setattr(bench.growth, "Kept", FakePoint)
    series = SERIES["time"]
    result = run_series(series, Plan(5, time.monotonic() + 100, step_seconds=40.0))
    reached = {
        side: [point["value"] for point in result["points"] if side in point["sides"]]
        for side in ("fastlif", "loop")
    }
    assert reached == {"fastlif": list(series.values), "loop": [320, 1000]}
    assert all(
        side["repeats"] == 5 for point in result["points"] for side in point["sides"].values()
    )
    assert result["slope"] == {"fastlif": pytest.approx(1.0), "loop": pytest.approx(1.0)}
    assert [(one["side"], one["value"]) for one in result["skipped"]] == [
        ("loop", 3200),
        ("loop", 10000),
        ("loop", 32000),
    ]
    assert "64 s" in result["skipped"][0]["reason"]
    over = run_series(series, Plan(5, time.monotonic() - 1))
    assert over["points"] == [] and len(over["skipped"]) == 10
    assert over["slope"] == {"fastlif": None, "loop": None}


def test_deep_layers_begin_like_the_preset():
    hidden = preset("shd-conv10").hidden
    assert deep_layers(10, 2) == hidden and deep_layers(2, 1) == hidden[:2]
    assert deep_layers(12, 2)[10:] == hidden[-2:]
    kept = deep_layers(5, 1)
    assert kept[:3] == hidden[:3] and {layer.stride for layer in kept[3:]} == {1}
    model = Search(0).network(5).build()
    features, sizes = (1, 700), []
    for layer in model[:-1]:
        features = layer.plan(features, 1).emitted_features
        sizes.append(features)
    assert sizes[2:] == [(64, 88)] * 3


@pytest.mark.parametrize("guess", [1, 9, 10, 11, 14, 60])
def test_a_guess_is_confirmed_by_its_neighbours(guess):
    asked = []

    def fits(n: int) -> bool:
        asked.append(n)
        return n <= 10

    assert confirm(guess, fits, lambda: False) == (10, True)
    assert {10, 11} <= set(asked) and len(asked) == len(set(asked)) <= 12
    if guess in (10, 11):
        assert len(asked) == 2


def test_a_confirmation_can_end_early_or_find_nothing():
    tries = iter([False, True])
    assert confirm(5, lambda n: True, lambda: next(tries)) == (5, False)
    assert confirm(5, lambda n: True, lambda: True) == (None, False)
    assert confirm(3, lambda n: False, lambda: False) == (0, True)


@linux
@pytest.mark.parametrize("side", ["fastlif", "loop"])
def test_a_step_under_a_limit_fits_or_is_refused(side):
    search = Search(4 << 30, batch=10, n_steps=32, features=(1, 88))
    enough = attempt(search, 3, side)
    assert enough.fits and 100 * MB < enough.peak_rss < search.limit
    # Three layers of this size keep more than a gigabyte.
    little = attempt(Search(600 * MB), 3, side)
    assert not little.fits and little.reason.startswith("out of memory")


@linux
def test_the_search_expects_and_confirms(monkeypatch):
    """Steps are made up: 100 MB and 10 MB a layer."""
    monkeypatch.setattr(bench.depth, "available_bytes", lambda: 10 << 30)

    def made_up(function, search, n_layers, side):
        size = 100 * MB + 10 * MB * n_layers
        if size > search.limit - 15 * MB:
            return Attempt(n_layers, False, None, "too many")
        return Attempt(n_layers, True, size, "")

    monkeypatch.setattr(bench.depth, "alone", made_up)
    found = search_depth(Search(400 * MB), "loop", time.monotonic() + 100)
    assert found.expected == 30 and found.n_layers == 28 and found.is_largest
    assert [one.n_layers for one in found.attempts] == [3, 4, 10, 30, 29, 27, 28]
    assert found.attempts[4].reason == "too many" and found.attempts[-1].fits
    for layers, tried in ((3, [3, 4]), (2, [3, 2])):
        limit = 100 * MB + 10 * MB * layers + 16 * MB
        found = search_depth(Search(limit), "loop", time.monotonic() + 100)
        assert (found.n_layers, found.is_largest, found.expected) == (layers, True, 3)
        assert [one.n_layers for one in found.attempts] == tried
    monkeypatch.setattr(bench.depth, "available_bytes", lambda: 300 * MB)
    with pytest.raises(ValueError, match="free memory"):
        search_depth(Search(400 * MB), "loop", time.monotonic() + 100)


def raises(error: Exception) -> None:
    raise error


def test_a_process_of_its_own_answers_raises_or_dies():
    torch.set_num_threads(1)
    assert alone(torch.get_num_threads) == 1
    assert alone(os.getpid) not in (os.getpid(), alone(os.getpid))
    with Kept(list, (1, 2)) as numbers:
        numbers.ask("append", 3)
        assert numbers.ask("copy") == [1, 2, 3]
        with pytest.raises(IndexError, match="pop index out"):
            numbers.ask("pop", 7)
        assert numbers.ask("pop") == 3
    with pytest.raises(CheckFailed, match="wrong"):
        alone(raises, CheckFailed("wrong"))
    with pytest.raises(Died, match="exit code 3"):
        alone(os._exit, 3)
    with pytest.raises(Died, match="exit code -6"):
        alone(os.abort)


def test_the_command_writes_all_numbers(tmp_path, capsys, monkeypatch):
    path = tmp_path / "growth.json"
    found = {"search": {"limit": 1}, "sides": {}}
    monkeypatch.setattr(bench.growth, "_search", lambda options: Search(1))
    monkeypatch.setattr(bench.growth, "run_search", lambda search, plan: found)
    command = ["growth", "width", "layers", "--quick", "--repeats", "3"]
    assert main([*command, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["command"].startswith("python -m bench growth width layers --quick")
    assert content["machine"]["threads"] == 1 and content["layers"] == found
    (series,) = content["series"]
    assert series["name"] == "width" and series["skipped"] == []
    assert [point["value"] for point in series["points"]] == [32, 64]
    for point in series["points"]:
        assert set(point["sides"]) == {"fastlif", "loop"}
        for side in point["sides"].values():
            assert side["times"]["step"]["median"] > 0 and side["kept_bytes"] > 0
    ours, theirs = (series["points"][-1]["sides"][side] for side in ("fastlif", "loop"))
    assert theirs["kept_bytes"] > 3 * ours["kept_bytes"]
    assert all(math.isfinite(series["slope"][side]) for side in ("fastlif", "loop"))
    assert "width 64" in capsys.readouterr().out


def test_a_failed_check_ends_the_command_and_writes_nothing(tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        raise CheckFailed("the backward pass is wrong")

    monkeypatch.setattr(bench.growth, "Kept", fails)
    path = tmp_path / "growth.json"
    assert main(["growth", "time", "--quick", "--json", str(path)]) == 1
    assert "backward pass is wrong" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["conv-99"], "unknown series 'conv-99': choose from time, batch"),
        (["time", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["time", "--minutes", "0"], "--minutes and --memory must be above 0"),
    ],
)
def test_wrong_arguments_are_refused(capsys, wrong, message):
    with pytest.raises(SystemExit):
        main(["growth", *wrong])
    assert message in capsys.readouterr().err


def test_quick_series_are_tiny():
    for series in SERIES.values():
        quick: Series = series.quick()
        network = quick.network(quick.values[-1])
        assert len(quick.values) == 2 and network.batch * network.n_steps <= 128
