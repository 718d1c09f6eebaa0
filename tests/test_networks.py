"""Several networks in one launch: each is bit for bit what it is alone, on every backend."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from fastlif import ops
from fastlif.ops.cuda import call
from fastlif.ops.networks import of_one_network, tensors_of_network
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState
from fastlif.spikes import PackedSpikes

from .cases import CONV, NETWORKS, POOLING, SKIPS, Case, build, layer_tensors, named_leaves
from .targets import BY_NAME, HERE, ready

PACKS = [
    *NETWORKS,
    Case("dense-sums", 40, 37, (40,), channels=(48, 20), networks=5),  # several groups of samples
    # Backward, blocks of the GPU kernels have four samples (4 + 3 of each network), and two.
    Case("dense-blocks", 34, 7, (23,), channels=(37, 16), networks=2),
    Case("dalian-blocks", 33, 3, (23,), channels=(21, 7), inhibitory=(5, 1), networks=2),
    replace(SKIPS[-1], networks=2),
    replace(CONV[3], networks=2),
    replace(POOLING[2], networks=3, shared_input=True),
]


def run(input, plans, tensors, backend, **options):
    """Everything a stack gives, and its gradients, of a loss that is a sum over samples."""
    tensors = [
        LayerTensors(*(leaf(t) if isinstance(t, torch.Tensor) else t for t in layer))._replace(
            state=None if layer.state is None else LIFState(*map(leaf, layer.state))
        )
        for layer in tensors
    ]
    given = leaf(input) if isinstance(input, torch.Tensor) else input
    result = ops.stack(given, plans, tensors, backend=backend, **options)
    states = [t for state in result.states for t in state if t is not None]
    outputs = [result.output, *result.spike_counts, *states]
    # Squares of what has a sign in float32: the gradient of each number depends on it alone.
    weights = [torch.arange(t.shape[-1], device=t.device) - 1.7 for t in outputs]
    sum((t * w).square().sum() for t, w in zip(outputs, weights, strict=True)).backward()
    grads = {name: tensor.grad for name, tensor in named_leaves(tensors).items()}
    if isinstance(given, torch.Tensor):
        grads["input"] = given.grad
    return outputs, grads


def leaf(tensor):
    return None if tensor is None else tensor.detach().clone().requires_grad_()


def grid():
    """Every case with input of both kinds, with and without states; half where that is slow."""
    for target in HERE:
        slow = target.name == "triton-interpreted"
        cases = NETWORKS if slow else PACKS
        for case, binary, state in itertools.product(cases, (True, False), (True, False)):
            if not slow or state == binary:
                name = f"{target.name}-{case.name}-{binary}-{state}"
                yield pytest.param(target, case, binary, state, id=name)


@pytest.mark.parametrize(("target", "case", "binary", "state"), list(grid()), indirect=["target"])
def test_each_network_is_bitwise_what_it_is_alone(target, case, binary, state):
    compare(target, case, binary, state)


def test_so_it_is_with_reduced_products():
    with ready(BY_NAME["emulated"]) as target:
        torch.set_float32_matmul_precision("high")
        try:
            for name in (CONV[3].name, "networks-dense", "networks-conv1d", "dense-blocks"):
                compare(target, named(name), binary=True, state=False)
        finally:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("name", "shared_bytes"),
    [("networks-dense", 5000), ("networks-conv1d", 12000), ("networks-dalian", 3000)],
)
def test_so_it_is_where_a_block_has_little_memory(monkeypatch, name, shared_bytes):
    """Products between launches, which are torch's, and input that is read where it lies."""
    with ready(BY_NAME["emulated"]) as target:
        monkeypatch.setattr(call, "EMULATED_SHARED_BYTES", shared_bytes)
        for state in (True, False):
            compare(target, named(name), binary=True, state=state)


@pytest.mark.parametrize("name", ["cpu", "emulated", "cuda"])
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float64, False), (torch.float32, True)])
def test_so_it_is_in_any_precision(name, dtype, exact):
    with ready(BY_NAME[name]) as target:
        for case in (named("dense-blocks"), named("networks-conv1d"), named("dalian-blocks")):
            compare(target, case, binary=True, state=False, dtype=dtype, exact_membrane=exact)


