"""Made-up results of experiments, to draw figures from without training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlif.models import preset
from fastlif.reproduce import Experiment, Options, Results, Sources, Table
from fastlif.reproduce.experiment import collect
from fastlif.reproduce.paper import published
from fastlif.reproduce.runs import Run

ACCURACIES = ("train_accuracy", "final_validation_accuracy", "test_accuracy")


def made_up(experiment: Experiment, options: Options) -> Results:
    """Results with a row for every number that the runs of an experiment would give."""
    generator = np.random.default_rng(0)
    plan = experiment.planned(options)
    rows = [
        {
            "experiment": experiment.name,
            "scale": options.scale,
            "shrunk": plan.shrunk(),
            "label": run.label(),
            "panels": run.panels,
            "network": run.network,
            "condition": run.condition,
            "target": run.target,
            "seed": run.config.seed,
            "data": run.data,
            "status": "finished",
            **{k: v for k, v in run.config.as_dict().items() if k != "seed"},
            **numbers,
        }
        for run in plan.runs
        for numbers in _numbers(run, generator)
    ]
    examples = {run.label(): _example(run, generator) for run in plan.runs if _has_example(run)}
    return Results(Table(rows), examples, (plan.shrunk() or "full size",))


def measured(experiment: Experiment, options: Options, folder: Path) -> Results:
    """Results of an experiment without training, by measuring."""
    return collect(experiment, experiment.planned(options), Sources(), folder)


def _numbers(run: Run, generator: np.random.Generator) -> list[dict[str, Any]]:
    depth = len(preset(run.config.preset).hidden)
    target = 1.0 if run.target is None else run.target
    if run.config.initialization == "kaiming":
        target = 0.3
    # The deeper, the narrower the range of targets from which a network learns.
    fit = math.exp(-((math.log10(target) * depth / 6.0) ** 2))
    found: list[dict[str, Any]] = []
    if run.trained:
        for metric, best in zip(ACCURACIES, (0.99, 0.94, 0.82), strict=True):
            value = min(1.0, max(0.05, best * fit + generator.normal(0.0, 0.02)))
            found.append(_row(run, metric, "trained", value))
        epochs = None if fit < 0.5 else 18.0 / fit + generator.normal()
        found.append(_row(run, "epochs_to_90", "training", epochs))
        found.append(_row(run, "n_classes", "", preset(run.config.preset).n_classes))
        found.append(_row(run, "input_rate", "", 5.0 if run.data == "randman" else 15.8))
        found += [
            _row(run, "test_firing_rate", "trained", 8.0 * fit + 0.1 * layer, str(layer))
            for layer in range(1, depth + 1)
        ]
    if "curves" in run.records:
        found += [
            _row(run, "epoch_firing_rate", str(epoch), 8.0 * (1.0 - math.exp(-epoch / 9.0)), "3")
            for epoch in range(1, 1 + run.config.all_epochs)
        ]
    for stage in ("initial", "trained"):
        if stage in run.records:
            found += _layers(run, stage, depth, target)
    return found


def _layers(run: Run, stage: str, depth: int, target: float) -> list[dict[str, Any]]:
    found = []
    for layer in range(1, depth + 1):
        rate = 10.0 * target ** (0.5 * layer)
        gradient = 1e-4 * min(1.0, target) ** (3 * (depth - layer))
        found += [
            _row(run, "firing_rate", stage, rate if rate > 1e-2 else 0.0, str(layer)),
            _row(run, "surrogate_gradient", stage, gradient, str(layer)),
            _row(run, "weight_gradient", stage, gradient * rate, str(layer)),
        ]
    found += [
        _row(run, metric, stage, 1e-3, "readout")
        for metric in ("surrogate_gradient", "weight_gradient")
    ]
    return found


def _row(
    run: Run, metric: str, stage: str, value: float | None, layer: str | None = None
) -> dict[str, Any]:
    known = published(metric, run.network, run.condition, run.target)
    paper = {} if known is None else {"paper": known.mean, "paper_std": known.std}
    return {"metric": metric, "stage": stage, "layer": layer, "value": value, **paper}


def _has_example(run: Run) -> bool:
    return "example" in run.records and run.config.seed == 0


def _example(run: Run, generator: np.random.Generator) -> dict[str, NDArray[Any]]:
    network = preset(run.config.preset)
    n_steps = round(network.duration / run.config.dt)
    arrays: dict[str, NDArray[Any]] = {"dt": np.array(run.config.dt), "target": np.array(1)}
    for stage in ("initial", "trained"):
        arrays[f"{stage}.input"] = generator.random((n_steps, network.n_inputs)) < 0.02
        arrays[f"{stage}.1"] = generator.random((n_steps, 128)) < 0.02
        if network.dalian:
            arrays[f"{stage}.1_inhibitory"] = generator.random((n_steps, 32)) < 0.03
        steps = generator.normal(0.0, 0.05, (n_steps, network.n_classes))
        arrays[f"{stage}.readout"] = steps.cumsum(0).astype(np.float32)
    return arrays
