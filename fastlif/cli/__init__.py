"""The command line, a module for each command."""

from __future__ import annotations

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:
    raise SystemExit(
        f"the fastlif command needs the packages of pip install 'fastlif[train]' ({error})"
    ) from error

from fastlif.cli.errors import reported
from fastlif.cli.information import info
from fastlif.cli.inspecting import inspect
from fastlif.cli.processes import refuse_several_processes
from fastlif.cli.reproducing import reproduce
from fastlif.cli.sweeping import app as sweep
from fastlif.cli.training import train

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def check_processes(context: typer.Context) -> None:
    """Spiking networks of LIF neurons, trained fast."""
    if context.invoked_subcommand not in (None, "train"):
        with reported():
            refuse_several_processes(context.invoked_subcommand)


app.command()(train)
app.command()(inspect)
app.command()(reproduce)
app.add_typer(sweep, name="sweep")
app.command()(info)


def main() -> None:
    """Entry point of the `fastlif` console script."""
    app()
