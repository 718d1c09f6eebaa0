"""The CUDA kernels: allocate, launch, return. What they compute is `fastlif.ops.reference`.

A stack runs in segments of layers that share one launch (csrc/cuda/launch.h); between segments
spikes travel as bits, gradients as numbers. Max pooling, a readout with skips and a layer with
inhibition are segments of their own. Everything is queued on the current stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastlif import extension
from fastlif.ops.cuda import stack_forward
from fastlif.ops.cuda.call import Call, device_shared_bytes, misfit, on_device
from fastlif.ops.cuda.stack_backward import Backward
from fastlif.ops.encoding import encode
from fastlif.ops.layout import Saved, StackOutputs, StackShapes
from fastlif.ops.plan import LayerPlan


def reason(device: torch.device, plans: Sequence[LayerPlan], dtype: torch.dtype) -> str:
    """Why these kernels cannot run these layers on a device; "" when they can."""
    if device.type != "cuda":
        return f"needs a GPU; the input is on {device}"
    if not extension.is_available(extension.CUDA):
        return f"is not built: {extension.reason(extension.CUDA)}"
    index = device.index or 0
    if extension.unusable(index):
        return f"cannot use this GPU: {extension.unusable(index)}"
    ints, floats = encode(plans)
    shared_bytes = device_shared_bytes(index)
    return misfit(extension.load(extension.CUDA), ints, floats, dtype, shared_bytes)


def forward(
    input: Tensor,  # (time, batch, *features), or int32 words
    tensors: Sequence[Tensor],  # nine per layer, empty where absent
    shapes: StackShapes,
    *,
    exact: bool,
    keep: bool,
    kernels: ModuleType | None = None,  # None: fastlif._cuda
) -> StackOutputs:
    """Run the stack; with `keep`, also return what the backward pass needs."""
    call = Call(kernels or extension.load(extension.CUDA), shapes, exact, input.device)
    with on_device(call.device):
        return stack_forward.run(call, input, [t.contiguous() for t in tensors], keep)


def backward(
    grad_output: Tensor,  # empty where absent, as all gradients here
    grad_layers: Sequence[Tensor],  # per layer: counts and the five final states
    input: Tensor,  # as in forward; not read when its words are there
    tensors: Sequence[Tensor],
    saved: Saved,
    shapes: StackShapes,
    *,
    exact: bool,
    needs: Sequence[bool],  # input, then nine per layer
    kernels: ModuleType | None = None,
) -> list[Tensor]:
    """Gradients of the input and of every tensor, empty where not needed."""
    call = Call(kernels or extension.load(extension.CUDA), shapes, exact, input.device)
    with on_device(call.device):
        gradients = Backward(call, grad_output, grad_layers, input, tensors, saved, needs)
        return gradients.run()
