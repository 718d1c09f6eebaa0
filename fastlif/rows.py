"""Rows of a tidy table by column name, and numbers over the seeds of a condition."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

__all__ = ["Rows", "Summary"]

Self = TypeVar("Self", bound="Rows")


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


class Rows:
    """Rows by column name, each with a number in its column `value`; a missing value is None."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def where(self: Self, **conditions: Any) -> Self:
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

        return type(self)(row for row in self.rows if fits(row))

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
