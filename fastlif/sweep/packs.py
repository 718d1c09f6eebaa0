"""Which trials of a sweep are trained side by side."""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastlif.sweep.spec import SweepSpec, Trial
from fastlif.train.pack import shape_of

__all__ = ["check_pack_size", "packs_of"]


def check_pack_size(spec: SweepSpec, size: int) -> None:
    """ValueError where no sweep, or not this one, can train so many trials at once."""
    if size < 1:
        raise ValueError(f"pack must be at least 1, got {size}")
    if size > 1 and spec.asha is not None:
        raise ValueError(
            f"pack must be 1 for a sweep with a scheduler, got {size}: trials side by side end "
            "together"
        )


def packs_of(trials: Iterable[Trial], size: int) -> list[tuple[Trial, ...]]:
    """Trials in groups of at most `size` that fit together, in the order of their first ones."""
    groups: list[list[Trial]] = []
    open_groups: dict[str, list[Trial]] = {}
    for trial in trials:
        shape = json.dumps(shape_of(trial.config), sort_keys=True)
        group = open_groups.get(shape)
        if group is None or len(group) == size:
            group = open_groups[shape] = []
            groups.append(group)
        group.append(trial)
    return [tuple(group) for group in groups]
