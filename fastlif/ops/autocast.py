"""Under torch.autocast fastlif's operations do what torch's own float32 operations do."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from fastlif.ops.plan import LayerTensors, common_dtype
from fastlif.spikes import PackedSpikes

HALVES = (torch.float16, torch.bfloat16)
# Asked here because torch.compile of torch 2.11 cannot trace the question.
DEVICES = tuple(
    kind for kind in ("cpu", "cuda", "mps", "mtia", "xpu") if torch.amp.is_autocast_available(kind)
)


def is_on(device: torch.device) -> bool:
    """Whether autocast is on for operations on this device."""
    return device.type in DEVICES and torch.is_autocast_enabled(device.type)


def promoted(
    input: Tensor | PackedSpikes, tensors: Sequence[LayerTensors]
) -> Tensor | PackedSpikes:
    """The input in the dtype of the stack, if it is float16 or bfloat16 and autocast is on.

    Without parameters and states that is float32. Anything else is returned as it is.
    """
    if not isinstance(input, Tensor) or input.dtype not in HALVES or not is_on(input.device):
        return input
    return input.to(common_dtype(tensors) or torch.float32)


def off(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off, so that matrix products inside an operation keep their precision."""
    return torch.autocast(device.type, enabled=False) if is_on(device) else nullcontext()
