"""Layers without recurrence, forward over time: the current is given, the state in registers.

A program owns a block of flat neurons, samples and neurons alike, for a window of steps; one window
hands the state (U, I, pending J, each flat) to the next. The equations are those of
`fastlif.ops.reference`.
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from fastlif.ops.layout import LayerOutputs
from fastlif.ops.plan import LayerPlan, LIFState
from fastlif.ops.triton import launch
from fastlif.ops.triton.pack import user_index

BLOCK = launch.block(128)  # neurons of a program, two a thread: half precision comes in pairs
WARPS = 2
STAGES = 4  # steps whose current is on its way from memory


@triton.jit
def load_constants(constants):
    """decay_mem, gain_mem, decay_syn, threshold."""
    return (
        tl.load(constants),
        tl.load(constants + 1),
        tl.load(constants + 2),
        tl.load(constants + 3),
    )


@triton.jit
def load_or_zero(pointer, index, inside, BLOCK: tl.constexpr, real: tl.constexpr):
    """Values of a tensor that may be absent."""
    if pointer is None:
        return tl.zeros((BLOCK,), real)
    else:
        return tl.load(pointer + index, mask=inside, other=0.0)


@triton.jit
def load_state(state, size, flat, inside):
    """U, I and pending J between windows, from (3, size)."""
    wide = tl.cast(size, tl.int64)
    return (
        tl.load(state + flat, mask=inside, other=0.0),
        tl.load(state + wide + flat, mask=inside, other=0.0),
        tl.load(state + 2 * wide + flat, mask=inside, other=0.0),
    )


@triton.jit
def store_state(state, size, flat, inside, membrane, current, pending):
    """The inverse of load_state."""
    wide = tl.cast(size, tl.int64)
    tl.store(state + flat, membrane, mask=inside)
    tl.store(state + wide + flat, current, mask=inside)
    tl.store(state + 2 * wide + flat, pending, mask=inside)


@triton.jit
def store_present(pointer, index, value, inside):
    """Values of a tensor that may be absent."""
    if pointer is not None:
        tl.store(pointer + index, value, mask=inside)


@triton.jit
def store_kept(pointer, distance, mask):
    """U - threshold, in half precision without becoming infinite; NaN stays."""
    if pointer.dtype.element_ty == tl.float16:
        distance = tl.where(distance > 65504.0, 65504.0, distance)
        distance = tl.where(distance < -65504.0, -65504.0, distance)
    tl.store(pointer, distance.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def carried_over(value, inside):
    """A value for the step after the next; Triton pipelines no loop that hands one on as it is."""
    return tl.where(inside, value, 0.0)


@triton.jit(do_not_specialize=["start", "stop"])
def lif_forward_kernel(
    injected,  # (stop - start, size): J
    constants,
    membrane0,  # (batch, channels, positions), as the two below and the final ones
    current0,
    pending0,
    state,  # (3, size): U, I, pending J between windows
    kept,  # (steps, size), one row more when the reset is differentiated; or None
    words,  # int32 (words, size)
    membrane_out,
    current_out,
    pending_out,  # None without a delay
    start,  # a multiple of 32
    stop,
    size,
    neurons,
    channels,
    positions,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DETACH: tl.constexpr,
    DELAY: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Spiking neurons: bits, U - threshold and the state after the window."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    user = user_index(flat, neurons, channels, positions)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    if FIRST:
        membrane = load_or_zero(membrane0, user, inside, BLOCK, real)
        current = load_or_zero(current0, user, inside, BLOCK, real)
        pending = load_or_zero(pending0, user, inside, BLOCK, real)
        if kept is not None and not DETACH:
            store_kept(kept + flat, membrane - threshold, inside)
    else:
        membrane, current, pending = load_state(state, size, flat, inside)
    for first in range(start, stop, 32):
        word = tl.zeros((BLOCK,), tl.int32)
        for q in tl.range(0, tl.minimum(stop - first, 32), num_stages=STAGES):
            row = tl.cast(first + q, tl.int64)
            new = tl.load(injected + (row - start) * size + flat, mask=inside, other=0.0)
            spike = membrane > threshold
            word |= spike.to(tl.int32) << q
            charged = decay_mem * membrane + gain_mem * current
            if kept is not None:
                if DETACH:
                    store_kept(kept + row * size + flat, membrane - threshold, inside)
                else:
                    store_kept(kept + (row + 1) * size + flat, charged - threshold, inside)
            membrane = tl.where(spike, 0.0, charged)
            if DELAY:
                current = decay_syn * current + pending
                pending = carried_over(new, inside)
            else:
                current = decay_syn * current + new
        tl.store(words + tl.cast(first // 32, tl.int64) * size + flat, word, mask=inside)
    if LAST:
        store_present(membrane_out, user, membrane, inside)
        store_present(current_out, user, current, inside)
        store_present(pending_out, user, pending, inside)
    else:
        store_state(state, size, flat, inside, membrane, current, pending)


@triton.jit(do_not_specialize=["start", "stop"])
def readout_forward_kernel(
    injected,  # (stop - start, size)
    constants,
    membrane0,
    current0,
    pending0,
    state,  # (3, size)
    output,  # score (batch, channels, positions), or U (steps, batch, channels, positions)
    best_step,  # int32 (batch, channels, positions), or None for the trace
    membrane_out,
    current_out,
    pending_out,  # None without a delay
    start,
    stop,
    size,
    neurons,
    channels,
    positions,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DELAY: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Neurons without spikes: the maximum of U and its first step, or all of U."""
    real: tl.constexpr = constants.dtype.element_ty
    flat = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = flat < size
    user = user_index(flat, neurons, channels, positions)
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    best_at = tl.zeros((BLOCK,), tl.int32)
    if FIRST:
        membrane = load_or_zero(membrane0, user, inside, BLOCK, real)
        current = load_or_zero(current0, user, inside, BLOCK, real)
        pending = load_or_zero(pending0, user, inside, BLOCK, real)
        best = membrane
    else:
        membrane, current, pending = load_state(state, size, flat, inside)
        best = membrane
        if best_step is not None:
            best = tl.load(output + user, mask=inside, other=0.0)
            best_at = tl.load(best_step + user, mask=inside, other=0)
    for n in tl.range(start, stop, num_stages=STAGES):
        row = tl.cast(n, tl.int64)
        new = tl.load(injected + (row - start) * size + flat, mask=inside, other=0.0)
        if best_step is not None:
            # The first of equals stays, and so does the first NaN, which must not be lost.
            better = (membrane > best) | ((membrane != membrane) & (best == best))
            best = tl.where(better, membrane, best)
            best_at = tl.where(better, n, best_at)
        else:
            tl.store(output + row * size + user, membrane, mask=inside)
        membrane = decay_mem * membrane + gain_mem * current
        if DELAY:
            current = decay_syn * current + pending
            pending = carried_over(new, inside)
        else:
            current = decay_syn * current + new
    if best_step is not None:
        tl.store(output + user, best, mask=inside)
        tl.store(best_step + user, best_at, mask=inside)
    if LAST:
        store_present(membrane_out, user, membrane, inside)
        store_present(current_out, user, current, inside)
        store_present(pending_out, user, pending, inside)
    else:
        store_state(state, size, flat, inside, membrane, current, pending)


