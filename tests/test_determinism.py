"""Bitwise promises: threads, batch splits, chunks of a sequence, packed against dense input."""

from __future__ import annotations

import pytest
import torch

from fastlif import ops
from fastlif.spikes import PackedSpikes

from .cases import (
    CONV,
    DENSE,
    INHIBITION,
    NETWORKS,
    POOLING,
    SKIPS,
    Case,
    build,
    layer_tensors,
    named_leaves,
)
from .compare import loss

CASES = [
    Case("dense", 40, 37, (40,), channels=(48, 20)),
    Case("conv1d", 40, 19, (1, 60), ((9,), (3,)), (16, 20), (3,), recurrent=(5,)),
    CONV[3],
    Case("dalian", 40, 19, (40,), channels=(53, 20), inhibitory=(12, 4)),
    Case(
        "dalian-conv1d", 40, 17, (1, 60), ((9,), (3,)), (20, 24), (3,), recurrent=(5,),
        inhibitory=(5, 8), inhibitory_kernel=(3,),
    ),
    POOLING[1],
    SKIPS[-1],
]  # fmt: skip
FEW = [CASES[0], CASES[1], CASES[3]]


def run(case, samples=slice(None), *, threads=2, dtype=torch.float32, packed=False):
    """Outputs, input gradient and parameter gradients of some samples of a case."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        tensors = layer_tensors(case, dtype, dtype, state=False)
        input = case.input[:, samples].to(dtype).clone().requires_grad_(not packed)
        given = PackedSpikes.pack(input) if packed else input
        result = ops.stack(given, case.plans, tensors)
        # Of every sample alone: a loss over the batch would add its samples in another order.
        (result.output.sum() + sum(c.pow(2).sum() for c in result.spike_counts)).backward()
    finally:
        torch.set_num_threads(before)
    forward = [
        result.output,
        *result.spike_counts,
        *(s for state in result.states for s in state if s is not None),
    ]
    grads = {name: leaf.grad for name, leaf in named_leaves(tensors).items()}
    return [t.detach() for t in forward], input.grad, grads


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("case", CASES + NETWORKS, ids=lambda case: case.name)
def test_any_number_of_threads(case, binary):
    stack = build(case, binary=binary)
    one, two, three = (run(stack, threads=n) for n in (1, 2, 3))
    assert one[0][1].sum() > 0
    for other in (two, three):
        assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))
        assert torch.equal(one[1], other[1])
        assert all(torch.equal(one[2][name], other[2][name]) for name in one[2])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_split_of_the_batch(case, binary):
    stack = build(case, binary=binary)
    whole = run(stack)
    batch = stack.input.shape[1]
    for cuts in ([0, 1, batch], [0, batch // 2, batch]):
        parts = [run(stack, slice(a, b)) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if a < b]
        assert torch.equal(torch.cat([p[0][0] for p in parts]), whole[0][0])
        assert torch.equal(torch.cat([p[1] for p in parts], dim=1), whole[1])


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_packed_input_equals_dense(case):
    stack = build(case)
    dense, packed = run(stack), run(stack, packed=True)
    assert all(torch.equal(a, b) for a, b in zip(dense[0], packed[0], strict=True))
    assert all(torch.equal(dense[2][name], packed[2][name]) for name in dense[2])


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("cuts", [(0, 1, 40), (0, 32, 40), (0, 7, 20, 40)])
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_chunks_of_a_sequence(case, cuts, delay):
    stack = build(case, delay=delay)
    plans, parameters = (
        stack.plans[:-1],
        layer_tensors(stack, torch.float32, torch.float32, state=False)[:-1],
    )
    input = stack.input.float()
    whole = ops.stack(input, plans, parameters)
    states = [None] * len(plans)
    outputs, counts = [], 0
    for start, end in zip(cuts[:-1], cuts[1:], strict=True):
        tensors = [t._replace(state=s) for t, s in zip(parameters, states, strict=True)]
        part = ops.stack(input[start:end], plans, tensors)
        states = list(part.states)
        outputs.append(part.output)
        counts = counts + part.spike_counts[0]
    assert 0.01 < whole.output.mean() < 0.5
    assert torch.equal(torch.cat(outputs), whole.output)
    assert torch.equal(counts, whole.spike_counts[0])
    for ours, theirs in zip(states, whole.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None)


@pytest.mark.parametrize("case", [DENSE[-1], INHIBITION[0]], ids=lambda case: case.name)
def test_gradients_through_chunks_equal_the_whole(case):
    stack = build(case)
    grads = []
    for cuts in ((0, 70), (0, 33, 70)):
        tensors = layer_tensors(stack, torch.float64, torch.float64, state=False)
        states = [None] * len(tensors)
        scores = []
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            given = [t._replace(state=s) for t, s in zip(tensors, states, strict=True)]
            part = ops.stack(stack.input[start:end], stack.plans[:-1], given[:-1])
            states = [*part.states, None]
            scores.append(part.output)
        weights = torch.linspace(-1, 1, 70, dtype=torch.float64).view(-1, 1, 1)
        (torch.cat(scores) * weights).sum().backward()
        grads.append([leaf.grad for leaf in named_leaves(tensors[:-1]).values()])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", [CASES[1], *CASES[3:]], ids=lambda case: case.name)
def test_outputs_are_fully_written(case):
    """Two runs into memory full of other values agree: nothing is read or left unwritten."""
    stack = build(case)
    first = run(stack)
    poison = [torch.full((1 << 18,), float("nan")) for _ in range(8)]
    del poison
    second = run(stack)
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert all(torch.equal(first[2][name], second[2][name]) for name in first[2])


def test_seeds_give_different_networks():
    """The comparisons above compare something."""
    values = []
    for seed in (0, 1):
        stack = build(CASES[0], seed=seed)
        tensors = layer_tensors(stack, torch.float32, torch.float32, state=False)
        values.append(loss(ops.stack(stack.input.float(), stack.plans, tensors)).detach())
    assert values[0] != values[1]
