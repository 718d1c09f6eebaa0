"""Every operation against the float64 reference, by replay: spikes and all gradients."""

from __future__ import annotations

import pytest
import torch

from fastlif import ops
from fastlif.ops.plan import LIFState

from .cases import CONV, DECAY_MEM, DECAY_SYN, DENSE, Case, build
from .compare import Comparison, relative, replay

PRECISIONS = {
    "float64": (torch.float64, False, 1e-9),
    "float32-exact": (torch.float32, True, 1e-4),
    "float32-half": (torch.float32, False, 1e-3),
}
VARIANTS = [(True, 0), (True, 1), (False, 0), (False, 1)]
CASES = DENSE + CONV


def check(found: Comparison, tolerance: float, case: Case) -> None:
    assert found.wrong_spikes == 0
    assert found.output_error < 1e-5
    error, name = found.worst
    assert error < tolerance, f"gradient of {name} is off by {error:.2e}"
    if case.n_steps >= 33:
        assert all(0.01 < rate < 0.5 for rate in found.firing), found.firing


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("detach_reset", "delay"), VARIANTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay(case, detach_reset, delay, precision):
    dtype, exact, tolerance = PRECISIONS[precision]
    stack = build(case, detach_reset=detach_reset, delay=delay)
    check(replay(stack, dtype, exact=exact), tolerance, case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_replay_input_that_is_not_binary(case):
    stack = build(case, binary=False)
    check(replay(stack, torch.float32, exact=True), 1e-4, case)


@pytest.mark.parametrize("case", [DENSE[-1], CONV[0]], ids=lambda case: case.name)
def test_replay_rescaled_surrogate(case):
    stack = build(case, rescale=True)
    assert stack.plans[0].surrogate_scale == 441.0
    check(replay(stack, torch.float32, exact=True, state=False), 1e-4, case)


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
        for case in (DENSE[3], CONV[0], CONV[3]):
            check(replay(build(case), torch.float32), 1e-3, case)
            check(replay(build(case), torch.float32, exact=True), 1e-4, case)
            check(replay(build(case, binary=False), torch.float64), 1e-9, case)
    finally:
        kernels.select_isa(best)


def test_forward_is_bitwise_the_same_on_every_instruction_set():
    from fastlif import extension

    kernels = extension.load()
    best = kernels.isa()
    stack = build(CONV[0])
    from .cases import layer_tensors

    tensors = layer_tensors(stack, torch.float32, torch.float32, state=True)
    outputs = []
    try:
        for isa in kernels.isa_names():
            kernels.select_isa(isa)
            result = ops.stack(stack.input.float(), stack.plans, tensors)
            outputs.append([result.output, *result.spike_counts, *result.states[0][:2]])
    finally:
        kernels.select_isa(best)
    assert outputs[0][1].sum() > 0
    for other in outputs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outputs[0], other, strict=True))


# The single operations, from a current.


def drive(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0 + 0.3).to(dtype)


@pytest.mark.parametrize(
    ("features", "recurrent"),
    [((257,), None), ((31,), (31, 31)), ((20, 7), (20, 20, 5)), ((5, 6, 7), (5, 5, 3, 5))],
)
@pytest.mark.parametrize(("detach_reset", "delay"), VARIANTS)
def test_lif_from_a_current(features, recurrent, detach_reset, delay):
    """The free-running kernel in float64 equals the reference: no rounding flips a spike there."""
    grads, spikes = [], []
    generator = torch.Generator().manual_seed(5)
    own = None
    if recurrent:
        own = torch.randn(recurrent, generator=generator, dtype=torch.float64) * 0.3
    for backend in (None, "reference"):
        current = drive(50, 3, *features).requires_grad_()
        weight = None if own is None else own.clone().requires_grad_()
        result = ops.lif(
            current,
            decay_mem=DECAY_MEM,
            decay_syn=DECAY_SYN,
            threshold=0.8,
            surrogate_slope=10.0,
            detach_reset=detach_reset,
            delay=delay,
            recurrent_weight=weight,
            backend=backend,
        )
        value = (result.output * drive(*result.output.shape)).sum()
        value = value + result.spike_counts[0].pow(2).sum() + result.states[0].membrane.sum()
        value.backward()
        spikes.append(result.output.detach())
        grads.append([current.grad, *([] if weight is None else [weight.grad])])
    assert 0.01 < spikes[0].mean() < 0.5
    assert torch.equal(*spikes)
    for ours, theirs in zip(*grads, strict=True):
        assert relative(ours, theirs) < 1e-10


