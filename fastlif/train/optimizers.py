"""The optimizers that a run can use."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from fastlif.optim import SMORMS3, keep_non_negative, parameter_groups
from fastlif.train.config import TrainConfig

__all__ = ["make_optimizer"]


def make_optimizer(network: nn.Module, config: TrainConfig, device: torch.device) -> Optimizer:
    """The optimizer `config` names, which keeps the weights of Dalian layers at 0 or above.

    Args:
        network: its parameters are on `device` already: the optimizer's state is made there.
        config: of the run; its `optimizer` and `lr` are used.
        device: of the parameters. On a GPU every step can be part of a CUDA graph.
    """
    groups = parameter_groups(network)
    if config.optimizer == "smorms3":
        return SMORMS3(groups, lr=config.lr)  # has the lower bound in its own step
    if config.optimizer == "adam":
        optimizer: Optimizer = Adam(groups, lr=config.lr, capturable=device.type == "cuda")
    else:
        optimizer = SGD(groups, lr=config.lr)
    keep_non_negative(optimizer, network)
    return optimizer
