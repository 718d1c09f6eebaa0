"""Every operation against the float64 reference, by replay: spikes and all gradients."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch

from fastlif import ops

from .cases import CONV, DENSE, INHIBITION, NETWORKS, POOLING, SKIPS, Case, build
from .compare import Comparison, replay
from .targets import HERE, TARGETS

PRECISIONS = {
    "float64": (torch.float64, False, 1e-9),
    "float32-exact": (torch.float32, True, 1e-4),
    "float32-half": (torch.float32, False, 1e-3),
}
VARIANTS = [(True, 0), (True, 1), (False, 0), (False, 1)]
CASES = DENSE + CONV + INHIBITION + POOLING + SKIPS + NETWORKS


def check(found: Comparison, tolerance: float, case: Case) -> None:
    assert found.wrong_spikes == 0
    assert found.output_error < 1e-5
    error, name = found.worst
    assert error < tolerance, f"gradient of {name} is off by {error:.2e}"
    if case.n_steps >= 33:
        assert all(0.01 < rate < 0.5 for rate in found.firing), found.firing


def grid() -> Iterator[pytest.param]:
    """Every case in every variant and precision; in two of each where a thread is a function."""
    for target in HERE:
        every = list(itertools.product(VARIANTS, PRECISIONS))
        for index, case in enumerate(CASES):
            slow = target.name in ("emulated", "triton-interpreted")
            chosen = [every[(5 * index + k) % 12] for k in (0, 7)] if slow else every
            for (detach_reset, delay), precision in chosen:
                name = f"{target.name}-{case.name}-{detach_reset}-{delay}-{precision}"
                yield pytest.param(target, case, detach_reset, delay, precision, id=name)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_tested_here(target):
    if target.missing:
        pytest.skip(target.missing)


@pytest.mark.parametrize(
    ("target", "case", "detach_reset", "delay", "precision"), list(grid()), indirect=["target"]
)
def test_replay(target, case, detach_reset, delay, precision):
    dtype, exact, tolerance = PRECISIONS[precision]
    stack = build(case, detach_reset=detach_reset, delay=delay)
    check(replay(stack, dtype, exact=exact, target=target), tolerance, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay_input_that_is_not_binary(target, case):
    stack = build(case, binary=False)
    check(replay(stack, torch.float32, exact=True, target=target), 1e-4, case)


@pytest.mark.parametrize("case", [DENSE[-1], CONV[0]], ids=lambda case: case.name)
def test_replay_rescaled_surrogate(target, case):
    stack = build(case, rescale=True)
    assert stack.plans[0].surrogate_scale == 441.0
    check(replay(stack, torch.float32, exact=True, state=False, target=target), 1e-4, case)


@pytest.mark.parametrize("precision", ["float64", "float32-half"])
def test_replay_of_weights_larger_than_the_cache(precision):
    """The CPU kernels read these in another order, for more samples at a time; ragged groups."""
    dtype, exact, tolerance = PRECISIONS[precision]
    case = Case("dense-large", 9, 275, (100,), channels=(530, 515))
    found = replay(build(case), dtype, exact=exact)
    check(found, tolerance, case)
    assert all(0.01 < rate < 0.5 for rate in found.firing), found.firing


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set(isa):
    from fastlif import extension

    kernels = extension.load()
    if isa not in kernels.isa_names():
        pytest.skip(f"this processor has no {isa}")
    best = kernels.isa()
    try:
        kernels.select_isa(isa)
        assert kernels.isa() == isa
        for case in (
            DENSE[3],
            CONV[0],
            CONV[3],
            INHIBITION[1],
            INHIBITION[4],
            POOLING[1],
            SKIPS[1],
        ):
            check(replay(build(case), torch.float32), 1e-3, case)
            check(replay(build(case), torch.float32, exact=True), 1e-4, case)
            check(replay(build(case, binary=False), torch.float64), 1e-9, case)
    finally:
        kernels.select_isa(best)


@pytest.mark.parametrize(
    "case", [CONV[0], INHIBITION[1], POOLING[0], SKIPS[1]], ids=lambda case: case.name
)
def test_forward_is_bitwise_the_same_on_every_instruction_set(case):
    from fastlif import extension

    kernels = extension.load()
    best = kernels.isa()
    stack = build(case)
    from .cases import layer_tensors

    tensors = layer_tensors(stack, torch.float32, torch.float32, state=True)
    outputs = []
    try:
        for isa in kernels.isa_names():
            kernels.select_isa(isa)
            result = ops.stack(stack.input.float(), stack.plans, tensors)
            state = [tensor for tensor in result.states[0] if tensor is not None]
            outputs.append([result.output, *result.spike_counts, *state])
    finally:
        kernels.select_isa(best)
    assert outputs[0][1].sum() > 0
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))
