"""The report of a sweep: its pictures, and what its tables say."""

from __future__ import annotations

from fastlif.sweep.report.drawing import draw
from fastlif.sweep.report.layout import Layout, layout_of
from fastlif.sweep.report.reading import read_results
from fastlif.sweep.report.results import METRICS, Results, results_of

__all__ = ["METRICS", "Layout", "Results", "draw", "layout_of", "read_results", "results_of"]
