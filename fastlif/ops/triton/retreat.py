"""Layers backward over time: the adjoint of `scan` and of the recurrences.

gU[n], gI[n] are the gradients of the membrane and of the current, grad_injected[n] = dL/dJ[n]:

    unreset = 0 if S[n] else gU[n+1]
    gU[n]   = decay_mem unreset + surrogate(U[n]) gS[n]
    gI[n]   = decay_syn gI[n+1] + gain_mem unreset
    dL/dJ[n] = gI[n+1], or gI[n+2] with a delay

With inhibition also, of its current H and what is injected into that, K:

    gH[n]   = decay_inhibitory gH[n+1] - gain_mem unreset
    dL/dK[n] = gH[n+1], or gH[n+2] with a delay
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.plan import LayerPlan
from fastlif.ops.triton import launch
from fastlif.ops.triton.pack import user_index
from fastlif.ops.triton.populations import (
    excitatory_index,
    excites,
    inhibitory_index,
    load_decays,
)
from fastlif.ops.triton.scan import carried_over, load_constants, load_or_zero, store_present

BLOCK = launch.block(128)  # neurons of a program, two a thread: half precision comes in pairs
WARPS = 2
STAGES = 4  # steps whose gradients are on their way from memory


@triton.jit
def surrogate(distance, slope, scale):
    """dS/dU at U - threshold."""
    root = slope * tl.abs(distance) + 1.0
    return scale / (root * root)


@triton.jit(do_not_specialize=["start", "stop"])
def lif_backward_kernel(
    grad_spikes,  # (steps, size, with inhibition of excitatory neurons), or None: from above
    grad_recurrent,  # (stop - start, likewise), or None: V^T dL/dJ
    grad_recurrent_inhibitory,  # (stop - start, size of inhibitory neurons): V_inh^T dL/dK
    grad_counts,  # (batch, channels, positions) or None, as the five below
    grad_membrane,
    grad_current,
    grad_pending,
    grad_inhibitory,
    grad_pending_inhibitory,
    kept,  # (steps, size), one row more when the reset is differentiated
    words,  # int32 (words, size)
    constants,
    state,  # (2, size): gU, gI between windows; with inhibition (3, size): and gH
    grad_injected,  # (steps, size), may be the memory of grad_spikes unless AHEAD
    grad_inhibiting,  # (steps, size): dL/dK, with inhibition
    grad_membrane0,  # (batch, channels, positions) or None, as the four below
    grad_current0,
    grad_pending0,
    grad_inhibitory0,
    grad_pending_inhibitory0,
    start,
    stop,
    size,
    neurons,
    channels,
    positions,
    excitatory,  # of the channels
    FIRST: tl.constexpr,  # the window ends at the last step
    LAST: tl.constexpr,  # the window starts at step 0
    AHEAD: tl.constexpr,  # also write dL/dJ and dL/dK of the two steps before the window
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    INHIBITION: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Spiking neurons from step stop - 1 down to start."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    user = user_index(flat, neurons, channels, positions)
    is_excitatory = excites(flat, channels, excitatory)
    decay_mem, gain_mem, decay_syn, threshold, decay_inhibitory = load_decays(
        constants, is_excitatory, INHIBITION
    )
    # What comes from above, and through the recurrence, has an order of its own.
    heard, is_heard = flat, inside
    heard_size = tl.cast(size, tl.int64)
    if INHIBITION:
        heard = excitatory_index(flat, channels, excitatory)
        is_heard = inside & is_excitatory
        heard_size = heard_size // channels * excitatory
        inhibiting = inhibitory_index(flat, channels, excitatory)
    slope = tl.load(constants + 4)
    scale = tl.load(constants + 5)
    grad_count = load_or_zero(grad_counts, user, inside, BLOCK, real)
    last_row = tl.cast(stop, tl.int64) - 1
    if FIRST:
        grad_u = load_or_zero(grad_membrane, user, inside, BLOCK, real)
        grad_i = load_or_zero(grad_current, user, inside, BLOCK, real)
        grad_h = load_or_zero(grad_inhibitory, user, inside, BLOCK, real)
        if DELAY:
            injected = load_or_zero(grad_pending, user, inside, BLOCK, real)
            inhibited = load_or_zero(grad_pending_inhibitory, user, inside, BLOCK, real)
        else:
            injected = grad_i
            inhibited = grad_h
    else:
        grad_u = tl.load(state + flat, mask=inside, other=0.0)
        grad_i = tl.load(state + size + flat, mask=inside, other=0.0)
        injected = tl.load(grad_injected + last_row * size + flat, mask=inside, other=0.0)
        grad_h = grad_i
        inhibited = injected
        if INHIBITION:
            grad_h = tl.load(state + 2 * tl.cast(size, tl.int64) + flat, mask=inside, other=0.0)
            at = last_row * size + flat
            inhibited = tl.load(grad_inhibiting + at, mask=inside, other=0.0)
    charged = tl.zeros((BLOCK,), real)
    if not DETACH:
        last_kept = tl.load(kept + (last_row + 1) * size + flat, mask=inside, other=0.0)
        charged = last_kept.to(real) + threshold  # U[n+1] before the reset
    for w in range(0, (stop + 31) // 32 - start // 32):
        word_index = (stop + 31) // 32 - 1 - w
        at = tl.cast(word_index, tl.int64) * size + flat
        word = tl.load(words + at, mask=inside, other=0)
        earlier = word
        if not DETACH:
            earlier = tl.load(words + at - size, mask=inside & (word_index > 0), other=0)
            earlier = (word << 1) | ((earlier >> 31) & 1)  # bit q is S[32 w + q - 1]
        low = tl.maximum(word_index * 32, start)
        high = tl.minimum(word_index * 32 + 32, stop)
        for i in tl.range(0, high - low, num_stages=STAGES):
            n = high - 1 - i
            q = n - word_index * 32
            row = tl.cast(n, tl.int64)
            grad_s = grad_count
            if grad_spikes is not None:
                at_above = grad_spikes + row * heard_size + heard
                grad_s = tl.load(at_above, mask=is_heard, other=0.0) + grad_s
            if grad_recurrent is not None:
                own = grad_recurrent + (row - start) * heard_size + heard
                grad_s += tl.load(own, mask=is_heard, other=0.0)
            if grad_recurrent_inhibitory is not None:
                own = grad_recurrent_inhibitory + (row - start) * (size - heard_size) + inhibiting
                grad_s += tl.load(own, mask=inside & (is_excitatory == 0), other=0.0)
            distance = tl.load(kept + row * size + flat, mask=inside, other=0.0).to(real)
            tl.store(grad_injected + row * size + flat, injected, mask=inside)
            if not DETACH:
                grad_s -= charged * grad_u
                charged = distance + threshold
                # A neuron that was reset on the way here is at 0, not at what was charged.
                distance = tl.where(((earlier >> q) & 1) != 0, -threshold, distance)
            unreset = tl.where(((word >> q) & 1) != 0, 0.0, grad_u)
            grad_u = decay_mem * unreset + surrogate(distance, slope, scale) * grad_s
            later = grad_i
            grad_i = decay_syn * later + gain_mem * unreset
            injected = carried_over(later, inside) if DELAY else grad_i
            if INHIBITION:
                tl.store(grad_inhibiting + row * size + flat, inhibited, mask=inside)
                later = grad_h
                grad_h = decay_inhibitory * later - gain_mem * unreset
                inhibited = carried_over(later, inside) if DELAY else grad_h
    if AHEAD:
        before = tl.cast(start, tl.int64) - 1
        tl.store(grad_injected + before * size + flat, injected, mask=inside & (before >= 0))
        word = tl.load(words + (before // 32) * size + flat, mask=inside & (before >= 0), other=0)
        spike = (word >> (before & 31).to(tl.int32)) & 1
        unreset = tl.where(spike != 0, 0.0, grad_u)
        next_injected = grad_i if DELAY else decay_syn * grad_i + gain_mem * unreset
        at_two = grad_injected + (before - 1) * size + flat
        tl.store(at_two, next_injected, mask=inside & (before >= 1))
        if INHIBITION:
            at_one = grad_inhibiting + before * size + flat
            tl.store(at_one, inhibited, mask=inside & (before >= 0))
            next_inhibited = grad_h if DELAY else decay_inhibitory * grad_h - gain_mem * unreset
            tl.store(at_one - size, next_inhibited, mask=inside & (before >= 1))
    if LAST:
        store_present(grad_membrane0, user, grad_u, inside)
        store_present(grad_current0, user, grad_i, inside)
        store_present(grad_pending0, user, injected, inside)
        store_present(grad_inhibitory0, user, grad_h, inside)
        store_present(grad_pending_inhibitory0, user, inhibited, inside)
    else:
        tl.store(state + flat, grad_u, mask=inside)
        tl.store(state + size + flat, grad_i, mask=inside)
        if INHIBITION:
            tl.store(state + 2 * tl.cast(size, tl.int64) + flat, grad_h, mask=inside)


@triton.jit
def readout_backward_kernel(
    grad_output,  # of the score, (batch, channels, positions), or of U, (steps, size); or None
    best_step,  # int32 (batch, channels, positions), or None for the trace
    grad_membrane,
    grad_current,
    grad_pending,
    constants,
    grad_injected,  # (steps, size), may be the memory of grad_output of a trace
    grad_membrane0,
    grad_current0,
    grad_pending0,
    n_steps,
    size,
    neurons,
    channels,
    positions,
    DELAY: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Neurons without spikes; the gradient of a score enters at its step."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    user = user_index(flat, neurons, channels, positions)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    grad_u = load_or_zero(grad_membrane, user, inside, BLOCK, real)
    grad_i = load_or_zero(grad_current, user, inside, BLOCK, real)
    injected = grad_i
    if DELAY:
        injected = load_or_zero(grad_pending, user, inside, BLOCK, real)
    grad_score = tl.zeros((BLOCK,), real)
    entry = tl.zeros((BLOCK,), tl.int32)
    if best_step is not None:
        grad_score = load_or_zero(grad_output, user, inside, BLOCK, real)
        entry = tl.load(best_step + user, mask=inside, other=0)
    for i in tl.range(0, n_steps, num_stages=STAGES):
        n = n_steps - 1 - i
        row = tl.cast(n, tl.int64)
        if best_step is not None:
            entering = tl.where(entry == n, grad_score, 0.0)
        else:
            at = row * size + flat
            entering = load_or_zero(grad_output, at, inside, BLOCK, real)
        tl.store(grad_injected + row * size + flat, injected, mask=inside)
        later = grad_i
        grad_i = decay_syn * later + gain_mem * grad_u
        grad_u = decay_mem * grad_u + entering
        injected = carried_over(later, inside) if DELAY else grad_i
    store_present(grad_membrane0, user, grad_u, inside)
    store_present(grad_current0, user, grad_i, inside)
    store_present(grad_pending0, user, injected, inside)


@dataclass(frozen=True)
class Adjoint:
    """A layer in one backward run: what reaches it, what was kept, what it fills."""

    plan: LayerPlan
    constants: Tensor
    n_steps: int
    grad_counts: Tensor | None  # user (batch, *features), as the five below
    grad_final: Sequence[Tensor | None]  # in the order of LIFState
    kept: Tensor
    words: Tensor
    grad_initial: Sequence[Tensor | None]  # to write, as grad_final
    grad_injected: Tensor  # to write, flat (time, batch, N)
    grad_inhibiting: Tensor | None = None  # likewise, with inhibition: dL/dK

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """size, neurons, channels, positions of the kernels."""
        channels, height, width = self.plan.shape
        size = self.grad_injected[0].numel()
        return size, channels * height * width, channels, height * width


def lif_backward(
    adjoint: Adjoint,
    grad_spikes: Tensor | None,  # flat (time, batch, N emitted)
    grad_recurrent: tuple[Tensor | None, Tensor | None],  # flat (stop - start, batch, N), of
    # excitatory (if there are no others, all) and of inhibitory neurons
    state: Tensor,  # (2, batch, N), with inhibition (3, batch, N)
    start: int,
    stop: int,
    *,
    ahead: bool = False,
) -> None:
    """From the gradients at step stop to those at step start; see the kernel for `ahead`."""
    sizes, plan = adjoint.sizes, adjoint.plan
    launch.run(
        lif_backward_kernel, (triton.cdiv(sizes[0], BLOCK),), grad_spikes, *grad_recurrent,
        adjoint.grad_counts, *adjoint.grad_final, adjoint.kept, adjoint.words, adjoint.constants,
        state, adjoint.grad_injected, adjoint.grad_inhibiting, *adjoint.grad_initial, start, stop,
        *sizes, plan.emitted_features[0],
        FIRST=stop == adjoint.n_steps and (start == stop or not ahead), LAST=start == 0,
        AHEAD=ahead, DETACH=plan.detach_reset, DELAY=bool(plan.delay),
        INHIBITION=plan.inhibition is not None, BLOCK=BLOCK, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip


def readout_backward(
    adjoint: Adjoint,
    grad_output: Tensor | None,  # user (batch, *features), flat (time, batch, N) of a trace
    best_step: Tensor | None,
) -> None:
    """Readout neurons, all steps."""
    sizes = adjoint.sizes
    launch.run(
        readout_backward_kernel, (triton.cdiv(sizes[0], BLOCK),), grad_output, best_step,
        *adjoint.grad_final[:3], adjoint.constants, adjoint.grad_injected,
        *adjoint.grad_initial[:3], adjoint.n_steps, *sizes, DELAY=bool(adjoint.plan.delay),
        BLOCK=BLOCK, STAGES=STAGES, num_warps=WARPS,
    )  # fmt: skip
