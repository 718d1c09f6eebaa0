"""The step of SMORMS3 as one kernel for many parameters; the equations are in `fastlif.optim`.

It is an operation of torch, so that whatever records operations sees what is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fastlif import extension

__all__ = ["launch", "suits", "update"]

DTYPES = torch.float32, torch.float64

_library = torch.library.Library("fastlif", "FRAGMENT")
_library.define(
    "smorms3(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] g1, Tensor(c!)[] g2, "
    "Tensor(d!)[] m, Tensor[] lr, float eps, bool maximize, float? minimum) -> ()"
)


@torch.library.impl(_library, "smorms3", "CPU")
@torch.library.impl(_library, "smorms3", "CUDA")
def _smorms3(*arguments: Any) -> None:
    """Arguments as defined above: five lists of tensors, the rates, and three options."""
    lists, lr, options = arguments[:5], arguments[5], arguments[6:]
    rates = [rate.item() if rate.device.type == "cpu" else rate for rate in lr]
    device = lists[0][0].device
    if device.type == "cuda":
        with extension.queue(device) as stream:
            launch(extension.load(extension.CUDA), lists, rates, options, stream)
    else:
        parameters, gradients, *state = lists
        lists = (parameters, _contiguous(gradients), *state)
        extension.load().smorms3(
            _addresses(lists),
            _sizes(parameters),
            rates,
            _is_double(parameters),
            *options,
            torch.get_num_threads(),
        )


def launch(
    kernels: ModuleType,  # fastlif._cuda
    lists: Sequence[Sequence[Tensor]],  # parameters, gradients, g1, g2, m: of one device and dtype
    rates: Sequence[float | Tensor],  # a tensor of one element is read on the device
    options: tuple[float, bool, float | None],  # eps, maximize, minimum
    stream: int,
) -> None:
    """Queue one step of all parameters with the CUDA kernels."""
    parameters, gradients, *state = lists
    lists = (parameters, _contiguous(gradients), *state)
    # The kernel reads either dtype; they live until it is queued, as what it reads has to.
    on_device = [
        (rate if rate.dtype in DTYPES else rate.double()) if isinstance(rate, Tensor) else None
        for rate in rates
    ]
    eps, maximize, minimum = options
    kernels.smorms3(
        _addresses(lists),
        sizes=_sizes(parameters),
        rates=[0.0 if isinstance(rate, Tensor) else rate for rate in rates],
        rates_at=[0 if rate is None else rate.data_ptr() for rate in on_device],
        rates_are_double=[rate is not None and rate.dtype == torch.float64 for rate in on_device],
        is_double=_is_double(parameters),
        eps=eps,
        maximize=maximize,
        minimum=minimum,
        stream=stream,
    )


def _contiguous(gradients: Sequence[Tensor]) -> list[Tensor]:
    return [gradient.contiguous() for gradient in gradients]


def _sizes(parameters: Sequence[Tensor]) -> list[int]:
    return [parameter.numel() for parameter in parameters]


def _addresses(lists: Sequence[Sequence[Tensor]]) -> list[tuple[int, ...]]:
    """Where the tensors of a parameter lie, parameter by parameter."""
    return [tuple(t.data_ptr() for t in tensors) for tensors in zip(*lists, strict=True)]


def _is_double(parameters: Sequence[Tensor]) -> bool:
    """Whether all are float64 rather than float32, which a kernel takes at a time."""
    dtypes = {parameter.dtype for parameter in parameters}
    if len(dtypes) != 1 or not dtypes.issubset(DTYPES):
        names = ", ".join(sorted(map(str, dtypes)))
        raise ValueError(f"parameters must all be float32 or all float64, got {names or 'none'}")
    return torch.float64 in dtypes


def suits(parameter: Tensor, state: dict[str, Tensor]) -> bool:
    """Whether a kernel takes a parameter with a gradient.

    Not while torch.compile looks, which fuses better, and nothing whose sizes do not fit.
    """
    tensors = (parameter, parameter.grad, *state.values())
    return (
        not torch.compiler.is_compiling()
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
        and extension.serves(parameter.device)
    )


def update(
    parameters: Sequence[Tensor],  # with gradients; each is contiguous, as its state
    states: Sequence[dict[str, Tensor]],  # g1, g2 and m, of the parameter's shape and dtype
    rates: Sequence[float | Tensor],  # lr of each, a tensor on the device of the parameter
    group: dict[str, Any],  # eps, maximize, minimum
) -> None:
    """Make one step of parameters on one device and of one dtype, in place."""
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
