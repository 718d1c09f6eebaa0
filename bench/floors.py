"""The least work of a training step, counted from the network, and the time it takes at the peak.

Counted per sample and step, for exact backpropagation through time:

- a synapse delivers each spike once forward and once in the weight gradient: one addition each,
  density x fan_in per neuron;
- the input gradient is dense, because the surrogate is nowhere zero: one multiply-add per synapse
  of every layer that is fed by spiking neurons, recurrent synapses among them. The input data needs
  none unless it is asked for; then it is floats, read once and its gradient written. The readout's
  needs none either: its units share their decays and their gradient enters at one step per class,
  so what they send back to a neuron is one more pair of leaky sums;
- max pooling takes nothing, and the spikes of a window are counted as if none were at one step;
- a neuron takes FORWARD_OPERATIONS and BACKWARD_OPERATIONS;
- a spiking neuron's U - threshold (16 bits) and spike (1 bit) are written once and read once, the
  bits of the input are read twice.

A multiply-add counts as one operation, like an addition. Arithmetic and memory traffic overlap, so
the floor is the larger of the two times.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fastlif.ops import LayerPlan

# Forward: threshold distance, compare, two decays with two multiply-adds (four), reset, rounding.
FORWARD_OPERATIONS = 8
# Backward: widen, |x|, slope, square, divide, times gradient, reset, three for the two decays.
BACKWARD_OPERATIONS = 10
KEPT_BYTES = 2.125  # per neuron and step


@dataclass(frozen=True)
class Peak:
    """What the machine reaches with the threads in use, measured by PyTorch."""

    multiply_adds: float  # float32 per second, matrix product
    bytes: float  # per second, copy, read and write counted
    # The same of the unit that does dense products best (a GPU's tensor cores); None: as above.
    dense_multiply_adds: float | None = None


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one training step of the whole batch."""

    deliveries: float  # additions of one spike to one target or weight
    dense: float  # multiply-adds of input gradients
    neurons: float  # operations of neurons
    bytes: float

    def seconds(self, peak: Peak) -> float:
        """The floor."""
        dense = self.dense / (peak.dense_multiply_adds or peak.multiply_adds)
        arithmetic = (self.deliveries + self.neurons) / peak.multiply_adds + dense
        return max(arithmetic, self.bytes / peak.bytes)


def count_work(
    plans: Sequence[LayerPlan],
    densities: Sequence[float],  # spikes per neuron and step: the input, then every spiking layer
    batch: int,
    n_steps: int,
    *,
    input_gradient: bool = False,  # of the first layer's input, too
) -> Work:
    """Work of a stack of layers, the last of which may be a readout."""
    deliveries = dense = neurons = 0.0
    first = plans[0].feedforward
    assert first is not None
    n_bytes = math.prod(first.in_shape) * (8 if input_gradient else 2 / 8)
    own_densities = iter(densities)
    density = next(own_densities)  # of the input of the layer
    for index, plan in enumerate(plans):
        link = plan.feedforward
        assert link is not None
        size = math.prod(plan.features)
        if plan.kind == "max_pool":
            density = min(1.0, density * math.prod(link.kernel))
            continue
        synapses = size * link.fan_in
        deliveries += 2 * density * synapses
        neurons += size * (FORWARD_OPERATIONS + BACKWARD_OPERATIONS)
        if plan.kind != "lif":
            continue
        n_bytes += 2 * KEPT_BYTES * size
        if index > 0 or input_gradient:
            dense += synapses
        density = next(own_densities)
        for shape in (plan.recurrent_weight_shape, plan.inhibitory_weight_shape):
            if shape is not None:
                own_synapses = size * math.prod(shape[1:])
                deliveries += 2 * density * own_synapses
                dense += own_synapses
    steps = batch * n_steps
    return Work(deliveries * steps, dense * steps, neurons * steps, n_bytes * steps)


def measure_peak(*, quick: bool) -> Peak:
    """Best of several matrix products and copies, with torch's current number of threads."""
    size, copied, repeats = (256, 1 << 20, 3) if quick else (1536, 1 << 25, 10)
    a, b = torch.rand(size, size), torch.rand(size, size)
    product = torch.empty(size, size)
    source, target = torch.ones(copied), torch.zeros(copied)
    best_product = best_copy = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, b, out=product)
        middle = time.perf_counter()
        target.copy_(source)
        end = time.perf_counter()
        best_product = min(best_product, middle - start)
        best_copy = min(best_copy, end - middle)
    return Peak(size**3 / best_product, 2 * source.nbytes / best_copy)
