"""What all launchers share: how a kernel is started, and the neurons' constants on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from fastlif.ops.plan import LayerPlan

# Contraction into fused multiply-adds would round otherwise than PyTorch and the CPU kernels do.
EXACT_ROUNDING = {"enable_fp_fusion": False}


def run(kernel: Any, grid: Sequence[int], *args: Any, **options: Any) -> None:
    """Queue a kernel on the current stream; options are its constants and compiler options."""
    kernel[tuple(grid)](*args, **options)


def present(tensor: Tensor | None) -> Tensor | None:
    """A tensor, or None where an empty one stands for none: kernels leave out what is None."""
    return tensor if tensor is not None and tensor.numel() else None


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return bool(triton.knobs.runtime.interpret)


def block(compiled: int) -> int:
    """How much a program takes on: as given, and more in the interpreter, slow by the program."""
    return 8 * compiled if is_interpreted() else compiled


@lru_cache(maxsize=256)
def constants(plan: LayerPlan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The six numbers of a layer's neurons, as `scan.load_constants` reads them.

    With inhibition five more, as `populations.load_decays` reads them.

    A tensor because kernel arguments are float32 whatever the dtype; made once, so that nothing is
    copied to the device while a graph is captured.
    """
    numbers = [
        plan.decay_mem,
        1.0 - plan.decay_mem,
        plan.decay_syn,
        plan.threshold,
        plan.surrogate_slope,
        plan.surrogate_scale,
    ]
    own = plan.inhibition
    if own is not None:
        numbers += [
            own.decay_syn,
            own.neuron_decay_mem,
            1.0 - own.neuron_decay_mem,
            own.neuron_decay_syn,
            own.neuron_decay_inhibitory,
        ]
    return torch.tensor(numbers, dtype=dtype, device=device)
