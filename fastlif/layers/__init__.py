"""Layers of LIF neurons as torch modules: parameters and units (seconds, Hz at the edge)."""

from __future__ import annotations

from fastlif.layers.base import LIFOutput, StackLayer
from fastlif.layers.conv import LIFConv1d, LIFConv2d
from fastlif.layers.dalian import LIFDalianConv1d, LIFDalianLinear
from fastlif.layers.linear import LIFLinear
from fastlif.layers.neuron import LIF
from fastlif.layers.readout import LIReadout
from fastlif.layers.sequential import Sequential, StackOutput

__all__ = [
    "LIF",
    "LIFConv1d",
    "LIFConv2d",
    "LIFDalianConv1d",
    "LIFDalianLinear",
    "LIFLinear",
    "LIFOutput",
    "LIReadout",
    "Sequential",
    "StackLayer",
    "StackOutput",
]
