"""The opponent on a GPU: the plain loop, its feed-forward currents computed for all steps at once.

On a GPU a convolution over the whole sequence is one launch instead of one a step, which is what
costs a loop its time there. Precision settings are PyTorch's own: convolutions may use TF32.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.check import LOOP_TOLERANCE, CheckFailed, network_plans
from bench.loop import LoopNetwork, _readout, _spikes
from fastlif import LIFConv1d, LIFConv2d, LIReadout, PackedSpikes, Sequential
from fastlif.ops.reference import stack
from tests.compare import relative


class DeviceLoop(LoopNetwork):
    """As `LoopNetwork`, also of two-dimensional layers without recurrence."""

    def forward(self, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores (batch, classes) and spike counts of spikes (time, batch, *features)."""
        counts: list[Tensor] = []
        for layer in self.layers:
            currents = _all_currents(layer, spikes).unbind(0)
            if isinstance(layer, LIReadout):
                return _readout(layer, currents), counts
            spikes = torch.stack(_spikes(layer, currents))
            counts.append(spikes.sum(0))
        raise ValueError("the last layer of the network must be a readout")


def _all_currents(layer: torch.nn.Module, spikes: Tensor) -> Tensor:
    if not isinstance(layer, (LIFConv1d, LIFConv2d)):
        return F.linear(spikes.flatten(2), layer.weight, layer.bias)
    convolve = F.conv1d if isinstance(layer, LIFConv1d) else F.conv2d
    current = convolve(spikes.flatten(0, 1), layer.weight, layer.bias, layer.stride, layer.padding)
    return current.unflatten(0, spikes.shape[:2])


def check_loop(model: Sequential, input: PackedSpikes, steps: int) -> float:
    """Largest relative error against the reference, both in float64; CheckFailed if it is large."""
    spikes = input.unpack(torch.float64)[:steps]
    ours, theirs = (copy.deepcopy(model).double() for _ in range(2))
    scores, counts = DeviceLoop(ours)(spikes)
    tensors = [layer.tensors(layer.initial_state(spikes.shape[1])) for layer in theirs]
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
