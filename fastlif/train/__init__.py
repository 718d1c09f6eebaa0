"""Training of the presets: settings, data, loop, checkpoints and logs."""

from fastlif.train.config import TrainConfig, configured, default_config
from fastlif.train.initialization import initialize
from fastlif.train.logs import EpochRecord, Scores
from fastlif.train.loop import TrainResult, train
from fastlif.train.pack import check_pack, train_pack
from fastlif.train.parallel import Processes
from fastlif.train.run import Reporter, TrainingFailed
from fastlif.train.task import Task, load_task, sample_duration

__all__ = [
    "EpochRecord",
    "Processes",
    "Reporter",
    "Scores",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TrainingFailed",
    "check_pack",
    "configured",
    "default_config",
    "initialize",
    "load_task",
    "sample_duration",
    "train",
    "train_pack",
]
