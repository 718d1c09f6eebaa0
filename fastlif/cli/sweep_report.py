"""`fastlif sweep report DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fastlif.cli.errors import reported

if TYPE_CHECKING:
    from fastlif.rows import Summary
    from fastlif.sweep.report import Layout, Results

MOST_BEST = 5  # trials
MOST_SETTINGS = 60  # rows of the table over settings; trials.csv has all
MOST_NAMED = 5  # trials with the same trouble
SHOWN = {
    "final_validation_accuracy": "validation, last epoch",
    "test_accuracy": "test, best epoch",
}
NAME = "report"  # of the picture, unless another is given


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a sweep.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write: .png, .pdf or .svg. Default: DIR/report.pdf and .png."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="final_validation_accuracy, test_accuracy, validation_accuracy or train_accuracy; "
            "may be given several times. Default: what the sweep's file says, or the first two."
        ),
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            help="Option on the x axis, and once more that on the y axis of a map. Default: mu_w "
            "and sigma_w, or sigma_u, or what else is varied."
        ),
    ] = None,
) -> None:
    """Tables and a picture of a sweep, while it runs or afterwards.

    Means are over the seeds of trials that finished, ranges from the lowest to the highest.
    "2/3" is of two seeds where the sweep has three; a cross marks settings whose trials failed,
    a dot or an open circle trials that the scheduler stopped early.
    """
    # Imported here: it takes a second or two, which no other command should pay.
    from fastlif import plots
    from fastlif.sweep.report import METRICS, draw, layout_of, read_results

    console = Console()
    with reported():
        for name in metric or ():
            if name not in METRICS:
                raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {name!r}")
        results = read_results(folder)
        layout = layout_of(results.rows, results.varied, tuple(over or ()))
        _print(console, results)
        if reason := _no_picture(results, layout):
            return _line(console, f"no picture: {reason}")
        figure = draw(results, layout, metric or results.metrics)
        if out is None:
            written = plots.save(figure, folder / NAME)
        else:
            written = [plots.save_as(figure, out)]
    _line(console, f"picture: {', '.join(str(path) for path in written)}")


def _no_picture(results: Results, layout: Layout) -> str:
    """Why there is none; empty if there is one."""
    if not results.counts().get("finished"):
        return "no trial has finished yet"
    return layout.reason


def _print(console: Console, results: Results) -> None:
    """How the trials ended, settings with their means, and the best trials."""
    counts = ", ".join(f"{n} {status}" for status, n in results.counts().items())
    _line(console, f"{results.name}: {len(results.trials)} trials, {counts}")
    for (status, message), trials in results.troubles().items():
        _line(console, f"  {status}: {message} ({_named(trials)})")
    found = results.settings()
    table = Table(*results.varied, "finished", title="mean (lowest to highest over seeds), %")
    for name in SHOWN.values():
        table.add_column(name, justify="right")
    for one in found[:MOST_SETTINGS]:
        table.add_row(
            *map(_text, one.options.values()),
            f"{one.n_finished} of {one.n_trials}",
            *(_spread(one.summaries.get(name)) for name in SHOWN),
        )
    console.print(table)
    if len(found) > MOST_SETTINGS:
        _line(console, f"... and {len(found) - MOST_SETTINGS} more, see trials.csv")
    if best := results.best(MOST_BEST):
        console.print(_best_table(best, results.varied))


def _best_table(best: Sequence[dict[str, Any]], varied: Sequence[str]) -> Table:
    table = Table("trial", *varied, "seed", "epoch", title="best on validation samples, %")
    scores = ("validation_accuracy", "test_accuracy")
    for name in scores:
        table.add_column(name.split("_")[0], justify="right")
    for trial in best:
        table.add_row(
            trial["name"],
            *(_text(trial[name]) for name in (*varied, "seed", "best_epoch")),
            *(f"{100.0 * trial[name]:.1f}" for name in scores),
        )
    return table


def _named(trials: Sequence[dict[str, Any]]) -> str:
    """The first trials by name, and how many there are besides."""
    names = ", ".join(trial["name"] for trial in trials[:MOST_NAMED])
    more = len(trials) - MOST_NAMED
    return f"{names} and {more} more" if more > 0 else names


def _spread(summary: Summary | None) -> str:
    """Mean and range in percent, without the range of a single seed."""
    if summary is None:
        return ""
    mean, low, high = (100.0 * value for value in (summary.mean, summary.low, summary.high))
    return f"{mean:.1f} ({low:.1f} to {high:.1f})" if summary.n > 1 else f"{mean:.1f}"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
