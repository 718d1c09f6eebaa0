"""What a person sees of a run: a progress bar on a terminal, a line per epoch anywhere."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fastlif.train.logs import EpochRecord
from fastlif.train.loop import TrainResult

__all__ = ["ConsoleReporter", "print_result"]


class ConsoleReporter:
    """A `Reporter` on a rich console; a context manager, so that the bar ends with the run."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
            transient=True,
            refresh_per_second=4,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> ConsoleReporter:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        """Show the bar; say so if the run goes on after some epochs."""
        if epochs_done and not self._quiet:
            self._console.print(f"continuing after epoch {epochs_done}")
        self._task = self._progress.add_task(
            "train",
            total=epochs * batches_per_epoch,
            completed=epochs_done * batches_per_epoch,
            epoch=min(epochs_done + 1, epochs),
            epochs=epochs,
        )

    def batch_done(self) -> None:
        """Move the bar by one step."""
        if self._task is not None:
            self._progress.advance(self._task)

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """Print the epoch's line; a star marks the best validation score so far."""
        if self._task is not None:
            self._progress.update(self._task, epoch=record.epoch + 1)
        if self._quiet:
            return
        rates = " ".join(f"{rate:.1f}" for rate in record.train.firing_rates)
        self._console.print(
            f"epoch {record.epoch:4d}  {'priming  ' if record.phase == 'priming' else ''}"
            f"train loss {record.train.loss:.4f} "
            f"acc {record.train.accuracy:6.2%}  val loss {record.validation.loss:.4f} "
            f"acc {record.validation.accuracy:6.2%}  rates {rates} Hz  "
            f"{record.seconds:.2f} s{'  *' if is_best else ''}",
            highlight=False,
            soft_wrap=True,
        )


def print_result(console: Console, result: TrainResult, folder: Path) -> None:
    """Print the scores of a finished run, and where its files are."""
    rates = ", ".join(f"{rate:.1f}" for rate in result.test.firing_rates)
    console.print(
        f"test accuracy {result.test.accuracy:.2%} (loss {result.test.loss:.4f}) with the weights "
        f"of epoch {result.best_epoch} of {result.epochs}, the best on validation "
        f"({result.validation_accuracy:.2%})\n"
        f"{result.n_parameters} parameters; firing rates on test samples {rates} Hz; "
        f"{result.seconds_per_epoch:.2f} s per epoch (median)\n"
        f"logs and checkpoint in {folder}",
        highlight=False,
        soft_wrap=True,
    )
