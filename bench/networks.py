"""Networks of the cases on Poisson spikes, every layer firing near a wanted rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bench.cases import DT, RATE_RANGE, TARGET_RATE, Case
from fastlif import LIReadout, PackedSpikes, Sequential, extension
from fastlif.init import fluctuation_driven_
from fastlif.layers.base import StackLayer
from fastlif.spikes import WORD_STEPS, n_words, spatial_shape

SIGMA_U_RANGE = (0.2, 4.0)
TUNING_ROUNDS = 12


def poisson_input(case: Case) -> PackedSpikes:
    """Independent spikes at the case's rate, at most one per step and input."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.n_steps, case.batch, *case.input_features)
    spikes = torch.rand(shape, generator=generator) < case.input_rate * DT
    if extension.is_available():
        return PackedSpikes.pack(spikes.float())
    return pack_with_torch(spikes)


def pack_with_torch(spikes: torch.Tensor) -> PackedSpikes:
    """Pack a bool (time, batch, *features) tensor without fastlif's kernels, on any device."""
    n_steps, batch, *features = spikes.shape
    channels, height, width = spatial_shape(features)
    bits = spikes.reshape(n_steps, batch, channels, height * width).transpose(2, 3).flatten(2)
    padded = bits.new_zeros(WORD_STEPS * n_words(n_steps), batch, bits.shape[2])
    padded[:n_steps] = bits
    weights = 2 ** torch.arange(WORD_STEPS, device=spikes.device).view(1, -1, 1, 1)
    words = (padded.unflatten(0, (-1, WORD_STEPS)) * weights).sum(1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return PackedSpikes(words, n_steps, tuple(features))


def build_network(
    case: Case, input: PackedSpikes, tuning_samples: int | None = None
) -> tuple[Sequential, list[float]]:
    """A network whose layers fire near the case's rate, and the sigma_u of each that does it.

    The weights are fluctuation-driven at the measured rate of each layer's input. Every sigma_u is
    found by bisection, from the first layer to the last: a layer's rate rises with its sigma_u and
    does not depend on the layers behind it.
    """
    model = case.build(backend=None if extension.is_available() else "reference")
    signal: Tensor | PackedSpikes = input[: tuning_samples or case.tuning_samples]
    sigma_u = []
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, LIReadout):
                fluctuation_driven_(layer, data=signal, generator=torch.Generator().manual_seed(0))
            elif isinstance(layer, StackLayer):
                sigma_u.append(_tune(case, layer, signal, seed=len(sigma_u)))
            signal = layer(signal)
    rates = firing_rates(model, input)
    slowest, fastest = (rate * case.target_rate / TARGET_RATE for rate in RATE_RANGE)
    if not all(slowest <= rate <= fastest for rate in rates):
        raise ValueError(
            f"every layer of case {case.name!r} must fire at {slowest:g} to {fastest:g} Hz, "
            f"got {rates}"
        )
    return model, sigma_u


def _tune(case: Case, layer: StackLayer, signal: Tensor | PackedSpikes, seed: int) -> float:
    """Draw the layer's weights with the sigma_u, which is returned, that gives the case's rate."""
    if isinstance(signal, Tensor):
        density = float(signal.mean())
    else:
        density = signal.count() / math.prod(signal.shape)
    low, high = SIGMA_U_RANGE
    high *= max(1.0, case.target_rate / TARGET_RATE) ** 0.5
    sigma_u = 1.0
    for tuning_round in range(TUNING_ROUNDS + 1):
        # The same random numbers every time: only their scale changes with sigma_u.
        fluctuation_driven_(
            layer,
            rate=density / DT,
            sigma_u=sigma_u,
            generator=torch.Generator().manual_seed(seed),
        )
        if tuning_round == TUNING_ROUNDS:
            break
        counts = layer(signal, return_spike_counts=True).spike_counts
        if float(counts.mean()) / (signal.shape[0] * DT) < case.target_rate:
            low = sigma_u
        else:
            high = sigma_u
        sigma_u = (low * high) ** 0.5
    return sigma_u


def firing_rates(model: Sequential, input: PackedSpikes) -> list[float]:
    """Mean rate of every spiking layer, in Hz."""
    with torch.no_grad():
        counts = model(input, return_spike_counts=True).spike_counts
    return [float(count.mean()) / (input.n_steps * DT) for count in counts]
