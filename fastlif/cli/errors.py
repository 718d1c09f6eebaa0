"""How the commands report what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console


@contextmanager
def reported() -> Iterator[None]:
    """Print errors that a user can mend as one line and end with exit status 2."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        Console(stderr=True).print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from error
