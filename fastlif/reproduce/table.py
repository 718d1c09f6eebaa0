"""The tidy table of a reproduction: a row for every number, with all that led to it."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "METRIC_COLUMNS", "Summary", "Table"]

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


@dataclass(frozen=True)
class Summary:
    """A number over the seeds of a condition."""

    mean: float
    std: float  # of the sample; 0 for a single seed
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Iterable[float]) -> Summary:
        """Summary of at least one value."""
        numbers = list(values)
        return Summary(
            mean=statistics.fmean(numbers),
            std=statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
            low=min(numbers),
            high=max(numbers),
            n=len(numbers),
        )


class Table:
    """Rows by column name; a missing value is None (an empty field in the file)."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def where(self, **conditions: Any) -> Table:
        """Rows in which every named column has the value, or one of a set, list or tuple."""

        def fits(row: dict[str, Any]) -> bool:
            for name, wanted in conditions.items():
                found = row.get(name)
                if isinstance(wanted, (set, frozenset, list, tuple)):
                    if found not in wanted:
                        return False
                elif found != wanted:
                    return False
            return True

        return Table(row for row in self.rows if fits(row))

    def distinct(self, column: str) -> list[Any]:
        """Values of a column in order of appearance, without None."""
        return list(dict.fromkeys(r[column] for r in self.rows if r.get(column) is not None))

    def values(self) -> list[float]:
        """The numbers of all rows that have one."""
        return [row["value"] for row in self.rows if row.get("value") is not None]

    def over(self, *columns: str) -> dict[tuple[Any, ...], Summary]:
        """Summaries of `value` for every combination of the columns, in ascending order."""
        groups: dict[tuple[Any, ...], list[float]] = {}
        for row in self.rows:
            if row.get("value") is not None:
                groups.setdefault(tuple(row.get(name) for name in columns), []).append(row["value"])
        ordered = sorted(groups, key=lambda key: tuple((v is None, v) for v in key))
        return {key: Summary.of(groups[key]) for key in ordered}

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
