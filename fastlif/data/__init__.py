"""Data sets: generated (Randman), or read from the files of SHD, CIFAR-10 and event cameras."""

from fastlif.data.cifar10 import CIFAR10_CLASSES, read_cifar10
from fastlif.data.dataset import (
    PackedDataset,
    SampleSource,
    Subset,
    mean_firing_rate,
    n_steps_of,
    shift_features,
    train_validation_split,
)
from fastlif.data.dvs_gesture import DVS_GESTURE_CLASSES, read_dvs_gesture
from fastlif.data.events import (
    EventDataset,
    EventSplits,
    find_event_files,
    read_event_splits,
    read_events,
)
from fastlif.data.folders import N_TRAIN, check_folder, fingerprint, n_training_samples
from fastlif.data.images import ImageDataset
from fastlif.data.nmnist import NMNIST_DURATION, holds_nmnist, read_nmnist
from fastlif.data.randman import RandmanConfig, RandmanSplits, make_randman
from fastlif.data.recordings import EventRecordings

__all__ = [
    "CIFAR10_CLASSES",
    "DVS_GESTURE_CLASSES",
    "EventDataset",
    "EventRecordings",
    "EventSplits",
    "ImageDataset",
    "NMNIST_DURATION",
    "N_TRAIN",
    "PackedDataset",
    "RandmanConfig",
    "RandmanSplits",
    "SampleSource",
    "Subset",
    "check_folder",
    "find_event_files",
    "fingerprint",
    "holds_nmnist",
    "make_randman",
    "mean_firing_rate",
    "n_steps_of",
    "n_training_samples",
    "read_cifar10",
    "read_dvs_gesture",
    "read_event_splits",
    "read_events",
    "read_nmnist",
    "shift_features",
    "train_validation_split",
]
