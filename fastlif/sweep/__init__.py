"""Sweeps: many training runs stated in one file."""

from fastlif.sweep.spec import Asha, Resources, SpecError, SweepSpec, Trial, read_spec

__all__ = ["Asha", "Resources", "SpecError", "SweepSpec", "Trial", "read_spec"]
