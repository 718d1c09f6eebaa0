"""The benchmark: a quick run and what it writes, its refusal of wrong results, its counts."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
import torch

import bench.check
import bench.networks
import bench.run
import bench.worker
import tests.compare
from bench.__main__ import main
from bench.cases import CASES, DT, LARGE, RATE_RANGE
from bench.check import CheckFailed, check
from bench.floors import Peak, Work, count_work
from bench.measure import Spread, StepTime, launches
from bench.networks import build_network, poisson_input
from bench.opponents import OPPONENTS, Opponent
from bench.run import run_case
from bench.text import result_text
from bench.worker import SideFailed, Worker, save_network
from fastlif.ops import LayerPlan
from fastlif.ops.connection import conv_connection, dense_connection

CASE = "dense-recurrent"
QUICK = ("run", CASE, "--quick", "--repeats", "2", "--threads", "1", "--opponents", "loop,lstm")


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A case, and where its network is saved for workers."""
    case = CASES[CASE].quick()
    input = poisson_input(case)
    model, _ = build_network(case, input)
    path = tmp_path_factory.mktemp("network") / "network.pt"
    save_network(path, model, input)
    return case, path


def test_a_quick_run_writes_all_numbers(tmp_path, capsys):
    path = tmp_path / "results" / "quick.json"
    assert main([*QUICK, "--json", str(path)]) == 0
    content = json.loads(path.read_text())
    assert content["command"] == f"python -m bench {' '.join(QUICK)} --json {path}"
    machine = content["machine"]
    assert machine["threads"] == 1 and machine["torch"] == torch.__version__
    assert {"cpu", "isa", "commit", "cores", "load", "python"} <= machine.keys()
    (result,) = content["cases"]
    case = result["case"]
    assert case["name"] == CASE and case["loop_steps"] < case["n_steps"]

    assert result["check"]["wrong_spikes"] == 0
    assert 0 < result["check"]["gradient_error"] < 1e-3
    low, high = RATE_RANGE
    assert len(result["firing_rates"]) == len(result["sigma_u"]) == 1
    assert all(low <= rate <= high for rate in result["firing_rates"])
    assert low < result["input_rate"] < 16.0
    assert result["spike_densities"][1] == pytest.approx(result["firing_rates"][0] * DT)
    assert result["skipped"] == {}
    assert result["others_share"] is None or 0 <= result["others_share"] < 1

    sides = result["sides"]
    assert list(sides) == ["fastlif", "fastlif-float", "loop", "lstm"]
    ours = sides["fastlif"]["times"]["step"]["median"]
    for name, side in sides.items():
        for part in ("forward", "backward", "optimizer", "step"):
            spread = side["times"][part]
            assert 0 < spread["smallest"] <= spread["median"] <= spread["largest"]
        ratio = side["ratio"]
        slower = side["times"]["step"]["largest"] / sides["fastlif"]["times"]["step"]["smallest"]
        assert 0 < ratio["smallest"] <= ratio["median"] <= ratio["largest"] <= slower * 1.001
        assert side["memory_steps"] == side["steps"]
        assert side["peak_rss"] is None or side["peak_rss"] > side["resident_before"] > 1e8
        assert side["compile_seconds"] is None
        own = name in ("fastlif", "fastlif-float")
        assert side["steps"] == case["n_steps" if own else "loop_steps"]
        assert (side["check"] is None) == own
    assert result["share_of_floor"] == pytest.approx(result["floor"] / ours)
    assert sides["fastlif"]["ratio"]["smallest"] == sides["fastlif"]["ratio"]["largest"] == 1.0
    assert sides["fastlif"]["import_seconds"] > 0 and sides["loop"]["import_seconds"] is None
    assert sides["loop"]["difference"] == "" and "more work" in sides["lstm"]["difference"]
    assert sides["loop"]["check"]["gradient_error"] < 1e-9
    # The loop starts a dozen operators at every step, fastlif a few dozen altogether.
    assert 0 < sides["fastlif"]["launches"] < 150 < sides["loop"]["launches"]
    # 16 bits and 1 bit; beside them one number per sample here and there, much in a tiny batch.
    cells = result["neurons"] * case["batch"]
    assert 2.125 <= sides["fastlif"]["kept_bytes"] / (cells * case["n_steps"]) < 3.5
    assert sides["loop"]["kept_bytes"] / (cells * case["loop_steps"]) > 8

    printed = capsys.readouterr().out
    assert "scaled to" in printed and "x fastlif" in printed and machine["cpu"] in printed


def test_a_layer_alone_with_an_input_gradient(capsys):
    assert main(["run", "layer-dense", *QUICK[2:-1], "loop"]) == 0
    printed = capsys.readouterr().out
    assert "input gradient" in printed and "packed input" not in printed


