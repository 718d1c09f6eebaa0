"""Stacks that the listed cases do not have: pooling last or twice, skips from pooled layers."""

from __future__ import annotations

import pytest
import torch

from fastlif import ops
from fastlif.ops import reference
from fastlif.ops.connection import dense_connection
from fastlif.ops.plan import LayerPlan, LayerTensors

from .cases import POOLING, Stack, build
from .compare import replay


def pooled_twice() -> Stack:
    """Convolution, pooling, pooling of what was pooled, a readout that hears all of it."""
    base = build(POOLING[1])
    conv, pool = base.plans[:2]
    assert pool.feedforward is not None
    link = pool.feedforward
    height, width = (size // 2 for size in pool.shape[1:])
    again = LayerPlan(
        "max_pool",
        (pool.shape[0], height, width),
        type(link)(pool.shape, (pool.shape[0], height, width), (2, 2), (2, 2)),
    )
    sizes = [torch.Size(plan.features).numel() for plan in (again, conv, pool)]
    readout = LayerPlan(
        "readout_trace", (3,), dense_connection(again.features, 3),
        decay_mem=0.9, decay_syn=0.8, skips=(0, 1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(3, sum(sizes), generator=generator, dtype=torch.float64) / 20
    parameters = (*base.parameters[:2], LayerTensors(), LayerTensors(weight))
    return Stack((conv, pool, again, readout), parameters, base.input)


@pytest.mark.parametrize("n_layers", [3, 4], ids=["pooling-last", "skips-from-pooled-layers"])
def test_replay(target, n_layers):
    whole = pooled_twice()
    stack = Stack(whole.plans[:n_layers], whole.parameters[:n_layers], whole.input)
    found = replay(stack, torch.float32, exact=True, target=target)
    assert found.wrong_spikes == 0 and found.output_error < 1e-5
    assert found.worst[0] < 1e-4, found.worst
    assert 0.01 < found.firing[0] < 0.5


def test_without_gradients(target):
    """Nothing is kept for a backward pass, and the output is the same."""
    stack = pooled_twice()
    input = stack.input.to(target.device)
    tensors = [
        LayerTensors(*(None if t is None else t.to(target.device) for t in own))
        for own in stack.parameters
    ]
    with torch.no_grad():
        ours = ops.stack(input, stack.plans, tensors, backend=target.backend)
    theirs = reference.stack(stack.input, stack.plans, stack.parameters)
    assert theirs.spike_counts[0].sum() > 0
    assert torch.equal(ours.spike_counts[0].cpu(), theirs.spike_counts[0])
    assert torch.allclose(ours.output.cpu(), theirs.output, rtol=1e-12, atol=1e-12)
