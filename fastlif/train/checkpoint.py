"""Checkpoints: tensors in the safetensors format, everything else as JSON in its header.

Nothing in such a file is executed when it is loaded. A checkpoint is written beside its place and
moved over the old one in a single step, so a run that is killed leaves the old or the new one.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from fastlif.files import write_atomically
from fastlif.train.config import TrainConfig

__all__ = [
    "Checkpoint",
    "check_same_run",
    "load_checkpoint",
    "optimizer_tensors",
    "restore_model",
    "restore_optimizer",
    "save_checkpoint",
]

_FORMAT = "fastlif training checkpoint 1"

# Settings that may change when a run goes on: neither changes what an epoch computes.
_FREE_SETTINGS = ("epochs", "graph")

# Settings of bounds that are of no account where the bound's strength is 0.
_OF_BOUNDS = {
    "v_upper": "upper_strength",
    "upper_per": "upper_strength",
    "v_lower": "lower_strength",
}


@dataclass
class Checkpoint:
    """State of a run at the end of an epoch."""

    settings: dict[str, Any]  # `TrainConfig.as_dict`
    data: dict[str, Any]  # `Task.summary`
    epoch: int  # epochs done
    best_epoch: int  # the one with the best validation score
    history: list[dict[str, Any]]  # one log row per epoch
    model: dict[str, Tensor]  # parameters now, by name
    best_model: dict[str, Tensor]  # parameters after the best epoch
    optimizer: dict[str, Tensor] = field(default_factory=dict)  # see `optimizer_tensors`


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint, replacing the one at `path` in one step."""
    tensors = {}
    for part in ("model", "best_model", "optimizer"):
        for name, tensor in getattr(checkpoint, part).items():
            tensors[f"{part}/{name}"] = tensor.detach().cpu().contiguous()
    state = {
        "settings": checkpoint.settings,
        "data": checkpoint.data,
        "epoch": checkpoint.epoch,
        "best_epoch": checkpoint.best_epoch,
        "history": checkpoint.history,
    }
    write_atomically(path, save(tensors, {"format": _FORMAT, "state": json.dumps(state)}))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint written by `save_checkpoint`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged or something else than a training checkpoint of fastlif.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best_model": {}, "optimizer": {}}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                found = metadata.get("format", "no format")
                raise ValueError(f"{path}: not a training checkpoint of fastlif ({found})")
            for key in file.keys():
                part, _, name = key.partition("/")
                parts[part][name] = file.get_tensor(key)
        state = json.loads(metadata["state"])
        return Checkpoint(
            settings=state["settings"],
            data=state["data"],
            epoch=state["epoch"],
            best_epoch=state["best_epoch"],
            history=state["history"],
            **parts,
        )
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged checkpoint ({error})") from error


def check_same_run(
    checkpoint: Checkpoint, settings: dict[str, Any], data: dict[str, Any], path: Path
) -> None:
    """Raise a ValueError that names every setting in which a checkpoint's run is another one.

    A setting that an older checkpoint does not know was at its default in that run.
    """
    then = _defaults() | checkpoint.settings
    idle = {
        name
        for name, strength in _OF_BOUNDS.items()
        if then.get(strength) == 0 and settings.get(strength) == 0
    }
    differences = [
        f"{name} is {there.get(name)!r} there and {here.get(name)!r} here"
        for there, here in ((then, settings), (checkpoint.data, data))
        for name in sorted(there.keys() | here.keys())
        if name not in (*_FREE_SETTINGS, *idle) and there.get(name) != here.get(name)
    ]
    if differences:
        raise ValueError(f"{path} belongs to another run: {'; '.join(differences)}")


def _defaults() -> dict[str, Any]:
    """The settings that have one."""
    return {
        setting.name: setting.default
        for setting in dataclasses.fields(TrainConfig)
        if setting.default is not dataclasses.MISSING
    }


def restore_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy parameters into `model`; a ValueError says which of them do not fit it."""
    _check_shapes(dict(model.named_parameters()), tensors, path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[name])


def optimizer_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of every parameter of `model` in `optimizer` as "<parameter>/<entry>"."""
    return {
        f"{name}/{entry}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)  # SGD without momentum keeps None
    }


def restore_optimizer(
    optimizer: Optimizer, model: nn.Module, tensors: dict[str, Tensor], path: Path
) -> None:
    """Give the optimizer the state that `optimizer_tensors` took; ValueError if it does not fit."""
    parameters = dict(model.named_parameters())
    entries: dict[str, dict[str, Tensor]] = {name: {} for name in parameters}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        # Of a parameter's shape, or a number, as Adam's count of steps.
        if name not in parameters or tensor.shape not in (parameters[name].shape, torch.Size()):
            raise ValueError(f"{path}: optimizer state of {name!r} does not fit the network")
        entries[name][entry] = tensor
    groups = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    on_device = {p: bool(group.get("capturable")) for group, p in groups}
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            entry: tensor.to(parameter.device)
            if on_device[parameter] or tensor.shape == parameter.shape
            else tensor
            for entry, tensor in entries[name].items()
        }


def _check_shapes(parameters: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    problems = [f"{name} is missing" for name in sorted(parameters.keys() - tensors.keys())]
    problems += [f"{name} is unknown" for name in sorted(tensors.keys() - parameters.keys())]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(parameter.shape)}"
        for name, parameter in parameters.items()
        if name in tensors and tensors[name].shape != parameter.shape
    ]
    if problems:
        raise ValueError(f"{path} holds another network: {'; '.join(problems)}")
