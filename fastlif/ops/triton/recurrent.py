"""Recurrent dense layers that fit on chip: a program owns 16 samples and runs through all steps.

The recurrent weight stays in registers. Two steps share an exchange: the spikes of both are known
before the recurrent current of either (see `pairs`), so their products are independent, and so are
those of the adjoint.
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.triton import launch
from fastlif.ops.triton.retreat import Adjoint, surrogate
from fastlif.ops.triton.scan import (
    Neurons,
    load_constants,
    load_state,
    store_kept,
    store_present,
    store_state,
)

ROWS = 16  # samples of a program: the fewest that a product on tensor cores takes
WARPS = {16: 1, 32: 2, 64: 8, 128: 16}  # by neurons, padded
MOST_NEURONS = 64  # beside the one width below: others would spill registers
WHOLE_NEURONS = 128  # nothing to mask, but only with a detached reset


@triton.jit
def load_tile(pointer, index, mask, ROWS: tl.constexpr, WIDTH: tl.constexpr, real: tl.constexpr):
    """A (ROWS, WIDTH) tile of a tensor that may be absent."""
    if pointer is None:
        return tl.zeros((ROWS, WIDTH), real)
    else:
        return tl.load(pointer + index, mask=mask, other=0.0)


@triton.jit
def resident_weight(high, low, unscale, neurons, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Both halves of a weight, (WIDTH, WIDTH), and what undoes their scaling, (1, WIDTH)."""
    neuron = tl.arange(0, WIDTH)
    at = neuron[:, None] * neurons + neuron[None, :]
    valid = (neuron < neurons)[:, None] & (neuron < neurons)[None, :]
    whole = tl.load(high + at, mask=valid, other=0.0)
    rest = whole
    if PARTS > 1:
        rest = tl.load(low + at, mask=valid, other=0.0)
    return whole, rest, tl.load(unscale + neuron, mask=neuron < neurons, other=0.0)[None, :]


@triton.jit
def recurrent_current(spike, high, low, unscale, PARTS: tl.constexpr):
    """V S of a tile of samples."""
    rows = spike.to(tl.float16)
    current = tl.dot(rows, high)
    if PARTS > 1:
        current = tl.dot(rows, low, current)
    return current * unscale


@triton.jit
def exponent_of(largest):
    """Binary exponent of positive numbers, within what power_of_two takes."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.maximum(tl.minimum(exponent, 100), -100)


@triton.jit
def power_of_two(exponent):
    """2 to an int32 exponent, exactly, as float32."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def recurrent_gradient(grad, exponent, high, low, unscale, PARTS: tl.constexpr):
    """V^T dL/dJ of a tile of samples; 2^exponent bounds the gradients of a sample up to 2."""
    scaled = grad * power_of_two(14 - exponent)[:, None]
    grad_high = scaled.to(tl.float16)
    product = tl.dot(grad_high, high)
    if PARTS > 1:
        grad_low = (scaled - grad_high.to(tl.float32)).to(tl.float16)
        product = tl.dot(grad_high, low, product)
        product = tl.dot(grad_low, high, product)
    return product * unscale * power_of_two(exponent - 14)[:, None]


