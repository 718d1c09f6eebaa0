"""The folder of a sweep: which sweep lies there, and whether its disk has room for the rest."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastlif.files import write_atomically
from fastlif.models import build
from fastlif.sweep.spec import SweepSpec, Trial
from fastlif.train.config import FREE_SETTINGS
from fastlif.train.run import CHECKPOINT_NAME
from fastlif.versions import versions

__all__ = [
    "SWEEP_NAME",
    "TRIALS_FOLDER",
    "check_same_sweep",
    "check_space",
    "claim",
    "load_sweep",
]

SWEEP_NAME = "sweep.json"
TRIALS_FOLDER = "trials"
_FORMAT = 1

# Tensors of a parameter's shape in a checkpoint: now, at the best epoch, and what an optimizer
# keeps of it.
_COPIES = {"smorms3": 2 + 3, "adam": 2 + 2, "sgd": 2}
_FLOAT_BYTES = 4
_EPOCH_BYTES = 4096  # in the log, the checkpoint's history and TensorBoard's file
_TRIAL_BYTES = 1 << 17  # a block at least for each of its files
# Trials that write a second checkpoint, to replace the first, at one time.
_AT_ONCE = 64


def check_same_sweep(spec: SweepSpec, folder: Path, *, resume: bool) -> None:
    """ValueError if another sweep lies in a folder, or this one and `resume` is False.

    What a sweep that goes on may change is what the result of a finished trial does not depend on:
    resources but for a change of device, scheduler, retries and what is reported.
    """
    if (folder / SWEEP_NAME).is_file():
        there = load_sweep(folder)
        if difference := _difference(there, spec):
            raise ValueError(
                f"{folder} holds another sweep, {there['name']}: {difference}; choose another "
                "folder"
            )
        if not resume:
            raise ValueError(
                f"{folder} already holds this sweep: resume it, or choose another folder"
            )


def claim(spec: SweepSpec, folder: Path) -> None:
    """Make a folder the sweep's."""
    content = {
        "format": _FORMAT,
        "name": spec.name,
        "data": None if spec.data is None else str(spec.data),
        "varied": list(spec.varied),
        "resources": asdict(spec.resources),
        "asha": None if spec.asha is None else asdict(spec.asha),
        "retries": spec.retries,
        "report": spec.report,
        "trials": [_trial(trial) for trial in spec.trials],
        "versions": versions(),
    }
    (folder / TRIALS_FOLDER).mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(folder / SWEEP_NAME, text.encode())


def load_sweep(folder: Path) -> dict[str, Any]:
    """What `claim` wrote of the sweep in a folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or of another version.
    """
    path = folder / SWEEP_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no sweep in {folder}: it has no {SWEEP_NAME}")
    try:
        content = dict(json.loads(path.read_text()))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if content.get("format") != _FORMAT:
        raise ValueError(f"{path}: format must be {_FORMAT}, got {content.get('format')!r}")
    return content


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "name": trial.name,
        "options": trial.options,
        "settings": trial.config.as_dict(),
    }


def _difference(there: dict[str, Any], spec: SweepSpec) -> str:
    """In which way the trials of a sweep are others than those in a folder; "" if they are not."""
    here = json.loads(json.dumps([_trial(trial) for trial in spec.trials]))
    n_there, n_here = len(there["trials"]), len(here)
    if n_there != n_here:
        return f"it has {n_there} trials, and this one {n_here}"
    for old, new in zip(there["trials"], here, strict=True):
        names = [
            key
            for key in new["settings"]
            if key not in FREE_SETTINGS and old["settings"].get(key) != new["settings"][key]
        ]
        if names:
            values = ", ".join(
                f"{name} is {old['settings'].get(name)!r} there and {new['settings'][name]!r} here"
                for name in names
            )
            return f"in trial {new['number']}, {values}"
        if old["name"] != new["name"]:
            return f"trial {new['number']} has other data"
    return ""


def check_space(trials: Iterable[Trial], folder: Path) -> None:
    """ValueError if the disk of a folder cannot take what trials are still going to write."""
    sizes = [(_bytes_of(trial), folder / TRIALS_FOLDER / trial.name) for trial in trials]
    replaced = sum(sorted((size for size, _ in sizes), reverse=True)[:_AT_ONCE])
    wanted = replaced + sum(max(0, size - _written(path)) for size, path in sizes)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise ValueError(
            f"{folder} must have about {wanted / 1e9:.3g} GB free for {len(sizes)} trials, has "
            f"{free / 1e9:.3g} GB"
        )


def _written(folder: Path) -> int:
    path = folder / CHECKPOINT_NAME
    return path.stat().st_size if path.is_file() else 0


def _bytes_of(trial: Trial) -> int:
    config = trial.config
    n_parameters = _n_parameters(config.preset, config.recurrent, config.skip)
    tensors = _COPIES[config.optimizer] * _FLOAT_BYTES * n_parameters
    return tensors + config.all_epochs * _EPOCH_BYTES + _TRIAL_BYTES


@functools.cache
def _n_parameters(preset: str, recurrent: bool, skip: bool) -> int:
    """Of the network for the paper's data."""
    network = build(preset, recurrent=recurrent, skip=skip)
    return sum(parameter.numel() for parameter in network.parameters())