def test_no_time_is_printed_for_wrong_results(monkeypatch, capsys):
    def fails(*arguments):
        raise CheckFailed("the backward pass is wrong")

    monkeypatch.setattr(bench.run, "check", fails)
    assert main(QUICK) == 1
    printed = capsys.readouterr()
    assert "step 0" not in printed.out and "x fastlif" not in printed.out
    assert "the backward pass is wrong" in printed.err


def test_no_time_is_printed_where_an_opponent_is_wrong(monkeypatch, capsys):
    """The worker's check is its own; what it says ends the run."""

    def wrong(self, request):
        raise CheckFailed(f"{self.name} is not timed")

    monkeypatch.setattr(bench.worker.Worker, "ask", wrong)
    assert main(QUICK) == 1
    printed = capsys.readouterr()
    assert "x fastlif" not in printed.out and "is not timed" in printed.err


def test_the_check_notices(monkeypatch):
    """fastlif beside a reference that differs a little is enough to refuse."""
    case = CASES[CASE].quick()
    input = poisson_input(case)
    model, _ = build_network(case, input)
    check(case, model, input)
    original = tests.compare.reference.stack_trace
    monkeypatch.setattr(
        tests.compare.reference,
        "stack_trace",
        lambda spikes, plans, *rest, **options: original(
            spikes,
            [dataclasses.replace(plan, decay_syn=plan.decay_syn + 1e-3) for plan in plans],
            *rest,
            **options,
        ),
    )
    with pytest.raises(CheckFailed, match="not timed"):
        check(case, model, input)


def test_a_side_takes_steps_in_its_own_process(network):
    case, path = network
    with Worker("loop", case, path) as worker:
        facts = worker.ask("prepare")
        assert facts.steps == case.loop_steps and facts.check is not None
        time = worker.ask("turn")
        assert time.forward > 0 and time.backward > 0 and time.optimizer > 0
        assert worker.ask("processor_seconds") > 0
        process = worker.process
        assert process.is_alive() and process.pid != os.getpid()
    assert not process.is_alive()


def test_compile_time_is_that_of_the_first_step_of_all(monkeypatch, network):
    """Memory is asked for before, with the step that compiles."""
    case, path = network
    compiling = dataclasses.replace(OPPONENTS["loop"], compiles=True)
    monkeypatch.setitem(bench.worker.OPPONENTS, "loop", compiling)
    side = bench.worker.Side("loop", case, path)
    seconds = iter([5.0, 1.0, 2.0, *[1.0] * 9])
    step = side.trainer.step

    def timed(input):
        step(input)
        return StepTime(next(seconds), 0.0, 0.0)

    monkeypatch.setattr(side.trainer, "step", timed)
    taken = side.memory()
    assert taken.memory_steps == case.loop_steps
    assert side.prepare().compile_seconds == 3.0


def test_memory_of_a_long_step_is_given_back(monkeypatch, network):
    """Sides stay alive while the others are measured."""
    case, path = network
    done = []
    monkeypatch.setattr(bench.worker, "release_freed_memory", lambda: done.append("released"))
    monkeypatch.setattr(bench.worker, "peak_rss", lambda run: done.append("measured"))
    bench.worker.Side("loop", case, path).memory()
    assert done == ["released", "measured", "released"]


def test_a_side_that_fails_says_why(network, tmp_path):
    case, path = network
    with Worker("loop", case, tmp_path / "missing.pt") as worker:
        with pytest.raises(SideFailed, match="missing.pt"):
            worker.ask("prepare")
    with Worker("loop", case, path) as worker:
        worker.process.kill()
        worker.process.join()
        with pytest.raises(SideFailed, match="exit status -9"):
            worker.ask("prepare")


def test_an_opponent_that_fails_is_named_and_fastlif_is_not_spared(monkeypatch, network):
    case, _ = network
    original = Worker.ask
    failing = {}

    def ask(self, request):
        if failing.get(self.name) == request:
            raise SideFailed("out of memory")
        return original(self, request)

    monkeypatch.setattr(Worker, "ask", ask)
    for culprit, request in (("loop", "turn"), ("lstm", "prepare")):
        failing = {culprit: request}
        result = run_case(case, 1, Peak(1e9, 1e9), ["loop", "lstm"])
        assert result.skipped == {culprit: "failed: out of memory"}
        other = {"loop": "lstm", "lstm": "loop"}[culprit]
        assert list(result.sides) == ["fastlif", "fastlif-float", other]
    failing = {"fastlif": "turn"}
    with pytest.raises(SideFailed):
        run_case(case, 1, Peak(1e9, 1e9), [])


def test_opponents_that_are_missing(monkeypatch, capsys, network):
    case, _ = network
    missing = {"norse": "not installed: thing"}
    monkeypatch.setattr(Opponent, "missing", lambda self: missing.get(self.name))
    result = run_case(case, 1, Peak(1e9, 1e9), ["norse"])
    assert result.skipped == {"norse": "not installed: thing"}
    assert "skipped: not installed: thing" in result_text(result)
    with pytest.raises(SystemExit):
        main(["run", CASE, "--quick", "--opponents", "norse"])
    assert "'norse' cannot run here: not installed: thing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["run", CASE, "--quick", "--opponents", "loop,brian"])
    assert "unknown opponent 'brian'" in capsys.readouterr().err


