"""Recurrent layers two steps at a time: one product over the spikes of both, one kernel.

S[n] first acts on U[n+2], so S[n] and S[n+1] are both known before the recurrent current of either.
A launch finishes the pair before (its recurrent current has arrived) and emits the next pair.

With inhibition there are two recurrent currents, of the excitatory and of the inhibitory spikes.
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
from fastlif.ops.triton.populations import (
    charged_membrane,
    excitatory_index,
    excites,
    inhibitory_index,
    load_decays,
)
from fastlif.ops.triton.products import RecurrentProducts
from fastlif.ops.triton.retreat import Adjoint, lif_backward
from fastlif.ops.triton.scan import (
    Neurons,
    load_or_zero,
    load_state,
    store_kept,
    store_present,
    store_state,
)

BLOCK = launch.block(128)
WARPS = 4


@triton.jit
def store_spikes(
    spikes,  # of the excitatory neurons of one step
    inhibitory_spikes,
    spike,
    flat,
    inside,
    is_excitatory,
    channels,
    excitatory,
    INHIBITION: tl.constexpr,
):
    """Spikes as numbers, each population by itself; without inhibition all in the first."""
    if INHIBITION:
        at = excitatory_index(flat, channels, excitatory)
        tl.store(spikes + at, spike, mask=inside & is_excitatory)
        at = inhibitory_index(flat, channels, excitatory)
        tl.store(inhibitory_spikes + at, spike, mask=inside & (is_excitatory == 0))
    else:
        tl.store(spikes + flat, spike, mask=inside)


@triton.jit(do_not_specialize=["step", "first_row"])
def pair_kernel(
    injected,  # (steps of the window, size): J without the recurrent part
    recurrent,  # (2, size): V S of the pair before; or None
    inhibiting,  # (2, size): K of the pair before, with inhibition
    constants,
    membrane0,  # (batch, channels, positions) or None, as the four below
    current0,
    pending0,
    inhibitory0,
    pending_inhibitory0,
    state,  # (3, size): U after the pair before, I at its first step, J of the step before it;
    # with inhibition (5, size): also H and K, as I and J
    spikes,  # to write, S of the next pair as numbers: (2, size), or of excitatory neurons alone
    inhibitory_spikes,  # to write, those of inhibitory neurons, with inhibition
    kept,  # (steps, size), one row more when the reset is differentiated; or None
    words,  # int32 (words, size)
    membrane_out,
    current_out,
    pending_out,  # None without a delay
    inhibitory_out,  # None without inhibition, as the next
    pending_inhibitory_out,
    step,  # the first one to emit
    first_row,  # the step of the first row of `injected`
    size,
    neurons,
    channels,
    positions,
    excitatory,  # of the channels
    START: tl.constexpr,  # begin at the initial state
    FINISH: tl.constexpr,  # steps of the pair before: 0, 1, 2
    EMIT: tl.constexpr,  # steps of the next pair: 0, 1, 2
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    INHIBITION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Finish a pair of steps and emit the next; with nothing to emit, the final state."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    wide = tl.cast(size, tl.int64)
    user = user_index(flat, neurons, channels, positions)
    is_excitatory = excites(flat, channels, excitatory)
    decay_mem, gain_mem, decay_syn, threshold, decay_inhibitory = load_decays(
        constants, is_excitatory, INHIBITION
    )
    inhibitory = tl.zeros((BLOCK,), real)
    pending_inhibitory = inhibitory
    if START:
        membrane = load_or_zero(membrane0, user, inside, BLOCK, real)
        current = load_or_zero(current0, user, inside, BLOCK, real)
        pending = load_or_zero(pending0, user, inside, BLOCK, real)
        if INHIBITION:
            inhibitory = load_or_zero(inhibitory0, user, inside, BLOCK, real)
            pending_inhibitory = load_or_zero(pending_inhibitory0, user, inside, BLOCK, real)
        if kept is not None and not DETACH:
            store_kept(kept + flat, membrane - threshold, inside)
    else:
        membrane, current, pending = load_state(state, size, flat, inside)
        if INHIBITION:
            inhibitory = tl.load(state + 3 * wide + flat, mask=inside, other=0.0)
            pending_inhibitory = tl.load(state + 4 * wide + flat, mask=inside, other=0.0)

    if FINISH > 0:
        row = tl.cast(step - FINISH - first_row, tl.int64)
        arrived = tl.load(injected + row * wide + flat, mask=inside, other=0.0)
        if recurrent is not None:
            arrived += tl.load(recurrent + flat, mask=inside, other=0.0)
        current = decay_syn * current + (pending if DELAY else arrived)
        if INHIBITION:
            inhibited = tl.load(inhibiting + flat, mask=inside, other=0.0)
            inhibitory *= decay_inhibitory
            inhibitory += pending_inhibitory if DELAY else inhibited
            pending_inhibitory = inhibited
        if FINISH > 1:
            second = tl.load(injected + (row + 1) * wide + flat, mask=inside, other=0.0)
            if recurrent is not None:
                second += tl.load(recurrent + wide + flat, mask=inside, other=0.0)
            spike = membrane > threshold
            charged = charged_membrane(
                membrane, current, inhibitory, decay_mem, gain_mem, INHIBITION
            )
            if kept is not None and not DETACH:
                at = tl.cast(step, tl.int64) * wide + flat
                store_kept(kept + at, charged - threshold, inside)
            membrane = tl.where(spike, 0.0, charged)
            current = decay_syn * current + (arrived if DELAY else second)
            arrived = second
            if INHIBITION:
                inhibited = tl.load(inhibiting + wide + flat, mask=inside, other=0.0)
                inhibitory *= decay_inhibitory
                inhibitory += pending_inhibitory if DELAY else inhibited
                pending_inhibitory = inhibited
        pending = arrived

    if EMIT > 0:
        row = tl.cast(step, tl.int64) * wide + flat
        bit = step % 32
        at = words + tl.cast(step // 32, tl.int64) * wide + flat
        word = tl.load(at, mask=inside & (bit > 0), other=0)
        spike = membrane > threshold
        word |= spike.to(tl.int32) << bit
        store_spikes(
            spikes, inhibitory_spikes, spike.to(real), flat, inside, is_excitatory, channels,
            excitatory, INHIBITION,
        )  # fmt: skip
        charged = charged_membrane(membrane, current, inhibitory, decay_mem, gain_mem, INHIBITION)
        if kept is not None:
            if DETACH:
                store_kept(kept + row, membrane - threshold, inside)
            else:
                store_kept(kept + row + wide, charged - threshold, inside)
        membrane = tl.where(spike, 0.0, charged)
        if EMIT > 1:
            spike = membrane > threshold
            word |= spike.to(tl.int32) << (bit + 1)
            sites = wide // channels
            second_inhibitory = inhibitory_spikes
            if INHIBITION:
                second_inhibitory += sites * (channels - excitatory)
            store_spikes(
                spikes + sites * excitatory, second_inhibitory, spike.to(real), flat, inside,
                is_excitatory, channels, excitatory, INHIBITION,
            )  # fmt: skip
            if kept is not None and DETACH:
                store_kept(kept + row + wide, membrane - threshold, inside)
        tl.store(at, word, mask=inside)
        store_state(state, size, flat, inside, membrane, current, pending)
        if INHIBITION:
            tl.store(state + 3 * wide + flat, inhibitory, mask=inside)
            tl.store(state + 4 * wide + flat, pending_inhibitory, mask=inside)
    else:
        store_present(membrane_out, user, membrane, inside)
        store_present(current_out, user, current, inside)
        store_present(pending_out, user, pending, inside)
        store_present(inhibitory_out, user, inhibitory, inside)
        store_present(pending_inhibitory_out, user, pending_inhibitory, inside)


Populations = tuple[Tensor | None, Tensor | None]  # of the excitatory, of the inhibitory neurons


def _advance(
    neurons: Neurons,
    injected: Tensor | None,
    currents: Populations,
    spikes: Populations,
    step: int,
    first_row: int,
    finish: int,
    emit: int,
) -> None:
    out, sizes, plan = neurons.out, neurons.sizes, neurons.plan
    launch.run(
        pair_kernel, (triton.cdiv(sizes[0], BLOCK),), injected, *currents, neurons.constants,
        *neurons.initial, neurons.state, *spikes, launch.present(out.kept), out.words,
        out.membrane, out.synaptic_current, launch.present(out.pending_current),
        launch.present(out.inhibitory_current), launch.present(out.pending_inhibitory), step,
        first_row, *sizes, plan.emitted_features[0], START=step == 0, FINISH=finish, EMIT=emit,
        DETACH=plan.detach_reset, DELAY=bool(plan.delay), INHIBITION=plan.inhibition is not None,
        BLOCK=BLOCK, num_warps=WARPS, **launch.EXACT_ROUNDING,
    )  # fmt: skip


def recurrent_forward(
    neurons: Neurons,
    current: Callable[[int, int], Tensor],  # J without the recurrent part, flat, of start .. stop
    window: int,  # steps of which that is made at a time, even
    products: RecurrentProducts,  # from spikes, flat (steps, batch, N), to currents
) -> None:
    """All steps of a recurrent layer, in pairs."""
    n_steps, plan = neurons.n_steps, neurons.plan
    batch, n = neurons.state.shape[1:]
    positions = n // plan.shape[0]

    def numbers(channels: int) -> Tensor | None:
        return neurons.state.new_empty((2, batch, positions * channels)) if channels else None

    inhibitory = plan.inhibition.channels if plan.inhibition else 0
    spikes = numbers(plan.emitted_features[0]), numbers(inhibitory)
    injected: Tensor | None = None
    currents: Populations = (None, None)
    first_row, emitted = 0, 0
    for step in range(0, n_steps, 2):
        count = min(2, n_steps - step)
        _advance(neurons, injected, currents, spikes, step, first_row, emitted, count)
        emitted = count
        currents = products.of(*(s if s is None else s[:count] for s in spikes))
        if step % window == 0:  # the launch above has read the last of the window before
            injected, first_row = current(step, min(step + window, n_steps)), step
    _advance(neurons, injected, currents, spikes, n_steps, first_row, emitted, 0)


def recurrent_backward(
    adjoint: Adjoint,
    grad_spikes: Tensor | None,  # flat (time, batch, N emitted); not the memory of grad_injected
    products: RecurrentProducts,  # from dL/dJ and dL/dK, flat (steps, batch, N), to dL/dS
) -> None:
    """All steps of a recurrent layer, in pairs from the last."""
    n_steps = adjoint.n_steps
    grads = adjoint.grad_injected, adjoint.grad_inhibiting
    state = adjoint.grad_injected.new_empty((3, *adjoint.grad_injected.shape[1:]))
    lif_backward(adjoint, grad_spikes, (None, None), state, n_steps, n_steps, ahead=True)
    for stop in range(n_steps, 0, -2):
        start = max(stop - 2, 0)
        own = products.of(*(g if g is None else g[start:stop] for g in grads))
        lif_backward(adjoint, grad_spikes, own, state, start, stop, ahead=True)
