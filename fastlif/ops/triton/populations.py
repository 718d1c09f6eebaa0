"""The two populations of a layer with inhibition: which neuron is which, and its constants.

Neurons are channels last; the first `excitatory` channels of a position are excitatory, the others
inhibitory. What only one population has (the spikes that a synapse reads, the gradient from above)
is flat over that population alone.
"""

# Kernels are not Python: their arguments are pointers, tiles and constants.
# mypy: disable-error-code=no-untyped-def

from __future__ import annotations

import triton
import triton.language as tl

from fastlif.ops.triton.scan import load_constants


@triton.jit
def excites(flat, channels, excitatory):
    """Which of these neurons are excitatory."""
    return flat % channels < excitatory


@triton.jit
def excitatory_index(flat, channels, excitatory):
    """Index among the excitatory neurons; for one of those."""
    site = flat // channels
    return flat - site * (channels - excitatory)


@triton.jit
def inhibitory_index(flat, channels, excitatory):
    """Index among the inhibitory neurons; for one of those."""
    return flat - (flat // channels + 1) * excitatory


@triton.jit
def load_decays(constants, is_excitatory, INHIBITION: tl.constexpr):
    """decay_mem, gain_mem, decay_syn, threshold, and decay_inhibitory where there is inhibition.

    With it all but the threshold are tiles, of each neuron's own population.
    """
    decay_mem, gain_mem, decay_syn, threshold = load_constants(constants)
    decay_inhibitory = decay_syn
    if INHIBITION:
        decay_inhibitory = tl.where(is_excitatory, tl.load(constants + 6), tl.load(constants + 10))
        decay_mem = tl.where(is_excitatory, decay_mem, tl.load(constants + 7))
        gain_mem = tl.where(is_excitatory, gain_mem, tl.load(constants + 8))
        decay_syn = tl.where(is_excitatory, decay_syn, tl.load(constants + 9))
    return decay_mem, gain_mem, decay_syn, threshold, decay_inhibitory


@triton.jit
def charged_membrane(membrane, current, inhibitory, decay_mem, gain_mem, INHIBITION: tl.constexpr):
    """U of the next step, before the reset."""
    if INHIBITION:
        current = current - inhibitory
    return decay_mem * membrane + gain_mem * current
