"""The Triton kernels: everything a stack can be, with torch and triton alone, nothing to compile.

What they compute is `fastlif.ops.reference`. Dense and convolutional synapses read packed spikes;
layers are scanned over time with their state in registers. Dense recurrent layers of up to 64 or of
128 neurons stay on chip for all steps (`recurrent.fits`), other recurrences take a product of
torch's libraries for every two steps, with inhibition one for each population. Max pooling
works on the words. Sums have a fixed order, no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from fastlif.ops.layout import Saved, StackOutputs, StackShapes


def reason(device: torch.device) -> str:
    """Why these kernels cannot run on a device, as the end of a sentence; "" when they can."""
    if find_spec("triton") is None:
        return "needs the package triton, which is not installed"
    from fastlif.ops.triton.launch import is_interpreted

    if device.type == "cpu" and is_interpreted():
        return ""
    if device.type != "cuda":
        return f"needs a GPU; the input is on {device}"
    return ""


def forward(
    input: Tensor,  # (time, batch, *features), or int32 words
    tensors: Sequence[Tensor],  # nine per layer, empty where absent
    shapes: StackShapes,
    *,
    exact: bool,
    keep: bool,
) -> StackOutputs:
    """Run the stack; with `keep`, also return what the backward pass needs."""
    from fastlif.ops.triton import products, stack_forward  # deferred, as triton may be absent

    with products.plainly_on(input.device):
        return stack_forward.run(input, tensors, shapes, exact=exact, keep=keep)


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
) -> list[Tensor]:
    """Gradients of the input and of every tensor, empty where not needed."""
    from fastlif.ops.triton import products, stack_backward

    with products.plainly_on(input.device):
        return stack_backward.run(
            grad_output, grad_layers, input, tensors, saved, shapes, needs=needs
        )
