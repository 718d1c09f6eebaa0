"""What `fastlif sweep FILE --dry-run` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from fastlif.sweep import SweepSpec, Trial
    from fastlif.sweep.estimate import Estimate

FIRST, LAST = 12, 4  # trials of a long sweep that are listed


def print_plan(console: Console, spec: SweepSpec, trials_folder: Path) -> None:
    """Print the trials of a sweep, and how long they may take.

    trials_folder: of the sweep, whose trials so far tell how long epochs take.
    """
    from fastlif.sweep.estimate import estimate

    hours = estimate(spec, trials_folder)
    table = Table("trial", *spec.varied, "seed", "epochs", "hours", title=spec.name)
    listed: list[Trial | None] = [*spec.trials]
    if len(listed) > FIRST + LAST + 1:
        listed = [*listed[:FIRST], None, *listed[-LAST:]]
    for trial in listed:
        if trial is None:
            table.add_row(*["..."] * len(table.columns))
            continue
        table.add_row(
            trial.name,
            *(_value(trial.options[name]) for name in spec.varied),
            str(trial.config.seed),
            str(trial.config.all_epochs),
            _hours(hours.trials[trial.number]),
        )
    console.print(table, markup=False)
    console.print(_summary(spec, hours), markup=False, highlight=False, soft_wrap=True)


def _summary(spec: SweepSpec, hours: Estimate) -> str:
    from fastlif.sweep.estimate import at_once

    n_trials = len(spec.trials)
    trials = f"{n_trials} trial{'s' if n_trials > 1 else ''}"
    if None in hours.trials:
        text = f"{trials}, on a GPU: not yet measured how long they take there, until one of the "
        text += "same network is done"
        if hours.known:
            text += f"; {len(hours.known)} of networks that were timed take {_time(hours.total)}"
        return f"{text}."
    text = f"{trials}, about {_time(hours.total)} in all; "
    together = at_once(spec.resources)
    if together == 0:
        text += "this machine does not have what one of them takes"
    elif together == 1:
        text += "this machine runs one at a time"
    else:
        text += f"this machine runs {together} at a time, in {_time(hours.elapsed(together))}"
    if spec.asha is not None:
        text += ". ASHA stops some of them early, so that it is less"
    if hours.rough:
        text += ". Times are rough, of 2 CPU cores, until a trial of the same network is done"
    return f"{text}."


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _hours(hours: float | None) -> str:
    return "not yet measured" if hours is None else f"{hours:.2g}"


def _time(hours: float) -> str:
    if hours < 1.0:
        return f"{60.0 * hours:.2g} min"
    return f"{hours:.1f} h"
