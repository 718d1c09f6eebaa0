"""The networks of Rossbroich et al. 2022: their sizes, and how to build them."""

from fastlif.models.building import build
from fastlif.models.presets import PRESETS, ConvSize, Preset, Regularization, preset

__all__ = ["PRESETS", "ConvSize", "Preset", "Regularization", "build", "preset"]
