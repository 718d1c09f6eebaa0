"""Drawing the weights of layers and models in place, and what to expect of the result.

Equation numbers are those of Rossbroich, Gygax, Zenke (2022), Neuromorph. Comput. Eng. 2 044016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from fastlif.init.formulas import (
    WeightDistribution,
    centred_distribution,
    general_distribution,
    kaiming_distribution,
    predicted_sigma_u,
    psp_integrals,
    recurrent_distributions,
    target_sigma_u,
    unit_distribution,
)
from fastlif.init.traversal import (
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


@dataclass(frozen=True)
class Prediction:
    """What the formulas expect of one initialized layer.

    mu_u and sigma_u are averages over neurons of the mean and of the variance over time of a
    membrane that does not spike, under Poisson input at `rate`; `measure` gives the same
    quantities. A readout whose input rate or time constant is unknown has sigma_u = None.
    """

    name: str  # the layer's name in the model, or its class if it was given by itself
    mu_u: float
    sigma_u: float | None
    mu_w: float  # mean of all weights, feed-forward and recurrent
    sigma_w: float  # standard deviation of the feed-forward weights
    sigma_v: float | None  # standard deviation of the recurrent weights; None if there are none
    n: int  # feed-forward fan-in
    rate: float | None  # Hz


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
    generator: Generator | None = None,
) -> list[Prediction]:
    """Draw the weights of every fastlif layer so that its membranes reach a target mean and sigma.

    module: a fastlif layer or any module that contains some. Recurrent layers follow eqs 37 to 39,
        the others eqs 6 and 7; readouts are drawn by `readout_`; biases become 0.
    rate: firing rate of the layers' inputs in Hz, one for all layers or one per layer.
    data: a batch of input to the module, instead of rate. Each layer is drawn for the rate at which
        its input, which passed through the layers drawn before it, fires.
    sigma_u, mu_u: target of the membranes; or xi = (threshold - mu_u) / sigma_u in place of
        sigma_u (eq 8). One for all layers or one per layer. sigma_u is 1 if neither is given.
    alpha: share of the variance that feed-forward input causes in recurrent layers.
    integrals: "numerical" or "analytical", see `psp_integrals`.

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

    def predict(name: str, layer_rate: float) -> Prediction:
        return _predict(name, layers[name], layer_rate, targets[name], alpha, integrals)

    def draw_readout(name: str, layer_rate: float | None, tau_mem: float | None) -> Prediction:
        prediction = readout_(
            readouts[name],
            rate=layer_rate,
            tau_mem=tau_mem,
            integrals=integrals,
            generator=generator,
        )
        return replace(prediction, name=name)

    def draw_for(name: str, layer: StackLayer, layer_input: Tensor | PackedSpikes) -> None:
        layer_rate = mean_rate(layer, layer_input)
        if name in layers:
            predictions[name] = predict(name, layer_rate)
            _draw(layer, predictions[name], generator)
        elif name in readouts:
            duration = layer_input.shape[time_dim(layer, layer_input)] * layer.dt
            tau_mem = readouts[name].tau_mem or duration
            predictions[name] = draw_readout(name, max(layer_rate, 0.0), tau_mem)

    if data is not None:
        visit_inputs(module, data, draw_for)
        missed = [name for name in (*layers, *readouts) if name not in predictions]
        if missed:
            raise ValueError(f"data did not reach the layers {missed}: the module never ran them")
    else:
        # Every target is checked before the first weight changes.
        rates = _per_layer("rate", rate, len(layers))
        for name, layer_rate in zip(layers, rates, strict=True):
            predictions[name] = predict(name, layer_rate)
        for name, layer in layers.items():
            _draw(layer, predictions[name], generator)
        for name, readout in readouts.items():
            common_rate = rate if isinstance(rate, Real) else None
            predictions[name] = draw_readout(name, common_rate, readout.tau_mem)
    return [predictions[name] for name in (*layers, *readouts)]


