"""A sweep from start to end, or from where it was."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from fastlif.files import held_by_this_process
from fastlif.sweep.driver import Ledger, run_trials
from fastlif.sweep.folder import TRIALS_FOLDER, check_same_sweep, check_space, claim
from fastlif.sweep.packs import check_pack_size, packs_of
from fastlif.sweep.progress import Pace, SweepReporter
from fastlif.sweep.records import open_again, outcome
from fastlif.sweep.spec import SweepSpec
from fastlif.sweep.tables import Tables

__all__ = ["Summary", "run_sweep"]


@dataclass(frozen=True)
class Summary:
    """How the trials of a sweep ended.

    statuses: number of trials by status.
    files: tables, of trials and of epochs, as CSV and Parquet.
    """

    statuses: dict[str, int]
    files: tuple[Path, ...]


def run_sweep(
    spec: SweepSpec,
    folder: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    pack: int = 1,
    reporter: SweepReporter | None = None,
) -> Summary:
    """Run the trials of a sweep, and write its tables as they end.

    A trial that has ended, well or not, is not run again; one that was interrupted goes on from its
    last epoch. With `resume`, so do those that were lost, and those that ran out of memory or time
    if the limit is larger now.

    Args:
        spec: the sweep.
        folder: of the sweep; on a cluster it lies on a file system that all nodes share, as the
            data does.
        resume: whether the sweep may have begun there before.
        address: HOST:PORT of a Ray cluster, or "auto" on one of its nodes; None starts a Ray on
            this machine, which ends with this process.
        pack: most trials that are trained side by side in one place, where they agree in all that
            `fastlif.train.check_pack` wants; the results are those of single trials. Limits of
            memory and hours are then for all that run side by side, so many times as large.
        reporter: told of the progress.

    Raises:
        SweepStopped: something that a user can mend stands in the way of all trials: missing data,
            a full disk, a device that is not there. It is a ValueError too.
        ValueError: another sweep lies or runs in the folder, or this one and `resume` is False; the
            disk is too small, or the machine; no cluster answers; `pack` is below 1, or above it
            in a sweep with a scheduler.
        OSError: the folder cannot be written.
        ImportError: the packages of the extra `sweep` are missing.
    """
    if address is not None and "://" in address:
        raise ValueError(
            f"address must be HOST:PORT of a cluster, or auto, got {address!r}: start the sweep on "
            "a node of the cluster, which sees the folders that trials see"
        )
    check_pack_size(spec, pack)
    folder = folder.resolve()
    if spec.data is not None:
        spec = replace(spec, data=spec.data.resolve())
    with held_by_this_process(folder):
        check_same_sweep(spec, folder, resume=resume)
        trials_folder = folder / TRIALS_FOLDER
        if resume:
            for trial in spec.trials:
                open_again(trials_folder / trial.name, spec.resources)
        ended = {}
        for trial in spec.trials:
            if (how := outcome(trials_folder / trial.name)) is not None:
                ended[trial.number] = how
        waiting = [trial for trial in spec.trials if trial.number not in ended]
        check_space(waiting, folder)
        claim(spec, folder)
        pace = Pace(spec, ended)
        tables = Tables(spec, folder, trials_folder)
        if reporter is not None:
            reporter.started(pace.progress())
        try:
            if waiting:
                ledger = Ledger(spec, folder, tables, pace, reporter)
                run_trials(spec, packs_of(waiting, pack), folder, ledger, address)
        finally:
            files = tables.write()
    statuses = Counter(row["status"] for row in tables.trials())
    return Summary(dict(statuses), files)
