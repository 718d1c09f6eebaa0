"""The weights that a run starts from."""

from __future__ import annotations

import dataclasses

import torch
from torch import Generator, Tensor, nn

from fastlif.init import (
    Prediction,
    WeightDistribution,
    encoder_,
    fluctuation_driven_,
    kaiming_,
    kaiming_distribution,
    normal_,
    predicted_sigma_u,
    psp_integrals,
    readout_,
)
from fastlif.init.traversal import image_encoders, synaptic_layers
from fastlif.layers.neuron import SynapticLIF
from fastlif.models import preset
from fastlif.train.batches import epoch_generator
from fastlif.train.config import TrainConfig

__all__ = ["initialize"]


def initialize(
    model: nn.Module,
    config: TrainConfig,
    *,
    input_rate: float | None = None,
    images: Tensor | None = None,
) -> list[Prediction]:
    """Draw the weights of a preset's network from `config.seed`, as `config.initialization` says.

    As in the paper, one rate, that of the data, stands for the input of every layer. The readout
    is drawn by the preset's own rule, and so is the encoder of images.

    Args:
        model: from `fastlif.models.build`.
        config: of the run.
        input_rate: of the data in Hz.
        images: (batch, C, H, W) in place of a rate: that at which the encoder fires for them.

    Returns:
        What the formulas predict for each hidden layer and the readout.

    Raises:
        ValueError: neither or both of `input_rate` and `images`, or a target out of reach.
    """
    if (input_rate is None) == (images is None):
        raise ValueError("give input_rate (Hz) or images, one of them")
    network = preset(config.preset)
    if images is not None:
        input_rate = _encoder_rate(model, images, config.seed)
    assert input_rate is not None
    generator = torch.Generator().manual_seed(config.seed)
    if config.initialization == "fluctuation":
        *hidden, _ = fluctuation_driven_(
            model,
            rate=input_rate,
            sigma_u=config.sigma_u,
            distribution=config.distribution,
            generator=generator,
        )
    else:
        hidden = _draw_by_fan_in(model, config, input_rate, generator)
    readout = readout_(
        model.get_submodule("readout"),
        method=network.readout_init,
        rate=input_rate,
        generator=generator,
    )
    for encoder in image_encoders(model).values():  # once more that whose rate was measured
        encoder_(encoder, generator=epoch_generator(config.seed, 0))
    return [*hidden, dataclasses.replace(readout, name="readout")]


def _encoder_rate(model: nn.Module, images: Tensor, seed: int) -> float:
    """Draw the encoder from random numbers of its own; its mean rate in Hz for the images."""
    (encoder,) = image_encoders(model).values()
    encoder_(encoder, generator=epoch_generator(seed, 0))
    with torch.no_grad():
        spikes = encoder(images)
    return float(spikes.mean(dtype=torch.float64)) / encoder.dt


def _draw_by_fan_in(
    model: nn.Module, config: TrainConfig, rate: float, generator: Generator
) -> list[Prediction]:
    """Draw hidden layers from N(mu_w, sigma_w^2), feed-forward and recurrent, or by Kaiming."""
    if config.sigma_w is None:
        kaiming_(model, generator=generator)
    else:
        normal_(model, config.mu_w, config.sigma_w, generator=generator)

    def weights(fan_in: int) -> tuple[int, WeightDistribution]:
        if config.sigma_w is None:
            return fan_in, kaiming_distribution(fan_in)
        return fan_in, WeightDistribution(config.mu_w, config.sigma_w)

    predictions = []
    for name, layer in synaptic_layers(model).items():
        connections = [weights(layer.fan_in)]
        if layer.recurrent_weight is not None:
            connections.append(weights(layer.recurrent_fan_in))
        predictions.append(_predict(name, layer, connections, rate))
    return predictions


def _predict(
    name: str,
    layer: SynapticLIF,
    connections: list[tuple[int, WeightDistribution]],  # feed-forward, and recurrent if there is
    rate: float,
) -> Prediction:
    psp = psp_integrals(layer.tau_mem, layer.tau_syn, layer.dt)
    weights = connections[0][1]
    return Prediction(
        name=name,
        mu_u=sum(n * part.mean for n, part in connections) * rate * psp.eps_bar,
        sigma_u=predicted_sigma_u(connections, rate, psp),
        mu_w=weights.mean,
        sigma_w=weights.std,
        sigma_v=connections[1][1].std if len(connections) > 1 else None,
        n=layer.fan_in,
        rate=rate,
    )
