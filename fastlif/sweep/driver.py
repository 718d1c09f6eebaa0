"""Trials on Ray Tune, which places them, tries lost ones again, and asks the scheduler."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastlif.sweep.folder import TRIALS_FOLDER
from fastlif.sweep.progress import Pace, SweepReporter
from fastlif.sweep.records import Outcome, record
from fastlif.sweep.spec import SweepSpec, Trial
from fastlif.sweep.tables import Tables

__all__ = ["Ledger", "SweepStopped", "run_trials"]

_TUNE_FOLDER = ".tune"  # what Tune writes of its own; nothing in it is read again
_OBJECT_STORE = 80 << 20  # bytes; only the list of trials goes through it
_REPORT_SECONDS = 0.25  # between two reports of progress
# Tables are written for a tenth of the time at most, however many trials end.
_TABLE_SHARE = 10.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is a KeyboardInterrupt, as elsewhere
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}
# Makes Ray take 127.0.0.1 for the address of this machine; read when Ray is imported.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# Where a machine has no memory left, the system ends the process that takes most, which trains. Ray
# would end the one that speaks to it, with an error that Tune takes for its own.
_OWN_RAY = _LOOPBACK | {"RAY_memory_monitor_refresh_ms": "0"}


class SweepStopped(ValueError):
    """Something that a user can mend stands in the way of every trial."""


class Ledger:
    """Takes down what happens to the trials: in their folders, in the tables, for the reporter."""

    def __init__(
        self,
        spec: SweepSpec,
        folder: Path,
        tables: Tables,
        pace: Pace,
        reporter: SweepReporter | None,
    ) -> None:
        self._spec = spec
        self._trials = {trial.number: trial for trial in spec.trials}
        self._folder = folder / TRIALS_FOLDER
        self._tables = tables
        self._reporter = reporter
        self.pace = pace
        self._reported = 0.0
        self._unwritten = False
        self._write_at = 0.0

    def ended(self, number: int, how: Outcome, *, recorded: bool) -> None:
        """A trial need not run any more; `recorded`: its folder says so already."""
        trial = self._trials[number]
        if not recorded:
            record(self._folder / trial.name, how, trial.config, self._spec.resources)
        self.pace.ended(number, how)
        self._tables.update(trial)
        self._unwritten = True
        if self._reporter is not None:
            self._reporter.trial_ended(trial, how)

    def name(self, number: int) -> str:
        """Of a trial."""
        return self._trials[number].name

    def tick(self) -> None:
        """Write and report what is new, if it is time to."""
        now = time.monotonic()
        if self._unwritten and now >= self._write_at:
            self._tables.write()
            self._unwritten = False
            self._write_at = now + _TABLE_SHARE * (time.monotonic() - now)
        if self._reporter is not None and now >= self._reported + _REPORT_SECONDS:
            self._reporter.progressed(self.pace.progress())
            self._reported = now


def run_trials(
    spec: SweepSpec,
    packs: Sequence[Sequence[Trial]],
    folder: Path,
    ledger: Ledger,
    address: str | None,
) -> None:
    """Run the trials that wait, until each has ended.

    Args:
        spec: the whole sweep; trials of it that are in no pack have ended.
        packs: to be run, in this order, those in one side by side.
        folder: of the sweep, absolute.
        ledger: takes down what happens.
        address: of a cluster; None for a Ray of this process's own.

    Raises:
        SweepStopped: see there; trials that ran go on from their checkpoints the next time.
        ValueError: the machine has not what a trial takes, or no cluster answers.
    """
    with _settings(_QUIET if address else _QUIET | _OWN_RAY):
        _import_ray()
        from fastlif.sweep import tuning

        with _connected(address):
            if address is None:
                _check_resources(spec)
            shutil.rmtree(folder / _TUNE_FOLDER, ignore_errors=True)
            try:
                tuning.fit(spec, packs, folder, _TUNE_FOLDER, ledger)
            finally:
                shutil.rmtree(folder / _TUNE_FOLDER, ignore_errors=True)


def _import_ray() -> None:
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"sweeps need the packages of pip install 'fastlif[sweep]' ({error})"
        ) from error


@contextmanager
def _settings(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables, for the libraries that are configured by them alone."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to Ray: the one that the process has, or one for as long as the context."""
    import ray

    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = "on this machine" if address is None else f"at {address}"
        raise ValueError(f"no Ray {where}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_resources(spec: SweepSpec) -> None:
    """ValueError where a trial could never start."""
    import ray

    there = ray.cluster_resources()
    for name, wanted, kind in (
        ("cpus", spec.resources.cpus, "CPU"),
        ("gpus", spec.resources.gpus, "GPU"),
    ):
        if wanted > there.get(kind, 0):
            raise ValueError(
                f"resources.{name} must be at most {there.get(kind, 0):g}, which this machine has; "
                f"got {wanted:g}"
            )
