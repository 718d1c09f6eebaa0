"""Layers of LIF neurons as torch modules: parameters and units (seconds, Hz at the edge)."""

from __future__ import annotations

from fastlif.layers.base import LIFOutput, StackLayer
from fastlif.layers.conv import LIFConv1d, LIFConv2d
from fastlif.layers.dalian import LIFDalianConv1d, LIFDalianLinear
from fastlif.layers.encoder import ImageEncoder
from fastlif.layers.linear import LIFLinear
from fastlif.layers.networks import give_gradients, side_by_side
from fastlif.layers.neuron import LIF
from fastlif.layers.pooling import MaxPool1d, MaxPool2d
from fastlif.layers.readout import LIReadout
from fastlif.layers.sequential import Sequential, StackOutput

__all__ = [
    "LIF",
    "ImageEncoder",
    "LIFConv1d",
    "LIFConv2d",
    "LIFDalianConv1d",
    "LIFDalianLinear",
    "LIFLinear",
    "LIFOutput",
    "LIReadout",
    "MaxPool1d",
    "MaxPool2d",
    "Sequential",
    "StackLayer",
    "StackOutput",
    "give_gradients",
    "side_by_side",
]
