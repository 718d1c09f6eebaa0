"""What the GPU kernels promise beside being right: the CPU's bits forward, the same bits again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastlif import ops
from fastlif.ops.connection import conv_connection
from fastlif.ops.cuda import call
from fastlif.ops.encoding import encode
from fastlif.ops.plan import Inhibition, LayerPlan, LayerTensors
from fastlif.spikes import PackedSpikes

from .cases import (
    CONV,
    DENSE,
    INHIBITION,
    NETWORKS,
    POOLING,
    SKIPS,
    Stack,
    build,
    layer_tensors,
    named_leaves,
)
from .compare import loss, relative, replay
from .emulation import emulated_cuda, order_of_threads
from .targets import HERE, Target, emulated

CASES = [DENSE[3], DENSE[4], CONV[0], CONV[1], CONV[3]]
DALIAN = [INHIBITION[1], INHIBITION[3]]
GPU = [t for t in HERE if t.name in ("emulated", "cuda", "triton")]
IDS = {"ids": lambda item: item.name}


def run(
    case: Stack, target: Target, dtype: torch.dtype = torch.float32, packed: bool = False
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Everything a stack returns, and all gradients of a loss over it, on the CPU."""
    tensors = layer_tensors(case, dtype, dtype, state=True, device=target.device)
    input = case.input.to(target.device, dtype, copy=True).requires_grad_(not packed)
    given = input
    if packed:
        given = PackedSpikes.pack(case.input.to(dtype)).to(target.device)
    result = ops.stack(given, case.plans, tensors, backend=target.backend)
    loss(result).backward()
    states = [s for state in result.states for s in state if s is not None]
    outputs = [result.output, *result.spike_counts, *states]
    grads = {name: leaf.grad.cpu() for name, leaf in named_leaves(tensors).items()}
    if not packed:
        grads["input"] = input.grad.cpu()
    return [t.detach().cpu() for t in outputs], grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", [*CASES, *DALIAN], **IDS)
@pytest.mark.parametrize("target", [t for t in GPU if t.name != "triton"], indirect=True, **IDS)
def test_forward_is_bitwise_that_of_the_cpu(target, case, dtype):
    stack = build(case, delay=1 if case in (CONV[1], INHIBITION[3]) else 0)
    ours, _ = run(stack, target, dtype)
    theirs, _ = run(stack, Target("cpu", "cpu"), dtype)
    assert theirs[1].sum() > 0
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("case", [*CASES[1:4], INHIBITION[3], SKIPS[2]], **IDS)
@pytest.mark.parametrize("target", GPU, indirect=True, **IDS)
def test_packed_and_dense_input_give_the_same_bits_every_time(target, case):
    stack = build(case)
    outputs, grads = run(stack, target)
    assert outputs[1].sum() > 0
    for packed in (False, True):
        again, grads_again = run(stack, target, packed=packed)
        assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
        assert all(torch.equal(grads[name], grads_again[name]) for name in grads_again)


@pytest.mark.parametrize("case", [CONV[0], DENSE[4]], **IDS)
@pytest.mark.parametrize("target", GPU, indirect=True, **IDS)
def test_small_shared_memory_splits_the_stack(target, case, monkeypatch):
    """Layers in launches of their own give the same spikes, and gradients but for rounding."""
    if target.name == "triton":
        pytest.skip("has no segments")
    whole, grads = run(build(case), target)
    monkeypatch.setattr(call, "EMULATED_SHARED_BYTES", 24 * 1024)
    monkeypatch.setattr(call, "device_shared_bytes", lambda index: 24 * 1024)
    kernels_split, split_grads = run(build(case), target)
    assert all(torch.equal(a, b) for a, b in zip(whole, kernels_split, strict=True))
    for name, grad in grads.items():
        assert relative(split_grads[name], grad) < 1e-5


@pytest.mark.parametrize(
    "case",
    [DENSE[2], CONV[0], CONV[4], INHIBITION[1], POOLING[3], SKIPS[1], NETWORKS[1]],
    **IDS,
)
def test_no_race_in_any_order_of_threads(case):
    """The emulation watches every access, and runs threads and blocks in other orders."""
    kernels = emulated_cuda(find_races=True)
    differentiated, delayed = case in (CONV[0], POOLING[3]), case in (CONV[4], INHIBITION[1])
    stack = build(case, detach_reset=not differentiated, delay=int(delayed))
    target = Target("emulated", "cpu")
    found = []
    with emulated(kernels):
        for seed in (0, 1, 2):
            with order_of_threads(kernels, seed):
                found.append(run(stack, target))
    for outputs, grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs, found[0][0], strict=True))
        assert all(torch.equal(grads[name], found[0][1][name]) for name in grads)


