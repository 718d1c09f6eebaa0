"""One look for all figures: sizes of a paper's columns, legible at print size, safe colours.

Nothing global changes: figures are made without pyplot, and settings hold inside `style()` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

COLUMN = 85.0  # mm, width of one column
PAGE = 180.0  # mm, width of both
PNG_DPI = 200
MM_PER_INCH = 25.4

# Okabe and Ito's colours, which readers with any colour vision tell apart.
BLACK, GREY, LIGHT_GREY = "#000000", "#777777", "#c8c8c8"
BLUE, ORANGE, GREEN, VERMILLION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
SKY, PURPLE, YELLOW = "#56b4e9", "#cc79a7", "#f0e442"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE, BLACK)
POPULATION_COLORS = {"all": BLACK, "excitatory": BLUE, "inhibitory": VERMILLION}

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "mathtext.fontset": "dejavusans",
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "xtick.labelsize": 6.0,
    "ytick.labelsize": 6.0,
    "legend.fontsize": 6.0,
    "figure.titlesize": 8.0,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlepad": 3.0,
    "axes.labelpad": 2.0,
    "axes.prop_cycle": cycler(color=CYCLE),
    "lines.linewidth": 0.9,
    "lines.markersize": 3.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.minor.size": 1.2,
    "ytick.minor.size": 1.2,
    "xtick.major.pad": 2.0,
    "ytick.major.pad": 2.0,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.borderaxespad": 0.2,
    "pdf.fonttype": 42,  # text that an editor can change
    "svg.fonttype": "none",
    "savefig.dpi": PNG_DPI,
}

# Without the date, the same figure gives the same file.
_DATES: dict[str, dict[str, Any] | None] = {
    ".pdf": {"CreationDate": None},
    ".png": None,
    ".svg": {"Date": None},
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures; draw and save inside. Every setting is as before afterwards."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def figure(height: float, width: float = COLUMN) -> Figure:
    """An empty figure of this size in mm, whose parts make room for each other."""
    size = (width / MM_PER_INCH, height / MM_PER_INCH)
    layout = ConstrainedLayoutEngine(w_pad=1.5 / 72, h_pad=1.5 / 72, wspace=0.03, hspace=0.03)
    made = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(made)
    return made


def save(made: Figure, path: Path | str) -> list[Path]:
    """Write a figure as PDF and PNG; `path` is without an ending. Returns both files."""
    return [save_as(made, Path(f"{path}.{ending}")) for ending in ("pdf", "png")]


def save_as(made: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's ending: .pdf, .png or .svg. Returns the path.

    Raises:
        ValueError: another ending.
    """
    if path.suffix not in _DATES:
        raise ValueError(f"{path} must end in one of {', '.join(_DATES)}, got {path.suffix!r}")
    with style():
        made.savefig(path, dpi=PNG_DPI, metadata=_DATES[path.suffix])
    return path


def panel_label(axes: Axes, letter: str) -> None:
    """A bold letter at the upper left corner, outside of the axes."""
    axes.set_title(letter, loc="left", fontweight="bold", fontsize=8.0)
