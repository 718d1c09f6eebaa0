"""Made-up results of sweeps, to report on without training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlif.sweep.report import Results, results_of

FIXED = {"preset": "randman", "recurrent": False, "dt": 2e-3, "initialization": "fluctuation"}


def grid(axes: Mapping[str, Sequence[Any]], seeds: int = 3, **fixed: Any) -> list[dict[str, Any]]:
    """Planned trials of all combinations."""
    combinations = itertools.product(*axes.values(), range(seeds))
    return [
        FIXED | fixed | dict(zip([*axes, "seed"], values, strict=True))
        | {"number": number, "name": f"{number:04d}"}
        for number, values in enumerate(combinations)
    ]  # fmt: skip


def accuracy(trial: Mapping[str, Any]) -> float:
    """High at moderate sigma_u and small weights, a little else for every seed."""
    badness = math.log10(trial.get("sigma_u", 1.0)) ** 2
    if trial.get("sigma_w") is not None:
        badness += (math.log10(trial["sigma_w"]) + 0.5) ** 2 + 0.1 * trial["mu_w"] ** 2
    badness *= 1.0 + 0.3 * len(str(trial["preset"]))
    badness += abs(math.log10(trial.get("lr", 1e-2)) + 2.0)
    wobble = 0.02 * math.sin(12.9 * trial["seed"] + 7.1 * trial["number"])
    return min(1.0, max(0.1, 0.97 * math.exp(-0.12 * badness) + wobble))


def results(
    varied: Sequence[str],
    planned: Sequence[Mapping[str, Any]],
    status: Callable[[Mapping[str, Any]], str] = lambda trial: "finished",
) -> Results:
    """Results of trials that end with a status each; "waiting" for those that have not begun."""
    rows = [ended(trial, status(trial)) for trial in planned if status(trial) != "waiting"]
    return results_of("made-up", varied, planned, rows)


def ended(trial: Mapping[str, Any], status: str) -> dict[str, Any]:
    """A row of the table of trials."""
    row = {**trial, "status": status, "message": "", "best_epoch": 2}
    row |= {"n_inputs": 20, "n_classes": 10, "input_rate": 5.0}
    reached = accuracy(trial)
    if status == "finished":
        row |= {"final_validation_accuracy": reached, "validation_accuracy": 1.02 * reached}
        row |= {"test_accuracy": 0.9 * reached, "train_accuracy": 1.05 * reached}
    elif status == "stopped":
        row |= {"final_validation_accuracy": 0.4 * reached, "validation_accuracy": 0.4 * reached}
    else:
        row["message"] = "the loss must stay finite, got nan"
    return row
