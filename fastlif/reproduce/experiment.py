"""An experiment of the paper: its runs, their execution, its table and its figure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from fastlif import plots
from fastlif.files import held_by_this_process, write_atomically
from fastlif.models import preset
from fastlif.reproduce.estimate import Estimator
from fastlif.reproduce.options import Options
from fastlif.reproduce.paper import published
from fastlif.reproduce.plan import Plan
from fastlif.reproduce.runs import (
    Run,
    Tasks,
    execute,
    failure,
    made_by,
    outcome,
    run_arrays,
    run_rows,
)
from fastlif.reproduce.sources import DATA_SETS, Sources
from fastlif.reproduce.table import Table
from fastlif.train import Reporter
from fastlif.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Measured", "Outputs", "Progress", "Results", "reproduce"]

RUNS_FOLDER = "runs"  # shared by all experiments: a run that two of them need is made once

Arrays = dict[str, NDArray[Any]]


class Measured(NamedTuple):
    """What an experiment without training gives."""

    rows: list[dict[str, Any]]
    arrays: dict[str, Arrays]


@dataclass(frozen=True)
class Results:
    """All that a figure is drawn from.

    arrays: examples by the label of their run, or by any name of the experiment's own.
    notes: lines on what differs from the paper, to be printed below the figure.
    data: kind of data to its name on the figure.
    """

    table: Table
    arrays: dict[str, Arrays] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    data: dict[str, str] = field(default_factory=dict)

    def data_name(self, kind: str) -> str:
        """Name of a kind of data as the figure gives it."""
        return self.data.get(kind, DATA_SETS[kind].name)

    def example(self, **conditions: Any) -> Arrays:
        """The first example among the runs that the conditions name, empty if there is none."""
        for label in self.table.where(**conditions).distinct("label"):
            if label in self.arrays:
                return self.arrays[label]
        return {}


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    plan: adds its runs to a plan.
    measure: gives rows and arrays at once, for what needs no training.
    kinds: of data that is measured on.
    draw: makes the figure.
    """

    name: str
    title: str
    draw: Callable[[Results], Figure]
    plan: Callable[[Plan], None] | None = None
    measure: Callable[[Plan, Sources], Measured] | None = None
    kinds: tuple[str, ...] = ()

    def planned(self, options: Options, sources: Sources | None = None) -> Plan:
        """The runs at the size of the options.

        Raises:
            ValueError: `only` has a name that is none of this experiment's, or leaves no run.
        """
        plan = Plan(options, sources)
        if self.plan is None:
            if options.only:
                raise ValueError(f"only must not be given for {self.name}, which has no runs")
            return plan
        self.plan(plan)
        if unknown := plan.unknown():
            raise ValueError(
                f"only must name panels or networks of {self.name}, got {', '.join(unknown)}"
            )
        if not plan.runs:
            raise ValueError(f"{self.name} has no runs at this size: {plan.shrunk()}")
        return plan


class Progress(Protocol):
    """Told of the runs; the command line shows them."""

    def run(
        self, run: Run, number: int, total: int, hours_left: float
    ) -> AbstractContextManager[Reporter | None]:
        """A run begins; the context lasts as long as it does."""

    def run_done(self, run: Run, status: str, detail: str) -> None:
        """A run ended now: "finished" with its scores, "failed" with the reason."""

    def run_kept(self, run: Run, status: str) -> None:
        """A run of an earlier call is used as it is."""

    def run_skipped(self, run: Run, reason: str) -> None:
        """A run cannot be made."""


@dataclass(frozen=True)
class Outputs:
    """Files of a reproduction and how its runs ended."""

    table: Path
    figures: tuple[Path, ...]
    statuses: dict[str, int]  # finished, failed, skipped


