"""What `inspect` found, as records, as a table of plain values, and as files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastlif.inspection.activity import Activity
from fastlif.inspection.gradients import LayerGradients, Magnitude
from fastlif.inspection.membranes import Membranes

Row = dict[str, Any]

# Columns of the printed table: name in `rows`, heading, format.
COLUMNS = (
    ("layer", "layer", "s"),
    ("population", "neurons", "s"),
    ("neurons", "n", "d"),
    ("rate_hz", "rate (Hz)", ".1f"),
    ("silent", "silent", ".0%"),
    ("saturated", "saturated", ".0%"),
    ("mu_u", "mu_U", ".2f"),
    ("predicted_mu_u", "pred.", ".2f"),
    ("sigma_u", "sigma_U", ".2f"),
    ("predicted_sigma_u", "pred.", ".2f"),
    ("target_sigma_u", "target", ".2f"),
    ("output_gradient_mean", "|dL/dS|", ".1e"),
    ("weight_gradient_mean", "|dL/dW|", ".1e"),
    ("update_mean", "|step|", ".1e"),
)


@dataclass(frozen=True)
class PopulationReport:
    """Neurons of a layer that share their time constants: all of them, or one of two kinds."""

    activity: Activity
    membranes: Membranes


@dataclass(frozen=True)
class LayerReport:
    """One spiking layer."""

    name: str
    threshold: float
    populations: tuple[PopulationReport, ...]
    input_rate: float | None  # Hz, mean over the layer's inputs; None if they are a current
    target_mu_u: float | None  # of the initialization, where its predictions were given
    target_sigma_u: float | None
    gradients: LayerGradients | None  # None without targets


@dataclass(frozen=True)
class ReadoutReport:
    """One readout; its membranes are those of the samples that were kept."""

    name: str
    n_units: int
    input_rate: float | None  # Hz
    mu_u: float  # mean over units of the membrane's mean over time
    sigma_u: float  # root of the mean over units of its variance over time
    largest: float  # of all membranes
    smallest: float
    target_sigma_u: float | None  # as the initialization predicted it
    gradients: LayerGradients | None


@dataclass(frozen=True)
class ModelReport:
    """A module looked at on one batch; layers in the order in which the module runs them."""

    layers: tuple[LayerReport, ...]
    readouts: tuple[ReadoutReport, ...]
    n_samples: int
    n_steps: int
    dt: float  # seconds
    loss: float | None  # of the batch; None without targets
    penalty: float | None  # of the regularizer, not part of the loss; None without one
    accuracy: float | None  # 0..1

    @property
    def activities(self) -> list[Activity]:
        """Firing of every population."""
        return [part.activity for layer in self.layers for part in layer.populations]

    def rows(self) -> list[Row]:
        """One row of plain values for each population and each readout; None where not measured.

        Gradients and updates are those of the layer. They stand in its first row, and are those of
        all its parameters together; `_norm` is the root of the sum of squares, `_mean` the mean
        absolute value.
        """
        found = []
        for layer in self.layers:
            for number, part in enumerate(layer.populations):
                own = layer.gradients if number == 0 else None
                found.append(_population_row(layer, part) | _gradient_cells(own))
        for readout in self.readouts:
            cells = {name: None for name in found[0]}
            found.append(cells | _readout_row(readout) | _gradient_cells(readout.gradients))
        return found

    def table(self) -> str:
        """The most important columns as plain text."""
        headings, body = self.cells()
        widths = [max(map(len, column)) for column in zip(headings, *body, strict=True)]
        lines = [headings, ["-" * width for width in widths], *body]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if number < 2 else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings and formatted cells of `table`, without columns that hold nothing."""
        rows = self.rows()
        shown = [column for column in COLUMNS if any(row[column[0]] is not None for row in rows)]
        body = [[_formatted(row[name], form) for name, _, form in shown] for row in rows]
        return [heading for _, heading, _ in shown], body

    def all_layers(self) -> list[LayerReport | ReadoutReport]:
        """Spiking layers, then readouts."""
        return [*self.layers, *self.readouts]

    def to_csv(self, path: Path | str) -> None:
        """Write `rows`."""
        text = io.StringIO(newline="")
        rows = self.rows()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        Path(path).write_text(text.getvalue(), encoding="utf-8", newline="")

    def to_json(self, path: Path | str) -> None:
        """Write `rows`, every parameter's magnitudes, rates of neurons and histograms."""
        content = {
            "n_samples": self.n_samples,
            "n_steps": self.n_steps,
            "dt_seconds": self.dt,
            "loss": self.loss,
            "penalty": self.penalty,
            "accuracy": self.accuracy,
            "rows": self.rows(),
            "parameters": {
                one.name: {
                    name: {part: vars(getattr(change, part)) for part in vars(change)}
                    for name, change in (one.gradients.parameters if one.gradients else {}).items()
                }
                for one in self.all_layers()
            },
            "populations": [
                {
                    "layer": layer.name,
                    "population": part.activity.population,
                    "neuron_rates_hz": _numbers(part.activity.neuron_rates),
                    "membrane_edges": _numbers(part.membranes.histogram.edges),
                    "membrane_density": _numbers(part.membranes.histogram.free),
                    "membrane_density_reset": _numbers(part.membranes.histogram.reset),
                    "membrane_density_predicted": _numbers(part.membranes.histogram.predicted),
                }
                for layer in self.layers
                for part in layer.populations
            ],
        }
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _population_row(layer: LayerReport, part: PopulationReport) -> Row:
    fired, membranes = part.activity, part.membranes
    return {
        "layer": layer.name,
        "population": fired.population,
        "neurons": fired.n_neurons,
        "input_rate_hz": layer.input_rate,
        "rate_hz": fired.firing_rate,
        "silent": fired.silent,
        "saturated": fired.saturated,
        "mu_u": membranes.mu_u,
        "predicted_mu_u": membranes.predicted_mu_u,
        "target_mu_u": layer.target_mu_u,
        "sigma_u": membranes.sigma_u,
        "predicted_sigma_u": membranes.predicted_sigma_u,
        "target_sigma_u": layer.target_sigma_u,
        "mu_u_reset": membranes.mu_u_reset,
        "sigma_u_reset": membranes.sigma_u_reset,
        "largest_u": None,
        "smallest_u": None,
    }


def _readout_row(readout: ReadoutReport) -> Row:
    return {
        "layer": readout.name,
        "population": "readout",
        "neurons": readout.n_units,
        "input_rate_hz": readout.input_rate,
        "mu_u": readout.mu_u,
        "sigma_u": readout.sigma_u,
        "target_sigma_u": readout.target_sigma_u,
        "largest_u": readout.largest,
        "smallest_u": readout.smallest,
    }


def _gradient_cells(gradients: LayerGradients | None) -> Row:
    parts: dict[str, Magnitude | None] = dict.fromkeys(
        ("output_gradient", "weight_gradient", "update", "weight")
    )
    if gradients is not None:
        parts = {
            "output_gradient": gradients.output,
            "weight_gradient": gradients.total("gradient"),
            "update": gradients.total("update"),
            "weight": gradients.total("value"),
        }
    cells: Row = {}
    for name, magnitude in parts.items():
        cells[f"{name}_norm"] = None if magnitude is None else magnitude.norm
        cells[f"{name}_mean"] = None if magnitude is None else magnitude.mean
    return cells


def _formatted(value: Any, form: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return format(value, form)


def _numbers(values: Tensor | Iterable[float] | None) -> list[float] | None:
    """Numbers as JSON takes them, to six digits."""
    if values is None:
        return None
    return [float(f"{float(value):.6g}") for value in values]
