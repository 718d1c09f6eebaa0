"""Drawing the weights of layers and models in place, and what to expect of the result.

Equation numbers are those of Rossbroich, Gygax, Zenke (2022), Neuromorph. Comput. Eng. 2 044016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Generator, Tensor, nn

from fastlif.init.activity import warn_of_activity
from fastlif.init.drawing import draw_, zero_
from fastlif.init.formulas import (
    WeightDistribution,
    check_finite,
    kaiming_distribution,
    target_sigma_u,
    unit_distribution,
)
from fastlif.init.prediction import Prediction, predict
from fastlif.init.readouts import readout_, source_rates
from fastlif.init.traversal import (
    check_one_network,
    image_encoders,
    mean_rate,
    readout_layers,
    synaptic_layers,
    time_dim,
    visit_inputs,
)
from fastlif.spikes import PackedSpikes

if TYPE_CHECKING:
    from fastlif.layers import LIReadout, StackLayer
    from fastlif.layers.neuron import SynapticLIF


def fluctuation_driven_(
    module: nn.Module,
    *,
    rate: float | Sequence[float] | None = None,
    data: Tensor | PackedSpikes | None = None,
    sigma_u: float | Sequence[float] | None = None,
    mu_u: float | Sequence[float] = 0.0,
    xi: float | Sequence[float] | None = None,
    alpha: float = 0.9,
    integrals: str = "numerical",
    distribution: str = "exponential",
    generator: Generator | None = None,
) -> list[Prediction]:
    """Draw the weights of every fastlif layer so that its membranes reach a target mean and sigma.

    module: a fastlif layer or any module that contains some. Recurrent layers follow eqs 37 to 39,
        the others eqs 6 and 7, Dalian ones `dalian_exponential` or `dalian_lognormal`; readouts are
        drawn by `readout_`, image encoders by `encoder_`; other biases become 0.
    rate: firing rate of the layers' inputs in Hz, one for all layers or one per layer.
    data: a batch of input to the module, instead of rate. Each layer is drawn for the rate at which
        its input, which passed through the layers drawn before it, fires. An ActivityWarning names
        layers that are then silent or saturated.
    sigma_u, mu_u: target of the membranes; or xi = (threshold - mu_u) / sigma_u in place of
        sigma_u (eq 8). One for all layers or one per layer. sigma_u is 1 if neither is given.
    alpha: share of the variance that feed-forward input causes in recurrent layers; in Dalian ones
        of the variance that excitation causes.
    integrals: "numerical" or "analytical", see `psp_integrals`.
    distribution: of Dalian weights, "exponential" or "lognormal". Both populations of a layer reach
        the target, each with its own time constants; their mu_u is 0. The layer's own neurons are
        expected to fire at the rate of its input.

    "Per layer" means one value for each spiking layer that has weights, in the order in which the
    module registered them. Returns one Prediction per layer, spiking layers first, then readouts.
    Raises ValueError for a target that cannot be reached and for a layer whose input is silent.

    The formulas count fan_in inputs for every neuron. With zero padding those at the border have
    fewer, so that narrow feature maps stay below the target.
    """
    if (rate is None) == (data is None):
        given = "neither" if rate is None else "both"
        raise ValueError(f"give rate (Hz) or data (a batch of input), one of them: got {given}")
    layers, readouts = _layers_with_weights(module)
    targets = _targets(layers, sigma_u, mu_u, xi)
    predictions: dict[str, Prediction] = {}

    def of_layer(name: str, layer_rate: float) -> Prediction:
        return predict(
            name,
            layers[name],
            layer_rate,
            targets[name],
            alpha=alpha,
            integrals=integrals,
            distribution=distribution,
        )

    def draw_readout(
        name: str, layer_rate: float | Sequence[float] | None, tau_mem: float | None
    ) -> Prediction:
        prediction = readout_(
            readouts[name],
            rate=layer_rate,
            tau_mem=tau_mem,
            integrals=integrals,
            generator=generator,
        )
        return replace(prediction, name=name)

    def draw_for(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        if name in layers:
            predictions[name] = of_layer(name, mean_rate(layer, layer_input))
            _draw(layers[name], predictions[name], generator)
        elif name in readouts:
            readout = readouts[name]
            duration = layer_input.shape[time_dim(layer, layer_input)] * layer.dt
            rates = [max(rate, 0.0) for rate in source_rates(readout, layer_input)]
            predictions[name] = draw_readout(name, rates, readout.tau_mem or duration)

    def note_firing(name: str, layer: StackLayer, output: Tensor) -> None:
        if name in layers:
            firing[name] = output.mean((0, 1)).flatten()

    for encoder in image_encoders(module).values():
        encoder_(encoder, generator=generator)
    if data is not None:
        firing: dict[str, Tensor] = {}  # share of the steps in which each neuron fires
        visit_inputs(module, data, draw_for, note_firing)
        for name, shares_of_steps in firing.items():
            warn_of_activity(name, shares_of_steps, layers[name].dt)
        missed = [name for name in (*layers, *readouts) if name not in predictions]
        if missed:
            raise ValueError(f"data did not reach the layers {missed}: the module never ran them")
    else:
        # Every target is checked before the first weight changes.
        rates = _per_layer("rate", rate, len(layers))
        for name, layer_rate in zip(layers, rates, strict=True):
            predictions[name] = of_layer(name, layer_rate)
        for name, layer in layers.items():
            _draw(layer, predictions[name], generator)
        for name, readout in readouts.items():
            common_rate = rate if isinstance(rate, Real) else None
            predictions[name] = draw_readout(name, common_rate, readout.tau_mem)
    return [predictions[name] for name in (*layers, *readouts)]


def kaiming_(module: nn.Module, *, generator: Generator | None = None) -> None:
    """Draw the weights of every spiking fastlif layer from N(0, 2/n), recurrent ones too.

    The baseline without regard to rates and time constants (He et al. 2015). Readouts are drawn
    by `readout_`, image encoders by `encoder_`; other biases become 0. Raises ValueError for a
    Dalian layer, whose weights cannot have mean 0: nothing would balance its excitation and
    inhibition.
    """
    layers, _ = _layers_with_weights(module)
    _refuse_dalian("kaiming_", layers)
    for layer in layers.values():
        draw_(layer.weight, kaiming_distribution(layer.fan_in), generator)
        if layer.recurrent_weight is not None:
            recurrent = kaiming_distribution(layer.recurrent_fan_in)
            draw_(layer.recurrent_weight, recurrent, generator)
        zero_(layer.bias)
    _draw_ends(module, generator)


def normal_(
    module: nn.Module, mean: float, std: float, *, generator: Generator | None = None
) -> None:
    """Draw the weights of every spiking fastlif layer from N(mean, std^2), recurrent ones too.

    For experiments on the weights' distribution itself. Readouts are drawn by `readout_`, image
    encoders by `encoder_`; other biases become 0. Raises ValueError for a std below 0 and for a
    Dalian layer, as `kaiming_` does.
    """
    check_finite("mean", mean)
    if not (math.isfinite(std) and std >= 0.0):
        raise ValueError(f"std must be finite and not negative, got {std}")
    layers, _ = _layers_with_weights(module)
    _refuse_dalian("normal_", layers)
    for layer in layers.values():
        for weight in (layer.weight, layer.recurrent_weight):
            if weight is not None:
                draw_(weight, WeightDistribution(mean, std), generator)
        zero_(layer.bias)
    _draw_ends(module, generator)


def encoder_(layer: nn.Module, *, generator: Generator | None = None) -> None:
    """Draw an ImageEncoder in place: gains of standard deviation dt / tau_syn, as the paper does.

    With such a gain a pixel's current settles near the pixel's value times N(0, 1). The biases'
    standard deviation is 1 / sqrt(channels * fan_out).
    """
    encoder = image_encoders(layer).get(type(layer).__name__)
    if encoder is not layer:
        raise TypeError(f"layer must be an ImageEncoder, got {type(layer).__name__}")
    check_one_network(encoder)
    draw_(encoder.weight, WeightDistribution(0.0, encoder.dt / encoder.tau_syn), generator)
    draw_(encoder.bias, unit_distribution(encoder.bias.numel()), generator)


def _draw_ends(module: nn.Module, generator: Generator | None) -> None:
    """Draw what comes before and behind the spiking layers, by rules of its own."""
    for readout in readout_layers(module).values():
        readout_(readout, generator=generator)
    for encoder in image_encoders(module).values():
        encoder_(encoder, generator=generator)


def _refuse_dalian(function: str, layers: Mapping[str, SynapticLIF]) -> None:
    for name, layer in layers.items():
        if layer.inhibitory_weight is not None:
            raise ValueError(
                f"{function} draws weights of either sign, which the Dalian layer {name!r} must "
                f"not have: use fluctuation_driven_"
            )


def _layers_with_weights(
    module: nn.Module,
) -> tuple[dict[str, SynapticLIF], dict[str, LIReadout]]:
    """Spiking layers with weights, and readouts; ValueError if there are none of either."""
    layers, readouts = synaptic_layers(module), readout_layers(module)
    if not layers and not readouts:
        raise ValueError(f"module contains no fastlif layer with weights: {type(module).__name__}")
    for layer in (*layers.values(), *readouts.values()):
        check_one_network(layer)
    return layers, readouts


def _targets(
    layers: dict[str, SynapticLIF],
    sigma_u: float | Sequence[float] | None,
    mu_u: float | Sequence[float],
    xi: float | Sequence[float] | None,
) -> dict[str, tuple[float, float]]:
    """(mu_u, sigma_u) of every layer."""
    sigmas = _per_layer("sigma_u", sigma_u, len(layers))
    means = _per_layer("mu_u", mu_u, len(layers))
    distances = _per_layer("xi", xi, len(layers))
    return {
        name: (mean, target_sigma_u(sigma, mu_u=mean, xi=distance, threshold=layer.threshold))
        for (name, layer), sigma, mean, distance in zip(
            layers.items(), sigmas, means, distances, strict=True
        )
    }


def _per_layer(name: str, value: float | Iterable[float] | None, n_layers: int) -> list[Any]:
    """One value per layer: a number (or None) repeated, a sequence as it is."""
    if value is None or isinstance(value, (int, float, Real)):
        return [value] * n_layers
    values = [float(one) for one in value]
    if len(values) != n_layers:
        raise ValueError(
            f"{name} must be one number or one per spiking layer ({n_layers}), got {len(values)}"
        )
    return values


def _draw(layer: SynapticLIF, prediction: Prediction, generator: Generator | None) -> None:
    from fastlif.layers.dalian import DalianLIF

    zero_(layer.bias)
    if isinstance(layer, DalianLIF):
        assert prediction.blocks is not None  # a Dalian layer's
        for name, weight in layer.blocks().items():
            draw_(weight, prediction.blocks[name], generator)
        return
    mean = prediction.mu_w
    draw_(layer.weight, WeightDistribution(mean, prediction.sigma_w), generator)
    if prediction.sigma_v is not None and layer.recurrent_weight is not None:
        draw_(layer.recurrent_weight, WeightDistribution(mean, prediction.sigma_v), generator)
