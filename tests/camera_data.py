"""Checks shared by the tests of event-camera readers."""

from __future__ import annotations

import torch

from fastlif.data import EventRecordings


def sample(data: EventRecordings, number: int) -> torch.Tensor:  # (time, 2, H, W)
    """The spikes of one recording as evaluation sees them."""
    return data.select(torch.tensor([number]))[0].unpack()[:, 0]


def check_real(data: EventRecordings, n_classes: int, seconds: tuple[float, float]) -> None:
    """Recordings of all classes, some seconds long, that move in the middle of the picture."""
    assert set(data.targets.tolist()) == set(range(n_classes))
    assert seconds[0] < float(data.lengths.double().mean()) / 1e6 < seconds[1]
    spikes, _ = data.select(torch.arange(len(data)), None, torch.Generator().manual_seed(0))
    rates = spikes.unpack().mean(dim=(0, 1)) / data.dt  # (2, H, W) in Hz
    assert 1.0 < float(rates.mean()) < 30.0
    side = data.features[1]
    middle = rates[:, side // 4 : -side // 4, side // 4 : -side // 4].mean()
    assert float(middle) > float(rates.mean())  # what moves is in the middle
