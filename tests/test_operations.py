"""The single operations on every backend, against the reference and torch's own functions."""

from __future__ import annotations

import pytest
import torch

from fastlif import ops
from fastlif.ops.plan import LIFState

from .cases import DECAY_MEM, DECAY_SYN
from .compare import relative

VARIANTS = [(True, 0), (True, 1), (False, 0), (False, 1)]


def drive(*shape: int, device: str = "cpu") -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2.0 + 0.3).to(device)


@pytest.mark.parametrize(
    ("features", "recurrent"),
    [((257,), None), ((31,), (31, 31)), ((20, 7), (20, 20, 5)), ((5, 6, 7), (5, 5, 3, 5))],
)
@pytest.mark.parametrize(("detach_reset", "delay"), VARIANTS)
def test_lif_from_a_current(target, features, recurrent, detach_reset, delay):
    """The free-running kernel in float64 equals the reference: no rounding flips a spike there."""
    grads, spikes = [], []
    generator = torch.Generator().manual_seed(5)
    own = None
    if recurrent:
        own = torch.randn(recurrent, generator=generator, dtype=torch.float64) * 0.3
    for backend in (target.backend, "reference"):
        current = drive(50, 3, *features, device=target.device).requires_grad_()
        weight = None if own is None else own.to(target.device, copy=True).requires_grad_()
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
        value = (result.output * drive(*result.output.shape, device=target.device)).sum()
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
def test_readout_from_a_current(target, reduction, delay, features):
    outputs, grads = [], []
    for backend in (target.backend, "reference"):
        current = drive(40, 3, *features, device=target.device).requires_grad_()
        start = LIFState(
            *(
                drive(3, *features, device=target.device).mul(scale).requires_grad_()
                for scale in (0.01, 0.1, 0.2)[: 2 + delay]
            )
        )
        result = ops.readout(
            current, decay_mem=0.97, decay_syn=DECAY_SYN, reduction=reduction, delay=delay,
            state=start, backend=backend,
        )  # fmt: skip
        (result.output * drive(*result.output.shape, device=target.device)).sum().backward()
        outputs.append(result.output.detach())
        grads.append([current.grad, *(s.grad for s in start if s is not None)])
    assert relative(*outputs) < 1e-12
    for ours, theirs in zip(*grads, strict=True):
        assert relative(ours, theirs) < 1e-10


def test_readout_gradient_by_finite_differences(target):
    current = drive(12, 2, 3, device=target.device).requires_grad_()

    def scores(current: torch.Tensor) -> torch.Tensor:
        return ops.readout(current, decay_mem=0.9, decay_syn=0.8, backend=target.backend).output

    assert torch.autograd.gradcheck(scores, (current,), atol=1e-8)


def test_readout_ties_go_to_the_first_maximum(target):
    options = {"dtype": torch.float64, "device": target.device}
    current = torch.zeros(6, 1, 2, **options, requires_grad=True)
    start = LIFState(torch.tensor([[0.5, 0.0]], **options, requires_grad=True))
    result = ops.readout(current, decay_mem=0.9, decay_syn=0.8, state=start, backend=target.backend)
    assert torch.equal(result.output.detach(), torch.tensor([[0.5, 0.0]], **options))
    result.output.sum().backward()
    assert torch.equal(start.membrane.grad, torch.ones(1, 2, **options))
    assert torch.equal(current.grad, torch.zeros_like(current))


def test_nan_reaches_the_score(target):
    current = torch.zeros(6, 1, 2, device=target.device)
    current[2, 0, 1] = float("nan")
    scores = ops.readout(current, decay_mem=0.9, decay_syn=0.8, backend=target.backend).output
    assert scores[0, 0] == 0 and torch.isnan(scores[0, 1])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_synapses(target, kind, binary):
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
    spikes = (drive(*shape, device=target.device) > 2.5).double()
    assert 0.01 < spikes.mean() < 0.5
    input = spikes if binary else spikes * drive(*shape, device=target.device)
    grads, outputs = [], []
    for ours in (True, False):
        x = input.clone().requires_grad_()
        weight, bias = (
            drive(*weight_shape, device=target.device).requires_grad_(),
            drive(weight_shape[0], device=target.device).requires_grad_(),
        )
        if ours:
            out = getattr(ops, kind)(x, weight, bias, **options, backend=target.backend)
        else:
            out = getattr(functional, kind)(x.flatten(0, 1), weight, bias, **options)
            out = out.unflatten(0, shape[:2])
        (out * drive(*out.shape, device=target.device)).sum().backward()
        outputs.append(out.detach())
        grads.append([x.grad, weight.grad, bias.grad])
    assert relative(*outputs) < 1e-12
    for a, b in zip(*grads, strict=True):
        assert relative(a, b) < 1e-12


def test_counts_above_one_are_not_thresholded(target):
    weight = torch.eye(3, device=target.device)
    events = torch.zeros(2, 1, 3, device=target.device)
    events[0, 0, 1] = 3.0
    assert torch.equal(ops.linear(events, weight, backend=target.backend), events)
