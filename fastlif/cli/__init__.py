"""The command line, a module for each command."""

from __future__ import annotations

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:
    raise SystemExit(
        f"the fastlif command needs the packages of pip install 'fastlif[train]' ({error})"
    ) from error

from fastlif.cli.information import info
from fastlif.cli.inspecting import inspect
from fastlif.cli.reproducing import reproduce
from fastlif.cli.training import train

app = typer.Typer(
    help="Spiking networks of LIF neurons, trained fast.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(inspect)
app.command()(reproduce)
app.command()(info)


def main() -> None:
    """Entry point of the `fastlif` console script."""
    app()
