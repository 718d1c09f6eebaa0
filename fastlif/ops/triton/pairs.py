"""Recurrent layers two steps at a time: one product over the spikes of both, one kernel.

S[n] first acts on U[n+2], so S[n] and S[n+1] are both known before the recurrent current of either.
A launch finishes the pair before (its recurrent current has arrived) and emits the next pair.
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.triton import launch
from fastlif.ops.triton.pack import user_index
from fastlif.ops.triton.retreat import Adjoint, lif_backward
from fastlif.ops.triton.scan import (
    Neurons,
    load_constants,
    load_or_zero,
    load_state,
    store_kept,
    store_present,
    store_state,
)

BLOCK = launch.block(128)
WARPS = 4


@triton.jit(do_not_specialize=["step", "first_row"])
def pair_kernel(
    injected,  # (steps of the window, size): J without the recurrent part
    recurrent,  # (2, size): V S of the pair before
    constants,
    membrane0,  # (batch, channels, positions) or None, as the two below
    current0,
    pending0,
    state,  # (3, size): U after the pair before, I at its first step, J of the step before it
    spikes,  # (2, size), to write: S of the next pair as numbers
    kept,  # (steps, size), one row more when the reset is differentiated; or None
    words,  # int32 (words, size)
    membrane_out,
    current_out,
    pending_out,
    step,  # the first one to emit
    first_row,  # the step of the first row of `injected`
    size,
    neurons,
    channels,
    positions,
    START: tl.constexpr,  # begin at the initial state
    FINISH: tl.constexpr,  # steps of the pair before: 0, 1, 2
    EMIT: tl.constexpr,  # steps of the next pair: 0, 1, 2
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Finish a pair of steps and emit the next; with nothing to emit, the final state."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    wide = tl.cast(size, tl.int64)
    user = user_index(flat, neurons, channels, positions)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    if START:
        membrane = load_or_zero(membrane0, user, inside, BLOCK, real)
        current = load_or_zero(current0, user, inside, BLOCK, real)
        pending = load_or_zero(pending0, user, inside, BLOCK, real)
        if kept is not None and not DETACH:
            store_kept(kept + flat, membrane - threshold, inside)
    else:
        membrane, current, pending = load_state(state, size, flat, inside)

    if FINISH > 0:
        row = tl.cast(step - FINISH - first_row, tl.int64)
        arrived = tl.load(injected + row * wide + flat, mask=inside, other=0.0)
        arrived += tl.load(recurrent + flat, mask=inside, other=0.0)
        current = decay_syn * current + (pending if DELAY else arrived)
        if FINISH > 1:
            second = tl.load(injected + (row + 1) * wide + flat, mask=inside, other=0.0)
            second += tl.load(recurrent + wide + flat, mask=inside, other=0.0)
            spike = membrane > threshold
            charged = decay_mem * membrane + gain_mem * current
            if kept is not None and not DETACH:
                at = tl.cast(step, tl.int64) * wide + flat
                store_kept(kept + at, charged - threshold, inside)
            membrane = tl.where(spike, 0.0, charged)
            current = decay_syn * current + (arrived if DELAY else second)
            arrived = second
        pending = arrived

    if EMIT > 0:
        row = tl.cast(step, tl.int64) * wide + flat
        bit = step % 32
        at = words + tl.cast(step // 32, tl.int64) * wide + flat
        word = tl.load(at, mask=inside & (bit > 0), other=0)
        spike = membrane > threshold
        word |= spike.to(tl.int32) << bit
        tl.store(spikes + flat, spike.to(real), mask=inside)
        charged = decay_mem * membrane + gain_mem * current
        if kept is not None:
            if DETACH:
                store_kept(kept + row, membrane - threshold, inside)
            else:
                store_kept(kept + row + wide, charged - threshold, inside)
        membrane = tl.where(spike, 0.0, charged)
        if EMIT > 1:
            spike = membrane > threshold
            word |= spike.to(tl.int32) << (bit + 1)
            tl.store(spikes + wide + flat, spike.to(real), mask=inside)
            if kept is not None and DETACH:
                store_kept(kept + row + wide, membrane - threshold, inside)
        tl.store(at, word, mask=inside)
        store_state(state, size, flat, inside, membrane, current, pending)
    else:
        store_present(membrane_out, user, membrane, inside)
        store_present(current_out, user, current, inside)
        store_present(pending_out, user, pending, inside)


def _advance(
    neurons: Neurons,
    injected: Tensor,
    recurrent: Tensor,
    spikes: Tensor,
    step: int,
    first_row: int,
    finish: int,
    emit: int,
) -> None:
    out, sizes = neurons.out, neurons.sizes
    launch.run(
        pair_kernel, (triton.cdiv(sizes[0], BLOCK),), injected, recurrent, neurons.constants,
        *neurons.initial, neurons.state, spikes, launch.present(out.kept), out.words,
        out.membrane, out.synaptic_current, launch.present(out.pending_current), step, first_row,
        *sizes, START=step == 0, FINISH=finish, EMIT=emit, DETACH=neurons.plan.detach_reset,
        DELAY=bool(neurons.plan.delay), BLOCK=BLOCK, num_warps=WARPS, **launch.EXACT_ROUNDING,
    )  # fmt: skip


def recurrent_forward(
    neurons: Neurons,
    current: Callable[[int, int], Tensor],  # J without the recurrent part, flat, of start .. stop
    window: int,  # steps of which that is made at a time, even
    product: Callable[[Tensor], Tensor],  # V S: flat (steps, batch, N) of spikes to currents
) -> None:
    """All steps of a recurrent layer, in pairs."""
    n_steps = neurons.n_steps
    spikes = neurons.state.new_zeros((2, *neurons.state.shape[1:]))
    injected, recurrent, first_row, emitted = spikes, spikes, 0, 0
    for step in range(0, n_steps, 2):
        count = min(2, n_steps - step)
        _advance(neurons, injected, recurrent, spikes, step, first_row, emitted, count)
        emitted = count
        recurrent = product(spikes[:count])
        if step % window == 0:  # the launch above has read the last of the window before
            injected, first_row = current(step, min(step + window, n_steps)), step
    _advance(neurons, injected, recurrent, spikes, n_steps, first_row, emitted, 0)


def recurrent_backward(
    adjoint: Adjoint,
    grad_spikes: Tensor | None,  # flat (time, batch, N); not the memory of grad_injected
    product: Callable[[Tensor], Tensor],  # V^T dL/dJ, flat (steps, batch, N) both
) -> None:
    """All steps of a recurrent layer, in pairs from the last."""
    n_steps = adjoint.n_steps
    state = adjoint.grad_injected.new_empty((2, *adjoint.grad_injected.shape[1:]))
    lif_backward(adjoint, grad_spikes, None, state, n_steps, n_steps, ahead=True)
    for stop in range(n_steps, 0, -2):
        start = max(stop - 2, 0)
        recurrent = product(adjoint.grad_injected[start:stop])
        lif_backward(adjoint, grad_spikes, recurrent, state, start, stop, ahead=True)