def reproduce(
    experiment: Experiment,
    options: Options,
    sources: Sources,
    out: Path,
    progress: Progress,
) -> Outputs:
    """Make all runs of an experiment that are not there yet, then its table and figure.

    Runs live in `out`/runs, each in a folder of its own; those that are finished there are not
    made again, those that were interrupted go on. After an interruption the table holds what is
    there by then. A part of the experiment, or a smaller one, has files with names of their own.

    Raises:
        ValueError: nothing can be shown as all data is missing, data, device or backend cannot
            be used, or another process writes to `out`.
        FileNotFoundError: a file of the data is missing.
    """
    plan = experiment.planned(options, sources)
    _check_sources(experiment, plan, sources)
    stem = f"{experiment.name}{options.suffix()}"
    versions()  # those of the code that is loaded now, whatever is checked out later
    with held_by_this_process(out):
        folder = out / RUNS_FOLDER
        folder.mkdir(exist_ok=True)
        try:
            _make_runs(plan.runs, sources, folder, progress)
        finally:
            results = collect(experiment, plan, sources, folder)
            table = out / f"{stem}.csv"
            write_atomically(table, results.table.text().encode())
        figures = draw(experiment, results, out / stem)
    seen = {(row["label"], row["status"]) for row in results.table}
    statuses = {
        status: sum(1 for _, other in seen if other == status)
        for status in ("finished", "failed", "skipped")
    }
    return Outputs(table, figures, statuses)


def draw(experiment: Experiment, results: Results, stem: Path) -> tuple[Path, ...]:
    """Write the figure as PDF and PNG, `stem` with an ending each."""
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in ("pdf", "png"))
    with plots.style():
        figure = experiment.draw(results)
        for path in paths:
            # Without the date, the same figure gives the same file.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(path, bbox_inches="tight", metadata=metadata)
    return paths


def collect(experiment: Experiment, plan: Plan, sources: Sources, folder: Path) -> Results:
    """Table and examples of all runs that are finished, failed or cannot be made."""
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Arrays] = {}
    measured = Measured([], {})
    if experiment.measure is not None:
        measured = experiment.measure(plan, sources)
    fixed = {
        "experiment": experiment.name,
        "scale": plan.options.scale,
        "shrunk": plan.shrunk(),
    }
    for run in plan.runs:
        rows += [fixed | row for row in _rows_of(run, sources, folder)]
        if sources.missing(run.data) is None:
            run_folder = folder / run.folder_name(sources)
            if outcome(run, run_folder) == "finished" and (found := run_arrays(run, run_folder)):
                arrays[run.label()] = found
    rows += [fixed | row for row in measured.rows]
    arrays |= measured.arrays
    return Results(
        Table(rows),
        arrays,
        tuple(_notes(plan, experiment.kinds, sources, rows)),
        {kind: sources.name(kind) for kind in DATA_SETS},
    )


def _check_sources(experiment: Experiment, plan: Plan, sources: Sources) -> None:
    """ValueError if data is needed and none of it can be had."""
    kinds = dict.fromkeys((*experiment.kinds, *(run.data for run in plan.runs)))
    reasons = [sources.missing(kind) for kind in kinds]
    if reasons and all(reasons):
        raise ValueError(
            f"{experiment.name} has nothing to show: {'; '.join(filter(None, reasons))}"
        )


def _make_runs(runs: list[Run], sources: Sources, folder: Path, progress: Progress) -> None:
    tasks = Tasks(sources)
    estimator = Estimator(sources, folder)
    waiting: list[Run] = []
    for run in runs:
        reason = sources.missing(run.data)
        if reason is not None:
            progress.run_skipped(run, reason)
        elif (status := outcome(run, folder / run.folder_name(sources))) != "unfinished":
            progress.run_kept(run, status)
        else:
            waiting.append(run)
    for number, run in enumerate(waiting):
        run_folder = folder / run.folder_name(sources)
        hours = estimator.hours(waiting[number:])
        with progress.run(run, number + 1, len(waiting), hours) as reporter:
            execute(run, run_folder, tasks, reporter)
        status = outcome(run, run_folder)
        progress.run_done(run, status, _detail(run, run_folder, status))
        if run.trained and status == "finished":
            estimator = Estimator(sources, folder)


