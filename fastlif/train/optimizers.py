"""The optimizers that a run can use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from fastlif.optim import SMORMS3, keep_non_negative, parameter_groups
from fastlif.train.config import TrainConfig

__all__ = ["make_joint_optimizer", "make_optimizer"]


def make_optimizer(network: nn.Module, config: TrainConfig, device: torch.device) -> Optimizer:
    """The optimizer `config` names, which keeps the weights of Dalian layers at 0 or above.

    Args:
        network: its parameters are on `device` already: the optimizer's state is made there.
        config: of the run; its `optimizer` and `lr` are used.
        device: of the parameters. On a GPU every step can be part of a CUDA graph.
    """
    return make_joint_optimizer([network], [config], device)


def make_joint_optimizer(
    networks: Sequence[nn.Module], configs: Sequence[TrainConfig], device: torch.device
) -> Optimizer:
    """One optimizer for several networks, each with the learning rate of its own run.

    As `make_optimizer`; the configs agree in `optimizer`.
    """
    groups = [
        group
        for network, config in zip(networks, configs, strict=True)
        for group in parameter_groups(network, lr=config.lr)
    ]
    name = configs[0].optimizer
    if name == "smorms3":
        return SMORMS3(groups)  # has the lower bound in its own step
    if name == "adam":
        optimizer: Optimizer = Adam(groups, capturable=device.type == "cuda")
    else:
        optimizer = SGD(groups)
    for network in networks:
        keep_non_negative(optimizer, network)
    return optimizer
