"""From fixed and varied options to combinations, each of which is checked before any is run."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from fastlif.sweep.axes import Choice, Draw, Grid, sampled
from fastlif.sweep.problems import Place, Problems

__all__ = ["Combination", "combined", "note_refused"]

Combination = dict[str, Choice]  # by option


def combined(
    fixed: Mapping[str, Choice],
    axes: Mapping[str, Grid | Draw],
    *,
    samples: int,
    search_seed: int,
) -> Iterator[Combination]:
    """Every combination, the axes in their order, the last one changing fastest.

    All options that are drawn make one axis of `samples` points, where the first of them stands:
    every combination of the others meets the same draws.
    """
    draws = [axis for axis in axes.values() if isinstance(axis, Draw)]
    points: list[list[tuple[Choice, ...]]] = []
    drawn = False
    for axis in axes.values():
        if isinstance(axis, Grid):
            points.append([(choice,) for choice in axis.choices])
        elif not drawn:
            drawn = True
            points.append(list(sampled(draws, samples, search_seed)))
    for parts in itertools.product(*points):
        yield {**fixed, **{choice.option: choice for part in parts for choice in part}}


def note_refused(
    combinations: Iterable[Combination],
    complaint: Callable[[Combination], str | None],
    problems: Problems,
) -> None:
    """Note what is wrong with combinations, once where it is and not once for each of them.

    complaint: what is wrong with some options, the others at their defaults; None if nothing is.
        The preset is always among them.
    """
    reporter = _Reporter(problems)
    known: list[Combination] = []  # smallest sets of choices that were refused
    for combination in combinations:
        remaining = combination
        # All mistakes of a combination: what is known to be refused is left out for the next.
        while (message := complaint(remaining)) is not None:
            guilty = next((one for one in known if one.items() <= remaining.items()), None)
            if guilty is None:
                guilty = _smallest(remaining, message, complaint)
                if not any(choice.generated for choice in guilty.values()):
                    known.append(guilty)
                reporter.note(guilty, message)
            left = {k: v for k, v in remaining.items() if k == "preset" or k not in guilty}
            if len(left) == len(remaining):
                break  # the preset itself is refused
            remaining = left


def _smallest(
    combination: Combination, message: str, complaint: Callable[[Combination], str | None]
) -> Combination:
    """The choices without which the complaint would be none, or another one."""
    guilty = combination
    for option in combination:
        if option != "preset":
            without = {k: v for k, v in guilty.items() if k != option}
            if complaint(without) == message:
                guilty = without
    return guilty


class _Reporter:
    """Places complaints; of values that the file generates, such as drawn ones, the first only."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._generated: set[Place] = set()

    def note(self, guilty: Combination, message: str) -> None:
        named = [guilty[word] for word in re.findall(r"\w+", message) if word in guilty]
        others = [choice for option, choice in guilty.items() if option != "preset"]
        at = (named or others or [guilty["preset"]])[0]
        if at.generated:
            if at.place in self._generated:
                return
            self._generated.add(at.place)
        self._problems.add(at.place, message.removeprefix(f"{at.option} "))
