"""Puts what bench/gpu.sh did into one summary.json: `python -m bench.gpu.summary FOLDER`.

Needs nothing but the standard library: it has to work where everything else failed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "pytest", "ninja", "pybind11")
PARTS, SUMMARY = "parts.tsv", "summary.json"


def answer(*command: str) -> str | None:
    """What a program prints; None when it is not there or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpu(field: str) -> str | None:
    """One field of the first GPU, by the driver's own tool."""
    return answer("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader", "--id=0")


def read_parts(folder: Path) -> list[dict[str, Any]]:
    """Part, status ("passed", "failed", "timed out", "skipped"), seconds, note, log."""
    parts = []
    for line in (folder / PARTS).read_text().splitlines():
        name, status, seconds, note = line.split("\t")
        log = f"{name}.log" if (folder / f"{name}.log").exists() else None
        parts.append(
            {"part": name, "status": status, "seconds": int(seconds), "note": note, "log": log}
        )
    return parts


def summary(folder: Path) -> dict[str, Any]:
    """Device, versions, commit, parts and, where they were reached, the timings."""
    try:
        timings = json.loads((folder / "timings.json").read_text())
    except (OSError, ValueError):
        timings = None
    parts = read_parts(folder)
    compiler = answer("nvcc", "--version")
    return {
        "passed": bool(parts) and all(part["status"] == "passed" for part in parts),
        "device": gpu("name"),
        "driver": gpu("driver_version"),
        "clocks": gpu("clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem"),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "nvcc": compiler.splitlines()[-1] if compiler else None,
        "commit": answer("git", "describe", "--always", "--dirty", "--exclude=*")
        or os.environ.get("FASTLIF_COMMIT"),
        "parts": parts,
        "timings": timings,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the summary and print one line a part; 1 unless all passed."""
    (folder,) = map(Path, sys.argv[1:] if arguments is None else arguments)
    content = summary(folder)
    (folder / SUMMARY).write_text(json.dumps(content, indent=2) + "\n")
    for part in content["parts"]:
        note = f"  {part['note']}" if part["note"] else ""
        print(f"{part['part']:<12} {part['status']:<10} {part['seconds']:4d} s{note}")
    return int(not content["passed"])


if __name__ == "__main__":
    sys.exit(main())
