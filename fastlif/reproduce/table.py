"""The tidy table of a reproduction: a row for every number, with all that led to it."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

from fastlif.rows import Rows

__all__ = ["COLUMNS", "METRIC_COLUMNS", "Table"]

# Who ran: the same in all rows of a run. The settings of the training follow, then the number.
COLUMNS = (
    "experiment",
    "label",  # all that tells the run from others, in words
    "panels",
    "network",
    "condition",
    "target",  # of sigma_U; empty where the initialization has none
    "seed",
    "data",
    "scale",
    "shrunk",  # against the paper, in words
    "status",  # finished, failed or skipped
    "message",  # why, where the status is not finished
)
# Words, also where they look like numbers.
WORDS = (
    "label",
    "panels",
    "network",
    "condition",
    "data",
    "message",
    "metric",
    "stage",
    "layer",
    "fastlif",
    "torch",
    "commit",
)
METRIC_COLUMNS = ("metric", "stage", "layer", "value", "paper", "paper_std")


class Table(Rows):
    """Rows of a reproduction; a missing value is None (an empty field in the file)."""

    def averaged(self, column: str) -> Table:
        """The mean over a column's values, in one row for all rows that agree in the other columns.

        Spread between such means is that of what is left: of seeds, after the average over layers.
        Rows without a number stay.
        """
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        without = [row for row in self.rows if row.get("value") is None]
        dropped = {column, "value", "paper", "paper_std"}
        for row in self.rows:
            if row.get("value") is not None:
                key = tuple(item for item in row.items() if item[0] not in dropped)
                groups.setdefault(key, []).append(row)
        means = [
            dict(key) | {column: None, "value": statistics.fmean(row["value"] for row in rows)}
            for key, rows in groups.items()
        ]
        return Table([*means, *without])

    def columns(self) -> list[str]:
        """All columns: those of every run, the settings in order of appearance, the metric's."""
        settings = dict.fromkeys(name for row in self.rows for name in row)
        fixed = {*COLUMNS, *METRIC_COLUMNS}
        return [*COLUMNS, *(name for name in settings if name not in fixed), *METRIC_COLUMNS]

    def text(self) -> str:
        """The table as CSV."""
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, fieldnames=self.columns(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return buffer.getvalue()

    @staticmethod
    def read(path: Path) -> Table:
        """A table that `text` wrote; what looks like a number is one, an empty field is None."""
        with open(path, newline="") as file:
            return Table(
                {name: _parsed(name, field) for name, field in row.items()}
                for row in csv.DictReader(file)
            )


def _parsed(name: str, field: str) -> Any:
    if field == "":
        return None
    if name in WORDS:
        return field
    if field in ("True", "False"):
        return field == "True"
    for kind in (int, float):
        try:
            return kind(field)
        except ValueError:
            continue
    return field