def named(name):
    """A case of PACKS."""
    return next(case for case in PACKS if case.name == name)


def compare(target, case, binary, state, dtype=torch.float32, **options):
    """A pack's outputs and gradients with those of each of its networks alone."""
    stack = build(case, binary=binary, delay=int(state))
    tensors = layer_tensors(stack, dtype, torch.float32, state=state, device=target.device)
    input = stack.input.to(target.device, dtype)
    outputs, grads = run(input, stack.plans, tensors, target.backend, **options)
    plans, n = of_one_network(stack.plans), case.networks
    assert outputs[0].abs().sum() > 0
    summed = torch.zeros_like(input)
    for network in range(n):
        own_input = input if case.shared_input else input.chunk(n, dim=1)[network]
        own = [tensors_of_network(layer, network, n) for layer in tensors]
        alone = (own_input.contiguous(), plans, own, target.backend)
        expected, expected_grads = run(*alone, **options)
        dims = [0 if case.readout == "readout_max" else 1, *[0] * (len(outputs) - 1)]
        for found, wanted, dim in zip(outputs, expected, dims, strict=True):
            assert torch.equal(found.chunk(n, dim)[network], wanted)
        for name, wanted in expected_grads.items():
            if name == "input":
                continue
            is_state = name.split(".")[1] in LIFState._fields
            found = grads[name].chunk(n)[network] if is_state else grads[name][network]
            assert torch.equal(found, wanted), name
        if case.shared_input:
            summed += expected_grads["input"]
        else:
            assert torch.equal(grads["input"].chunk(n, 1)[network], expected_grads["input"])
    if case.shared_input:
        assert torch.allclose(grads["input"], summed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_packed_input(shared):
    case = replace(NETWORKS[0], shared_input=shared)
    stack = build(case)
    tensors = layer_tensors(stack, torch.float32, torch.float32, state=False)
    dense = stack.input.float()
    packed = PackedSpikes.pack(dense)
    (outputs, grads), (expected, wanted) = (
        run(input, stack.plans, tensors, None) for input in (packed, dense)
    )
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert all(torch.equal(grads[name], wanted[name]) for name in grads)


def test_neurons_and_readouts_without_synapses(target):
    """Networks differ in nothing then but their samples."""
    plan = LayerPlan("lif", (7,), decay_mem=0.9, decay_syn=0.8)
    current = torch.randn(20, 6, 7, generator=torch.Generator().manual_seed(0)).to(target.device)
    expected = ops.stack(current, (plan,), (LayerTensors(),), backend=target.backend).output
    packed = replace(plan, networks=3)
    found = ops.stack(current, (packed,), (LayerTensors(),), backend=target.backend).output
    assert expected.sum() > 0 and torch.equal(found, expected)
    packed = replace(plan, networks=2, shared_input=True)
    found = ops.stack(current, (packed,), (LayerTensors(),), backend=target.backend).output
    assert torch.equal(found, torch.cat((expected, expected), 1))


def test_what_does_not_fit_is_refused():
    stack = build(NETWORKS[0])
    tensors = layer_tensors(stack, torch.float32, torch.float32, state=False)
    input = stack.input.float()
    with pytest.raises(ValueError, match="as many samples for each of 3 networks, got shape"):
        ops.stack(input[:, :-1], stack.plans, tensors)
    alone = [tensors_of_network(layer, 0, 3) for layer in tensors]
    with pytest.raises(ValueError, match=r"layer 0: weight must have shape \(3, 37, 23\), got"):
        ops.stack(input, stack.plans, alone)
    mixed = (stack.plans[0], *of_one_network(stack.plans)[1:])
    with pytest.raises(ValueError, match="layer 1 must be of 3 networks, as layer 0 is"):
        ops.stack(input, mixed, tensors)
    with pytest.raises(ValueError, match="networks must be 1 integers >= 1"):
        replace(stack.plans[0], networks=0)