def _detail(run: Run, folder: Path, status: str) -> str:
    if status == "failed":
        return failure(folder)
    scores = {row["metric"]: row["value"] for row in run_rows(run, folder) if row["layer"] is None}
    return ", ".join(
        f"{name.split('_')[0]} {scores[name]:.1%}"
        for name in ("train_accuracy", "validation_accuracy", "test_accuracy")
        if name in scores
    )


def _rows_of(run: Run, sources: Sources, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of a run; one without a number if it failed or cannot be made, none if unfinished."""
    settings = run.config.as_dict()
    seed = settings.pop("seed")
    fixed = {
        "label": run.label(),
        "panels": run.panels,
        "network": run.network,
        "condition": run.condition,
        "target": run.target,
        "seed": seed,
        "data": sources.name(run.data),
        **settings,
    }
    missing = sources.missing(run.data)
    if missing is not None:
        yield fixed | {"status": "skipped", "message": missing}
        return
    run_folder = folder / run.folder_name(sources)
    status = outcome(run, run_folder)
    fixed |= made_by(run_folder)
    if status == "failed":
        yield fixed | {"status": status, "message": failure(run_folder)}
    if status in ("finished", "failed"):
        for row in run_rows(run, run_folder):
            known = published(row["metric"], run.network, run.condition, run.target)
            paper = {} if known is None else {"paper": known.mean, "paper_std": known.std}
            yield fixed | {"status": status} | row | paper


def _differences(runs: list[Run]) -> list[str]:
    """What these runs do in another way than the paper's authors, at any size."""
    trained = [run for run in runs if run.trained]
    kinds = {run.data for run in trained}
    held_out = [DATA_SETS[kind].name for kind in ("images", "event_camera") if kind in kinds]
    found = []
    if held_out:
        found.append(f"10 % of the training samples of {' and '.join(held_out)} for validation")
    if "randman" in kinds:
        rates = {run.config.lr for run in trained if run.data == "randman"}
        found.append(f"learning rate {', '.join(f'{rate:g}' for rate in rates)} on Randman")
    own = {run.config.preset: preset(run.config.preset).regularization for run in trained}
    chosen = {
        f"{strength:g}"
        for run in trained
        if (strength := run.config.regularization.lower_strength)
        not in (0.0, own[run.config.preset].lower_strength)
    }
    if chosen:
        found.append(f"strength of homeostasis, {', '.join(sorted(chosen))}, chosen here")
    if any(run.config.priming_epochs for run in trained):
        found.append("the upper bound on firing rates stays during priming")
    rates = {run.config.lr for run in trained if run.config.optimizer == "sgd"}
    if rates:
        found.append(
            f"learning rate of SGD, {', '.join(f'{rate:g}' for rate in rates)}, chosen here"
        )
    return found


def _notes(
    plan: Plan, measured: tuple[str, ...], sources: Sources, rows: list[dict[str, Any]]
) -> Iterator[str]:
    """Lines below the figure."""
    yield plan.shrunk() or "the paper's seeds, epochs and targets"
    if differences := _differences(plan.runs):
        yield f"unlike the authors: {'; '.join(differences)}"
    kinds = dict.fromkeys((*measured, *(run.data for run in plan.runs)))
    for kind in kinds:
        here, there = sources.name(kind), DATA_SETS[kind].name
        if here != there and sources.missing(kind) is None:
            yield f"data: {here}, not {there}"
    reasons = dict.fromkeys(row["message"] for row in rows if row.get("status") == "skipped")
    for reason in reasons:
        networks = dict.fromkeys(row["network"] for row in rows if row.get("message") == reason)
        yield f"skipped {', '.join(networks)}: {reason}"
    made = dict.fromkeys(
        f"fastlif {row['fastlif']} {row['commit'] or ''} with torch {row['torch']}"
        if row.get("fastlif")
        else "an unknown version"
        for row in rows
        if row.get("status") in ("finished", "failed") and "preset" in row
    )
    if len(made) > 1:
        yield f"runs made by different versions, see the table: {', '.join(made)}"
    failed = dict.fromkeys(row["label"] for row in rows if row.get("status") == "failed")
    if failed:
        yield f"failed, see the table: {'; '.join(failed)}"
