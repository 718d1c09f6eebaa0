"""Figure 1: one neuron in the fluctuation-driven regime, theory against simulation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlif import plots
from fastlif.init import centred_distribution, psp_integrals
from fastlif.layers import LIFLinear
from fastlif.ops.reference import stack_trace
from fastlif.plots import absent, legend
from fastlif.reproduce.experiment import Experiment, Measured, Results
from fastlif.reproduce.panels import footnotes, letter, target_colors
from fastlif.reproduce.plan import Plan
from fastlif.reproduce.sources import Sources

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FIGURE_1", "gaussian"]

TAU_MEM, TAU_SYN, DT = 20e-3, 10e-3, 2e-3
N_INPUTS, RATE = 100, 10.0  # Poisson inputs of Hz
N_NEURONS = 400
N_STEPS = 2000
WARMUP = 100  # steps until the membranes are in their stationary state
TRACE_STEPS = 500  # shown
TARGETS = (1.0, 1.0 / 3.0, 2.0, 0.2, 0.5)  # xi = 1, 3, 1/2, 5, 2
BINS = 120
ROW_BELOW, ROW_ABOVE = -0.8, 2.6  # at least this much room below rest and above it for a trace


def gaussian(u: NDArray[Any], mean: float, std: float) -> NDArray[Any]:
    """Density of the normal distribution."""
    return np.exp(-0.5 * ((u - mean) / std) ** 2) / (std * math.sqrt(2.0 * math.pi))


def measure(plan: Plan, sources: Sources) -> Measured:
    """Membranes of neurons that hear Poisson inputs, with and without the spike reset."""
    targets = plan.targets(TARGETS)
    rows: list[dict[str, Any]] = []
    arrays: dict[str, dict[str, NDArray[Any]]] = {"psp": _response()}
    for target in targets:
        for seed in plan.seeds():
            free, reset, spikes = _simulate(target, seed)
            fixed = {
                "panels": "bcd",
                "network": "single neuron",
                "condition": "Poisson input",
                "label": f"single neuron, sigma_U = {target:g}, seed {seed}",
                "target": target,
                "seed": seed,
                "data": f"{N_INPUTS} Poisson inputs of {RATE:g} Hz",
                "status": "finished",
            }
            per_neuron = free.std(0, correction=0)
            rows += [
                fixed | {"metric": metric, "stage": stage, "value": float(value)}
                for metric, stage, value in (
                    ("mu_u", "no reset", free.mean()),
                    ("sigma_u", "no reset", per_neuron.square().mean().sqrt()),
                    ("sigma_u_spread", "no reset", per_neuron.std()),
                    ("mu_u", "reset", reset.mean()),
                    ("sigma_u", "reset", reset.var(0, correction=0).mean().sqrt()),
                    ("firing_rate", "reset", spikes.mean() / DT),
                )
            ]
            if seed == 0:
                arrays[f"sigma {target:g}"] = _shown(target, free, reset, spikes)
    return Measured(rows, arrays)


def _response() -> dict[str, NDArray[Any]]:
    """Response of the membrane to a spike of weight 1, in steps and in continuous time."""
    n_steps = 60
    layer = LIFLinear(1, 1, bias=False, tau_mem=TAU_MEM, tau_syn=TAU_SYN, dt=DT)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        spikes = torch.zeros(n_steps, 1, 1)
        spikes[0] = 1.0
        membrane = _membranes(layer, spikes, spiking=False)[0][:, 0, 0]
    time: NDArray[Any] = np.linspace(0.0, n_steps * DT, 400)
    continuous = (np.exp(-time / TAU_MEM) - np.exp(-time / TAU_SYN)) * TAU_SYN / (TAU_MEM - TAU_SYN)
    return {
        "step_time": np.arange(n_steps) * DT,
        "steps": membrane.numpy(),
        "time": time,
        "continuous": continuous,
    }


def _simulate(target: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Membranes without and with reset, and the spikes of the latter, all (time, neurons)."""
    generator = torch.Generator().manual_seed(seed)
    layer = LIFLinear(N_INPUTS, N_NEURONS, bias=False, tau_mem=TAU_MEM, tau_syn=TAU_SYN, dt=DT)
    weights = centred_distribution(
        N_INPUTS, RATE, psp_integrals(TAU_MEM, TAU_SYN, DT), sigma_u=target
    )
    with torch.no_grad():
        layer.weight.normal_(weights.mean, weights.std, generator=generator)
        # A neuron's own mean scatters around mu_U as its weights do; balanced ones have none.
        layer.weight.sub_(layer.weight.mean(1, keepdim=True))
        spikes = (torch.rand(N_STEPS, 1, N_INPUTS, generator=generator) < RATE * DT).float()
        free, _ = _membranes(layer, spikes, spiking=False)
        reset, emitted = _membranes(layer, spikes, spiking=True)
    return free[WARMUP:, 0], reset[WARMUP:, 0], emitted[WARMUP:, 0]


