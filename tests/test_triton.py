"""The Triton kernels in Triton's interpreter, on the CPU: logic, not speed or races.

Triton reads TRITON_INTERPRET when a kernel is defined, so these tests need a process of their own,
which `test_in_a_process_of_its_own` starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastlif import ops
from fastlif.ops.connection import conv_connection
from fastlif.spikes import PackedSpikes

from .cases import (
    CONV,
    DECAY_MEM,
    DECAY_SYN,
    DENSE,
    INHIBITION,
    POOLING,
    SKIPS,
    Case,
    build,
    layer_tensors,
    named_leaves,
)
from .compare import loss, relative, replay
from .targets import BY_NAME
from .test_pooling import WINDOWS
from .test_stack import PRECISIONS, check

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TARGET = BY_NAME["triton-interpreted"]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")

# Few steps: the interpreter takes milliseconds for every operation of a program.
RESIDENT = Case("resident", 35, 3, (23,), channels=(31, 17), readout="readout_trace")
PAIRS = Case("pairs", 7, 9, (12,), channels=(130, 20))
CONV1D = replace(CONV[0], n_steps=9, batch=2)
CONV2D = replace(CONV[3], n_steps=6)
DALIAN = replace(INHIBITION[1], n_steps=5)
INHIBITION_ONLY = replace(INHIBITION[2], n_steps=6)
DALIAN_CONV = replace(INHIBITION[4], n_steps=5)
POOLED = replace(POOLING[0], n_steps=4, batch=1)
POOLED_DALIAN = replace(POOLING[3], n_steps=5, batch=1)
SKIPS_POOLED = replace(SKIPS[2], n_steps=4, batch=1)
SKIPS_DALIAN = Case("skips-dalian", 33, 1, (9,), channels=(11, 8), inhibitory=(3, 2), skips=True)


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_in_a_process_of_its_own():
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@interpreted
@pytest.mark.parametrize(
    ("case", "detach_reset", "delay", "precision"),
    [
        (RESIDENT, True, 0, "float32-half"),
        (RESIDENT, False, 1, "float32-exact"),
        (replace(RESIDENT, n_steps=4), False, 0, "float32-half"),
        (replace(RESIDENT, n_steps=5), True, 1, "float32-half"),
        (replace(RESIDENT, n_steps=5), False, 0, "float64"),
        (PAIRS, True, 0, "float32-half"),
        (replace(PAIRS, n_steps=6), False, 1, "float32-exact"),
        (PAIRS, False, 0, "float32-half"),
        (PAIRS, True, 1, "float64"),
        (CONV1D, False, 0, "float32-half"),
        (CONV1D, True, 1, "float64"),
        (CONV2D, True, 0, "float32-exact"),
        (replace(CONV[2], n_steps=35, batch=1), False, 1, "float32-exact"),
        (replace(CONV[4], n_steps=5), False, 1, "float32-half"),
        (replace(CONV[5], n_steps=4), True, 0, "float32-half"),
        (DALIAN, True, 0, "float32-half"),
        (replace(DALIAN, n_steps=4), False, 1, "float32-exact"),
        (INHIBITION_ONLY, True, 1, "float32-half"),
        (DALIAN_CONV, False, 0, "float64"),
        (POOLED_DALIAN, False, 1, "float64"),
        (SKIPS_POOLED, True, 0, "float32-half"),
        (replace(SKIPS[0], n_steps=5), True, 1, "float64"),
        (DENSE[0], False, 1, "float32-half"),
        (DENSE[0], True, 0, "float64"),
        (DENSE[2], True, 0, "float32-exact"),
    ],
    ids=lambda item: item.name if isinstance(item, Case) else str(item),
)
def test_replay(case, detach_reset, delay, precision):
    dtype, exact, tolerance = PRECISIONS[precision]
    stack = build(case, detach_reset=detach_reset, delay=delay)
    check(replay(stack, dtype, exact=exact, target=TARGET), tolerance, case)


@interpreted
@pytest.mark.parametrize("case", [DENSE[1], CONV2D], ids=lambda case: case.name)
def test_input_that_is_not_binary(case):
    stack = build(case, binary=False)
    check(replay(stack, torch.float32, exact=True, target=TARGET), 1e-4, case)


def run(case, n_steps=None, *, packed=False, backend="triton", dtype=torch.float32):
    """Outputs and gradients of a case."""
    tensors = layer_tensors(case, dtype, dtype, state=True)
    input = PackedSpikes.pack(case.input.to(dtype)) if packed else case.input.to(dtype)
    result = ops.stack(input, case.plans, tensors, backend=backend)
    loss(result).backward()
    states = [s for state in result.states for s in state if s is not None]
    grads = [leaf.grad for leaf in named_leaves(tensors).values()]
    return [result.output, *result.spike_counts, *states], grads


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@interpreted
def test_packed_and_dense_input_give_the_same_bits():
    case = build(replace(RESIDENT, n_steps=33))
    dense, dense_grads = run(case)
    packed, packed_grads = run(case, packed=True)
    assert dense[1].sum() > 0
    assert same(dense, packed) and same(dense_grads, packed_grads)


@interpreted
@pytest.mark.parametrize(
    "case", [RESIDENT, replace(CONV[4], n_steps=35), SKIPS_DALIAN], ids=lambda c: c.name
)
def test_windows_of_steps_change_no_bit_forward(case, monkeypatch):
    from fastlif.ops.triton import products

    stack = build(case, detach_reset=False, delay=1)
    whole, whole_grads = run(stack)
    monkeypatch.setattr(products, "WORKSPACE", 1)
    parts, parts_grads = run(stack)
    assert products.window_steps(1000, 35) == 32
    assert whole[1].sum() > 0
    assert same(whole, parts)
    assert all(relative(a, b) < 1e-6 for a, b in zip(whole_grads, parts_grads, strict=True))


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("delay", [0, 1])
def test_scans_round_as_the_cpu_kernels_do(delay, dtype):
    generator = torch.Generator().manual_seed(4)
    current = torch.randn((35, 2, 5, 7), generator=generator).to(dtype) * 2 + 0.3
    for own, options in ((ops.lif, {"threshold": 0.8}), (ops.readout, {})):
        results = []
        for backend in ("cpu", "triton"):
            result = own(
                current, decay_mem=DECAY_MEM, decay_syn=DECAY_SYN, delay=delay, backend=backend,
                **options,
            )  # fmt: skip
            states = [s for s in result.states[0] if s is not None]
            results.append([result.output, *result.spike_counts, *states])
        assert results[0][0].abs().sum() > 0
        assert same(*results)


@interpreted
def test_nan_reaches_the_score_and_the_first_maximum_wins():
    current = torch.zeros(6, 1, 3)
    current[2, 0, 1] = float("nan")
    start = ops.LIFState(torch.tensor([[0.5, 0.0, 0.0]]), torch.zeros(1, 3))
    start.membrane.requires_grad_()
    result = ops.readout(current, decay_mem=0.9, decay_syn=0.8, state=start, backend="triton")
    score = result.output
    assert score[0, 0] == 0.5 and torch.isnan(score[0, 1]) and score[0, 2] == 0
    score[0, ::2].sum().backward()
    assert torch.equal(start.membrane.grad, torch.tensor([[1.0, 0.0, 1.0]]))


@interpreted
def test_a_distance_beyond_half_precision_saturates():
    current = torch.zeros(4, 1, 2)
    start = ops.LIFState(torch.tensor([[1e30, -1e30]], requires_grad=True))
    result = ops.lif(current, decay_mem=0.9, decay_syn=0.8, state=start, backend="triton")
    result.output.sum().backward()
    assert torch.isfinite(start.membrane.grad).all()
    assert (start.membrane.grad != 0).all()


@interpreted
@pytest.mark.parametrize("features", [(5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("n_steps", [1, 32, 45])
def test_packing_and_back(features, n_steps):
    from fastlif.ops.triton import pack

    dense = (torch.rand(n_steps, 3, *features) < 0.4).float()
    words, not_binary = pack.pack(dense)
    assert torch.equal(words, PackedSpikes.pack(dense).words) and not_binary.item() == 0
    back = pack.unpack(words, torch.full_like(dense, 7.0), 0, n_steps, features, user=True)
    assert torch.equal(back, dense)
    counts = torch.full(dense.shape[1:], -1.0)
    pack.count(words, counts, features)
    assert torch.equal(counts, dense.sum(0))
    dense.view(-1)[-1] = 0.5
    assert pack.pack(dense)[1].item() == 1


@interpreted
@pytest.mark.parametrize(
    ("window", "workspace"), [(WINDOWS[1], 1 << 20), (WINDOWS[2], 1), (WINDOWS[3], 1)], ids=str
)
def test_pooling_gradient_is_that_of_torch(window, workspace, monkeypatch):
    from fastlif.ops import dense
    from fastlif.ops.triton import pool, products

    monkeypatch.setattr(products, "WORKSPACE", workspace)
    kernel, stride, padding, dilation = window
    features = (3, 11, 10)
    link, pooled_features = conv_connection(
        features, 3, kernel=kernel, stride=stride, padding=padding, dilation=dilation
    )
    spikes = (torch.rand(34, 1, *features) < 0.1).double().requires_grad_()
    pooled = torch.nn.functional.max_pool2d(spikes.flatten(0, 1), *window)
    grad = torch.randn_like(pooled)
    pooled.backward(grad)
    words = PackedSpikes.pack(spikes.detach()).words
    flat = dense.to_flat(grad.unflatten(0, (34, 1)), pooled_features)
    ours = dense.to_user(pool.pool_backward(words, flat, link), features)
    assert torch.allclose(ours, spikes.grad, rtol=0, atol=1e-12)


@interpreted
def test_a_stack_may_end_with_pooling():
    case = build(POOLED)
    results = []
    for backend in ("reference", "triton"):
        tensors = layer_tensors(case, torch.float64, torch.float64, state=True)[:2]
        output = ops.stack(case.input, case.plans[:2], tensors, backend=backend).output
        output.mul(torch.arange(output.numel()).view_as(output)).sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in named_leaves(tensors).values())])
    assert 0 < results[0][0].mean() < 1
    assert all(relative(a, b) < 1e-12 for a, b in zip(*results, strict=True))


@interpreted
def test_half_a_weight_and_half_a_weight_are_the_weight():
    from fastlif.ops.triton.synapse import split_weight

    weight = torch.randn(300, 7) * torch.logspace(-20, 20, 7)
    weight[0, 3] = 0
    high, low, unscale = split_weight(weight)
    assert high.dtype == low.dtype == torch.float16
    back = (high.double() + low.double()) * unscale.double()
    error = (back - weight.double()).abs()
    assert (error <= 2.0**-22 * weight.abs().double() + 2.0**-38 * weight.abs().amax(0)).all()
    assert torch.equal(torch.log2(unscale), torch.log2(unscale).round())


def test_another_device_is_refused_with_the_reason():
    if INTERPRETED:
        pytest.skip("runs on the CPU here")
    with pytest.raises(ValueError, match="backend 'triton' needs a GPU"):
        ops.readout(torch.zeros(2, 1, 3), decay_mem=0.9, decay_syn=0.8, backend="triton")
