"""How long an epoch takes, from runs that are done or from what was once measured."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from fastlif.train.config import TrainConfig
from fastlif.train.loop import RESULT_NAME

__all__ = ["EpochTimes"]

# Seconds per epoch and thousand training samples on 2 CPU cores: rough, for a first idea. From
# `fastlif train` with batches of 25 to 50, of spoken digits in SHD's layout and of CIFAR-10; for
# event cameras from 130 s for recordings of 0.3 s (N-MNIST), at 1 s.
STATED_SECONDS = {
    "randman": 0.1,
    "shd-dense": 0.5,
    "shd-dense160": 0.7,
    "shd-dalian": 0.9,
    "shd-conv1": 1.5,
    "shd-conv3": 3.0,
    "shd-conv7": 27.0,
    "shd-conv10": 35.0,
    "shd-dalian-conv3": 9.0,
    "cifar-conv2": 25.0,
    "cifar-conv4": 34.0,
    "dvs-conv6": 400.0,
    "dvs-conv8": 600.0,
}

_Network = tuple[str, bool, str]  # preset, recurrent, device


def _network(config: TrainConfig) -> _Network:
    return config.preset, config.recurrent, config.device


class EpochTimes:
    """Seconds that epochs take on this machine, as far as runs of the same networks tell."""

    def __init__(self, runs_folder: Path | None = None) -> None:
        """Learn from the results of all runs whose folders lie in `runs_folder`."""
        self._measured: dict[_Network, list[float]] = {}
        for path in sorted(runs_folder.glob(f"*/{RESULT_NAME}")) if runs_folder else ():
            result = json.loads(path.read_text())
            settings = result["settings"]
            self.learn(
                (settings["preset"], settings["recurrent"], settings["device"]),
                result["seconds_per_epoch"] / result["data"]["n_train"],
            )

    def learn(self, network: _Network, seconds_per_sample: float) -> None:
        """Take a measured time of an epoch, divided by its training samples, into account."""
        self._measured.setdefault(network, []).append(seconds_per_sample)

    def is_measured(self, config: TrainConfig) -> bool:
        """Whether a run of the same network was timed here."""
        return _network(config) in self._measured

    def seconds(self, config: TrainConfig, n_train: int) -> float:
        """Estimate for a run.

        n_train: training samples of the data; `config.n_samples` may leave fewer.
        """
        times = self._measured.get(_network(config))
        per_sample = (
            statistics.median(times) if times else STATED_SECONDS.get(config.preset, 10.0) / 1000.0
        )
        if config.n_samples is not None:
            n_train = min(n_train, config.n_samples)
        return per_sample * n_train * config.all_epochs
