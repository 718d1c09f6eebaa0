"""Data sets as packed spikes: generated (Randman) or read from event files (SHD layout)."""

from fastlif.data.dataset import (
    PackedDataset,
    SampleSource,
    Subset,
    mean_firing_rate,
    n_steps_of,
    shift_features,
    train_validation_split,
)
from fastlif.data.events import EventDataset, find_event_files, read_events
from fastlif.data.randman import RandmanConfig, RandmanSplits, make_randman

__all__ = [
    "EventDataset",
    "PackedDataset",
    "RandmanConfig",
    "RandmanSplits",
    "SampleSource",
    "Subset",
    "find_event_files",
    "make_randman",
    "mean_firing_rate",
    "n_steps_of",
    "read_events",
    "shift_features",
    "train_validation_split",
]
