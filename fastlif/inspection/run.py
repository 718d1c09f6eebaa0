"""Looking at a module on a batch of input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastlif.init import Prediction
from fastlif.init.traversal import mean_rate, visit_inputs
from fastlif.inspection.activity import Activity, activity
from fastlif.inspection.batches import (
    ReachedLayer,
    n_samples_of,
    reached_layers,
    samples_of,
)
from fastlif.inspection.gradients import (
    BatchGradients,
    LayerGradients,
    Loss,
    Regularizer,
    batch_gradients,
)
from fastlif.inspection.membranes import (
    MEMBRANE_NUMBERS,
    MOST_SAMPLES,
    Membranes,
    expectation,
    membranes_of,
    trace_layer,
    trace_readout,
)
from fastlif.inspection.report import LayerReport, ModelReport, PopulationReport, ReadoutReport
from fastlif.layers import Sequential, StackLayer
from fastlif.losses import max_over_time_cross_entropy
from fastlif.spikes import PackedSpikes


def inspect(
    module: nn.Module,
    inputs: Tensor | PackedSpikes,
    targets: Tensor | None = None,
    *,
    loss: Loss = max_over_time_cross_entropy,
    regularizer: Regularizer | None = None,
    optimizer: Optimizer | None = None,
    lr: float = 5e-3,
    predictions: Sequence[Prediction] = (),
    warmup: int = 0,
) -> ModelReport:
    """Rates, membranes, gradients and weight updates of every layer of a module on one batch.

    module: any module that contains spiking fastlif layers. It stays as it is, bit for bit, and so
        do the optimizer and torch's random numbers.
    inputs: a batch as the module takes it; the samples may be processed in slices.
    targets: (batch, ...); with them, gradients and an optimizer step are looked at too.
    loss: of (output of the module, targets), a mean over the samples.
    regularizer: of the spike counts of the spiking layers, as `return_spike_counts=True` gives
        them, a mean over the samples; added to the loss. The module is a `fastlif.Sequential`.
    optimizer: of the module's parameters, whose next step is looked at. None: SMORMS3 with `lr`,
        at its first step.
    predictions: what an initializer expected, to stand beside what is; by the layers' names.
    warmup: number of first steps that the statistics of membranes leave out.

    Firing and gradients are those of all samples, membranes and the rates of a layer's inputs those
    of the first ones, at most 32 of them and 16 MB a layer. The membranes stand beside what the
    weights and the rates of their inputs lead to for Poisson input, with or without `predictions`.

    Raises ValueError when there is no spiking layer, no sample, a layer that never runs, or a
    number that does not fit.
    """
    if regularizer is not None and not isinstance(module, Sequential):
        raise ValueError(
            "regularizer needs a fastlif.Sequential, which gives spike counts, got "
            f"{type(module).__module__}.{type(module).__name__}"
        )
    reached = reached_layers(module, inputs)
    n_samples = n_samples_of(module, inputs)
    n_steps = max(one.n_steps for one in reached.values())
    if not 0 <= warmup < n_steps:
        raise ValueError(f"warmup must be between 0 and {n_steps - 1} steps, got {warmup}")
    if targets is not None and len(targets) != n_samples:
        raise ValueError(f"targets must be one per sample, {n_samples}, got {len(targets)}")
    looks = {name: _Look(one, warmup) for name, one in reached.items()}

    def visit(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        looks[name].see(layer_input)

    devices = {parameter.device for parameter in module.parameters()}
    with torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]):
        activities = activity(module, inputs)
        n_kept = max(look.n_kept for look in looks.values())
        visit_inputs(module, samples_of(module, inputs, 0, n_kept), visit)
        found: BatchGradients | None = None
        if targets is not None:
            found = batch_gradients(
                module,
                inputs,
                targets,
                reached,
                loss=loss,
                regularizer=regularizer,
                optimizer=optimizer,
                lr=lr,
            )
    targets_by_name = {one.name: one for one in predictions}
    layers: list[LayerReport] = []
    readouts: list[ReadoutReport] = []
    for name, look in looks.items():
        target = targets_by_name.get(name)
        own = None if found is None else found.layers[name]
        if look.reached.is_readout:
            readouts.append(look.readout_report(target, own))
        else:
            fired = [one for one in activities if one.layer == name]
            layers.append(look.layer_report(fired, target, own))
    return ModelReport(
        layers=tuple(layers),
        readouts=tuple(readouts),
        n_samples=n_samples,
        n_steps=n_steps,
        dt=next(iter(reached.values())).layer.dt,
        loss=None if found is None else found.loss,
        penalty=None if found is None or regularizer is None else found.penalty,
        accuracy=None if found is None else found.accuracy,
    )


class _Look:
    """What has been seen of one layer's membranes."""

    def __init__(self, reached: ReachedLayer, warmup: int) -> None:
        self.reached = reached
        self.warmup = warmup
        # Samples whose membranes are kept: as many as fit.
        self.n_kept = min(MOST_SAMPLES, max(1, MEMBRANE_NUMBERS // reached.numbers_per_sample))
        self.input_rate: float | None = None  # Hz; None of a layer whose input is a current
        self.membranes: dict[str, Membranes] = {}  # by population
        self.readout_membrane = torch.empty(0)  # (time, batch, classes)

    def see(self, layer_input: Tensor | PackedSpikes) -> None:
        """Look at the layer's first samples."""
        layer = self.reached.layer
        kept = samples_of(layer, layer_input, 0, self.n_kept)
        if self.reached.plan.feedforward is not None:
            self.input_rate = mean_rate(layer, kept)
        if self.reached.is_readout:
            self.readout_membrane = trace_readout(self.reached, kept)[self.warmup :]
            return
        trace = trace_layer(self.reached, kept)
        expected = expectation(self.reached, kept, trace.spikes)
        for population, channels in self.reached.populations():
            self.membranes[population] = membranes_of(trace, expected, channels, self.warmup)

    def layer_report(
        self, fired: list[Activity], target: Prediction | None, gradients: LayerGradients | None
    ) -> LayerReport:
        """All that is known of a spiking layer."""
        return LayerReport(
            name=self.reached.name,
            threshold=self.reached.plan.threshold,
            populations=tuple(
                PopulationReport(one, self.membranes[one.population]) for one in fired
            ),
            input_rate=self.input_rate,
            target_mu_u=None if target is None else target.mu_u,
            target_sigma_u=None if target is None else target.sigma_u,
            gradients=gradients,
        )

    def readout_report(
        self, target: Prediction | None, gradients: LayerGradients | None
    ) -> ReadoutReport:
        """All that is known of a readout."""
        membrane = self.readout_membrane
        variance, mean = torch.var_mean(membrane, dim=0, correction=0)
        return ReadoutReport(
            name=self.reached.name,
            n_units=membrane.shape[2],
            input_rate=self.input_rate,
            mu_u=float(mean.mean()),
            sigma_u=float(variance.mean().sqrt()),
            largest=float(membrane.max()),
            smallest=float(membrane.min()),
            target_sigma_u=None if target is None else target.sigma_u,
            gradients=gradients,
        )
