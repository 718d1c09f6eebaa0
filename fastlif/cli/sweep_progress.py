"""What a person sees of a sweep: a line for every trial, and on a terminal a bar for all."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

if TYPE_CHECKING:
    from fastlif.sweep import Trial
    from fastlif.sweep import progress as sweeps
    from fastlif.sweep.records import Outcome

# Without a terminal, between two lines on the progress of trials that take long.
_LINE_SECONDS = 60.0


class ConsoleReporter:
    """A line for every trial that ends, and on a terminal a bar for all of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._ended = 0
        self._total = 0
        self._next_line = 0.0

    def __enter__(self) -> ConsoleReporter:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def started(self, progress: sweeps.Progress) -> None:
        """Say what there is to do."""
        self._ended, self._total = progress.n_ended, progress.total
        kept = f", {self._ended} of them ended before" if self._ended else ""
        self._print(f"{self._total} trials{kept}")
        self._task = self._bar.add_task("", total=self._total, completed=self._ended, state="")
        self._next_line = self._bar.get_time() + _LINE_SECONDS

    def trial_ended(self, trial: Trial, ended: Outcome) -> None:
        """Print how a trial ended."""
        self._ended += 1
        options = ", ".join(f"{name} {_text(value)}" for name, value in trial.options.items())
        what = f"{options}, seed {trial.config.seed}" if options else f"seed {trial.config.seed}"
        why = f": {ended.message}" if ended.message else ""
        self._print(f"{self._ended}/{self._total}  {trial.name}  {what}  {ended.status}{why}")

    def progressed(self, progress: sweeps.Progress) -> None:
        """Move the bar; without a terminal, print a line from time to time."""
        failed = progress.n_ended - progress.ended.get("finished", 0)
        failed -= progress.ended.get("stopped", 0)
        state = f"{progress.running} running, {failed} failed"
        if progress.seconds_left is not None:
            state += f", about {_time(progress.seconds_left)} left"
        if self._task is not None:
            self._bar.update(self._task, completed=progress.n_ended, state=state)
        now = self._bar.get_time()
        if not self._console.is_terminal and now >= self._next_line:
            self._print(f"{progress.n_ended}/{progress.total} done, {state}")
            self._next_line = now + _LINE_SECONDS

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _time(seconds: float) -> str:
    if seconds < 100.0:
        return f"{seconds:.0f} s"
    if seconds < 6000.0:
        return f"{seconds / 60.0:.0f} min"
    return f"{seconds / 3600.0:.1f} h"
