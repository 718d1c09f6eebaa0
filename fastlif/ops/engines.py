"""Who runs a stack: the engines by name, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastlif.ops import cpu, cuda
from fastlif.ops.layout import StackOutputs
from fastlif.ops.plan import LayerPlan

AUTO = "auto"  # the choice by device, as the raw operations spell `backend=None`


@dataclass(frozen=True)
class Engine:
    """Kernels for one kind of device; `forward` and `backward` are as in `fastlif.ops.cpu`."""

    forward: Callable[..., StackOutputs]
    backward: Callable[..., list[Tensor]]
    # Why it cannot run these layers on a device, as the end of a sentence; "" when it can.
    reason: Callable[[torch.device, Sequence[LayerPlan], torch.dtype], str]
    # Whether it takes the networks of a stack in one call; else they run one after the other.
    networks_at_once: bool = False


def _triton_forward(*args: Any, **kwargs: Any) -> StackOutputs:
    from fastlif.ops import triton  # deferred: takes a second to import, and may be absent

    return triton.forward(*args, **kwargs)


def _triton_backward(*args: Any, **kwargs: Any) -> list[Tensor]:
    from fastlif.ops import triton

    return triton.backward(*args, **kwargs)


def _triton_reason(device: torch.device, plans: Sequence[LayerPlan], dtype: torch.dtype) -> str:
    from fastlif.ops import triton

    return triton.reason(device)


ENGINES: dict[str, Engine] = {
    "cpu": Engine(cpu.forward, cpu.backward, cpu.reason, networks_at_once=True),
    "cuda": Engine(cuda.forward, cuda.backward, cuda.reason, networks_at_once=True),
    "triton": Engine(_triton_forward, _triton_backward, _triton_reason),
}


def chosen(
    backend: str, device: torch.device, plans: Sequence[LayerPlan], dtype: torch.dtype
) -> Engine:
    """The engine of this name, or for "auto" the fastest that runs these layers on this device.

    ValueError with the reasons when there is none.
    """
    if backend != AUTO:
        engine = ENGINES[backend]
        reason = engine.reason(device, plans, dtype)
        if reason:
            raise ValueError(f"backend {backend!r} {reason}")
        return engine
    if device.type == "cpu":
        return ENGINES["cpu"]
    reasons = []
    for name in _preference(plans):
        reason = ENGINES[name].reason(device, plans, dtype)
        if not reason:
            return ENGINES[name]
        reasons.append(f"backend {name!r} {reason}")
    raise ValueError(
        f"no fastlif kernels for a tensor on {device}: {'; '.join(reasons)}. "
        "Move it to cpu, or use backend='reference'"
    )


# One block reads all recurrent and inhibitory weights of a layer for every pair of steps. Beyond
# this many they no longer stay close to it, and a product over all samples at once, step by step,
# moves less memory.
MOST_RESIDENT_WEIGHTS = 1 << 18


def _preference(plans: Sequence[LayerPlan]) -> tuple[str, ...]:
    """Engines for a GPU, the one expected to be faster first."""
    for plan in plans:
        shapes = (plan.recurrent_weight_shape, plan.inhibitory_weight_shape)
        if sum(math.prod(shape) for shape in shapes if shape is not None) > MOST_RESIDENT_WEIGHTS:
            return ("triton", "cuda")
    return ("cuda", "triton")


def steps_outermost(backend: str, device: torch.device) -> bool:
    """Whether what is kept for backward is (steps, batch, N), as GPUs want it, not (batch, ...)."""
    return device.type != "cpu" if backend in (AUTO, "cpu") else True
