"""What is recorded of a run besides its scores: its layers on a batch, and a sample in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlif.files import write_atomically
from fastlif.inspection import inspect, record
from fastlif.layers import Sequential
from fastlif.spikes import PackedSpikes
from fastlif.train import Task, TrainConfig, initialize
from fastlif.train.checkpoint import load_checkpoint, restore_model
from fastlif.train.objective import penalty_of
from fastlif.train.run import CHECKPOINT_NAME, build_network

__all__ = ["LAYER_STAGES", "layer_name", "record_example", "record_layers"]

LAYER_STAGES = ("initial", "trained")
MOST_SAMPLES = 100  # of the batch on which layers are looked at

# Metrics of the table by the columns of `ModelReport.rows`. Gradients are means of absolute values;
# surrogate gradients those by the spikes that a layer emits, all of the loss with its bounds.
_METRICS = {
    "firing_rate": "rate_hz",
    "silent": "silent",
    "saturated": "saturated",
    "sigma_u": "sigma_u",
    "surrogate_gradient": "output_gradient_mean",
    "weight_gradient": "weight_gradient_mean",
    "weight_update": "update_mean",
}


def record_layers(config: TrainConfig, task: Task, trained: Path | None) -> list[dict[str, Any]]:
    """Activity, gradients and updates of every layer on one batch of training samples.

    trained: folder of the finished run whose best weights are looked at, None for the weights that
        `config` starts from.

    Returns dictionaries with metric, layer ("1", "2", ..., "1_inhibitory", "encoder", "readout")
    and value.
    """
    network = _network(config, task, trained)
    indices = torch.arange(min(len(task.train), config.batch_size, MOST_SAMPLES))
    inputs, targets = _select(task, "train", indices)
    rows = []
    report = inspect(
        network,
        inputs,
        targets,
        regularizer=penalty_of(network, config.regularization),
        lr=config.lr,
    )
    for row in report.rows():
        layer = layer_name(row["layer"], row["population"])
        rows += [
            {"metric": metric, "layer": layer, "value": row[column]}
            for metric, column in _METRICS.items()
            if row.get(column) is not None
        ]
    return rows


def record_example(config: TrainConfig, task: Task, folder: Path, path: Path) -> None:
    """Write what the first test sample does in the network before and, in `folder`, after training.

    The arrays are `<stage>.<layer>` (time, neurons) bool for input and hidden layers,
    `<stage>.readout` (time, classes) float32 for the readout's membranes; besides dt in seconds and
    the sample's target.
    """
    arrays: dict[str, NDArray[Any]] = {}
    inputs, targets = _select(task, "test", torch.arange(1))
    for stage, trained in (("initial", None), ("trained", folder)):
        one = record(_network(config, task, trained), inputs, 0, targets=targets)
        if one.input is not None:
            arrays[f"{stage}.input"] = one.input.numpy()
        for population in one.populations:
            name = layer_name(population.layer, population.population)
            arrays[f"{stage}.{name}"] = population.spikes.numpy()
        for membranes in one.readouts.values():
            arrays[f"{stage}.readout"] = membranes.float().numpy()
        arrays["dt"] = np.array(one.dt)
        arrays["target"] = np.array(-1 if one.target is None else one.target)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomically(path, buffer.getvalue())


def layer_name(layer: str, population: str = "all") -> str:
    """Short name of a population: the number of a hidden layer, with its kind if inhibitory."""
    short = layer.removeprefix("hidden")
    return f"{short}_inhibitory" if population == "inhibitory" else short


def _network(config: TrainConfig, task: Task, trained: Path | None) -> Sequential:
    network = build_network(config, task)
    if trained is None:
        initialize(
            network, config, input_rate=task.input_rate(config.dt), images=task.some_images()
        )
    else:
        path = trained / CHECKPOINT_NAME
        restore_model(network, load_checkpoint(path).best_model, path)
    return network


def _select(task: Task, part: str, indices: Tensor) -> tuple[PackedSpikes | Tensor, Tensor]:
    source = getattr(task, part)
    return source.select(indices.to(source.targets.device))
