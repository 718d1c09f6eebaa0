"""`fastlif train PRESET`."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console

from fastlif.cli.errors import reported
from fastlif.models import PRESETS

if TYPE_CHECKING:
    from fastlif.train import TrainConfig, TrainResult


def train(
    preset: Annotated[str, typer.Argument(help=f"One of: {', '.join(PRESETS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FASTLIF_DATA",
            help="Folder with one *train*.h5 and one *test*.h5 in the layout of SHD.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; default runs/PRESET-[recurrent|feedforward]-seedN."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the output folder.")
    ] = False,
    recurrent: Annotated[
        bool | None,
        typer.Option("--recurrent/--feedforward", help="Default: as the paper's main result."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Default: the preset's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and the sample order.")] = 0,
    data_seed: Annotated[
        int, typer.Option(help="Of generated data, or of the training/validation split.")
    ] = 0,
    lr: Annotated[float | None, typer.Option(help="Learning rate of SMORMS3.")] = None,
    sigma_u: Annotated[
        float | None, typer.Option(help="Target standard deviation of the membranes at the start.")
    ] = None,
    dt: Annotated[float | None, typer.Option(help="Seconds per step.")] = None,
    upper_strength: Annotated[
        float | None, typer.Option(help="Weight of the upper bound on spike counts.")
    ] = None,
    v_upper: Annotated[
        float | None, typer.Option(help="Upper bound, in spikes per sample.")
    ] = None,
    channel_shift: Annotated[
        int, typer.Option(help="Move training samples by up to this many input channels.")
    ] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; default: torch's own choice.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, cuda, or auto for a GPU if there is one.")
    ] = "cpu",
    graph: Annotated[
        bool, typer.Option("--graph/--no-graph", help="On a GPU: replay steps as a CUDA graph.")
    ] = True,
    backend: Annotated[
        str | None, typer.Option(help="Kernels to use, as `fastlif info` lists them.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False,
) -> None:
    """Train a network of the paper and report the test score of its best validation epoch."""
    # Imported here: it takes a second or two, which no other command should pay.
    from fastlif.train import default_config, load_task
    from fastlif.train import train as run_training
    from fastlif.train.progress import ConsoleReporter

    console = Console()
    try:
        with reported():
            config = _configure(
                default_config(preset),
                {
                    "recurrent": recurrent,
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "seed": seed,
                    "data_seed": data_seed,
                    "lr": lr,
                    "sigma_u": sigma_u,
                    "dt": dt,
                    "channel_shift": channel_shift,
                    "device": _device(device),
                    "graph": graph,
                    "backend": backend,
                },
                {"upper_strength": upper_strength, "v_upper": v_upper},
            )
            if threads is not None:
                torch.set_num_threads(threads)
            folder = out if out is not None else _default_folder(config)
            task = load_task(config, data)
            # What exists by now stays: the collector need not walk through it between the batches.
            gc.freeze()
            with ConsoleReporter(console, quiet=quiet) as reporter:
                result = run_training(config, task, folder, resume=resume, reporter=reporter)
    except KeyboardInterrupt:
        console.print("interrupted; the same command with --resume continues")
        raise typer.Exit(130) from None
    _print_result(console, result, folder)


def _device(name: str) -> str:
    """The device meant by `name`; a checkpoint keeps what "auto" was when the run began."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _configure(
    config: TrainConfig,
    settings: dict[str, Any],
    bounds: dict[str, Any],
) -> TrainConfig:
    """`config` with what was given on the command line; None means not given."""
    given = {name: value for name, value in bounds.items() if value is not None}
    changes = {name: value for name, value in settings.items() if value is not None}
    return dataclasses.replace(
        config,
        regularization=dataclasses.replace(config.regularization, **given),
        **changes,
    )


def _default_folder(config: TrainConfig) -> Path:
    kind = "recurrent" if config.recurrent else "feedforward"
    return Path("runs") / f"{config.preset}-{kind}-seed{config.seed}"


def _print_result(console: Console, result: TrainResult, folder: Path) -> None:
    rates = ", ".join(f"{rate:.1f}" for rate in result.test.firing_rates)
    console.print(
        f"test accuracy {result.test.accuracy:.2%} (loss {result.test.loss:.4f}) with the weights "
        f"of epoch {result.best_epoch} of {result.epochs}, the best on validation "
        f"({result.validation_accuracy:.2%})\n"
        f"{result.n_parameters} parameters; firing rates on test samples {rates} Hz; "
        f"{result.seconds_per_epoch:.2f} s per epoch (median)\n"
        f"logs and checkpoint in {folder}",
        highlight=False,
        soft_wrap=True,
    )
