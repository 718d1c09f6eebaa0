"""`fastlif train PRESET`."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console

from fastlif.cli.devices import chosen_device
from fastlif.cli.errors import reported, warnings_on
from fastlif.cli.processes import Launch
from fastlif.models import PRESETS

if TYPE_CHECKING:
    from fastlif.train import TrainConfig


DATA, NETWORK, WEIGHTS = "Data", "Network", "Weights at the start"
OPTIMIZATION, ACTIVITY, MACHINE, OUTPUT = "Optimization", "Activity", "Machine", "Output"


def train(
    preset: Annotated[str, typer.Argument(help=f"One of: {', '.join(PRESETS)}.")],
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FASTLIF_DATA",
            help="Folder with the files: *train*.h5 and *test*.h5 in the layout of SHD, CIFAR-10, "
            "DVS128 Gesture or N-MNIST, as the preset needs it.",
            rich_help_panel=DATA,
        ),
    ] = None,
    data_seed: Annotated[
        int,
        typer.Option(
            help="Of generated data, or of the training/validation split.", rich_help_panel=DATA
        ),
    ] = 0,
    n_samples: Annotated[
        int | None,
        typer.Option(
            help="Use at most this many samples for training and validation, and as many for "
            "testing.",
            rich_help_panel=DATA,
        ),
    ] = None,
    dt: Annotated[
        float | None, typer.Option(help="Seconds per step.", rich_help_panel=DATA)
    ] = None,
    channel_shift: Annotated[
        int,
        typer.Option(
            help="Move training samples by up to this many input channels.", rich_help_panel=DATA
        ),
    ] = 0,
    recurrent: Annotated[
        bool | None,
        typer.Option(
            "--recurrent/--feedforward",
            help="Default: as the paper's main result. Under Dale's law it is about excitatory "
            "neurons alone.",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    skip: Annotated[
        bool,
        typer.Option(
            "--skip/--no-skip",
            help="Let the readout hear every hidden layer.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    rescale_surrogate: Annotated[
        bool,
        typer.Option(
            "--rescale-surrogate/--no-rescale-surrogate",
            help="Scale the surrogate derivative to 1 at rest.",
            rich_help_panel=NETWORK,
        ),
    ] = False,
    initialization: Annotated[
        str,
        typer.Option(
            help="fluctuation, kaiming, or normal (with --mu-w and --sigma-w).",
            rich_help_panel=WEIGHTS,
        ),
    ] = "fluctuation",
    sigma_u: Annotated[
        float | None,
        typer.Option(
            help="fluctuation: standard deviation of the membranes to aim at.",
            rich_help_panel=WEIGHTS,
        ),
    ] = None,
    distribution: Annotated[
        str,
        typer.Option(
            help="fluctuation, under Dale's law: exponential or lognormal.",
            rich_help_panel=WEIGHTS,
        ),
    ] = "exponential",
    mu_w: Annotated[
        float, typer.Option(help="normal: mean of the weights.", rich_help_panel=WEIGHTS)
    ] = 0.0,
    sigma_w: Annotated[
        float | None,
        typer.Option(help="normal: their standard deviation.", rich_help_panel=WEIGHTS),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Of supervised training. Default: the preset's.", rich_help_panel=OPTIMIZATION
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Default: the preset's.", rich_help_panel=OPTIMIZATION),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="smorms3, adam or sgd.", rich_help_panel=OPTIMIZATION)
    ] = "smorms3",
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate. Default: the preset's for smorms3, 3e-3 for adam, 1 for sgd.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Of the weights, the sample order and random changes of samples.",
            rich_help_panel=OPTIMIZATION,
        ),
    ] = 0,
    upper_strength: Annotated[
        float | None,
        typer.Option(
            help="Weight of the upper bound on the mean spike count of a population; 0: none.",
            rich_help_panel=ACTIVITY,
        ),
    ] = None,
    v_upper: Annotated[
        float | None,
        typer.Option(
            help="Upper bound, in spikes per sample; default: the preset's, at its rate.",
            rich_help_panel=ACTIVITY,
        ),
    ] = None,
    lower_strength: Annotated[
        float | None,
        typer.Option(
            help="Weight of the lower bound on the spike count of every neuron (homeostasis); "
            "0: none.",
            rich_help_panel=ACTIVITY,
        ),
    ] = None,
    v_lower: Annotated[
        float | None,
        typer.Option(help="Lower bound, in spikes per sample.", rich_help_panel=ACTIVITY),
    ] = None,
    priming_epochs: Annotated[
        int,
        typer.Option(
            help="Epochs before the others on the bounds alone, the lower one at 1 spike.",
            rich_help_panel=ACTIVITY,
        ),
    ] = 0,
    device: Annotated[
        str,
        typer.Option(
            help="Where to train: cpu, cuda, or auto for a GPU if there is one.",
            rich_help_panel=MACHINE,
        ),
    ] = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="CPU threads; default: torch's own choice.", rich_help_panel=MACHINE
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Kernels to use, as `fastlif info` lists them.", rich_help_panel=MACHINE),
    ] = None,
    graph: Annotated[
        bool,
        typer.Option(
            "--graph/--no-graph",
            help="On a GPU, in one process: replay steps as a CUDA graph.",
            rich_help_panel=MACHINE,
        ),
    ] = True,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder; default runs/PRESET-KIND-seedN, KIND recurrent or feedforward.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue the run in the output folder.", rich_help_panel=OUTPUT
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print the result only.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Train a network of the paper and report the test score of its best validation epoch."""
    # Imported here: it takes a second or two, which no other command should pay.
    from fastlif.train import configured, load_task, sample_duration
    from fastlif.train import train as run_training
    from fastlif.train.progress import ConsoleReporter, print_result

    launch = Launch.of_environment()
    console = Console(quiet=not launch.is_first)
    try:
        with reported(launch):
            # None: not given.
            options = {
                "recurrent": recurrent,
                "epochs": epochs,
                "batch_size": batch_size,
                "seed": seed,
                "data_seed": data_seed,
                "lr": lr,
                "sigma_u": sigma_u,
                "dt": dt,
                "channel_shift": channel_shift,
                "device": chosen_device(device),
                "graph": graph,
                "backend": backend,
                "optimizer": optimizer,
                "initialization": initialization,
                "mu_w": mu_w,
                "sigma_w": sigma_w,
                "distribution": distribution,
                "priming_epochs": priming_epochs,
                "skip": skip,
                "rescale_surrogate": rescale_surrogate,
                "n_samples": n_samples,
                "upper_strength": upper_strength,
                "v_upper": v_upper,
                "lower_strength": lower_strength,
                "v_lower": v_lower,
            }
            config = configured(
                preset,
                {name: value for name, value in options.items() if value is not None},
                duration=sample_duration(preset, data),
            )
            if threads is not None:
                torch.set_num_threads(threads)
            folder = out if out is not None else _default_folder(config)
            task = load_task(config, data)
            # What exists by now stays: the collector need not walk through it between the batches.
            gc.freeze()
            with (
                launch.joined(config.device) as processes,
                ConsoleReporter(console, quiet=quiet) as reporter,
                warnings_on(console),
            ):
                result = run_training(
                    config, task, folder, resume=resume, reporter=reporter, processes=processes
                )
    except KeyboardInterrupt:
        console.print("interrupted; the same command with --resume continues")
        raise typer.Exit(130) from None
    print_result(console, result, folder)


def _default_folder(config: TrainConfig) -> Path:
    kind = "recurrent" if config.recurrent else "feedforward"
    return Path("runs") / f"{config.preset}-{kind}-seed{config.seed}"
