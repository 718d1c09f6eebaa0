"""`fastlif sweep FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from fastlif.cli.errors import reported

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
    file: Annotated[Path, typer.Argument(help="What to run, as YAML: see docs/sweeps.md.")],
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="FASTLIF_DATA",
            help="Folder of the data, in place of the file's; the variable is for files that name "
            "none.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Output folder; default runs/sweeps/NAME.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the trials and how long they may take.")
    ] = False,
) -> None:
    """Run the trials that a file states."""
    # Imported here: it takes a second or two, which no other command should pay.
    from fastlif.sweep import read_spec

    console = Console()
    with reported():
        source = context.get_parameter_source("data")
        from_environment = source is not None and source.name == "ENVIRONMENT"
        spec = read_spec(
            file,
            data=None if from_environment else data,
            default_data=data if from_environment else None,
        )
        folder = Path("runs") / "sweeps" / spec.name if out is None else out
        if dry_run:
            from fastlif.cli.sweep_plan import print_plan

            print_plan(console, spec, folder / "trials")
            return
        raise ValueError("sweeps are only listed so far: give --dry-run")
