"""Which code and which libraries made a result."""

from __future__ import annotations

import functools
import os
import subprocess
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["__version__", "commit", "versions"]

try:
    __version__ = metadata.version("fastlif")
except metadata.PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"


def versions() -> dict[str, str | None]:
    """Versions of fastlif and torch, and the commit if fastlif runs from a checkout."""
    return {"fastlif": __version__, "torch": torch.__version__, "commit": commit()}


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that holds this package, with "-dirty" where files differ from it.

    None for an installed package, unless `FASTLIF_COMMIT` names the commit.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # of an environment inside another project's checkout too
        return os.environ.get("FASTLIF_COMMIT")
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("FASTLIF_COMMIT")
    return described.stdout.strip()
