"""The raw operations under torch's own checks, torch.compile and torch.func."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastlif
from fastlif import ops
from fastlif.ops import cpu, registration
from fastlif.ops.encoding import encode
from fastlif.ops.engines import ENGINES
from fastlif.ops.layout import GRADS_PER_LAYER, StackOutputs
from fastlif.spikes import PackedSpikes

from .cases import CONV, DENSE, INHIBITION, NETWORKS, SKIPS, build, layer_tensors

CASES = [DENSE[-1], CONV[1], CONV[3], INHIBITION[1], SKIPS[-1], *NETWORKS[:2]]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def raw_arguments(case, *, delay=0, packed=False, exact=False, device="cpu"):
    stack = build(case, delay=delay)
    tensors = layer_tensors(stack, torch.float32, torch.float32, state=True, device=device)
    input = stack.input.float().to(device)
    given = PackedSpikes.pack(input).words if packed else input
    flat = [t.detach() for layer in tensors for t in registration.flat_tensors(layer, input)]
    ints, floats = encode(stack.plans)
    return (given, flat, ints, floats, list(input.shape), torch.float32, exact, "auto", True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_opcheck(case, delay, packed, device):
    arguments = raw_arguments(case, delay=delay, packed=packed, device=device)
    torch.library.opcheck(torch.ops.fastlif.stack_forward.default, arguments)
    input, flat, *options, _ = arguments
    outputs = StackOutputs.grouped(torch.ops.fastlif.stack_forward(*arguments))
    saved = outputs.saved().flat()
    none = torch.empty(0, device=device)
    needs = [not packed, *(t.numel() > 0 for t in flat)]
    torch.library.opcheck(
        torch.ops.fastlif.stack_backward.default,
        (
            torch.ones_like(outputs.output), [none] * (GRADS_PER_LAYER * len(outputs.layers)),
            input, flat, saved,
            *options, needs,
        ),
    )  # fmt: skip


def model() -> torch.nn.Module:
    torch.manual_seed(2)
    return fastlif.Sequential(
        fastlif.LIFConv1d(2, 16, 5, stride=2, recurrent=True),
        fastlif.LIFConv1d(16, 20, 3),
        fastlif.LIReadout(20 * 11, 4),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dynamic", [False, None, True])
def test_compile(dynamic, device):
    network = model().to(device)
    compiled = torch.compile(network, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for steps, batch in ((40, 3), (50, 4)):
        spikes = (torch.rand(steps, batch, 2, 30) < 0.3).float().to(device).requires_grad_()
        expected = network(spikes)
        grads = torch.autograd.grad(expected.square().sum(), [spikes, *network.parameters()])
        found = compiled(spikes)
        compiled_grads = torch.autograd.grad(found.square().sum(), [spikes, *network.parameters()])
        assert expected.abs().sum() > 0
        assert torch.equal(found, expected)
        assert all(torch.equal(a, b) for a, b in zip(grads, compiled_grads, strict=True))


def test_functional_gradient():
    network = model()
    spikes = (torch.rand(40, 3, 2, 30) < 0.3).float()
    parameters = dict(network.named_parameters())

    def loss(parameters):
        return torch.func.functional_call(network, parameters, (spikes,)).square().sum()

    grads = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in parameters.items():
        assert parameter.grad.abs().sum() > 0
        assert torch.equal(grads[name], parameter.grad)


def test_kept_bytes_per_neuron_step():
    """2 bytes of distance to threshold and one bit, counted through autograd's saved tensors."""
    layers = [ops.dense_connection((64,), 128)]
    plan = ops.LayerPlan("lif", (128,), layers[0], (1, 1), decay_mem=0.9, decay_syn=0.8)
    weight = torch.randn(128, 64, requires_grad=True)
    own = torch.zeros(128, 128, requires_grad=True)
    spikes = PackedSpikes.pack((torch.rand(320, 4, 64) < 0.1).float())
    sizes = {}

    def count(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        result = ops.stack(spikes, (plan,), (ops.LayerTensors(weight, None, own),))
    given = {t.data_ptr() for t in (weight, own, spikes.words)}
    kept = sum(size for address, size in sizes.items() if address not in given)
    assert result.output.requires_grad
    assert 2.1 < kept / (320 * 4 * 128) < 2.2


def test_dense_binary_input_is_kept_as_bits():
    plan = ops.LayerPlan("lif", (8,), ops.dense_connection((512,), 8), decay_mem=0.9, decay_syn=0.8)
    weight = torch.randn(8, 512, requires_grad=True)
    spikes = (torch.rand(64, 4, 512) < 0.1).float()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (sizes.append(t.numel() * t.element_size()), t)[1], lambda t: t
    ):
        ops.stack(spikes, (plan,), (ops.LayerTensors(weight),))
    assert sum(sizes) < spikes.numel()  # a quarter of the float tensor, weights included


def test_nothing_is_kept_without_gradients(monkeypatch):
    kept = []
    forward = cpu.forward

    def spy(*args, keep, **kwargs):
        kept.append(keep)
        return forward(*args, keep=keep, **kwargs)

    monkeypatch.setitem(ENGINES, "cpu", replace(ENGINES["cpu"], forward=spy))
    network = model()
    spikes = (torch.rand(10, 2, 2, 30) < 0.3).float()
    with torch.no_grad():
        network(spikes)
    network(spikes)
    assert kept == [False, True]


def test_missing_extension_names_the_reason(monkeypatch):
    from fastlif import extension

    monkeypatch.setattr(extension, "_import", lambda name: ImportError("no such file"))
    by_name = {backend.name: backend for backend in fastlif.backends()}
    for name in ("cpu", "cuda"):
        assert not by_name[name].available and "no such file" in by_name[name].detail
    assert by_name["reference"].available
    network = fastlif.LIFLinear(4, 3)
    spikes = torch.ones(5, 2, 4)
    with pytest.raises(RuntimeError, match="no such file.*C\\+\\+17 compiler"):
        network(spikes)
    network.backend = "reference"
    assert network(spikes).shape == (5, 2, 3)


def test_memory_for_backward_is_used_again_and_released():
    from fastlif import extension

    kernels = extension.load()
    layer = fastlif.LIFLinear(8, 512, recurrent=True)
    spikes = (torch.rand(320, 32, 8) < 0.3).float()

    def step() -> torch.Tensor:
        layer.zero_grad()
        layer(spikes).mean().backward()
        return layer.weight.grad.clone()

    fastlif.release_memory()
    first = step()
    held = kernels.pooled_bytes()
    assert held >= 320 * 32 * 512 * 2
    assert torch.equal(step(), first)
    assert kernels.pooled_bytes() == held  # the second step took what the first gave back
    fastlif.release_memory()
    assert kernels.pooled_bytes() == 0


def test_second_derivatives_are_refused():
    layer = fastlif.LIFLinear(4, 3)
    spikes = (torch.rand(20, 2, 4) < 0.5).float().requires_grad_()
    (grad,) = torch.autograd.grad(layer(spikes).sum(), spikes, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()
