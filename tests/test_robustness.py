"""Extreme values, partial gradients, odd memory layouts: what must not go wrong in silence."""

from __future__ import annotations

import pytest
import torch

from fastlif import extension, ops
from fastlif.ops.connection import dense_connection
from fastlif.ops.plan import Inhibition, LayerPlan, LayerTensors, LIFState
from fastlif.spikes import PackedSpikes

from .cases import DENSE, INHIBITION, Case, Stack, build, layer_tensors, named_leaves
from .compare import loss, relative, replay

DECAYS = {"decay_mem": 0.9, "decay_syn": 0.8}


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def isa(request: pytest.FixtureRequest):
    kernels = extension.load()
    if request.param not in kernels.isa_names():
        pytest.skip(f"this processor has no {request.param}")
    best = kernels.isa()
    kernels.select_isa(request.param)
    yield request.param
    kernels.select_isa(best)


@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("exact_membrane", [True, False])
@pytest.mark.parametrize("scale", [1e6, 1e20])
def test_huge_membranes_give_finite_gradients(isa, scale, exact_membrane, detach_reset):
    current = torch.full((6, 1, 20), scale, requires_grad=True)
    result = ops.lif(current, **DECAYS, detach_reset=detach_reset, exact_membrane=exact_membrane)
    assert result.output.sum() > 0
    result.output.sum().backward()
    assert torch.isfinite(current.grad).all()


def test_a_broken_sample_leaves_the_others_alone():
    current = torch.randn(12, 20, 3, 6).mul(3.0).requires_grad_()
    result = ops.lif(current, **DECAYS, recurrent_weight=torch.randn(3, 3, 3))
    grad = torch.ones_like(result.output)
    grad[-1, 4, 0, 0] = float("nan")
    result.output.backward(grad)
    broken = ~torch.isfinite(current.grad).flatten(2).all(2).all(0)
    assert broken.nonzero().flatten().tolist() == [4]


def test_a_broken_sample_leaves_those_that_follow_alone():
    """The second layer's pads are where the first one's broken neuron was."""
    case = build(Case("broken", 40, 9, (12,), channels=(31, 20)))
    tensors = layer_tensors(case, torch.float32, torch.float32, state=False)
    membrane = torch.zeros(9, 31)
    membrane[7, 25] = float("nan")
    tensors[0] = tensors[0]._replace(state=LIFState(membrane))
    input = case.input.float().requires_grad_()
    ops.stack(input, case.plans, tensors).output.sum().backward()
    broken = ~torch.isfinite(input.grad).all(2).all(0)
    assert broken.nonzero().flatten().tolist() == [7]


def test_the_first_nan_of_a_readout_gets_the_gradient():
    steps = []
    for backend in (None, "reference"):
        current = torch.zeros(8, 1, 1)
        current[2] = float("nan")
        state = LIFState(torch.zeros(1, 1, requires_grad=True))
        score = ops.readout(current, **DECAYS, state=state, backend=backend).output
        score.sum().backward()
        steps.append(state.membrane.grad)
    assert torch.equal(*steps) and steps[0] > 0


def test_pending_current_without_delay_is_refused():
    state = LIFState(torch.zeros(2, 3), None, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="pending_current must be None with delay 0"):
        ops.lif(torch.zeros(5, 2, 3), **DECAYS, state=state)
    with pytest.raises(TypeError, match="state must be a LIFState, got tuple"):
        ops.lif(torch.zeros(5, 2, 3), **DECAYS, state=(torch.zeros(2, 3),))


def test_map_sizes_have_a_limit_that_is_named():
    with pytest.raises(ValueError, match="at most 65535 channels.*70000"):
        ops.linear(torch.zeros(2, 1, 70000), torch.zeros(1, 70000))
    with pytest.raises(ValueError, match="stride must be 2 integers >= 1"):
        ops.conv1d(torch.zeros(2, 1, 3, 9), torch.zeros(4, 3, 3), stride=0)


