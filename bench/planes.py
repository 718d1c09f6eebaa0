"""Networks of two-dimensional layers for the benchmark: sizes of image and gesture classifiers.

They stand for the work of such networks, not for a published model: strides take the place of
pooling, and the input is random like that of the other cases.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import nn

from fastlif import LIFConv2d, LIReadout, Sequential
from fastlif.models import Regularization


@dataclass(frozen=True)
class PlaneNetwork:
    """Convolutions of 3 x 3 with padding 1, feed-forward, and a readout."""

    features: tuple[int, int, int]  # of the input: channels, height, width
    hidden: tuple[tuple[int, int], ...]  # channels and stride of every layer
    n_classes: int
    duration: float  # seconds of a sample
    regularization: Regularization = field(
        default_factory=lambda: Regularization(upper_strength=0.01, v_upper=7.0)
    )

    def input_features(self) -> tuple[int, int, int]:
        """Features of one step of input."""
        return self.features

    def build(
        self,
        *,
        dt: float,
        backend: str | None = None,
        device: torch.device | str | None = None,
    ) -> Sequential:
        """The network, weights drawn by the layers' own default."""
        channels, height, width = self.features
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, (out_channels, stride) in enumerate(self.hidden, start=1):
            layers[f"hidden{number}"] = LIFConv2d(
                channels, out_channels, 3, stride, 1, bias=False, dt=dt, backend=backend,
                device=device,
            )  # fmt: skip
            channels = out_channels
            height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        layers["readout"] = LIReadout(
            channels * height * width, self.n_classes, bias=False, tau_mem=self.duration, dt=dt,
            backend=backend, device=device,
        )  # fmt: skip
        return Sequential(layers)


PLANES: dict[str, PlaneNetwork] = {
    "cifar-conv4": PlaneNetwork((3, 32, 32), ((32, 1), (32, 2), (64, 1), (64, 2)), 10, 0.2),
    "dvs-conv8": PlaneNetwork(
        (2, 64, 64),
        ((16, 1), (16, 2), (32, 1), (32, 2), (64, 1), (64, 2), (64, 1), (64, 2)),
        11,
        0.5,
    ),
}
