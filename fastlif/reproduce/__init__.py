"""The paper's tables and figures: which runs they need, their execution, tables and drawings.

    reproduce(EXPERIMENTS["fig4"], Options(scale=0.05), sources, out, progress)

Every experiment names its runs as changes of a preset's settings. A run has a folder of its own,
shared by all experiments, and is made once. The table has a row for every number; the figure is
drawn from the table alone, with the paper's numbers beside ours. Source: Rossbroich, Gygax, Zenke
(2022), Neuromorph. Comput. Eng. 2 044016.
"""

from __future__ import annotations

from fastlif.reproduce.experiment import Experiment, Outputs, Progress, Results, reproduce
from fastlif.reproduce.figures import EXPERIMENTS
from fastlif.reproduce.options import Options
from fastlif.reproduce.sources import DATA_SETS, Sources
from fastlif.reproduce.table import Table

__all__ = [
    "DATA_SETS",
    "EXPERIMENTS",
    "Experiment",
    "Options",
    "Outputs",
    "Progress",
    "Results",
    "Sources",
    "Table",
    "reproduce",
]
