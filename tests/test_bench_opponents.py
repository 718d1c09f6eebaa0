"""The benchmark's opponents: each computes what it is said to compute, and the check can tell."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import pytest
import torch

import bench.opponents
from bench.cases import CASES
from bench.check import CheckFailed, check_opponent, check_slice, network_plans, network_tensors
from bench.networks import build_network, poisson_input
from bench.opponents import OPPONENTS
from bench.opponents.delayed import Constants
from bench.opponents.rule import Rule, trace, unfiltered_gain
from fastlif import Sequential
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

LIBRARIES = ("snntorch", "spikingjelly", "spikingjelly-lif", "norse")
SMALL = ("dense-recurrent", "randman", "layer-dense", "layer-conv1d", "shd-conv3")


@lru_cache
def prepared(name: str) -> tuple[bench.cases.Case, Sequential, PackedSpikes]:
    case = CASES[name].quick()
    input = poisson_input(case)
    model, _ = build_network(case, input)
    return case, model, input


def check_of(opponent: str, case_name: str):
    reason = OPPONENTS[opponent].missing()
    if reason is not None:
        pytest.skip(f"{opponent}: {reason}")
    case, model, input = prepared(case_name)
    return check_opponent(case, OPPONENTS[opponent], model, input)


@pytest.fixture
def eager_compiler(monkeypatch):
    """torch.compile without its C++: the same tracing, in a second instead of a minute."""
    original = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: original(f, backend="aot_eager", **options)
    )
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case", [*SMALL, "dalian-dense", "layer-conv2d"])
def test_the_loop_is_the_reference(case):
    result = check_of("loop", case)
    assert result.output_error < 1e-12 and result.gradient_error < 1e-12


@pytest.mark.parametrize("case", ["dense-recurrent", "dalian-dense"])
def test_the_compiled_loop_is_the_reference(case, eager_compiler):
    result = check_of("loop-compiled", case)
    assert result.wrong_spikes == 0 and result.gradient_error < 1e-4
    assert result.firing_ratios is None


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_compute_what_is_said_of_them(name, case):
    result = check_of(name, case)
    assert result.wrong_spikes == 0 and result.gradient_error < 1e-4
    ratios = result.firing_ratios
    assert (ratios is None) == (OPPONENTS[name].difference == "")
    assert ratios is None or all(1.0 < ratio < 4.0 for ratio in ratios)


def test_an_lstm_has_finite_gradients_and_no_spikes():
    result = check_of("lstm", "dense-recurrent")
    assert result.wrong_spikes is None and "gradient" in result.against


@pytest.mark.parametrize("field", ["decay_mem", "decay_syn", "threshold", "slope"])
@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_with_a_wrong_constant_is_refused(monkeypatch, name, field):
    """The scale of its currents as much as its own constants come from these."""
    right = Constants.of
    without = {("spikingjelly-lif", "decay_syn"): 3e-2, ("norse", "slope"): None}
    change = without.get((name, field), 1e-2)
    if change is None:
        pytest.skip("its slope cannot be chosen, which its difference says")

    def wrong(layer):
        constants = right(layer)
        value = getattr(constants, field)
        return dataclasses.replace(constants, **{field: value * (1.0 - change)})

    check_of(name, "dense-recurrent")
    monkeypatch.setattr(Constants, "of", wrong)
    with pytest.raises(CheckFailed, match="not timed"):
        check_of(name, "dense-recurrent")


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_answers_at_another_step_is_refused(monkeypatch, name):
    check_of(name, "dense-recurrent")
    case, model, _ = prepared("dense-recurrent")
    network = type(OPPONENTS[name].build(model))
    monkeypatch.setattr(network, "lag", network.lag + 1)
    with pytest.raises(CheckFailed, match="not timed"):
        check_of(name, "dense-recurrent")


@pytest.mark.parametrize("name", ["spikingjelly", "norse"])
def test_another_reset_is_not_taken_for_fastlifs(monkeypatch, name):
    """What the difference says is needed: without it the same spikes are wrong ones."""
    check_of(name, "dense-recurrent")
    changed = dataclasses.replace(OPPONENTS[name], rule=Rule())
    monkeypatch.setitem(OPPONENTS, name, changed)
    with pytest.raises(CheckFailed, match="wrong_spikes=[1-9]"):
        check_of(name, "dense-recurrent")


@pytest.mark.parametrize("name", ["loop", "loop-compiled"])
@pytest.mark.parametrize("part", ["decay_mem", "decay_syn", "slope"])
def test_a_loop_with_a_wrong_constant_is_refused(monkeypatch, eager_compiler, name, part):
    from bench.opponents import compiled, loop

    right = loop.step_constants

    def wrong(plan, like):
        constants = right(plan, like)
        if part == "slope":
            return constants._replace(slope=constants.slope * 0.99)
        decay_mem, decay_syn, other = constants.decays
        if part == "decay_mem":
            return constants._replace(decays=(decay_mem - 1e-3, decay_syn, other))
        return constants._replace(decays=(decay_mem, decay_syn - 1e-3, other))

    monkeypatch.setattr(loop, "step_constants", wrong)
    monkeypatch.setattr(compiled, "step_constants", wrong)
    with pytest.raises(CheckFailed, match="not timed"):
        check_of(name, "dense-recurrent")


def test_an_lstm_without_a_gradient_is_refused(monkeypatch):
    from bench.opponents.lstm import LSTMNetwork

    original = LSTMNetwork.emitted
    monkeypatch.setattr(
        LSTMNetwork, "emitted", lambda *given: [*(o.detach() for o in original(*given)[:-1]),
                                                original(*given)[-1].detach().requires_grad_()],
    )  # fmt: skip
    with pytest.raises(CheckFailed, match="gradients are wrong"):
        check_of("lstm", "dense-recurrent")


@pytest.mark.parametrize("case_name", ["dense-recurrent", "layer-conv2d", "shd-conv3"])
def test_the_rule_without_changes_is_the_reference(case_name):
    case, model, input = prepared(case_name)
    spikes = check_slice(case, input, torch.float64)
    plans = network_plans(model, input)
    tensors = network_tensors(model.double(), spikes.shape[1])
    free = stack_trace(spikes, plans, tensors)
    ruled = trace(Rule(), plans, tensors, spikes, free.spikes)
    torch.testing.assert_close(ruled.emitted[-1], free.result.output, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(ruled.membranes, free.membranes, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    model.float()


def test_unfiltered_currents_give_as_large_fluctuations():
    """By hand: the norms of the two responses to a spike."""
    decay_mem, decay_syn = 0.9, 0.8
    response = filtered = current = 0.0
    norms = [0.0, 0.0]
    for step in range(400):
        current = decay_syn * current + (step == 0)
        filtered = decay_mem * filtered + current
        response = decay_mem * response + (step == 0)
        norms = [norms[0] + filtered**2, norms[1] + response**2]
    assert unfiltered_gain(decay_mem, decay_syn) == pytest.approx((norms[0] / norms[1]) ** 0.5)


def test_every_difference_is_stated():
    for opponent in OPPONENTS.values():
        same = opponent.rule is not None and opponent.rule.is_fastlif
        assert same == (opponent.difference == "")
        assert same or "work" in opponent.difference


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(bench.opponents.importlib.util, "find_spec", lambda name: None)
    assert OPPONENTS["norse"].missing() == "not installed: norse, nir, nirtorch"
    assert OPPONENTS["loop"].missing() is None


def test_layers_that_an_opponent_cannot_express():
    _, model, input = prepared("dalian-dense")
    plans = network_plans(model, input)
    assert OPPONENTS["loop"].refuses(plans) is None
    assert "inhibitory" in str(OPPONENTS["snntorch"].refuses(plans))
    _, model, input = prepared("layer-conv1d")
    assert "convolutions" in str(OPPONENTS["lstm"].refuses(network_plans(model, input)))
