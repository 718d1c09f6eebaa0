"""Figure 2: what real data does to the fluctuations that theory predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fastlif import plots
from fastlif.data import mean_firing_rate
from fastlif.data.randman import manifold_points
from fastlif.init import centred_distribution, psp_integrals
from fastlif.layers import LIReadout
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Arrays, Experiment, Measured, Results
from fastlif.reproduce.figures.theory import DT, TAU_MEM, TAU_SYN, gaussian
from fastlif.reproduce.panels import footnotes, letter
from fastlif.reproduce.plan import Plan
from fastlif.reproduce.runs import Tasks
from fastlif.reproduce.sources import DATA_SETS, Sources
from fastlif.spikes import PackedSpikes
from fastlif.train import default_config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_2"]

N_NEURONS = 400
N_SAMPLES = 100
N_RASTERS = 2
TARGETS = (1.0, 1.0 / 3.0, 2.0 / 3.0, 0.5, 5.0 / 6.0, 1.0 / 6.0)
BINS = 100
SHOWN_SMOOTHNESS = 3.0  # of the example manifolds: those of the data fill the space


@dataclass(frozen=True)
class _Input:
    """One of the two data sets and the panels that it has."""

    kind: str
    preset: str
    panels: str
    color: str


INPUTS = (
    _Input("randman", "randman", "abc", "#009E73"),
    _Input("events", "shd-dense", "def", "#CC79A7"),
)


def measure(plan: Plan, sources: Sources) -> Measured:
    """Membranes without reset under both data sets, and under Poisson inputs of the same rate."""
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Arrays] = {}
    tasks = Tasks(sources)
    for one in INPUTS:
        fixed = {
            "panels": one.panels,
            "network": "single neuron",
            "data": sources.name(one.kind),
            "label": sources.name(one.kind),
        }
        missing = sources.missing(one.kind)
        if missing is not None:
            rows.append(fixed | {"status": "skipped", "message": missing})
            continue
        source = tasks.of(default_config(one.preset)).train
        n_samples = min(N_SAMPLES, len(source))
        spikes, labels = source.select(torch.arange(n_samples))
        assert isinstance(spikes, PackedSpikes)
        rate = mean_firing_rate(spikes, DT)
        arrays[one.kind] = _examples(spikes, labels) | {"rate": np.array(rate)}
        rows.append(fixed | {"status": "finished", "metric": "input_rate", "value": rate})
        for target in plan.targets(TARGETS):
            for seed in plan.seeds():
                row = fixed | {"target": target, "seed": seed, "status": "finished"}
                found, shown = _measured(spikes, rate, target, seed)
                rows += [row | numbers for numbers in found]
                if seed == 0:
                    arrays[f"{one.kind} {target:g}"] = shown
    arrays["manifolds"] = _manifolds()
    return Measured(rows, arrays)


def _measured(
    spikes: PackedSpikes, rate: float, target: float, seed: int
) -> tuple[list[dict[str, Any]], Arrays]:
    """Fluctuations of every neuron over all samples, and the distribution of a typical one."""
    n_steps, n_samples, *features = spikes.shape
    n_inputs = math.prod(features)
    generator = torch.Generator().manual_seed(seed)
    # A readout without score is a neuron without threshold and reset.
    neurons = LIReadout(
        n_inputs, N_NEURONS, False, tau_mem=TAU_MEM, tau_syn=TAU_SYN, dt=DT, reduction="none"
    )
    weights = centred_distribution(
        n_inputs, rate, psp_integrals(TAU_MEM, TAU_SYN, DT), sigma_u=target
    )
    with torch.no_grad():
        neurons.weight.normal_(weights.mean, weights.std, generator=generator)
    chance = torch.full((n_steps, n_samples, n_inputs), rate * DT)
    poisson = torch.bernoulli(chance, generator=generator)
    rows: list[dict[str, Any]] = []
    shown: Arrays = {}
    for stage, given in (("data", spikes), ("Poisson", poisson)):
        with torch.no_grad():
            membrane = neurons(given).flatten(0, 1)  # (time and samples, neurons)
        per_neuron = membrane.std(0, correction=0)
        rows += [
            {"metric": "sigma_u", "stage": stage, "value": float(per_neuron.mean())},
            {"metric": "sigma_u_spread", "stage": stage, "value": float(per_neuron.std())},
        ]
        if stage == "data":
            shown = _density(membrane, per_neuron, target)
    return rows, shown


def _density(membrane: Tensor, per_neuron: Tensor, target: float) -> Arrays:
    """Distribution of the neuron whose fluctuations are the median, against its prediction."""
    neuron = int(per_neuron.argsort()[len(per_neuron) // 2])
    edges = np.linspace(-4.0 * target, 4.0 * target, BINS + 1)
    return {
        "edges": edges,
        "density": np.histogram(membrane[:, neuron].numpy(), edges, density=True)[0],
    }


def _examples(spikes: PackedSpikes, labels: Tensor) -> Arrays:
    """Rasters (time, inputs) of samples of different classes."""
    first = {int(label): i for i, label in reversed(list(enumerate(labels.tolist())))}
    chosen = sorted(first)[:N_RASTERS]
    rasters = spikes.select(torch.tensor([first[label] for label in chosen])).unpack().flatten(2)
    return {
        f"raster {number}": rasters[:, number].numpy() > 0 for number in range(rasters.shape[1])
    } | {"classes": np.array(chosen)}


def _manifolds() -> Arrays:
    """Two one-dimensional manifolds in a space of three dimensions."""
    generator = torch.Generator().manual_seed(0)
    return {
        f"manifold {number}": manifold_points(
            1000, n_inputs=3, smoothness=SHOWN_SMOOTHNESS, generator=generator
        ).numpy()
        for number in range(2)
    }


def draw(results: Results) -> Figure:
    """Data, distributions and measured fluctuations: Randman above, SHD below."""
    figure = plots.figure(112, plots.PAGE)
    grid = figure.add_gridspec(2, 3, width_ratios=(3.4, 3.6, 2.2))
    for row, one in enumerate(INPUTS):
        table = results.table.where(data=results.data_name(one.kind))
        name = results.data_name(one.kind)
        if one.kind not in results.arrays and not table.where(metric="sigma_u").values():
            ax = figure.add_subplot(grid[row, :])
            absent(ax, f"no {DATA_SETS[one.kind].name} data")
            letter(ax, one.panels[0])
            continue
        first = _draw_data(figure, grid[row, 0], results, one, name)
        targets = sorted(table.distinct("target"))
        shown = (
            targets if len(targets) <= 3 else [targets[0], targets[len(targets) // 2], targets[-1]]
        )
        places = grid[row, 1].subgridspec(1, len(shown))
        axes = [figure.add_subplot(places[0, i]) for i in range(len(shown))]
        for ax, target in zip(axes, shown, strict=True):
            _draw_density(ax, results.arrays.get(f"{one.kind} {target:g}"), target, one.color)
        axes[0].set_ylabel("density")
        last = figure.add_subplot(grid[row, 2])
        _draw_fluctuations(last, table, one.color, name)
        for ax, panel in ((first, one.panels[0]), (axes[0], one.panels[1]), (last, one.panels[2])):
            letter(ax, panel)
    footnotes(figure, results)
    return figure


def _draw_data(figure: Figure, place: Any, results: Results, one: _Input, name: str) -> Axes:
    """Rasters of two classes; for Randman two manifolds to their left. Returns the first axes."""
    data = results.arrays.get(one.kind, {})
    rasters = [data[f"raster {i}"] for i in range(N_RASTERS) if f"raster {i}" in data]
    manifolds = results.arrays.get("manifolds", {}) if one.kind == "randman" else {}
    if manifolds:
        parts = place.subgridspec(2, 2, width_ratios=(1.5, 1.0))
        space: Any = figure.add_subplot(parts[:, 0], projection="3d")
        space.set_box_aspect((1, 1, 1), zoom=1.5)
        for number, points in enumerate(manifolds.values()):
            color = ("#009E73", "#E69F00")[number % 2]
            space.scatter(*points.T, s=1, color=color, depthshade=False)
        space.set(xticklabels=[], yticklabels=[], zticklabels=[])
        places = [parts[i, 1] for i in range(2)]
        space.set_title(f"smoothness {SHOWN_SMOOTHNESS:g}", fontsize=7)
        first: Axes = space
    else:
        parts = place.subgridspec(1, 2)
        places = [parts[0, i] for i in range(2)]
    axes = []
    for number, raster in enumerate(rasters):
        ax = figure.add_subplot(places[number])
        steps, units = np.nonzero(raster)
        ax.plot(1e3 * DT * steps, units, ",", color="black", rasterized=True)
        if number and not manifolds:
            ax.tick_params(labelleft=False)
        if raster.shape[1] < 50:
            ax.plot(1e3 * DT * steps, units, "|", ms=3, color="black")
        ax.set_title(f"class {int(data['classes'][number])}", fontsize=7)
        ax.set_xlim(0, 1e3 * DT * len(raster))
        axes.append(ax)
    for ax in axes[-1:] if manifolds else axes:
        ax.set_xlabel("time (ms)")
    if not axes:
        axes = [figure.add_subplot(places[0])]
        absent(axes[0], "no example")
    axes[0].set_ylabel(f"{name} input")
    return first if manifolds else axes[0]


def _draw_density(ax: Axes, shown: Arrays | None, target: float, color: str) -> None:
    if shown is None:
        return absent(ax, "not measured")
    centres = 0.5 * (shown["edges"][1:] + shown["edges"][:-1])
    theory = gaussian(centres, 0.0, target)
    ax.fill_between(centres, shown["density"], step="mid", color=color, alpha=0.5, lw=0)
    ax.plot(centres, theory, "--", color="black", lw=0.9)
    ax.axvline(1.0, color="0.5", lw=0.6, ls=":")
    # The silence at both ends of a sample piles up at 0.
    ax.set_ylim(0.0, min(float(shown["density"].max()) * 1.05, 2.2 * float(theory.max())))
    ax.set(xlabel="$U$", yticks=[], title=f"$\\sigma_U$ = {target:.2g}")


def _draw_fluctuations(ax: Axes, table: Any, color: str, name: str) -> None:
    targets = np.array(sorted(table.distinct("target")))
    spread = table.where(metric="sigma_u_spread")
    for stage, shade, label in (("Poisson", "0.5", "Poisson inputs"), ("data", color, name)):
        found = table.where(metric="sigma_u", stage=stage).over("target")
        if not found:
            continue
        mean = np.array([found[(t,)].mean for t in targets])
        around = spread.where(stage=stage).over("target")
        std = np.array([around[(t,)].mean if (t,) in around else 0.0 for t in targets])
        ax.fill_between(targets, mean - std, mean + std, color=shade, alpha=0.25, lw=0)
        ax.plot(targets, mean, "o-", ms=3, color=shade, label=label)
    ax.plot(targets, targets, "--", color="black", lw=0.9, label="theory")
    ax.set(xlabel=r"target $\sigma_U$", ylabel=r"measured $\hat\sigma_U$")
    legend(ax, fontsize=6.5)


FIGURE_2 = Experiment(
    name="fig2",
    title="Real data and the fluctuations that theory predicts",
    measure=measure,
    kinds=tuple(one.kind for one in INPUTS),
    draw=draw,
)
