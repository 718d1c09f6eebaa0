"""`torch.nn.LSTM` in place of every spiking layer: what a network of that size takes otherwise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.opponents.loop import layer_is_spiking
from fastlif import LIReadout, Sequential


class LSTMNetwork(nn.Module):
    """Layers of as many units as there are neurons; scores are maxima over time of a product."""

    def __init__(self, model: Sequential) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(
                nn.LSTM(layer.in_features, layer.out_features)
                for layer in model
                if layer_is_spiking(layer)
            )
        last = model[-1]
        self.readout = None
        if isinstance(last, LIReadout):
            self.readout = nn.Linear(last.in_features, last.out_features, bias=False)
            with torch.no_grad():
                self.readout.weight.copy_(last.weight)

    def forward(self, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores, or the last layer's output, and the sum over time of each layer's output."""
        emitted = self.emitted(spikes)
        return emitted[-1], [output.sum(0) for output in emitted[: len(self.layers)]]

    def emitted(self, spikes: Tensor) -> list[Tensor]:
        """The output of every layer, (time, batch, units), then scores if there is a readout."""
        found = []
        signal = spikes.flatten(2)
        for layer in self.layers:
            signal, _ = layer(signal)
            found.append(signal)
        if self.readout is not None:
            found.append(self.readout(signal).max(0).values)
        return found
