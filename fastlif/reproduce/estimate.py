"""How long runs will take, from runs that are done or from what was once measured."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from fastlif.reproduce.runs import Run
from fastlif.reproduce.sources import Sources
from fastlif.train.loop import RESULT_NAME

__all__ = ["Estimator"]

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
RECORD_SECONDS = 5.0  # of looking inside a network once


_Key = tuple[str, bool, str]  # preset, recurrent, device


def _key(run: Run) -> _Key:
    return run.config.preset, run.config.recurrent, run.config.device


class Estimator:
    """Seconds that runs take on this machine."""

    def __init__(self, sources: Sources, runs_folder: Path) -> None:
        self._sources = sources
        self._measured: dict[_Key, list[float]] = {}
        for path in sorted(runs_folder.glob(f"*/{RESULT_NAME}")):
            result = json.loads(path.read_text())
            settings = result["settings"]
            self.learn(
                (settings["preset"], settings["recurrent"], settings["device"]),
                result["seconds_per_epoch"] / result["data"]["n_train"],
            )

    def learn(self, network: _Key, seconds_per_sample: float) -> None:
        """Take a measured time of an epoch, divided by its training samples, into account."""
        self._measured.setdefault(network, []).append(seconds_per_sample)

    def is_measured(self, run: Run) -> bool:
        """Whether a run of the same network was timed here."""
        return _key(run) in self._measured

    def seconds(self, run: Run) -> float:
        """Estimate for a run from its first epoch to its last record."""
        recording = RECORD_SECONDS * len([r for r in run.records if r != "curves"])
        if not run.trained:
            return recording
        config = run.config
        times = self._measured.get(_key(run))
        per_sample = (
            statistics.median(times) if times else STATED_SECONDS.get(config.preset, 10.0) / 1000.0
        )
        n_samples = self._sources.n_train(run.data)
        if config.n_samples is not None:
            n_samples = min(n_samples, config.n_samples)
        return recording + per_sample * n_samples * config.all_epochs

    def hours(self, runs: Iterable[Run]) -> float:
        """Estimate for runs one after the other."""
        return sum(map(self.seconds, runs)) / 3600.0