@dataclass(frozen=True)
class Neurons:
    """A layer in one run: what it is, where it starts from and what it fills."""

    plan: LayerPlan
    constants: Tensor
    initial: LIFState  # user (batch, *features); None is zero
    out: LayerOutputs
    state: Tensor  # (3, batch, N), with inhibition (5, batch, N): between windows
    n_steps: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """size, neurons, channels, positions of the kernels."""
        channels, height, width = self.plan.shape
        size = self.state[0].numel()
        return size, channels * height * width, channels, height * width

    def window(self, start: int, stop: int) -> dict[str, object]:
        """Constants of a kernel for these steps."""
        return {"FIRST": start == 0, "LAST": stop == self.n_steps, "DELAY": bool(self.plan.delay)}


def lif_forward(neurons: Neurons, injected: Tensor, start: int, stop: int) -> None:
    """Advance spiking neurons over a window of steps; `injected` is flat (steps, batch, N)."""
    out, sizes = neurons.out, neurons.sizes
    launch.run(
        lif_forward_kernel, (triton.cdiv(sizes[0], BLOCK),), injected, neurons.constants,
        *neurons.initial[:3], neurons.state, launch.present(out.kept), out.words, out.membrane,
        out.synaptic_current, launch.present(out.pending_current), start, stop, *sizes,
        **neurons.window(start, stop), DETACH=neurons.plan.detach_reset, BLOCK=BLOCK,
        STAGES=STAGES, num_warps=WARPS, **launch.EXACT_ROUNDING,
    )  # fmt: skip


def readout_forward(
    neurons: Neurons,
    injected: Tensor,  # flat (stop - start, batch, N)
    output: Tensor,  # user (batch, *features), or (steps, batch, *features) for the trace
    best_step: Tensor,  # int32 (batch, *features), empty for the trace
    start: int,
    stop: int,
) -> None:
    """Advance readout neurons over a window of steps."""
    out, sizes = neurons.out, neurons.sizes
    launch.run(
        readout_forward_kernel, (triton.cdiv(sizes[0], BLOCK),), injected, neurons.constants,
        *neurons.initial[:3], neurons.state, output, launch.present(best_step), out.membrane,
        out.synaptic_current, launch.present(out.pending_current), start, stop, *sizes,
        **neurons.window(start, stop), BLOCK=BLOCK, STAGES=STAGES, num_warps=WARPS,
        **launch.EXACT_ROUNDING,
    )  # fmt: skip