@pytest.mark.parametrize("reduction", ["max", "none"])
@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("features", [(20,), (3, 4)])
def test_readout_from_a_current(reduction, delay, features):
    outputs, grads = [], []
    for backend in (None, "reference"):
        current = drive(40, 3, *features).requires_grad_()
        start = LIFState(
            *(
                drive(3, *features).mul(scale).requires_grad_()
                for scale in (0.01, 0.1, 0.2)[: 2 + delay]
            )
        )
        result = ops.readout(
            current, decay_mem=0.97, decay_syn=DECAY_SYN, reduction=reduction, delay=delay,
            state=start, backend=backend,
        )  # fmt: skip
        (result.output * drive(*result.output.shape)).sum().backward()
        outputs.append(result.output.detach())
        grads.append([current.grad, *(s.grad for s in start if s is not None)])
    assert relative(*outputs) < 1e-12
    for ours, theirs in zip(*grads, strict=True):
        assert relative(ours, theirs) < 1e-10


def test_readout_gradient_by_finite_differences():
    current = drive(12, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ops.readout(x, decay_mem=0.9, decay_syn=0.8).output, (current,), atol=1e-8
    )


def test_readout_ties_go_to_the_first_maximum():
    current = torch.zeros(6, 1, 2, dtype=torch.float64, requires_grad=True)
    start = LIFState(torch.tensor([[0.5, 0.0]], dtype=torch.float64, requires_grad=True))
    result = ops.readout(current, decay_mem=0.9, decay_syn=0.8, state=start)
    assert torch.equal(result.output.detach(), torch.tensor([[0.5, 0.0]], dtype=torch.float64))
    result.output.sum().backward()
    assert torch.equal(start.membrane.grad, torch.ones(1, 2, dtype=torch.float64))
    assert torch.equal(current.grad, torch.zeros_like(current))


def test_nan_reaches_the_score():
    current = torch.zeros(6, 1, 2)
    current[2, 0, 1] = float("nan")
    scores = ops.readout(current, decay_mem=0.9, decay_syn=0.8).output
    assert scores[0, 0] == 0 and torch.isnan(scores[0, 1])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_synapses(kind, binary):
    """Forward and both gradients against torch's own linear and convolutions."""
    functional = torch.nn.functional
    shape, weight_shape = {
        "linear": ((33, 3, 23), (19, 23)),
        "conv1d": ((33, 3, 4, 20), (18, 4, 5)),
        "conv2d": ((5, 3, 4, 9, 8), (18, 4, 3, 2)),
    }[kind]
    options = {"linear": {}, "conv1d": {"stride": 2, "padding": 1}, "conv2d": {"padding": (1, 0)}}[
        kind
    ]
    spikes = (drive(*shape) > 2.5).double()
    assert 0.01 < spikes.mean() < 0.5
    input = spikes if binary else spikes * drive(*shape)
    grads, outputs = [], []
    for ours in (True, False):
        x = input.clone().requires_grad_()
        weight, bias = (
            drive(*weight_shape).requires_grad_(),
            drive(weight_shape[0]).requires_grad_(),
        )
        if ours:
            out = getattr(ops, kind)(x, weight, bias, **options)
        else:
            out = getattr(functional, kind)(x.flatten(0, 1), weight, bias, **options)
            out = out.unflatten(0, shape[:2])
        (out * drive(*out.shape)).sum().backward()
        outputs.append(out.detach())
        grads.append([x.grad, weight.grad, bias.grad])
    assert relative(*outputs) < 1e-12
    for a, b in zip(*grads, strict=True):
        assert relative(a, b) < 1e-12


def test_counts_above_one_are_not_thresholded():
    weight = torch.eye(3)
    events = torch.zeros(2, 1, 3)
    events[0, 0, 1] = 3.0
    assert torch.equal(ops.linear(events, weight), events)
