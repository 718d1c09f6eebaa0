"""`fastlif.ops.observation.observe`: what the kernels keep, against the reference."""

from __future__ import annotations

import pytest
import torch

from fastlif.ops import reference
from fastlif.ops.observation import observe
from fastlif.spikes import PackedSpikes

from .cases import CONV, DENSE, INHIBITION, POOLING, Case, build, layer_tensors
from .targets import Target

CASES = [DENSE[4], CONV[1], *INHIBITION[:2], POOLING[0]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("detach_reset", [True, False])
def test_membranes_and_spikes_are_the_references(case: Case, detach_reset: bool, target: Target):
    stack = build(case, detach_reset=detach_reset)
    tensors = layer_tensors(stack, torch.float64, torch.float64, state=True, device=target.device)
    input = stack.input.to(target.device)
    found = observe(input, stack.plans, tensors, backend=target.backend)
    with torch.no_grad():
        trace = reference.stack_trace(
            stack.input,
            stack.plans,
            layer_tensors(stack, torch.float64, torch.float64, state=True),
        )
    spiking = [plan for plan in stack.plans if plan.kind == "lif"]
    assert len(found) == len(spiking)
    for one, spikes, membrane in zip(found, trace.spikes, trace.membranes, strict=False):
        assert 0.005 < float(one.spikes.mean()) < 0.5
        assert torch.equal(one.spikes.cpu(), spikes)
        assert torch.allclose(one.membrane.cpu(), membrane, atol=1e-9)
        assert not one.membrane.requires_grad


def test_packed_input_and_the_reference_backend():
    stack = build(INHIBITION[0])
    tensors = layer_tensors(stack, torch.float64, torch.float64, state=False)
    packed = PackedSpikes.pack((stack.input > 0).double())
    by_kernels = observe(packed, stack.plans, tensors)
    by_reference = observe(packed, stack.plans, tensors, backend="reference")
    assert len(by_kernels) == len(by_reference) == 2
    for one, other in zip(by_kernels, by_reference, strict=True):
        assert torch.equal(one.spikes, other.spikes)
        assert torch.allclose(one.membrane, other.membrane, atol=1e-9)


def test_bad_input_is_refused_as_by_stack():
    stack = build(DENSE[4])
    tensors = layer_tensors(stack, torch.float64, torch.float64, state=False)
    with pytest.raises(ValueError, match="backend 'abacus' is unknown"):
        observe(stack.input, stack.plans, tensors, backend="abacus")
    with pytest.raises(ValueError, match="tensors must hold one entry per layer"):
        observe(stack.input, stack.plans, tensors[:1])
