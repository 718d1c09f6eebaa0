"""The opponent on a GPU: the plain loop, its feed-forward currents computed for all steps at once.

On a GPU a convolution over the whole sequence is one launch instead of one a step, which is what
costs a loop its time there. Precision settings are PyTorch's own: convolutions may use TF32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from bench.check import LOOP_TOLERANCE, CheckFailed, network_plans, network_tensors
from bench.opponents.loop import LoopNetwork, convolved
from fastlif import PackedSpikes, Sequential
from fastlif.ops import LayerPlan
from fastlif.ops.reference import stack
from tests.compare import relative


class DeviceLoop(LoopNetwork):
    """As `LoopNetwork`, with one convolution over the whole sequence."""

    def currents(self, plan: LayerPlan, layer: nn.Module, spikes: Tensor) -> Iterable[Tensor]:
        """Feed-forward current of every step."""
        if len(plan.features) == 1:
            return super().currents(plan, layer, spikes)
        current = convolved(plan, layer, spikes.flatten(0, 1))
        return current.unflatten(0, spikes.shape[:2]).unbind(0)


def check_loop(model: Sequential, input: PackedSpikes, steps: int) -> float:
    """Largest relative error against the reference, both in float64; CheckFailed if it is large."""
    spikes = input.unpack(torch.float64)[:steps]
    ours, theirs = (copy.deepcopy(model).double() for _ in range(2))
    scores, counts = DeviceLoop(ours)(spikes)
    tensors = network_tensors(theirs, spikes.shape[1])
    expected = stack(spikes, network_plans(model, input), tensors)
    pairs = [(scores, expected.output), *zip(counts, expected.spike_counts, strict=True)]
    gradients = [
        torch.autograd.grad(output.square().sum(), list(network.parameters()))
        for network, output in ((ours, scores), (theirs, expected.output))
    ]
    pairs += zip(*gradients, strict=True)
    error = max(relative(a.detach(), b.detach()) for a, b in pairs)
    if not error < LOOP_TOLERANCE:
        raise CheckFailed(f"the plain loop is not timed: it differs by {error:.1e}")
    return error
