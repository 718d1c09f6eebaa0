"""`fastlif sweep FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fastlif.cli.errors import reported
from fastlif.cli.sweep_report import report

if TYPE_CHECKING:
    from fastlif.sweep import SweepSpec

RUN = "run"


class _FileFirst(TyperGroup):
    """A group whose first argument is one of its commands, or else the file of a sweep to run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_FileFirst,
    no_args_is_help=True,
    subcommand_metavar="FILE | COMMAND [ARGS]...",
    help="Many training runs from one file: `sweep FILE` is `sweep run FILE`.",
)


@app.command(RUN)
def run(
    context: typer.Context,
    file: Annotated[
        str,
        typer.Argument(
            help="What to run, as YAML: see docs/sweeps.md. paper:3f stands for the sweep of the "
            "paper's figure 3f, which comes with fastlif; so do paper:3c, 3e, 4a, 4a-kaiming, 5b, "
            "5c, 7c and 7d.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FASTLIF_DATA",
            help="Folder of the data, in place of the file's; the variable is for files that name "
            "none.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sweep; default runs/sweeps/NAME. On a cluster, all nodes share "
            "the file system that it is on."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep if it lies in the folder.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_ADDRESS",
            help="HOST:PORT of a Ray cluster, or auto on one of its nodes. Default: this machine.",
        ),
    ] = None,
    pack: Annotated[
        int,
        typer.Option(
            metavar="E",
            help="Train up to E trials of one network shape side by side, with the results of "
            "single ones: for networks too small to fill a device.",
        ),
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and how long they may take.")
    ] = False,
) -> None:
    """Run the trials that a file states, and write trials.csv and epochs.csv (and .parquet).

    The exit status is 1 if trials were lost, which --resume runs again. Those that failed for good
    are in the tables, with their messages.
    """
    # Imported here: it takes a second or two, which no other command should pay.
    from fastlif.sweep import read_spec
    from fastlif.sweep.packs import check_pack_size
    from fastlif.sweep.paper import sweep_path

    console = Console()
    with reported():
        source = context.get_parameter_source("data")
        from_environment = source is not None and source.name == "ENVIRONMENT"
        spec = read_spec(
            sweep_path(file),
            data=None if from_environment else data,
            default_data=data if from_environment else None,
        )
        folder = Path("runs") / "sweeps" / spec.name if out is None else out
        check_pack_size(spec, pack)
        if dry_run:
            from fastlif.cli.sweep_plan import print_plan

            print_plan(console, spec, folder / "trials")
            return
        _run(console, spec, folder, resume=resume, address=address, pack=pack)


def _run(
    console: Console,
    spec: SweepSpec,
    folder: Path,
    *,
    resume: bool,
    address: str | None,
    pack: int,
) -> None:
    from fastlif.cli.sweep_progress import ConsoleReporter
    from fastlif.sweep.run import run_sweep

    try:
        with ConsoleReporter(console) as reporter:
            summary = run_sweep(
                spec, folder, resume=resume, address=address, pack=pack, reporter=reporter
            )
    except KeyboardInterrupt:
        console.print("interrupted; the same command with --resume continues")
        raise typer.Exit(130) from None
    counted = ", ".join(f"{n} {status}" for status, n in summary.statuses.items())
    files = ", ".join(str(path) for path in summary.files)
    console.print(f"{counted}; {files}", highlight=False, soft_wrap=True)
    if lost := summary.statuses.get("lost"):
        console.print(f"{lost} were lost: the same command with --resume runs them again")
        raise typer.Exit(1)


app.command()(report)
