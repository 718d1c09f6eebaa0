"""Sweep files for tests: one that is right, and what becomes of it."""

from __future__ import annotations

from pathlib import Path

from fastlif.sweep import SweepSpec, read_spec
from tests.training import write_events

# Lines are counted in tests: 1 name, 2 preset, 3 settings, 4 search, 5 sigma_u, 6 lr, 7 seeds.
RIGHT = """\
name: small
preset: randman
settings: {epochs: 4, batch_size: 50}
search:
  sigma_u: [0.5, 1]
  lr: {log_range: [1e-3, 1e-1], points: 3}
seeds: 2
"""


def event_folder(folder: Path) -> Path:
    """A folder of data for presets of the kind shd."""
    folder.mkdir(parents=True)
    for number, name in enumerate(("train.h5", "test.h5")):
        write_events(folder / name, 10, number)
    return folder


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str, data: Path | None = None) -> SweepSpec:
    return read_spec(write(folder, text), data=data)