def _membranes(layer: LIFLinear, spikes: Tensor, *, spiking: bool) -> tuple[Tensor, Tensor]:
    """Membranes and spikes of a layer, (time, batch, neurons)."""
    plan = layer.plan(tuple(spikes.shape[2:]), len(spikes))
    trace = stack_trace(spikes, [plan], [layer.tensors(None)], spiking=spiking)
    return trace.membranes[0], trace.spikes[0]


def _shown(target: float, free: Tensor, reset: Tensor, spikes: Tensor) -> dict[str, NDArray[Any]]:
    """The trace of one neuron and the distributions of all."""
    # The neuron whose fluctuations are the most typical.
    neuron = int((free.std(0) - target).abs().argmin())
    edges = np.linspace(-4.0 * target, max(4.0 * target, 1.2), BINS + 1)
    return {
        "trace": reset[:TRACE_STEPS, neuron].numpy(),
        "spikes": spikes[:TRACE_STEPS, neuron].numpy() > 0,
        "edges": edges,
        "free": np.histogram(free.numpy(), edges, density=True)[0],
        "reset": np.histogram(reset.numpy(), edges, density=True)[0],
    }


def draw(results: Results) -> Figure:
    """Response, traces, distributions and fluctuations against their targets."""
    targets = results.table.distinct("target")
    figure = plots.figure(109, plots.PAGE)
    grid = figure.add_gridspec(2, 6, height_ratios=(1.0, 1.0))
    a, d = figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[1, 4:])
    traces = figure.add_subplot(grid[0, 2:])
    chosen = [t for t in (0.2, 1.0 / 3.0, 0.5, 1.0, 2.0) if t in targets] or sorted(targets)
    densities = grid[1, :4].subgridspec(1, max(1, len(chosen[:3])), wspace=0.05)
    colors = target_colors(targets)
    _draw_response(a, results)
    _draw_traces(traces, results, chosen, colors)
    shown = chosen if len(chosen) <= 3 else [chosen[0], chosen[-2], chosen[-1]]
    axes = [figure.add_subplot(densities[0, i]) for i in range(len(shown))]
    for ax, target in zip(axes, shown, strict=True):
        _draw_density(ax, results, target, colors[target])
    axes[0].set_ylabel("density")
    legend(axes[-1], fontsize=6, loc="upper left")
    _draw_fluctuations(d, results)
    for ax, name in ((a, "a"), (traces, "b"), (axes[0], "c"), (d, "d")):
        letter(ax, name)
    footnotes(figure, results)
    return figure


def _draw_response(ax: Axes, results: Results) -> None:
    if "psp" not in results.arrays:
        return absent(ax, "not measured")
    psp = results.arrays["psp"]
    ax.plot(1e3 * psp["time"], psp["continuous"], color="0.6", label="continuous time")
    ax.plot(1e3 * psp["step_time"], psp["steps"], ".", color="black", ms=3, label="2 ms steps")
    discrete = psp_integrals(TAU_MEM, TAU_SYN, DT)
    exact = psp_integrals(TAU_MEM, TAU_SYN, DT, "analytical")
    ax.text(
        0.99,
        0.72,
        f"$\\bar{{\\epsilon}}$ = {1e3 * discrete.eps_bar:.1f} ({1e3 * exact.eps_bar:.1f}) ms\n"
        f"$\\hat{{\\epsilon}}$ = {1e3 * discrete.eps_hat:.1f} ({1e3 * exact.eps_hat:.1f}) ms",
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=7,
    )
    ax.set(xlabel="time after input spike (ms)", ylabel=r"membrane $\epsilon(t)$")
    legend(ax, fontsize=6.5, loc="upper right")


