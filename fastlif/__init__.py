"""Fast, lean training of spiking neural networks on PyTorch.

Layers of current-based leaky integrate-and-fire neurons as torch modules (`LIFLinear`,
`LIFConv1d`, ...), run over time in fused kernels and trained through surrogate gradients; their
start in the fluctuation-driven regime (`fastlif.init`); losses, the SMORMS3 optimizer, data and
presets of Rossbroich, Gygax and Zenke (2022).
"""

from __future__ import annotations

from fastlif import init, losses, ops, optim
from fastlif.backends import Backend, backends, release_memory
from fastlif.graph import GraphStep
from fastlif.layers import (
    LIF,
    ImageEncoder,
    LIFConv1d,
    LIFConv2d,
    LIFDalianConv1d,
    LIFDalianLinear,
    LIFLinear,
    LIFOutput,
    LIReadout,
    MaxPool1d,
    MaxPool2d,
    Sequential,
    StackOutput,
    give_gradients,
    side_by_side,
)
from fastlif.ops import LIFState
from fastlif.spikes import PackedSpikes
from fastlif.versions import __version__ as __version__

__all__ = [
    "LIF",
    "Backend",
    "GraphStep",
    "ImageEncoder",
    "LIFConv1d",
    "LIFConv2d",
    "LIFDalianConv1d",
    "LIFDalianLinear",
    "LIFLinear",
    "LIFOutput",
    "LIFState",
    "LIReadout",
    "MaxPool1d",
    "MaxPool2d",
    "PackedSpikes",
    "Sequential",
    "StackOutput",
    "backends",
    "give_gradients",
    "init",
    "losses",
    "ops",
    "optim",
    "release_memory",
    "side_by_side",
]
