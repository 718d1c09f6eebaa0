"""What training asks of a data set, and subsets of one."""

from __future__ import annotations

import pytest
import torch

from fastlif.data import PackedDataset, SampleSource, Subset
from fastlif.spikes import PackedSpikes


def some_samples() -> PackedDataset:
    dense = (torch.rand(20, 6, 2, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    return PackedDataset(PackedSpikes.pack(dense), torch.tensor([0, 1, 2, 3, 1, 0]))


def test_packed_samples_are_a_source() -> None:
    source: SampleSource = some_samples()
    assert source.n_classes == 4
    assert source.features == (2, 5)
    assert source.targets.tolist() == [0, 1, 2, 3, 1, 0]
    assert source.n_bytes == 1 * 6 * 10 * 4
    chosen = torch.tensor([4, 2])
    plain, _ = source.select(chosen)
    augmented, targets = source.select(chosen, None, torch.Generator())
    assert isinstance(plain, PackedSpikes) and isinstance(augmented, PackedSpikes)
    assert torch.equal(plain.words, augmented.words)
    assert targets.tolist() == [1, 2]


def test_subset_numbers_samples_anew() -> None:
    source = some_samples()
    subset: SampleSource = Subset(source, torch.tensor([5, 2, 1]))
    assert len(subset) == 3
    assert subset.targets.tolist() == [0, 2, 1]
    assert subset.n_classes == 4  # though class 3 is not in it
    assert subset.features == (2, 5)
    spikes, targets = subset.select(torch.tensor([1, 0]))
    expected, _ = source.select(torch.tensor([2, 5]))
    assert isinstance(spikes, PackedSpikes)
    assert torch.equal(spikes.words, expected.words)
    assert targets.tolist() == [2, 0]


def test_subset_refuses_indices_that_do_not_fit() -> None:
    source = some_samples()
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5, got 2\.\.6"):
        Subset(source, torch.tensor([2, 6]))
    with pytest.raises(ValueError, match=r"indices must lie in 0\.\.5, got -1\.\.2"):
        Subset(source, torch.tensor([2, -1]))
    with pytest.raises(ValueError, match="one-dimensional int64 tensor, not empty"):
        Subset(source, torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="one-dimensional int64 tensor, not empty"):
        Subset(source, torch.tensor([1.0]))
