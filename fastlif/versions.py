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

    None for an installed package, unless `FASTLIF_COMMIT` names the commit. What was found at the
    first call holds for the process, whose code does not change either.
    """
    root = Path(__file__).resolve().parent.parent
    return described(root) or os.environ.get("FASTLIF_COMMIT")


def described(root: Path) -> str | None:
    """Commit of the checkout whose top folder is `root`; None if it is none, or git fails."""
    if not (root / ".git").exists():  # a folder inside the checkout of something else
        return None
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