@triton.jit(do_not_specialize=["start", "stop"])
def recurrent_forward_kernel(
    injected,  # (stop - start, size): J without the recurrent part
    weight_high,  # float16 (N, N), source by target, as weight_low
    weight_low,
    weight_unscale,  # (N,)
    constants,
    membrane0,  # (batch, N) or None, as the two below
    current0,
    pending0,
    state,  # (3, size): U, I, pending J between windows
    kept,  # (steps, size), one row more when the reset is differentiated; or None
    words,  # int32 (words, size)
    membrane_out,
    current_out,
    pending_out,
    start,  # a multiple of 32
    stop,
    size,  # batch * N
    neurons,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    PARTS: tl.constexpr,  # 2: float32 products; 1: as TF32
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Recurrent spiking neurons: bits, U - threshold and the state after the window."""
    real: tl.constexpr = constants.dtype.element_ty
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    neuron = tl.arange(0, WIDTH)
    flat = sample[:, None] * neurons + neuron[None, :]
    inside = (flat < size) & (neuron < neurons)[None, :]
    wide = tl.cast(size, tl.int64)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    high, low, unscale = resident_weight(
        weight_high, weight_low, weight_unscale, neurons, PARTS, WIDTH
    )
    if FIRST:
        membrane = load_tile(membrane0, flat, inside, ROWS, WIDTH, real)
        current = load_tile(current0, flat, inside, ROWS, WIDTH, real)
        pending = load_tile(pending0, flat, inside, ROWS, WIDTH, real)
        if kept is not None and not DETACH:
            store_kept(kept + flat, membrane - threshold, inside)
    else:
        membrane, current, pending = load_state(state, size, flat, inside)
    for first in range(start, stop, 32):
        word = tl.zeros((ROWS, WIDTH), tl.int32)
        count = tl.minimum(stop - first, 32)
        for pair in range(0, (count + 1) // 2):
            q = 2 * pair
            row = tl.cast(first + q, tl.int64) * wide
            at_row = injected + row - start * wide
            both = q + 1 < count  # the last step may have no partner
            injected0 = tl.load(at_row + flat, mask=inside, other=0.0)
            injected1 = tl.load(at_row + wide + flat, mask=inside & both, other=0.0)

            spike0 = membrane > threshold
            charged1 = decay_mem * membrane + gain_mem * current
            membrane1 = tl.where(spike0, 0.0, charged1)
            spike1 = (membrane1 > threshold) & both
            word |= (spike0.to(tl.int32) << q) | (spike1.to(tl.int32) << (q + 1))
            injected0 += recurrent_current(spike0, high, low, unscale, PARTS)
            injected1 += recurrent_current(spike1, high, low, unscale, PARTS)

            current1 = decay_syn * current + (pending if DELAY else injected0)
            current2 = decay_syn * current1 + (injected0 if DELAY else injected1)
            charged2 = decay_mem * membrane1 + gain_mem * current1
            if kept is not None:
                if DETACH:
                    store_kept(kept + row + flat, membrane - threshold, inside)
                    store_kept(kept + row + wide + flat, membrane1 - threshold, inside & both)
                else:
                    row += wide
                    store_kept(kept + row + flat, charged1 - threshold, inside)
                    store_kept(kept + row + wide + flat, charged2 - threshold, inside & both)
            membrane = tl.where(both, tl.where(spike1, 0.0, charged2), membrane1)
            current = tl.where(both, current2, current1)
            pending = tl.where(both, injected1, injected0)
        tl.store(words + tl.cast(first // 32, tl.int64) * wide + flat, word, mask=inside)
    if LAST:
        store_present(membrane_out, flat, membrane, inside)
        store_present(current_out, flat, current, inside)
        store_present(pending_out, flat, pending, inside)
    else:
        store_state(state, size, flat, inside, membrane, current, pending)


@triton.jit
def recurrent_backward_kernel(
    grad_spikes,  # (steps, size), or None: dL/dS from the layer above
    weight_high,  # float16 (N, N), target by source, as weight_low
    weight_low,
    weight_unscale,  # (N,)
    grad_counts,  # (batch, N) or None, as the three below
    grad_membrane,
    grad_current,
    grad_pending,
    kept,  # (steps, size), one row more when the reset is differentiated
    words,  # int32 (words, size)
    constants,
    grad_injected,  # (steps, size), to write
    grad_membrane0,  # (batch, N) or None, as the two below
    grad_current0,
    grad_pending0,
    n_steps,
    size,
    neurons,
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    PARTS: tl.constexpr,  # 2: float32 products; 1: as TF32
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The adjoint, from the last step to the first."""
    real: tl.constexpr = constants.dtype.element_ty
    sample = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    neuron = tl.arange(0, WIDTH)
    flat = sample[:, None] * neurons + neuron[None, :]
    inside = (flat < size) & (neuron < neurons)[None, :]
    wide = tl.cast(size, tl.int64)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    slope = tl.load(constants + 4)
    scale = tl.load(constants + 5)
    high, low, unscale = resident_weight(
        weight_high, weight_low, weight_unscale, neurons, PARTS, WIDTH
    )
    grad_u = load_tile(grad_membrane, flat, inside, ROWS, WIDTH, real)
    grad_i = load_tile(grad_current, flat, inside, ROWS, WIDTH, real)
    injected = grad_i  # dL/dJ of the step before the ones done
    if DELAY:
        injected = load_tile(grad_pending, flat, inside, ROWS, WIDTH, real)
    for i in range(0, (n_steps + 1) // 2):
        # Steps n + 1 and n, n even; the last step may have no partner.
        n = ((n_steps + 1) // 2 - 1 - i) * 2
        both = n + 1 < n_steps
        row = tl.cast(n, tl.int64) * wide
        q = n % 32
        at_word = words + tl.cast(n // 32, tl.int64) * wide
        word = tl.load(at_word + flat, mask=inside, other=0)
        spike0 = ((word >> q) & 1) != 0
        spike1 = ((word >> (q + 1)) & 1) != 0
        distance0 = tl.load(kept + row + flat, mask=inside, other=0.0).to(real)
        distance1 = tl.load(kept + row + wide + flat, mask=inside & both, other=0.0).to(real)
        # Read again for every pair: registers are short, the cache is near.
        grad_s0 = load_tile(grad_counts, flat, inside, ROWS, WIDTH, real)
        grad_s1 = grad_s0
        if grad_spikes is not None:
            grad_s0 += tl.load(grad_spikes + row + flat, mask=inside, other=0.0)
            grad_s1 += tl.load(grad_spikes + row + wide + flat, mask=inside & both, other=0.0)

        # dL/dJ of both steps, before the gradient of any spike of the pair is known.
        unreset = tl.where(spike1, 0.0, grad_u)
        grad_i1 = tl.where(both, decay_syn * grad_i + gain_mem * unreset, grad_i)
        injected1 = injected
        injected0 = tl.where(both, grad_i if DELAY else grad_i1, injected)
        tl.store(grad_injected + row + flat, injected0, mask=inside)
        tl.store(grad_injected + row + wide + flat, injected1, mask=inside & both)
        exponent = exponent_of(tl.max(tl.maximum(tl.abs(injected0), tl.abs(injected1)), axis=1))
        grad_s1 += recurrent_gradient(injected1, exponent, high, low, unscale, PARTS)
        grad_s0 += recurrent_gradient(injected0, exponent, high, low, unscale, PARTS)

        if not DETACH:
            charged = tl.load(kept + row + 2 * wide + flat, mask=inside & both, other=0.0)
            grad_s1 -= (charged.to(real) + threshold) * grad_u  # U[n+2] before the reset
            # A neuron that was reset on the way here is at 0, not at what was charged.
            distance1 = tl.where(spike0, -threshold, distance1)
        grad_u1 = decay_mem * unreset + surrogate(distance1, slope, scale) * grad_s1
        grad_u1 = tl.where(both, grad_u1, grad_u)
        if not DETACH:
            charged = tl.load(kept + row + wide + flat, mask=inside, other=0.0)
            grad_s0 -= (charged.to(real) + threshold) * grad_u1  # U[n+1] before the reset
            before = inside & (q == 0) & (n > 0)
            before = tl.load(at_word - wide + flat, mask=before, other=0) >> 31
            before |= (word >> tl.maximum(q - 1, 0)) & tl.where(q > 0, 1, 0)
            distance0 = tl.where((before & 1) != 0, -threshold, distance0)
        unreset = tl.where(spike0, 0.0, grad_u1)
        grad_u = decay_mem * unreset + surrogate(distance0, slope, scale) * grad_s0
        grad_i = decay_syn * grad_i1 + gain_mem * unreset
        injected = grad_i1 if DELAY else grad_i
    store_present(grad_membrane0, flat, grad_u, inside)
    store_present(grad_current0, flat, grad_i, inside)
    store_present(grad_pending0, flat, injected, inside)


def fits(neurons: Neurons | Adjoint) -> bool:
    """Whether these kernels can run a recurrent layer."""
    channels, positions = neurons.sizes[2:]
    if neurons.constants.dtype != torch.float32 or positions > 1 or neurons.plan.inhibition:
        return False
    return channels <= MOST_NEURONS or (channels == WHOLE_NEURONS and neurons.plan.detach_reset)


def _geometry(neurons: int, batch: int) -> tuple[tuple[int], dict[str, int]]:
    width = max(16, triton.next_power_of_2(neurons))
    options = {"ROWS": ROWS, "WIDTH": width, "num_warps": WARPS[width]}
    return (triton.cdiv(batch, ROWS),), options


def recurrent_forward(
    neurons: Neurons,
    injected: Tensor,  # flat (stop - start, batch, N): J without the recurrent part
    weight: tuple[Tensor, Tensor, Tensor],  # (N, N), source by target: see split_weight
    start: int,
    stop: int,
    *,
    reduced: bool,
) -> None:
    """Advance recurrent neurons over a window of steps."""
    out = neurons.out
    size, n = neurons.sizes[:2]
    grid, options = _geometry(n, size // n)
    launch.run(
        recurrent_forward_kernel, grid, injected, *weight, neurons.constants,
        *neurons.initial[:3], neurons.state, launch.present(out.kept), out.words, out.membrane,
        out.synaptic_current, launch.present(out.pending_current), start, stop, size, n,
        **neurons.window(start, stop), DETACH=neurons.plan.detach_reset,
        PARTS=1 if reduced else 2, **options, **launch.EXACT_ROUNDING,
    )  # fmt: skip


def recurrent_backward(
    adjoint: Adjoint,
    grad_spikes: Tensor | None,  # flat (time, batch, N)
    weight: tuple[Tensor, Tensor, Tensor],  # (N, N), target by source: see split_weight
    *,
    reduced: bool,
) -> None:
    """All steps of a recurrent layer."""
    size, n = adjoint.sizes[:2]
    grid, options = _geometry(n, size // n)
    launch.run(
        recurrent_backward_kernel, grid, grad_spikes, *weight, adjoint.grad_counts,
        *adjoint.grad_final[:3], adjoint.kept, adjoint.words, adjoint.constants,
        adjoint.grad_injected, *adjoint.grad_initial[:3], adjoint.n_steps, size, n,
        DETACH=adjoint.plan.detach_reset, DELAY=bool(adjoint.plan.delay),
        PARTS=1 if reduced else 2, **options,
    )  # fmt: skip