def readout_(
    layer: nn.Module,
    *,
    method: str = "unit",
    rate: float | None = None,
    sigma_u: float = 1.0,
    tau_mem: float | None = None,
    integrals: str = "numerical",
    generator: Generator | None = None,
) -> Prediction:
    """Draw the weights of an LIReadout in place; its bias becomes 0.

    method: "unit" draws N(0, 1) / sqrt(n), as the paper's simulations; "fluctuation" the centred
        formula (eq 9) for `rate` and `sigma_u` with the readout's own time constants.
    rate: firing rate of the readout's input in Hz.
    tau_mem: seconds; needed if the readout takes the duration of the sample for its tau_mem.
    """
    readout = readout_layers(layer).get(type(layer).__name__)
    if readout is not layer:
        raise TypeError(f"layer must be an LIReadout, got {type(layer).__name__}")
    if rate is not None and not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"rate must be finite and not negative (Hz), got {rate}")
    tau_mem = readout.tau_mem if tau_mem is None else tau_mem
    psp = None
    if tau_mem is not None:
        psp = psp_integrals(tau_mem, readout.tau_syn, readout.dt, integrals)
    if method == "unit":
        weights = unit_distribution(readout.fan_in)
    elif method != "fluctuation":
        raise ValueError(f'method must be "unit" or "fluctuation", got {method!r}')
    elif rate is None:
        raise ValueError('method "fluctuation" needs rate, the firing rate of the input in Hz')
    elif psp is None:
        raise ValueError(
            "this readout's tau_mem is the duration of the sample: give tau_mem in seconds"
        )
    else:
        weights = centred_distribution(readout.fan_in, rate, psp, sigma_u=sigma_u)
    predicted = None
    if rate is not None and psp is not None:
        predicted = predicted_sigma_u([(readout.fan_in, weights)], rate, psp)
    prediction = Prediction(
        name=type(readout).__name__,
        mu_u=0.0,
        sigma_u=predicted,
        mu_w=weights.mean,
        sigma_w=weights.std,
        sigma_v=None,
        n=readout.fan_in,
        rate=rate,
    )
    _draw(readout, prediction, generator)
    return prediction


def kaiming_(module: nn.Module, *, generator: Generator | None = None) -> None:
    """Draw the weights of every spiking fastlif layer from N(0, 2/n), recurrent ones too.

    The baseline without regard to rates and time constants (He et al. 2015). Readouts are drawn
    by `readout_`; biases become 0.
    """
    layers, readouts = _layers_with_weights(module)
    for layer in layers.values():
        _normal_(layer.weight, kaiming_distribution(layer.fan_in), generator)
        if layer.recurrent_weight is not None:
            recurrent = kaiming_distribution(layer.recurrent_fan_in)
            _normal_(layer.recurrent_weight, recurrent, generator)
        _zero_(layer.bias)
    for readout in readouts.values():
        readout_(readout, generator=generator)


def _layers_with_weights(
    module: nn.Module,
) -> tuple[dict[str, SynapticLIF], dict[str, LIReadout]]:
    """Spiking layers with weights, and readouts; ValueError if there are none of either."""
    layers, readouts = synaptic_layers(module), readout_layers(module)
    if not layers and not readouts:
        raise ValueError(f"module contains no fastlif layer with weights: {type(module).__name__}")
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


def _predict(
    name: str,
    layer: SynapticLIF,
    rate: float,
    target: tuple[float, float],  # (mu_u, sigma_u)
    alpha: float,
    integrals: str,
) -> Prediction:
    mu_u, sigma_u = target
    if not (math.isfinite(rate) and rate > 0.0):
        raise ValueError(
            f"rate of the input of layer {name!r} must be positive and finite, got {rate} Hz; if "
            f"it was measured, the layer before is silent: raise that layer's sigma_u or give rate"
        )
    psp = psp_integrals(layer.tau_mem, layer.tau_syn, layer.dt, integrals)
    sigma_v = None
    if layer.recurrent_weight is None:
        weights = general_distribution(layer.fan_in, rate, psp, sigma_u=sigma_u, mu_u=mu_u)
    else:
        both = recurrent_distributions(
            [layer.fan_in],
            [layer.recurrent_fan_in],
            rate,
            psp,
            sigma_u=sigma_u,
            mu_u=mu_u,
            alpha=alpha,
        )
        weights, sigma_v = both.feedforward[0], both.recurrent[0].std
    return Prediction(
        name=name,
        mu_u=mu_u,
        sigma_u=sigma_u,
        mu_w=weights.mean,
        sigma_w=weights.std,
        sigma_v=sigma_v,
        n=layer.fan_in,
        rate=rate,
    )


def _draw(layer: StackLayer, prediction: Prediction, generator: Generator | None) -> None:
    mean = prediction.mu_w
    _normal_(layer.weight, WeightDistribution(mean, prediction.sigma_w), generator)
    if prediction.sigma_v is not None:
        _normal_(layer.recurrent_weight, WeightDistribution(mean, prediction.sigma_v), generator)
    _zero_(layer.bias)


def _normal_(
    weight: Tensor | None, weights: WeightDistribution, generator: Generator | None
) -> None:
    """Fill weight in place. Draws on the generator's device, so a seed means the same anywhere."""
    assert weight is not None  # callers pass weights that the layer has
    with torch.no_grad():
        if generator is None or generator.device == weight.device:
            weight.normal_(weights.mean, weights.std, generator=generator)
        else:
            drawn = torch.empty(weight.shape, dtype=weight.dtype, device=generator.device)
            weight.copy_(drawn.normal_(weights.mean, weights.std, generator=generator))


def _zero_(bias: Tensor | None) -> None:
    if bias is not None:
        with torch.no_grad():
            bias.zero_()