def test_launches_are_operators_that_move_data():
    a, b = torch.rand(3, 4), torch.rand(4, 5)
    assert launches(lambda: (a @ b).add_(1.0).view(-1).t()) == 2


@pytest.mark.parametrize("name", [name for name in CASES if name not in LARGE])
def test_every_case_builds_its_network(name):
    case = CASES[name]
    model = case.build(device="meta")
    features = case.input_features
    for layer in model:
        plan = layer.plan(features, case.n_steps)
        features = plan.emitted_features
    assert sum(layer.plan is not None and getattr(layer, "hidden", False) for layer in model) == (
        case.n_spiking
    )
    assert case.loop_steps <= case.n_steps and (case.targets() is None) == (case.bounds is None)


def test_the_published_linear_lif_case():
    case = CASES["linear-lif-512"]
    assert (case.batch, case.n_steps, case.input_features) == (16, 500, (512,))
    (layer,) = case.build()
    assert layer.weight.shape == (512, 512) and layer.bias.shape == (512,)
    assert case.input_gradient


@pytest.mark.parametrize("percent", ["0.5", "20"])
def test_density_is_that_of_input_and_neurons(percent):
    case = CASES[f"density-{percent}"].quick()
    input = poisson_input(case)
    model, _ = build_network(case, input)
    wanted = float(percent) / 100
    assert input.count() / math.prod(input.shape) == pytest.approx(wanted, rel=0.1)
    (rate,) = bench.networks.firing_rates(model, input)
    assert rate * DT == pytest.approx(wanted, rel=0.2)


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "conv-99"])
    assert "dense-recurrent" in capsys.readouterr().err


def test_the_list_names_every_case_and_opponent(capsys):
    assert main(["list"]) == 0
    cases, opponents = capsys.readouterr().out.split("\nOpponents:\n")
    assert [line.split()[0] for line in cases.splitlines()] == list(CASES)
    assert [line.split()[0] for line in opponents.splitlines()] == list(OPPONENTS)


def test_work_of_a_dense_recurrent_network_by_hand():
    options = {"decay_mem": 0.9, "decay_syn": 0.8}
    plans = [
        LayerPlan("lif", (4,), dense_connection((10,), 4), (1, 1), **options),
        LayerPlan("readout_max", (2,), dense_connection((4,), 2), **options),
    ]
    work = count_work(plans, [0.1, 0.05], batch=3, n_steps=5)
    # Input spikes to 40 synapses, own spikes to 16 recurrent and 8 readout ones; forward and dW.
    assert work.deliveries == pytest.approx(15 * 2 * (0.1 * 40 + 0.05 * 16 + 0.05 * 8))
    assert work.dense == 15 * 16  # the recurrence; the input data needs no gradient
    assert work.neurons == 15 * 6 * 18
    assert work.bytes == pytest.approx(15 * (2 * 10 / 8 + 2 * 2.125 * 4))
    # With the input's gradient: its synapses again, floats read and written.
    work = count_work(plans, [0.1, 0.05], batch=3, n_steps=5, input_gradient=True)
    assert work.dense == 15 * (40 + 16)
    assert work.bytes == pytest.approx(15 * (2 * 10 * 4 + 2 * 2.125 * 4))


def test_work_of_convolutions_by_hand():
    options = {"decay_mem": 0.9, "decay_syn": 0.8}
    sizes = {"stride": (2,), "padding": (0,), "dilation": (1,)}
    first, features = conv_connection((1, 11), 3, kernel=(3,), **sizes)
    second, last = conv_connection(features, 4, kernel=(2,), **sizes)
    assert (features, last) == ((3, 5), (4, 2))
    plans = [
        LayerPlan("lif", features, first, (1, 5), **options),
        LayerPlan("lif", last, second, (1, 5), **options),
        LayerPlan("readout_max", (2,), dense_connection(last, 2), **options),
    ]
    work = count_work(plans, [0.0, 0.0, 0.0], batch=1, n_steps=1)
    assert work.deliveries == 0
    assert work.dense == 15 * (3 * 5) + 8 * (3 * 2) + 8 * (4 * 5)


def test_the_floor_is_the_larger_of_arithmetic_and_memory():
    work = Work(deliveries=10, dense=20, neurons=30, bytes=50)
    assert work.seconds(Peak(multiply_adds=6, bytes=50)) == 10
    assert work.seconds(Peak(multiply_adds=600, bytes=5)) == 10


def test_scaling_leaves_the_optimizer_alone():
    time = StepTime(forward=1.0, backward=2.0, optimizer=0.5).scaled(7)
    assert (time.forward, time.backward, time.optimizer, time.step) == (7.0, 14.0, 0.5, 21.5)
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(median=2.0, smallest=1.0, largest=3.0)
