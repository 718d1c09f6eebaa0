"""The Randman generator against its formula, and the properties the paper states."""

from __future__ import annotations

import math

import pytest
import torch

from fastlif.data import PackedDataset, RandmanConfig, make_randman, mean_firing_rate
from fastlif.data.randman import manifold_points, randman_steps

SMALL = RandmanConfig(n_classes=3, n_train=8, n_validation=2, n_test=2, seed=5)


@pytest.mark.parametrize(("dimension", "smoothness"), [(1, 1.0), (2, 2.0)])
def test_points_follow_the_formula(dimension: int, smoothness: float) -> None:
    n_points, n_inputs = 6, 2
    n_harmonics = min(math.ceil(0.001 ** (-1.0 / smoothness)), 1000)
    generator = torch.Generator().manual_seed(7)
    result = manifold_points(
        n_points,
        n_inputs=n_inputs,
        dimension=dimension,
        smoothness=smoothness,
        generator=generator,
    )
    # The same random numbers, in the order in which the generator is documented to draw them.
    generator = torch.Generator().manual_seed(7)
    a, b, c = torch.rand(
        3, n_inputs, dimension, n_harmonics, dtype=torch.float64, generator=generator
    ).tolist()
    x = torch.rand(n_points, dimension, dtype=torch.float64, generator=generator).tolist()
    for m in range(n_inputs):
        values = []
        for point in x:
            product = 1.0
            for d in range(dimension):
                total = 0.0
                for i in range(1, n_harmonics):  # a_0 = 0
                    amplitude = a[m][d][i] / ((i + 1) ** smoothness + 1)
                    angle = 2.0 * math.pi * (i * point[d] * b[m][d][i] + c[m][d][i])
                    total += amplitude * math.sin(angle)
                product *= total
            values.append(product)
        low, high = min(values), max(values)
        expected = [(value - low) / (high - low) for value in values]
        assert result[:, m].tolist() == pytest.approx(expected, abs=1e-9)


def test_every_neuron_fires_once_within_the_first_half() -> None:
    spikes = make_randman(SMALL).train.spikes.unpack()
    assert spikes.shape == (100, 24, 20)
    assert bool((spikes[:50].sum(dim=0) == 1).all())
    assert spikes[50:].sum() == 0
    assert 0.005 < spikes.mean() < 0.5


def test_default_sizes_rate_and_spread() -> None:
    config = RandmanConfig()
    assert (config.n_steps, config.active_steps) == (100, 50)
    train, validation, test = make_randman(config)
    assert (len(train), len(validation), len(test)) == (8000, 1000, 1000)
    assert mean_firing_rate(train.spikes, 2e-3) == pytest.approx(5.0, rel=1e-12)
    assert train.labels.bincount().tolist() == [800] * 10
    assert test.labels.bincount().tolist() == [100] * 10


def test_every_coordinate_spreads_over_its_range_within_each_class() -> None:
    steps = randman_steps(RandmanConfig(n_classes=2))
    assert steps.shape == (1000, 2, 20)
    assert bool((steps.amin(dim=0) == 0).all()) and bool((steps.amax(dim=0) == 49).all())
    assert all(len(steps[:, c, m].unique()) > 25 for c in range(2) for m in range(20))


def test_spikes_and_labels_belong_together() -> None:
    steps = randman_steps(SMALL)
    _, validation, test = make_randman(SMALL)
    for part, first in ((validation, 8), (test, 10)):
        dense = part.spikes.unpack()
        for sample in range(len(part)):
            expected = steps[first + sample // 3, int(part.labels[sample])]
            assert dense[:, sample].argmax(dim=0).tolist() == expected.tolist()


def test_neighbours_on_a_manifold_are_neighbours_in_time() -> None:
    steps = randman_steps(RandmanConfig(n_classes=2, smoothness=2.0)).double()
    distances = torch.cdist(steps[:, 0], steps[:, 0]).fill_diagonal_(math.inf)
    across = torch.cdist(steps[:, 0], steps[:, 1])
    assert distances.amin(dim=1).mean() < 0.2 * across.amin(dim=1).mean()


def test_seed_decides_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again = randman_steps(SMALL), randman_steps(SMALL)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, randman_steps(RandmanConfig(3, 20, 1, 1.0, 8, 2, 2, seed=6)))


def test_step_length_only_changes_the_grid() -> None:
    fine, coarse = (
        randman_steps(SMALL),
        randman_steps(RandmanConfig(3, 20, 1, 1.0, 8, 2, 2, dt=4e-3, seed=5)),
    )
    assert int(coarse.amax()) == 24
    assert torch.equal(fine // 2, coarse)


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="n_test must be at least 1, got 0"):
        RandmanConfig(n_test=0)
    with pytest.raises(ValueError, match="smoothness must be finite and > 0, got nan"):
        RandmanConfig(smoothness=math.nan)
    with pytest.raises(ValueError, match="active_duration must be at most the duration"):
        RandmanConfig(active_duration=0.3)
    with pytest.raises(ValueError, match="dt must be finite and > 0 seconds, got 0"):
        RandmanConfig(dt=0.0)


def test_select_keeps_spikes_and_labels_together() -> None:
    train = make_randman(SMALL).train
    chosen = torch.tensor([5, 0, 17])
    spikes, labels = train.select(chosen)
    assert torch.equal(spikes.unpack(), train.spikes.unpack()[:, chosen])
    assert labels.tolist() == train.labels[chosen].tolist()


def test_labels_must_fit_the_samples() -> None:
    train = make_randman(SMALL).train
    with pytest.raises(ValueError, match=r"labels must have shape \(24,\).*got \(23,\)"):
        PackedDataset(train.spikes, train.labels[1:])
    with pytest.raises(TypeError, match="labels must be int64"):
        PackedDataset(train.spikes, train.labels.int())