def _draw_traces(
    ax: Axes, results: Results, targets: list[float], colors: dict[float, Any]
) -> None:
    """Membranes one above the other, each with its threshold; spikes reach up to the next."""
    base = 0.0
    for target in targets:
        shown = results.arrays.get(f"sigma {target:g}")
        if shown is None:
            continue
        base -= min(ROW_BELOW, float(shown["trace"].min()))
        time = 1e3 * DT * np.arange(len(shown["trace"]))
        ax.plot(time, base + shown["trace"], color=colors[target], lw=0.8)
        ax.axhline(base + 1.0, color="0.5", lw=0.6, ls="--")
        ax.vlines(time[shown["spikes"]], base + 1.0, base + 2.2, color=colors[target], lw=0.8)
        ax.text(
            time[-1] * 1.02,
            base + 0.4,
            f"$\\sigma_U$ = {target:.2g}, $\\xi$ = {1.0 / target:.2g}",
            fontsize=6.5,
            va="center",
        )
        base += ROW_ABOVE
    ax.set(xlabel="time (ms)", yticks=[], ylim=(ROW_BELOW - 1.2, base + 0.2))
    ax.set_xlim(0.0, 1e3 * DT * TRACE_STEPS)
    ax.spines["left"].set_visible(False)
    ax.text(0.0, 1.02, "membrane, threshold dashed", transform=ax.transAxes, fontsize=7)


def _draw_density(ax: Axes, results: Results, target: float, color: Any) -> None:
    shown = results.arrays.get(f"sigma {target:g}")
    if shown is None:
        return absent(ax, "not measured")
    centres = 0.5 * (shown["edges"][1:] + shown["edges"][:-1])
    ax.fill_between(centres, shown["free"], color=color, alpha=0.35, lw=0, label="no reset")
    ax.plot(centres, shown["reset"], color=color, lw=0.9, label="with reset")
    theory = gaussian(centres, 0.0, target)
    ax.plot(centres, theory, "--", color="black", lw=0.9, label="theory")
    ax.axvline(1.0, color="0.5", lw=0.6, ls=":")
    ax.set_ylim(0.0, 1.6 * theory.max())  # the peak at the reset is higher
    ax.set(xlabel="membrane $U$", yticks=[], title=f"$\\sigma_U$ = {target:.2g}")


def _draw_fluctuations(ax: Axes, results: Results) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    table = results.table.where(metric="sigma_u")
    targets = np.array(sorted(table.distinct("target")))
    if not len(targets):
        return absent(ax, "not measured")
    spread = results.table.where(metric="sigma_u_spread").over("target")
    for stage, marker, color in (("no reset", "o", "#0072B2"), ("reset", "s", "#D55E00")):
        found = table.where(stage=stage).over("target")
        mean = np.array([found[(t,)].mean for t in targets])
        ax.plot(targets, mean, marker + "-", ms=3.5, color=color, label=stage)
        if stage == "no reset" and spread:
            std = np.array([spread[(t,)].mean for t in targets])
            ax.fill_between(targets, mean - std, mean + std, color=color, alpha=0.2, lw=0)
    limits = (0.8 * targets[0], 1.25 * targets[-1])
    ax.plot(limits, limits, "--", color="black", lw=0.9, label="theory")
    ax.set(xscale="log", yscale="log", xlabel=r"target $\sigma_U$", ylabel=r"simulated $\sigma_U$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_locator(FixedLocator((0.2, 0.5, 1.0, 2.0)))
        axis.set_major_formatter("{x:g}")
    legend(ax, fontsize=6.5)


FIGURE_1 = Experiment(
    name="fig1",
    title="Fluctuation-driven firing of a single neuron",
    measure=measure,
    draw=draw,
)
