"""The batches of an epoch: which samples, in which order, and how they are varied."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fastlif.data import SampleSource, shift_features
from fastlif.spikes import PackedSpikes

__all__ = ["Batch", "epoch_batches", "epoch_generator", "training_batches"]

Batch = tuple[PackedSpikes | Tensor, Tensor]  # inputs and targets, as `SampleSource.select` gives


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Source of an epoch's random numbers: the order of its samples and how each is varied.

    It depends on (seed, epoch) alone, so an epoch after a resume sees what it would have seen
    without the interruption.
    """
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def epoch_batches(
    n_samples: int, n_batches: int, generator: torch.Generator
) -> tuple[Tensor, ...]:  # of (batch,) int64
    """Sample numbers of an epoch in random order, in batches that differ by one at most."""
    return torch.randperm(n_samples, generator=generator).tensor_split(n_batches)


def training_batches(
    source: SampleSource,
    n_batches: int,
    generator: torch.Generator,
    device: torch.device,
    *,
    channel_shift: int = 0,
    share: Callable[[int], slice] = lambda n_samples: slice(None),
) -> Iterator[Batch]:
    """Batches of an epoch on the device, each sample once, varied at random.

    What the generator gives is drawn in a fixed order: that of the samples, how far each is moved,
    then what the source draws for its own augmentation, batch by batch. Packed samples that are on
    the device make the host wait before the first batch only.

    Args:
        source: of the samples.
        n_batches: number of batches, whose sizes differ by one at most.
        generator: on the CPU.
        device: on which the batches are wanted.
        channel_shift: samples are moved by up to this many input channels, to either side.
        share: the part of a batch of so many samples that is wanted. What is drawn, and so a sample
            of it, is the same whatever the part.
    """
    batches = epoch_batches(len(source), n_batches, generator)
    shifts = [
        torch.randint(-channel_shift, channel_shift + 1, batch.shape, generator=generator)
        for batch in (batches if channel_shift else ())
    ]
    order = torch.cat(batches).to(source.targets.device)
    moves = torch.cat(shifts).to(device).tensor_split(n_batches) if shifts else None
    for number, indices in enumerate(order.tensor_split(n_batches)):
        part = share(len(indices))
        inputs, targets = source.select(indices, device, generator, part)
        if moves is not None and isinstance(inputs, PackedSpikes):
            inputs = shift_features(inputs, moves[number][part])
        yield inputs, targets
