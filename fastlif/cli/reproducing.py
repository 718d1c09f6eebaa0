"""`fastlif reproduce NAME`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fastlif.cli.devices import chosen_device
from fastlif.cli.errors import reported

if TYPE_CHECKING:
    from fastlif.reproduce import Experiment, Options, Sources
    from fastlif.reproduce.runs import Run
    from fastlif.train import Reporter

NAMES = (
    "table1", "fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7",
    "figS4", "figS5", "figS6", "figS8", "figS9", "figS10",
)  # fmt: skip


def reproduce(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(NAMES)}.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            envvar="FASTLIF_DATA",
            help="Data folder, told by what it holds; may be given several times.",
        ),
    ] = None,
    data_shd: Annotated[
        Path | None, typer.Option(help="SHD, or other data in its layout: *train*.h5, *test*.h5.")
    ] = None,
    data_cifar: Annotated[Path | None, typer.Option(help="CIFAR-10.")] = None,
    data_dvs: Annotated[
        Path | None, typer.Option(help="DVS128 Gesture, or other event camera recordings.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of tables, figures and all runs; they are shared.")
    ] = Path("runs/reproduce"),
    scale: Annotated[
        float, typer.Option(help="Share of the paper's seeds, epochs and targets; up to 1.")
    ] = 1.0,
    seeds: Annotated[int | None, typer.Option(help="Seeds of every network.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every network.")] = None,
    targets: Annotated[
        str | None, typer.Option(help="Targets of sigma_U, such as 0.2,1,20.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Samples at most.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a batch at most.")] = None,
    channel_shift: Annotated[
        int, typer.Option(help="Move training samples by up to this many input channels.")
    ] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Panel (its letter) or network to run; may be given several times."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: torch's own choice.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, cuda, or auto for a GPU if there is one.")
    ] = "cpu",
    backend: Annotated[
        str | None, typer.Option(help="Kernels to use, as `fastlif info` lists them.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and how long they may take.")
    ] = False,
) -> None:
    """Repeat an experiment of the paper: its runs, a table of all numbers, and its figure.

    The same command after an interruption goes on where it was. The exit status is 1 if a run
    failed. Files of a part of an experiment have its size and selection in their names.
    """
    # Imported here: it takes a second or two, which no other command should pay.
    import torch

    from fastlif.reproduce import EXPERIMENTS, Options, Sources
    from fastlif.reproduce import reproduce as run_experiment

    console = Console()
    try:
        with reported():
            if name not in EXPERIMENTS:
                raise ValueError(f"name must be one of {', '.join(EXPERIMENTS)}; got {name!r}")
            options = Options(
                scale=scale,
                seeds=seeds,
                epochs=epochs,
                targets=_numbers(targets),
                samples=samples,
                batch_size=batch_size,
                channel_shift=channel_shift,
                only=tuple(only or ()),
                device=chosen_device(device),
                backend=backend,
            )
            sources = Sources.sorted(
                data or (), events=data_shd, images=data_cifar, event_camera=data_dvs
            )
            experiment = EXPERIMENTS[name]
            if dry_run:
                _print_plan(console, experiment, options, sources, out)
                return
            if threads is not None:
                torch.set_num_threads(threads)
            outputs = run_experiment(experiment, options, sources, out, _ConsoleProgress(console))
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here")
        raise typer.Exit(130) from None
    counted = ", ".join(f"{n} {status}" for status, n in outputs.statuses.items() if n)
    files = ", ".join(str(path) for path in (outputs.table, *outputs.figures))
    console.print(f"{counted}; {files}", highlight=False, soft_wrap=True)
    if outputs.statuses["failed"]:
        raise typer.Exit(1)


class _ConsoleProgress:
    """A line for every run, and a bar for its epochs on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._skipped: set[str] = set()

    @contextmanager
    def run(
        self, run: Run, number: int, total: int, hours_left: float
    ) -> Iterator[Reporter | None]:
        from fastlif.train.progress import ConsoleReporter

        self._print(f"run {number} of {total} (about {_time(hours_left)} left): {run.label()}")
        with ConsoleReporter(self._console, quiet=True) as reporter:
            yield reporter

    def run_done(self, run: Run, status: str, detail: str) -> None:
        self._print(f"  {status}: {detail}" if detail else f"  {status}")

    def run_kept(self, run: Run, status: str) -> None:
        self._print(f"{status} before: {run.label()}")

    def run_skipped(self, run: Run, reason: str) -> None:
        line = f"skipped {run.network}: {reason}"
        if line not in self._skipped:
            self._skipped.add(line)
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _print_plan(
    console: Console, experiment: Experiment, options: Options, sources: Sources, out: Path
) -> None:
    """The runs that a call would make, and their time."""
    from fastlif.reproduce.estimate import Estimator
    from fastlif.reproduce.experiment import RUNS_FOLDER
    from fastlif.reproduce.runs import outcome

    plan = experiment.planned(options, sources)
    folder = out / RUNS_FOLDER
    estimator = Estimator(sources, folder)
    table = Table("run", "panels", "epochs", "state", "hours", title=experiment.title)
    waiting = []
    for run in plan.runs:
        missing = sources.missing(run.data)
        state = "no data" if missing else outcome(run, folder / run.folder_name(sources))
        hours = ""
        if state == "unfinished":
            waiting.append(run)
            hours = f"{estimator.seconds(run) / 3600.0:.2f}"
            hours += "" if estimator.is_measured(run) else " (rough)"
        epochs = str(run.config.all_epochs) if run.trained else "none"
        table.add_row(run.label(), run.panels, epochs, state, hours)
    console.print(table)
    shrunk = plan.shrunk()
    console.print(
        f"{len(waiting)} of {len(plan.runs)} runs to make, about {_time(estimator.hours(waiting))}"
        + (f"; {shrunk}" if shrunk else "")
        + ". Rough times are of 2 CPU cores; each network is timed as soon as one run is done.",
        highlight=False,
        soft_wrap=True,
    )


def _time(hours: float) -> str:
    if hours < 1.0:
        return f"{60.0 * hours:.0f} min"
    return f"{hours:.1f} h"


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"targets must be numbers with commas between, got {text!r}") from None