@pytest.mark.parametrize(
    ("wanted", "inhibitory"),
    [
        ("input", ()),
        ("0.weight", ()),
        ("0.recurrent_weight", ()),
        ("1.bias", ()),
        ("2.weight", ()),
        ("input", (6, 4)),
        ("0.weight", (6, 4)),
        ("0.recurrent_weight", (6, 4)),
        ("0.inhibitory_weight", (6, 4)),
        ("1.weight", (6, 4)),
    ],
)
def test_gradients_of_some_tensors_only(wanted, inhibitory):
    case = build(Case("part", 40, 6, (30,), channels=(24, 20), inhibitory=inhibitory))
    parameters = case.parameters[1]  # without a bias: it gets one
    assert parameters.bias is None
    stack_case = case.__class__(
        case.plans,
        (case.parameters[0], parameters._replace(bias=torch.zeros(20)), case.parameters[2]),
        case.input,
    )
    grads = []
    for everything in (True, False):
        tensors = layer_tensors(stack_case, torch.float64, torch.float64, state=False)
        input = stack_case.input.clone().requires_grad_()
        leaves = named_leaves(tensors) | {"input": input}
        for name, leaf in leaves.items():
            leaf.requires_grad_(everything or name == wanted)
        loss(ops.stack(input, stack_case.plans, tensors)).backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves.values())
        grads.append(leaves[wanted].grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(*grads)


@pytest.mark.parametrize("part", ["output", "counts", "states"])
@pytest.mark.parametrize(
    "case", [DENSE[-1], INHIBITION[1], INHIBITION[3]], ids=lambda case: case.name
)
def test_losses_on_a_part_of_what_spiking_layers_give(case, part):
    case = build(case)
    grads = []
    for backend in (None, "reference"):
        tensors = layer_tensors(case, torch.float64, torch.float64, state=False)
        result = ops.stack(case.input, case.plans[:-1], tensors[:-1], backend=backend)
        counts = sum(c.pow(2).sum() for c in result.spike_counts)
        states = sum(s.membrane.sum() + s.synaptic_current.pow(2).sum() for s in result.states)
        weights = torch.linspace(-1, 1, result.output.numel(), dtype=torch.float64)
        output = (result.output.flatten() * weights).sum()
        {"output": output, "counts": counts, "states": states}[part].backward()
        grads.append([layer.weight.grad for layer in tensors[:-1]])
    for ours, theirs in zip(*grads, strict=True):
        assert theirs.abs().sum() > 0 and relative(ours, theirs) < 1e-10


@pytest.mark.parametrize("inhibitory", [(), (5, 4)])
def test_large_batches_against_the_reference(inhibitory):
    """More samples than one group of weight gradients holds, and a remainder."""
    case = Case("batch", 33, 141, (12,), channels=(16, 20), inhibitory=inhibitory)
    found = replay(build(case), torch.float64)
    assert found.wrong_spikes == 0 and found.worst[0] < 1e-9


@pytest.mark.parametrize("features", [(41,), (20, 9)])
def test_inhibition_without_synapses_before_it(features):
    """A layer that takes a current, of all its neurons, and is the last of its stack."""
    generator = torch.Generator().manual_seed(5)
    kernel = (1, 1) if len(features) == 1 else (1, 3)
    plan = LayerPlan(
        "lif", features, None, kernel, **DECAYS,
        inhibition=Inhibition(7, kernel, 0.85, 0.92, 0.75, 0.7),
    )  # fmt: skip
    n = features[0]
    own, inhibitory = (
        torch.rand(n, sources, *kernel[3 - len(features) :], generator=generator).double() / 4
        for sources in (n - 7, 7)
    )
    current = 4.0 * torch.rand(40, 3, *features, generator=generator, dtype=torch.float64)
    tensors = LayerTensors(recurrent_weight=own, inhibitory_weight=inhibitory)
    found = replay(Stack((plan,), (tensors,), current), torch.float64)
    assert found.wrong_spikes == 0 and found.worst[0] < 1e-9 and found.output_error < 1e-9
    assert 0.01 < found.firing[0] < 0.5


def test_memory_layouts_of_the_input():
    case = build(Case("layout", 40, 6, (3, 30), ((5,), (3,)), (16, 20), (2,)))
    tensors = layer_tensors(case, torch.float32, torch.float32, state=False)
    spikes = case.input.float()
    expected = ops.stack(spikes, case.plans, tensors).output
    assert expected.abs().sum() > 0
    batch_first = spikes.transpose(0, 1).contiguous().transpose(0, 1)
    features_last = spikes.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.cat([spikes, spikes], dim=1)[:, 6:]
    for other in (batch_first, features_last, wide):
        assert not other.is_contiguous()
        assert torch.equal(ops.stack(other, case.plans, tensors).output, expected)
    packed = PackedSpikes.pack(torch.cat([spikes[:, :2], spikes], dim=1))[2:]
    assert not packed.words.is_contiguous()
    assert torch.equal(ops.stack(packed, case.plans, tensors).output, expected)


def test_kept_bytes_with_a_wide_packed_input():
    plan = LayerPlan("lif", (128,), dense_connection((700,), 128), (1, 1), **DECAYS)
    weight, own = torch.randn(128, 700).requires_grad_(), torch.zeros(128, 128).requires_grad_()
    spikes = PackedSpikes.pack((torch.rand(320, 4, 700) < 0.02).float())
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.update({t.data_ptr(): t.numel() * t.element_size()}), t)[1], lambda t: t
    ):
        ops.stack(spikes, (plan,), (LayerTensors(weight, None, own),))
    given = {t.data_ptr() for t in (weight, own, spikes.words)}
    size = sum(bytes for address, bytes in kept.items() if address not in given)
    assert 2.1 < size / (320 * 4 * 128) < 2.2


def test_events_that_do_not_fit():
    def pack(step, feature, offsets=(0, 2), **options):
        return PackedSpikes.from_events(
            torch.tensor(step), torch.tensor(feature), torch.tensor(offsets),
            **({"n_steps": 4, "features": (3,)} | options),
        )  # fmt: skip

    dense = pack([1, 2**32 + 1], [2, 0]).unpack()
    assert dense.sum() == 1 and dense[1, 0, 2] == 1
    for message, arguments in {
        r"feature must be in \[0, 3\), got 4294967297": ([1, 1], [2, 2**32 + 1]),
        "step must be a one-dimensional integer": ([1.0, 2.0], [0, 1]),
        "equally long, got 2 and 1": ([1, 2], [0]),
        "offsets must rise": ([1, 2], [0, 1], (0, 3)),
    }.items():
        with pytest.raises(ValueError, match=message):
            pack(*arguments)
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        pack([1, 1], [0, 1], n_steps=0)
    with pytest.raises(ValueError, match="on meta"):
        PackedSpikes.from_events(
            *(torch.empty(2, dtype=torch.int32, device="meta") for _ in range(3)),
            n_steps=4,
            features=(3,),
        )
