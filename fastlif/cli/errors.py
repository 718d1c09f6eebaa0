"""How the commands report what went wrong, or may."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from fastlif.cli.processes import ALONE, Launch
from fastlif.init import ActivityWarning


@contextmanager
def reported(launch: Launch = ALONE) -> Iterator[None]:
    """Print errors that a user can mend as one line and end with exit status 2.

    launch: of a command that may run in several processes. One prints what they all met.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # who reads the output has seen enough
    except (ValueError, OSError, ImportError) as error:
        if launch.is_to_report():
            place = "error" if launch.is_first else f"error in process {launch.rank}"
            Console(stderr=True).print(
                f"{place}: {_message(error)}",
                style="red",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        launch.reported()
        raise typer.Exit(2) from error


def _message(error: ValueError | OSError | ImportError) -> str:
    """What went wrong; of an error of the system the file and the reason, without its number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


@contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Print an ActivityWarning as one line, without the place in the code that it came from."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ActivityWarning)
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, ActivityWarning):
                console.print(
                    f"warning: {message}",
                    style="yellow",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield
