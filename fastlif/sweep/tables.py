"""The tables of a sweep: a row per trial, and a row per trial and epoch.

They are made from what lies in the trials' folders and can be made again at any time. Rows are in
order of the trials. What depends on where and how fast a trial ran stands in the last columns, so
that the others of two tables can be compared.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastlif.files import write_atomically
from fastlif.sweep.records import attempts, outcome
from fastlif.sweep.spec import SweepSpec, Trial
from fastlif.train.failures import recorded_failure
from fastlif.train.loop import RESULT_NAME
from fastlif.train.run import CSV_NAME

__all__ = [
    "EPOCHS",
    "PLACE_COLUMNS",
    "TRIALS",
    "Tables",
    "read_epochs",
    "read_history",
    "read_trials",
]

TRIALS, EPOCHS = "trials", "epochs"
# Of where a trial ran and how long it took; all others are the same wherever it runs.
PLACE_COLUMNS = ("seconds", "seconds_per_epoch", "attempts", "node")
_WORDS = ("phase",)  # columns of the log of epochs that are no numbers

Row = dict[str, Any]


class Tables:
    """The rows of the trials that have ended, and the files with them."""

    def __init__(self, spec: SweepSpec, folder: Path, trials_folder: Path) -> None:
        self._spec = spec
        self._folder = folder
        self._trials_folder = trials_folder
        self._rows: dict[int, tuple[Row, list[Row]]] = {}
        for trial in spec.trials:
            self.update(trial)

    def update(self, trial: Trial) -> None:
        """Take over what lies in a trial's folder; nothing if it has not ended."""
        folder = self._trials_folder / trial.name
        ended = outcome(folder)
        if ended is None:
            self._rows.pop(trial.number, None)
            return
        history = read_history(folder)
        row = _identity(trial) | {"status": ended.status, "message": ended.message}
        settings = trial.config.as_dict()
        row |= {name: value for name, value in settings.items() if name not in row}
        row |= _scores(folder, history)
        row |= _place(folder, history)
        epochs = [_identity(trial) | epoch for epoch in history]
        self._rows[trial.number] = row, epochs

    def trials(self) -> list[Row]:
        """A row for every trial that has ended."""
        return [self._rows[number][0] for number in sorted(self._rows)]

    def epochs(self) -> list[Row]:
        """A row for every epoch of them."""
        return [epoch for number in sorted(self._rows) for epoch in self._rows[number][1]]

    def write(self) -> tuple[Path, ...]:
        """Replace the files, each in one step, and return their paths: trials, then epochs."""
        paths = []
        for name, rows in ((TRIALS, self.trials()), (EPOCHS, self.epochs())):
            columns = _columns(rows)
            for kind, content in ((".csv", _as_csv), (".parquet", _as_parquet)):
                path = self._folder / f"{name}{kind}"
                write_atomically(path, content(rows, columns))
                paths.append(path)
        return tuple(paths)


def read_trials(folder: Path) -> list[Row]:
    """The rows of `trials.parquet`: a dictionary per trial, None where it has no value.

    Raises:
        FileNotFoundError: there is no such table.
        ImportError: pyarrow is missing.
    """
    return _read(folder / f"{TRIALS}.parquet")


def read_epochs(folder: Path) -> list[Row]:
    """The rows of `epochs.parquet`, as `read_trials` gives those of the trials."""
    return _read(folder / f"{EPOCHS}.parquet")


def _read(path: Path) -> list[Row]:
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise FileNotFoundError(f"no table {path}: it is written when the first trial ends")
    return list(parquet.read_table(path).to_pylist())


def _identity(trial: Trial) -> Row:
    """What both tables say about a trial."""
    return {
        "number": trial.number,
        "name": trial.name,
        **trial.options,
        "seed": trial.config.seed,
    }


def read_history(folder: Path) -> list[Row]:
    """The log of epochs, as numbers."""
    path = folder / CSV_NAME
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return [_parsed(row) for row in csv.DictReader(file)]


def _parsed(row: dict[str, str]) -> Row:
    numbers = {k: v if k in _WORDS else float(v) for k, v in row.items()}
    return numbers | {"epoch": int(row["epoch"])}


def _scores(folder: Path, history: list[Row]) -> Row:
    """What a trial reached: of a finished one on the test samples too."""
    path = folder / RESULT_NAME
    result = json.loads(path.read_text()) if path.is_file() else {}
    best = _best(history)
    scores: Row = {
        "epochs_done": len(history),
        "best_epoch": best.get("epoch"),
        "train_accuracy": best.get("train_accuracy"),
        "validation_accuracy": best.get("validation_accuracy"),
        "final_validation_accuracy": history[-1]["validation_accuracy"] if history else None,
        "test_accuracy": result.get("test_accuracy"),
        "test_loss": result.get("test_loss"),
        "n_parameters": result.get("n_parameters"),
    }
    if result:
        rates = zip(result["populations"], result["test_firing_rates_hz"], strict=True)
        scores |= {f"test_rate_{name}_hz": rate for name, rate in rates}
        scores |= result["data"]
    else:
        scores |= {name: value for name, value in best.items() if name.startswith("rate_")}
    made = result or recorded_failure(folder) or {}
    return scores | made.get("versions", {})


def _best(history: list[Row]) -> Row:
    """The row of the best epoch, chosen as training does; empty if there is none."""
    supervised = [row for row in history if row["phase"] == "supervised"]
    key = ("validation_accuracy", "validation_loss")
    return max(supervised, key=lambda row: (row[key[0]], -row[key[1]]), default={})


def _place(folder: Path, history: list[Row]) -> Row:
    seconds = [row["seconds"] for row in history]
    made = attempts(folder)
    return {
        "seconds": sum(seconds) if seconds else None,
        "seconds_per_epoch": statistics.median(seconds) if seconds else None,
        "attempts": len(made),
        "node": made[-1]["node"] if made else None,
    }


def _columns(rows: Iterable[Row]) -> list[str]:
    """All columns in order of appearance, those of the place last."""
    found = dict.fromkeys(name for row in rows for name in row)
    place = [name for name in PLACE_COLUMNS if name in found]
    return [*(name for name in found if name not in PLACE_COLUMNS), *place]


def _as_csv(rows: list[Row], columns: list[str]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _as_parquet(rows: list[Row], columns: list[str]) -> bytes:
    import pyarrow
    import pyarrow.parquet as parquet

    arrays = {name: _array([row.get(name) for row in rows]) for name in columns}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), buffer)
    return buffer.getvalue()


def _array(values: list[Any]) -> Any:
    """A column of one type: as its values have it, numbers as float if some are, else words."""
    import pyarrow

    kinds = {type(value) for value in values if value is not None}
    for allowed, kind in (
        ({bool}, pyarrow.bool_()),
        ({int}, pyarrow.int64()),
        ({int, float}, pyarrow.float64()),
        ({str}, pyarrow.string()),
    ):
        if kinds and kinds <= allowed:
            return pyarrow.array(values, type=kind)
    words = [None if value is None else str(value) for value in values]
    return pyarrow.array(words, type=pyarrow.string())
