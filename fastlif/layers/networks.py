"""Several networks of one shape side by side, so that they run and train in one launch.

    networks = [models.build("randman") for _ in range(16)]
    for seed, network in enumerate(networks):
        generator = torch.Generator().manual_seed(seed)
        init.fluctuation_driven_(network, rate=5.0, generator=generator)
    model = side_by_side(networks)
    optimizer = SMORMS3([{"params": network.parameters()} for network in networks])

    scores = model(spikes)  # (time, 16 * batch, 20) -> (16 * batch, 10), network by network
    losses = max_over_time_cross_entropy(scores, targets, networks=16)  # (16,)
    losses.sum().backward()
    give_gradients(model, networks)
    optimizer.step()

Every network computes, bit for bit, what it computes alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastlif.layers.base import StackMember

Network = TypeVar("Network", bound=nn.Module)


def side_by_side(networks: Sequence[Network]) -> Network:
    """A model that runs several networks, each with its parameters and its samples of the batch.

    networks: fastlif layers or modules that contain some, alike in everything but the values of
        their parameters, of which no other modules have any.

    Returns a copy of the first network whose parameters are (networks, *shape). Its input holds the
    samples of all networks, one network behind the other: (time, networks * batch, *features); or,
    called with `shared_input=True`, those that every network gets: (time, batch, *features).
    Outputs, spike counts and states are those of networks * batch samples, in that order.

    The parameters of the given networks become views of the model's: a weight changed here, by an
    initializer, an optimizer or a state dict, is changed there too. Each network can still be run,
    saved and loaded by itself. What moves or converts a module (`to`, `double`) ends this: do it
    before. One network is put into a model of its own in the same way, without a dimension.

    Raises ValueError for no network, one given twice, networks that are not alike, and parameters
    of other modules.
    """
    if not networks:
        raise ValueError("networks must hold at least one network, got none")
    first = networks[0]
    _check_layers(first)
    parameters = [dict(network.named_parameters()) for network in networks]
    if len({id(p) for own in parameters for p in own.values()}) < sum(map(len, parameters)):
        raise ValueError("networks must be different modules, got parameters that are in two")
    for number, (network, own) in enumerate(zip(networks, parameters, strict=True)):
        if repr(network) != repr(first) or _kinds(own) != _kinds(parameters[0]):
            raise ValueError(
                f"networks must be alike in all but the values of their parameters, got {number}:"
                f"\n{network}\nand 0:\n{first}"
            )
    replaced: dict[int, Any] = {}
    for name, parameter in parameters[0].items():
        same = [of_one[name] for of_one in parameters]
        values = torch.stack([p.detach() for p in same])
        for p, value in zip(same, values, strict=True):
            p.data = value
        joined = values if len(networks) > 1 else values[0]
        replaced[id(parameter)] = nn.Parameter(joined, parameter.requires_grad)
    model = copy.deepcopy(first, replaced)
    for module in model.modules():
        if isinstance(module, StackMember):
            module.networks = len(networks)
    return model


def give_gradients(model: nn.Module, networks: Sequence[nn.Module]) -> None:
    """Hand the gradients of a model from `side_by_side` over to its networks.

    Each parameter of a network gets its part of the model's gradient, as a view in place of what
    it had; the model is left without gradients.
    """
    joined = list(model.parameters())
    for number, network in enumerate(networks):
        for parameter, together in zip(network.parameters(), joined, strict=True):
            grad = together.grad
            parameter.grad = grad if grad is None or len(networks) == 1 else grad[number]
    for together in joined:
        together.grad = None


def _kinds(parameters: dict[str, nn.Parameter]) -> list[Any]:
    return [(name, p.shape, p.dtype, p.device, p.requires_grad) for name, p in parameters.items()]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _check_layers(network: nn.Module) -> None:
    for path, module in network.named_modules():
        if isinstance(module, StackMember) and module.networks > 1:
            raise ValueError(
                f"networks must be single ones, got one with a layer of {module.networks} networks"
            )
        for name, _ in () if isinstance(module, StackMember) else _tensors(module):
            raise ValueError(
                "networks must have parameters and buffers in fastlif's layers alone, got "
                f"{name} of {path or type(module).__name__} ({type(module).__name__})"
            )