@pytest.mark.parametrize("channels", [4, 5, 8, 12])
def test_what_is_accepted_can_be_launched(channels, monkeypatch):
    """A layer that just fits by the segments' account fits the launch, counts included."""
    kernels = emulated_cuda()
    link, features = conv_connection(
        (1, 6, 6), channels, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)
    )
    plan = LayerPlan("lif", features, link, (3, 3), decay_mem=0.9, decay_syn=0.8)
    code = kernels.Plan(*encode([plan]))

    def fits(shared_bytes: int) -> bool:
        try:
            kernels.forward_segments(code, 1, shared_bytes)
            kernels.backward_segments(code, 1, shared_bytes)
        except ValueError:
            return False
        return True

    smallest = next(size for size in range(1024, 65536, 16) if fits(size))
    monkeypatch.setattr(call, "EMULATED_SHARED_BYTES", smallest)
    weight = torch.randn(channels, 1, 3, 3, requires_grad=True)
    own = (torch.randn(channels, channels, 3, 3) * 0.1).requires_grad_()
    tensors = [LayerTensors(weight, None, own)]
    spikes = (torch.rand(7, 3, 1, 6, 6) < 0.3).float()
    with emulated(kernels):
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            try:
                result = ops.stack(spikes, [plan], tensors, exact_membrane=True, backend="emulated")
                (result.output.sum() + result.spike_counts[0].pow(2).sum()).backward()
            finally:
                torch.set_float32_matmul_precision("highest")
    assert result.output.sum() > 0 and own.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(5, 6, 6), (12, 1, 1)], ids=str)
def test_inhibition_that_is_accepted_can_be_launched(shape, monkeypatch):
    """Likewise a layer with inhibition, which at the least reads its input from global memory."""
    kernels = emulated_cuda()
    channels, height, width = shape
    side = (3, 3) if height > 1 else (1, 1)
    link, features = conv_connection(
        (7, height, width), channels, kernel=side, stride=(1, 1),
        padding=(side[0] // 2, side[1] // 2), dilation=(1, 1),
    )  # fmt: skip
    own = Inhibition(2, side, 0.8, 0.9, 0.7, 0.85)
    plan = LayerPlan("lif", features, link, side, decay_mem=0.9, decay_syn=0.8, inhibition=own)
    code = kernels.Plan(*encode([plan]))

    def fits(find: Callable[..., object], shared_bytes: int) -> bool:
        try:
            find(code, 1, shared_bytes)
        except ValueError:
            return False
        return True

    def smallest(find: Callable[..., object]) -> int:
        return next(size for size in range(256, 65536, 16) if fits(find, size))

    least = smallest(kernels.forward_segments)
    assert least > smallest(kernels.backward_segments)
    spikes = (torch.rand(40, 5, 7, height, width) < 0.3).float()
    shapes = (channels, 7, *side), (channels, channels - 2, *side), (channels, 2, *side)
    given = [8 * torch.rand(shape) / sum(shape) for shape in shapes]
    found = []
    for shared_bytes in (call.EMULATED_SHARED_BYTES, least):
        monkeypatch.setattr(call, "EMULATED_SHARED_BYTES", shared_bytes)
        weights = [weight.clone().requires_grad_() for weight in given]
        tensors = [LayerTensors(weights[0], None, weights[1], None, weights[2])]
        with emulated(kernels):
            result = ops.stack(spikes, [plan], tensors, exact_membrane=True, backend="emulated")
            (result.output.sum() + result.spike_counts[0].pow(2).sum()).backward()
        assert result.spike_counts[0][:, -2:].sum() > 0  # inhibitory neurons too
        found.append([result.output.detach(), *(weight.grad for weight in weights)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="bytes of shared memory"):
        kernels.forward_segments(code, 1, least - 16)


@pytest.mark.parametrize("case", CASES, **IDS)
@pytest.mark.parametrize("target", GPU, indirect=True, **IDS)
def test_reduced_products_change_gradients_a_little(target, case):
    """TF32 keeps 10 bits: errors above those of float32, and below what 10 bits allow."""
    errors = []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            found = replay(build(case), torch.float32, exact=True, target=target)
        finally:
            torch.set_float32_matmul_precision("highest")
        assert found.wrong_spikes == 0 or target.name == "triton"
        errors.append(found.worst[0])
    assert errors[0] < 1e-4
    assert 1e-5 < errors[1] < 3e-3
