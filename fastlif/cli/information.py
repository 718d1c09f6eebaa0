"""`fastlif info`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fastlif.backends import backends


def info() -> None:
    """Say which kernels are available on this machine, and why others are not."""
    table = Table("backend", "available", "detail")
    for backend in backends():
        table.add_row(backend.name, "yes" if backend.available else "no", backend.detail)
    Console().print(table)
