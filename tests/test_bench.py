"""The benchmark: a quick run and what it writes, its refusal of wrong results, its counts."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import bench.__main__
import bench.cases
import bench.check
import bench.run
from bench.__main__ import main
from bench.cases import CASES, DT, RATE_RANGE
from bench.check import CheckFailed, check
from bench.floors import Peak, Work, count_work
from bench.measure import Spread, StepTime
from fastlif.ops import LayerPlan
from fastlif.ops.connection import conv_connection, dense_connection

CASE = "dense-recurrent"
QUICK = ("run", CASE, "--quick", "--repeats", "2", "--threads", "1")


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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

    for kind in ("packed", "dense", "loop"):
        for part in ("forward", "backward", "optimizer", "step"):
            spread = result[kind][part]
            assert 0 < spread["smallest"] <= spread["median"] <= spread["largest"]
    ours, loop = result["packed"]["step"]["median"], result["loop"]["step"]["median"]
    assert result["ratio"] == pytest.approx(loop / ours)
    assert result["share_of_floor"] == pytest.approx(result["floor"] / ours)
    # 16 bits and 1 bit; beside them one number per sample here and there, much in a tiny batch.
    assert 2.125 <= result["kept_bytes_per_neuron_step"] < 3.5
    assert result["loop_kept_bytes_per_neuron_step"] > 8
    assert result["peak_rss"] is None or result["peak_rss"] > 1e8

    printed = capsys.readouterr().out
    assert "scaled to" in printed and "ratio" in printed and machine["cpu"] in printed


def test_no_time_is_printed_for_wrong_results(monkeypatch, capsys):
    def fails(*arguments):
        raise CheckFailed("the backward pass is wrong")

    monkeypatch.setattr(bench.run, "check", fails)
    monkeypatch.setattr(bench.__main__, "run_alone", bench.run.run_case)  # where check is patched
    assert main(QUICK) == 1
    printed = capsys.readouterr()
    assert "step" not in printed.out and "ratio" not in printed.out
    assert "the backward pass is wrong" in printed.err


@pytest.mark.parametrize("spoiled", ["stack", "LoopNetwork"])
def test_the_check_notices(monkeypatch, spoiled):
    """A loop or a reference that differs a little is enough to refuse."""
    case = CASES[CASE].quick()
    input = bench.cases.poisson_input(case)
    model, _ = bench.cases.build_network(case, input)
    check(case, model, input)
    original = getattr(bench.check, spoiled)
    if spoiled == "stack":

        def off(spikes, plans, tensors):
            changed = [dataclasses.replace(plan, decay_syn=plan.decay_syn + 1e-4) for plan in plans]
            return original(spikes, changed, tensors)

    else:

        def off(network):
            with torch.no_grad():
                network[0].weight.mul_(1.001)
            return original(network)

    monkeypatch.setattr(bench.check, spoiled, off)
    with pytest.raises(CheckFailed, match="not timed"):
        check(case, model, input)


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["run", "conv-99"])
    assert "dense-recurrent" in capsys.readouterr().err


def test_the_list_names_every_case(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(CASES)


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
