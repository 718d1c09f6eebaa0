"""Looking inside a network: what its neurons do on a batch, and what learning would change.

    report = inspect(model, spikes, targets)      # rates, membranes, gradients, updates by layer
    print(report.table())
    for line in activity_warnings(report.activities):
        print(line)

`check_activity` is the cheap part of it, rates from one fused run; `record` keeps what happens
during one sample. `fastlif.plots` draws both. Prediction and measurement follow Rossbroich, Gygax,
Zenke (2022), Neuromorph. Comput. Eng. 2 044016.
"""

from __future__ import annotations

from fastlif.inspection.activity import (
    SATURATED_SHARE,
    Activity,
    activity,
    activity_warnings,
    check_activity,
)
from fastlif.inspection.gradients import LayerGradients, Magnitude, ParameterChange
from fastlif.inspection.membranes import Histogram, Membranes
from fastlif.inspection.recording import PopulationRecord, Recording, record
from fastlif.inspection.report import LayerReport, ModelReport, PopulationReport, ReadoutReport
from fastlif.inspection.run import inspect

__all__ = [
    "SATURATED_SHARE",
    "Activity",
    "Histogram",
    "LayerGradients",
    "LayerReport",
    "Magnitude",
    "Membranes",
    "ModelReport",
    "ParameterChange",
    "PopulationRecord",
    "PopulationReport",
    "ReadoutReport",
    "Recording",
    "activity",
    "activity_warnings",
    "check_activity",
    "inspect",
    "record",
]
