"""The values that the options of a sweep file take: fixed, in grids, and drawn at random."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fastlif.sweep.problems import Place, Problems, key_list, shown
from fastlif.sweep.schema import MOST_TRIALS, Section, own_error
from fastlif.sweep.validation import checked_option, checked_section
from fastlif.train.config import FREE_SETTINGS

__all__ = ["Choice", "Draw", "Grid", "RANDOM", "read_axis", "sampled"]

_DIGITS = 6  # of generated values: as good as any, readable, and the same on every machine


@dataclass(frozen=True)
class Choice:
    """A value of an option, and where in the file it comes from."""

    option: str
    value: Any
    place: Place

    @property
    def generated(self) -> bool:
        """Whether the value itself is not in the file: it was drawn, or lies within a range."""
        return self.place[-1] in _GENERATED


@dataclass(frozen=True)
class Grid:
    """Values of an option that combine with those of all others."""

    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Draw:
    """An option whose values are drawn.

    choose: the value for a number in [0, 1).
    """

    option: str
    choose: Callable[[float], Choice]


def _span(values: list[float]) -> list[float]:
    if len(values) != 2 or not all(map(math.isfinite, values)) or values[0] >= values[1]:
        raise own_error("must be two numbers, the lower one first")
    return values


def _log_span(values: list[float]) -> list[float]:
    if values[0] <= 0:
        raise own_error("must be two numbers above 0, the lower one first")
    return values


_Span = Annotated[list[float], AfterValidator(_span)]
_LogSpan = Annotated[_Span, AfterValidator(_log_span)]
_Points = Annotated[int, Field(ge=2, le=MOST_TRIALS)]


class _Listed(Section):
    grid: list[Any]


class _Range(Section):
    range: _Span
    points: _Points


class _LogRange(Section):
    log_range: _LogSpan
    points: _Points


class _Uniform(Section):
    uniform: _Span


class _LogUniform(Section):
    log_uniform: _LogSpan


class _Listing(Section):
    choice: list[Any]


_KINDS: dict[str, type[Section]] = {
    "grid": _Listed,
    "range": _Range,
    "log_range": _LogRange,
    "uniform": _Uniform,
    "log_uniform": _LogUniform,
    "choice": _Listing,
}
RANDOM = ("uniform", "log_uniform", "choice")
_GENERATED = ("range", "log_range", "uniform", "log_uniform")


def read_axis(option: str, value: Any, place: Place, problems: Problems) -> Grid | Draw | None:
    """How the file varies an option; None if it cannot be told, which is noted.

    value: a list of values, or a mapping with one of the keys of `_KINDS`.
    """
    if option in FREE_SETTINGS:
        problems.add(place, "has no influence on results: to set it, write it below settings")
        return None
    if isinstance(value, list):
        return _grid(option, value, place, problems)
    kinds = [kind for kind in _KINDS if isinstance(value, dict) and kind in value]
    if len(kinds) != 1:
        problems.add(
            place,
            f"must be a list of values, or have one of the keys {key_list(_KINDS, last='or')}, got "
            f"{shown(value)}"
            + ("" if isinstance(value, dict) else "; a fixed value stands below settings"),
        )
        return None
    kind = kinds[0]
    section = checked_section(_KINDS[kind], value, place, problems)
    if section is None:
        return None
    given = getattr(section, kind)
    if kind == "grid":
        return _grid(option, given, (*place, kind), problems)
    if kind == "choice":
        grid = _grid(option, given, (*place, kind), problems)
        return None if grid is None else _drawn_from(option, grid)
    convert = _converter(option, (*place, kind), problems)
    if convert is None:
        return None
    between = _between_in_log if kind.startswith("log_") else _between
    low, high = given

    def at(share: float) -> Any:
        return convert(between(low, high, share))

    if kind in RANDOM:
        return Draw(option, lambda share: Choice(option, at(share), (*place, kind)))
    last = section.model_dump()["points"] - 1
    values = [convert(low), *(at(i / last) for i in range(1, last)), convert(high)]
    if len(set(values)) < len(values):
        problems.add(
            (*place, "points"),
            f"must be at most {len(set(values))}, as {option} takes whole numbers, got {last + 1}",
        )
        return None
    return Grid(tuple(Choice(option, one, (*place, kind)) for one in values))


def sampled(draws: list[Draw], samples: int, search_seed: int) -> Iterator[tuple[Choice, ...]]:
    """`samples` combinations of values of all options that are drawn, each combination once.

    A value depends on the seed, the option and the number of the sample alone: more samples and
    other options leave those that were drawn before as they are.
    """
    streams = [random.Random(f"{search_seed} {draw.option}") for draw in draws]
    seen = set()
    for _ in range(samples):
        choices = tuple(
            draw.choose(stream.random()) for draw, stream in zip(draws, streams, strict=True)
        )
        values = tuple(choice.value for choice in choices)
        if values not in seen:
            seen.add(values)
            yield choices


def _grid(option: str, values: list[Any], place: Place, problems: Problems) -> Grid | None:
    if not values:
        problems.add(place, "must hold a value at least, got []")
        return None
    choices: list[Choice] = []
    for index, value in enumerate(values):
        where = (*place, index)
        own, fits = checked_option(option, value, where, problems)
        same = [one for one in choices if (type(one.value), one.value) == (type(own), own)]
        if fits and same:
            line = problems.line(same[0].place)
            problems.add(where, f"must be given once, is also in line {line}, got {shown(own)}")
        elif fits:
            choices.append(Choice(option, own, where))
    return Grid(tuple(choices)) if choices else None


def _drawn_from(option: str, grid: Grid) -> Draw:
    choices = grid.choices
    return Draw(option, lambda share: choices[int(share * len(choices))])


def _converter(
    option: str, place: Place, problems: Problems
) -> Callable[[float], int | float] | None:
    """From numbers to values of an option; None if it takes no numbers, which is noted."""
    _, is_float = checked_option(option, 0.5, place, Problems(""))
    if is_float:
        return float
    if checked_option(option, 1, place, Problems(""))[1]:
        return round
    problems.add(place, f"must be a grid or a choice, as {option} takes no numbers")
    return None


def _between(low: float, high: float, share: float) -> float:
    return _rounded(low + share * (high - low))


def _between_in_log(low: float, high: float, share: float) -> float:
    return _rounded(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
