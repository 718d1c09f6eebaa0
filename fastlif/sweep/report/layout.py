"""Which picture shows a sweep: a curve over one option, a map over two, or none."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastlif.rows import Rows

__all__ = ["Layout", "layout_of"]

MOST_LINES = 10  # of a panel; more of them cannot be told apart
MOST_PANELS = 12
FEWEST_VALUES = 2  # of an option that is an axis
LOG_RATIO = 10.0  # highest over lowest value from which on an axis is one of logarithms
# Axes that theory says something about, in the order in which they are looked for.
WEIGHTS = ("mu_w", "sigma_w")
TARGET = "sigma_u"


@dataclass(frozen=True)
class Layout:
    """What is on the axes of a sweep's picture.

    kind: "curve" over axes[0], with a line for every value of the others; "map" over both axes,
        with a panel for every value of the others; "none", for there is no axis, or too many.
    axes: options, that of x first.
    others: options that tell lines or panels apart.
    reason: why there is no picture.
    """

    kind: Literal["curve", "map", "none"]
    axes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    reason: str = ""


def layout_of(rows: Rows, varied: Sequence[str], over: Sequence[str] = ()) -> Layout:
    """The picture for the options that a sweep varies.

    Over mu_w and sigma_w a map, over sigma_u a curve; else a curve over the only option with
    numbers, or a map over the only two. Many lines over two such options are a map, too.

    Args:
        rows: of the trials, their options by name.
        varied: options of the sweep, without the seed.
        over: one option or two to be the axes, in place of that choice.

    Raises:
        ValueError: `over` has more than two options, or one that the sweep does not vary or whose
            values are no numbers.
    """
    numbers = [name for name in varied if _is_axis({row.get(name) for row in rows})]
    if over:
        return _chosen(varied, numbers, over)
    several = [name for name in varied if len(rows.distinct(name)) > 1]
    axes: tuple[str, ...]
    if all(name in numbers for name in WEIGHTS):
        axes = WEIGHTS
    elif TARGET in numbers:
        axes = (TARGET,)
    elif 1 <= len(numbers) <= 2:
        axes = tuple(numbers)
    else:
        what = "more than two options" if numbers else "no option"
        return _none(f"{what} with numbers {'are' if numbers else 'is'} varied", numbers)
    others = tuple(name for name in several if name not in axes)
    if len(axes) == 1 and n_combinations(rows, others) > MOST_LINES:
        numeric = [name for name in others if name in numbers]
        axes += tuple(numeric) if len(numeric) == 1 else ()
        others = tuple(name for name in others if name not in axes)
    most = MOST_LINES if len(axes) == 1 else MOST_PANELS
    if n_combinations(rows, others) > most:
        return _none(f"it would have more than {most} lines or panels", numbers)
    return Layout("curve" if len(axes) == 1 else "map", axes, others)


def _none(reason: str, numbers: Sequence[str]) -> Layout:
    hint = f"; choose its axes with --over ({', '.join(numbers)})" if numbers else ""
    return Layout("none", reason=f"{reason}{hint}")


def n_combinations(rows: Rows, names: Sequence[str]) -> int:
    """How many combinations of the values of these options there are; 1 of none."""
    return len(combinations(rows, names))


def combinations(rows: Rows, names: Sequence[str]) -> list[dict[str, Any]]:
    """Combinations of the values of these options, in order of appearance; {} of none."""
    found = dict.fromkeys(tuple(row.get(name) for name in names) for row in rows)
    return [dict(zip(names, values, strict=True)) for values in found]


def is_log(name: str, values: Sequence[float]) -> bool:
    """Whether an axis is spaced by logarithms: its values are positive and far apart."""
    if name in (TARGET, WEIGHTS[1]):
        return min(values) > 0.0
    return min(values) > 0.0 and max(values) >= LOG_RATIO * min(values)


def _is_axis(values: Collection[Any]) -> bool:
    """Whether all are numbers, and enough of them for an axis."""
    return len(values) >= FEWEST_VALUES and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
    )


def _chosen(varied: Sequence[str], numbers: Sequence[str], over: Sequence[str]) -> Layout:
    if len(over) > 2 or len(set(over)) < len(over):
        raise ValueError(f"over must name one option or two, got {', '.join(over)}")
    for name in over:
        if name not in numbers:
            possible = ", ".join(numbers) or "none"
            raise ValueError(
                f"over must name options with numbers that the sweep varies ({possible}), "
                f"got {name!r}"
            )
    others = tuple(name for name in varied if name not in over)
    return Layout("curve" if len(over) == 1 else "map", tuple(over), others)
