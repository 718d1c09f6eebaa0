"""The step of SMORMS3 as one CPU kernel for many parameters; the equations are in `fastlif.optim`.

It is an operation of torch, so that whatever records operations sees what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlif import extension

__all__ = ["suits", "update"]

DTYPES = torch.float32, torch.float64

_library = torch.library.Library("fastlif", "FRAGMENT")
_library.define(
    "smorms3(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] g1, Tensor(c!)[] g2, "
    "Tensor(d!)[] m, Tensor[] lr, float eps, bool maximize, float? minimum) -> ()"
)


@torch.library.impl(_library, "smorms3", "CPU")
def _smorms3(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    g1: Sequence[Tensor],
    g2: Sequence[Tensor],
    m: Sequence[Tensor],
    lr: Sequence[Tensor],
    eps: float,
    maximize: bool,
    minimum: float | None,
) -> None:
    gradients = [gradient.contiguous() for gradient in gradients]
    extension.load().smorms3(
        [
            tuple(tensor.data_ptr() for tensor in tensors)
            for tensors in zip(parameters, gradients, g1, g2, m, strict=True)
        ],
        [parameter.numel() for parameter in parameters],
        [rate.item() for rate in lr],
        [parameter.dtype == torch.float64 for parameter in parameters],
        eps,
        maximize,
        minimum,
        torch.get_num_threads(),
    )


def suits(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    """Whether the kernel takes a parameter with a gradient.

    Not while torch.compile looks, which fuses better, and nothing whose sizes do not fit.
    """
    tensors = (parameter, parameter.grad, *state.values())
    return (
        parameter.device.type == "cpu"
        and parameter.dtype in DTYPES
        and type(parameter) in (Tensor, nn.Parameter)
        and all(
            tensor is not None
            and tensor.shape == parameter.shape
            and tensor.dtype == parameter.dtype
            and tensor.device == parameter.device
            and (tensor.is_contiguous() or tensor is parameter.grad)
            for tensor in tensors
        )
        and extension.is_available()
        and not torch.compiler.is_compiling()
    )


def update(
    parameters: Sequence[Tensor],  # with gradients; each is contiguous, as its state
    states: Sequence[dict[str, Tensor]],  # g1, g2 and m, of the parameter's shape and dtype
    rates: Sequence[float | Tensor],  # lr of each
    group: dict[str, Any],  # eps, maximize, minimum
) -> None:
    """Make one step of all parameters, in place."""
    known: dict[float, Tensor] = {}
    lr = []
    for rate in rates:
        if not isinstance(rate, Tensor):
            if rate not in known:
                known[rate] = torch.tensor(rate, dtype=torch.float64, device="cpu")
            rate = known[rate]
        lr.append(rate)
    torch.ops.fastlif.smorms3(
        parameters,
        [parameter.grad for parameter in parameters],
        *([state[name] for state in states] for name in ("g1", "g2", "m")),
        lr,
        group["eps"],
        group["maximize"],
        group["minimum"],
    )
    # As torch's own operations in place do, so that autograd knows of what was overwritten.
    torch.autograd.graph.increment_version(parameters)
