"""`fastlif inspect PRESET`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

from fastlif.cli.devices import chosen_device
from fastlif.cli.errors import reported
from fastlif.models import PRESETS

if TYPE_CHECKING:
    from fastlif.inspection import ModelReport, Recording
    from fastlif.train import Task, TrainConfig

EPOCHS = ("best", "last")
NETWORK, WEIGHTS, OUTPUT = "Network", "Weights", "Output"


def inspect(
    preset: Annotated[str, typer.Argument(help=f"One of: {', '.join(PRESETS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(envvar="FASTLIF_DATA", help="Folder with the files, as for `fastlif train`."),
    ] = None,
    n_samples: Annotated[int, typer.Option(min=1, help="Validation samples to look at.")] = 100,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a run, to look at its weights instead of a start.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    epoch: Annotated[
        str | None,
        typer.Option(
            help="With --checkpoint: best (on validation; the default), or last, with the "
            "optimizer's next step; that of another epoch than the last is a new optimizer's.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    initialization: Annotated[
        str | None,
        typer.Option(
            help="fluctuation (default), kaiming, or normal (with --mu-w and --sigma-w).",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    sigma_u: Annotated[
        float | None,
        typer.Option(help="fluctuation: membranes to aim at.", rich_help_panel=WEIGHTS),
    ] = None,
    mu_w: Annotated[
        float | None, typer.Option(help="normal: mean.", rich_help_panel=WEIGHTS)
    ] = None,
    sigma_w: Annotated[
        float | None, typer.Option(help="normal: standard deviation.", rich_help_panel=WEIGHTS)
    ] = None,
    distribution: Annotated[
        str | None,
        typer.Option(
            help="fluctuation, under Dale's law: exponential (default) or lognormal.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.", rich_help_panel=WEIGHTS)] = None,
    recurrent: Annotated[
        bool | None,
        typer.Option(
            "--recurrent/--feedforward", help="Default: the preset's.", rich_help_panel=NETWORK
        ),
    ] = None,
    skip: Annotated[
        bool | None,
        typer.Option(
            "--skip/--no-skip", help="The readout hears every layer.", rich_help_panel=NETWORK
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto for a GPU if there is one.")
    ] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the table (CSV, JSON) and the pictures (PDF, PNG); none: print only.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(min=0, help="Which of the samples to draw.", rich_help_panel=OUTPUT),
    ] = 0,
) -> None:
    """Look inside a network: rates, membranes, gradients and weight updates of every layer."""
    # Imported here: they take a second or two, which no other command should pay.
    from fastlif.inspection import activity_warnings

    console = Console()
    settings = {
        "initialization": initialization,
        "sigma_u": sigma_u,
        "mu_w": mu_w,
        "sigma_w": sigma_w,
        "distribution": distribution,
        "seed": seed,
        "recurrent": recurrent,
        "skip": skip,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    with reported():
        if epoch not in (None, *EPOCHS):
            raise ValueError(f"epoch must be {' or '.join(EPOCHS)}, got {epoch!r}")
        if epoch is not None and checkpoint is None:
            raise ValueError(f"epoch is for --checkpoint, got {epoch!r} without one")
        report, recording = _look(
            preset, data, checkpoint, epoch != "last", given, device, (n_samples, sample)
        )
        if out is not None:
            _write(report, recording, out)
    console.print(report.table(), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{report.n_samples} validation samples: loss {report.loss:.4f}, "
        f"penalty {report.penalty:.4f}, accuracy {report.accuracy or 0.0:.2%}",
        highlight=False,
        soft_wrap=True,
    )
    for line in activity_warnings(report.activities):
        console.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
    if out is not None:
        console.print(f"table and pictures in {out}", highlight=False, soft_wrap=True)


def _look(
    preset: str,
    data: Path | None,
    checkpoint: Path | None,
    best: bool,
    given: dict[str, Any],
    device_name: str,
    samples: tuple[int, int],  # how many to look at, which of them to record
) -> tuple[ModelReport, Recording]:
    """Build the network and look at it."""
    from fastlif.inspection import inspect as inspect_module
    from fastlif.inspection import record
    from fastlif.train import default_config, initialize, load_task, sample_duration
    from fastlif.train.checkpoint import load_checkpoint, restore_model, restore_optimizer
    from fastlif.train.objective import penalty_of
    from fastlif.train.optimizers import make_optimizer
    from fastlif.train.run import CHECKPOINT_NAME, build_network

    device = torch.device(chosen_device(device_name))
    predictions = []
    if checkpoint is None:
        config = dataclasses.replace(
            default_config(preset, duration=sample_duration(preset, data)), **given
        )
        task = load_task(config, data)
        network = build_network(config, task)
        predictions = initialize(
            network, config, input_rate=task.input_rate(config.dt), images=task.some_images()
        )
        optimizer = make_optimizer(network.to(device), config, device)
    else:
        path = checkpoint / CHECKPOINT_NAME
        saved = load_checkpoint(path)
        config = _saved_config(preset, saved.settings, given, path)
        task = load_task(config, data)
        network = build_network(config, task)
        if best and not saved.best_epoch:
            raise ValueError(f"{path} has no best epoch, as it is in its priming: see --epoch last")
        is_last = not best or saved.best_epoch == saved.epoch
        restore_model(network, saved.model if is_last else saved.best_model, path)
        optimizer = make_optimizer(network.to(device), config, device)
        # Kept is the last one's, and supervised training begins with a new one.
        if is_last and saved.epoch > config.priming_epochs:
            restore_optimizer(optimizer, network, saved.optimizer, path)
    n_samples, sample = samples
    indices = _chosen(task, n_samples)
    if sample >= len(indices):
        raise ValueError(f"sample must be below the number of samples, {len(indices)}: {sample}")
    inputs, targets = task.validation.select(indices, device)
    report = inspect_module(
        network,
        inputs,
        targets,
        regularizer=penalty_of(network, config.regularization),
        optimizer=optimizer,
        predictions=predictions,
    )
    return report, record(network, inputs, sample, targets=targets)


def _saved_config(
    preset: str, settings: dict[str, Any], given: dict[str, Any], path: Path
) -> TrainConfig:
    """The settings of a run; ValueError if the command asks for others."""
    from fastlif.train import TrainConfig

    if settings.get("preset") != preset:
        raise ValueError(f"{path} is of preset {settings.get('preset')!r}, not {preset!r}")
    if given:
        options = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{options} cannot be combined with --checkpoint, which fixes it")
    return TrainConfig.from_dict(settings)


def _chosen(task: Task, n_samples: int) -> torch.Tensor:
    """Numbers of some validation samples, the same ones always; the files may be sorted by class.

    A data set that holds fewer gives all it has.
    """
    order = torch.randperm(len(task.validation), generator=torch.Generator().manual_seed(0))
    return order[:n_samples].to(task.validation.targets.device)


def _write(report: ModelReport, recording: Recording, folder: Path) -> None:
    """The table and all pictures."""
    from fastlif import plots  # deferred: matplotlib takes a second to import

    folder.mkdir(parents=True, exist_ok=True)
    report.to_csv(folder / "layers.csv")
    report.to_json(folder / "layers.json")
    for name, drawn in (
        ("raster", plots.raster_figure(recording)),
        ("traces", plots.trace_figure(recording)),
        ("membranes", plots.membrane_figure(report)),
        ("depth", plots.depth_figure(report)),
    ):
        plots.save(drawn, folder / name)
