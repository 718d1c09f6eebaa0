"""Pictures made for print: of what `fastlif.inspection` finds, and of numbers over settings.

Small functions draw into given axes (`raster`, `membrane_traces`, `membrane_histogram`,
`rates_by_depth`, `magnitudes_by_depth`, `curve`, `heat_map`, `xi_lines`, ...), others arrange them
into figures; `style()` is the look of both, and leaves matplotlib's own settings alone. Needs
matplotlib (pip install 'fastlif[train]').
"""

from __future__ import annotations

from fastlif.plots.curves import (
    absent,
    curve,
    drawable,
    legend,
    note_missing,
    percent_axis,
    target_axis,
)
from fastlif.plots.depth import (
    depth_figure,
    magnitudes_by_depth,
    rates_by_depth,
    silent_by_depth,
)
from fastlif.plots.distributions import membrane_figure, membrane_histogram
from fastlif.plots.grids import InputTheory, heat_map, scatter_map, xi_lines
from fastlif.plots.samples import (
    membrane_traces,
    raster,
    raster_figure,
    readout_traces,
    trace_figure,
)
from fastlif.plots.style import COLUMN, PAGE, figure, panel_label, save, save_as, style

__all__ = [
    "COLUMN",
    "PAGE",
    "InputTheory",
    "absent",
    "curve",
    "depth_figure",
    "drawable",
    "figure",
    "heat_map",
    "legend",
    "magnitudes_by_depth",
    "membrane_figure",
    "membrane_histogram",
    "membrane_traces",
    "note_missing",
    "panel_label",
    "percent_axis",
    "raster",
    "raster_figure",
    "rates_by_depth",
    "readout_traces",
    "save",
    "save_as",
    "scatter_map",
    "silent_by_depth",
    "style",
    "target_axis",
    "trace_figure",
    "xi_lines",
]
