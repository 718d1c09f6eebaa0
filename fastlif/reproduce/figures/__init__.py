"""The experiments: for every table and figure its runs and its drawing, in one module."""

from __future__ import annotations

from fastlif.reproduce.experiment import Experiment
from fastlif.reproduce.figures.dale import FIGURE_7
from fastlif.reproduce.figures.datasets import FIGURE_6, TABLE_1
from fastlif.reproduce.figures.deep import FIGURE_4, FIGURE_S6
from fastlif.reproduce.figures.homeostasis import FIGURE_5
from fastlif.reproduce.figures.inputs import FIGURE_2
from fastlif.reproduce.figures.shallow import FIGURE_3
from fastlif.reproduce.figures.supplement import (
    FIGURE_S4,
    FIGURE_S5,
    FIGURE_S8,
    FIGURE_S9,
    FIGURE_S10,
)
from fastlif.reproduce.figures.theory import FIGURE_1

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        TABLE_1,
        FIGURE_1,
        FIGURE_2,
        FIGURE_3,
        FIGURE_4,
        FIGURE_5,
        FIGURE_6,
        FIGURE_7,
        FIGURE_S4,
        FIGURE_S5,
        FIGURE_S6,
        FIGURE_S8,
        FIGURE_S9,
        FIGURE_S10,
    )
}
