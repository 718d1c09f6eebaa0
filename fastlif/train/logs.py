"""Logs of a run: a CSV file with a row per epoch, and the same numbers for TensorBoard."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch.utils.tensorboard import SummaryWriter

from fastlif.files import write_atomically

__all__ = ["EpochRecord", "Phase", "Scores", "TensorBoardLog", "with_phase", "write_csv"]

Phase = Literal["priming", "supervised"]


@dataclass(frozen=True)
class Scores:
    """Means over the samples of one pass through a data set."""

    loss: float  # cross-entropy
    accuracy: float  # 0..1
    penalty: float  # regularization that was added to the loss; 0 outside training
    firing_rates: tuple[float, ...]  # Hz, one per population, as `objective.populations` gives


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; `train` was measured while the weights were changing."""

    epoch: int  # from 1
    phase: Phase
    populations: tuple[str, ...]  # names, in the order of the firing rates
    train: Scores
    validation: Scores
    seconds: float  # training and validation

    def row(self) -> dict[str, Any]:
        """One CSV row; firing rates are those of the training samples."""
        rates = {
            f"rate_{name}_hz": rate
            for name, rate in zip(self.populations, self.train.firing_rates, strict=True)
        }
        return {
            "epoch": self.epoch,
            "phase": self.phase,
            "train_loss": self.train.loss,
            "train_penalty": self.train.penalty,
            "train_accuracy": self.train.accuracy,
            "validation_loss": self.validation.loss,
            "validation_accuracy": self.validation.accuracy,
            **rates,
            "seconds": round(self.seconds, 4),
        }


def with_phase(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `EpochRecord.row` has it now; those of older checkpoints do not tell the phase."""
    return {"epoch": row["epoch"], "phase": "supervised"} | row


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write all rows, replacing the file in one step.

    The rows come from the checkpoint, so after a resume none is missing and none is there twice.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


class TensorBoardLog:
    """Scalars of every epoch for TensorBoard, under the names of the CSV columns."""

    def __init__(self, folder: Path, *, epochs_done: int) -> None:
        # Whatever a killed run logged of later epochs is hidden by purge_step.
        self._writer = SummaryWriter(str(folder), purge_step=epochs_done + 1)

    def epoch(self, row: dict[str, Any]) -> None:
        """Log the numbers of a row of `EpochRecord.row` and hand them to the disk."""
        for name, value in row.items():
            if name not in ("epoch", "phase"):
                group, _, rest = name.partition("_")
                tag = f"{group}/{rest}" if rest else name
                self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()

    def test(self, scores: Scores, epoch: int) -> None:
        """Log the scores of the test samples with the weights of `epoch`."""
        self._writer.add_scalar("test/accuracy", scores.accuracy, epoch)
        self._writer.add_scalar("test/loss", scores.loss, epoch)

    def close(self) -> None:
        """Flush and end the writer's thread."""
        self._writer.close()
