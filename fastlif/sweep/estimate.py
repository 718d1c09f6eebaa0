"""How long the trials of a sweep will take."""

from __future__ import annotations

import heapq
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fastlif.data import n_training_samples
from fastlif.models import preset
from fastlif.sweep.spec import Resources, SweepSpec
from fastlif.train import TrainConfig
from fastlif.train.estimate import EpochTimes

__all__ = ["Estimate", "at_once", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """Hours of a sweep in which every trial runs to its end, or to its limit.

    trials: of each trial by itself; None of one on a GPU whose network was not timed there, as no
        such time was ever measured elsewhere.
    rough: the trials, by number, whose network was not timed in the sweep's folder.
    """

    trials: tuple[float | None, ...]
    rough: frozenset[int]

    @property
    def known(self) -> tuple[float, ...]:
        """Of the trials that there is an estimate for."""
        return tuple(hours for hours in self.trials if hours is not None)

    @property
    def total(self) -> float:
        """One trial after the other, of those that there is an estimate for."""
        return sum(self.known)

    def elapsed(self, at_once: int) -> float:
        """From the start to the end, with so many trials at a time that begin in their order."""
        ends = [0.0] * at_once
        for hours in self.known:
            heapq.heapreplace(ends, ends[0] + hours)
        return max(ends)


def estimate(spec: SweepSpec, trials_folder: Path | None = None) -> Estimate:
    """Hours of all trials, from epochs of other runs.

    trials_folder: holds the folders of trials that have run, from which times are taken. Others are
        rough: of two CPU cores, however many a trial has; on a GPU there are none.
    """
    times = EpochTimes(trials_folder)
    n_train = {
        kind: n_training_samples(kind, spec.data)
        for kind in {preset(trial.config.preset).data for trial in spec.trials}
    }
    limit = spec.resources.hours

    def hours(config: TrainConfig) -> float | None:
        if config.device != "cpu" and not times.is_measured(config):
            return None
        found = times.seconds(config, n_train[preset(config.preset).data]) / 3600.0
        return found if limit is None else min(found, limit)

    return Estimate(
        tuple(hours(trial.config) for trial in spec.trials),
        frozenset(t.number for t in spec.trials if not times.is_measured(t.config)),
    )


def at_once(resources: Resources) -> int:
    """Trials that this machine runs at a time, 0 if it cannot run one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fitting = [_fitting(cores or 1, resources.cpus)]
    if resources.gpus:
        # A trial takes its share of one GPU, so that none is put together of two remainders.
        fitting.append(torch.cuda.device_count() * _fitting(1, resources.gpus))
    return min(fitting)


def _fitting(available: float, share: float) -> int:
    return int(available / share + 1e-9)  # ten shares of 0.1 fit into one
