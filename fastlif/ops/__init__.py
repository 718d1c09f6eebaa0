"""Operations on spikes over time, time first: (time, batch, *features).

`stack` runs a whole sequence of layers at once; `lif`, `readout`, `linear`, `conv1d` and `conv2d`
are stacks of one. Equations and conventions: `fastlif.ops.reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from fastlif.ops import autocast, reference
from fastlif.ops.checks import check_inputs
from fastlif.ops.connection import Connection, as_sizes, conv_connection, dense_connection
from fastlif.ops.plan import (
    Inhibition,
    LayerPlan,
    LayerTensors,
    LIFState,
    StackResult,
    readout_kind,
    surrogate_scale,
)
from fastlif.ops.registration import run_stack
from fastlif.spikes import PackedSpikes

__all__ = [
    "Connection",
    "Inhibition",
    "LIFState",
    "LayerPlan",
    "LayerTensors",
    "StackResult",
    "conv1d",
    "conv2d",
    "lif",
    "linear",
    "readout",
    "stack",
]


def stack(
    input: Tensor | PackedSpikes,  # (time, batch, *features)
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    *,
    exact_membrane: bool = False,
    backend: str | None = None,
) -> StackResult:
    """Run a stack of layers over all steps; gradients reach the input, parameters and states.

    Input that is not binary (currents, counts, analogue values) is used as it is, never
    thresholded. `exact_membrane` keeps U - threshold for the backward pass in full precision
    instead of float16 (float64 is always exact). `backend` None picks the kernels of the input's
    device; "reference" is the plain implementation. Raises ValueError or TypeError for what does
    not fit.

    Under torch.autocast, input in half precision is converted to the dtype of the parameters, and
    everything is computed in that, as in torch's own operations that need float32.
    """
    input = check_inputs(autocast.promoted(input, tensors), plans, tensors, backend)
    with autocast.off(input.device):
        if backend == "reference":
            if isinstance(input, PackedSpikes):
                weight = tensors[0].weight
                assert weight is not None  # checked: packed spikes pass through a synapse
                input = input.unpack(weight.dtype)
            return reference.stack(input, plans, tensors)
        return run_stack(input, plans, tensors, exact_membrane=exact_membrane, backend=backend)


def lif(
    input_current: Tensor,  # (time, batch, *features)
    *,
    decay_mem: float,
    decay_syn: float,
    threshold: float = 1.0,
    surrogate_slope: float = 20.0,
    rescale_surrogate: bool = False,
    detach_reset: bool = True,
    delay: int = 0,
    recurrent_weight: Tensor | None = None,  # (N, N), (C, C, k) or (C, C, kh, kw), odd kernels
    state: LIFState | None = None,
    exact_membrane: bool = False,
    backend: str | None = None,
) -> StackResult:
    """LIF neurons driven by a current, J in eqs 10 and 11; decays are per step, exp(-dt / tau).

    The output is the spikes, (time, batch, *features). A 3-d or 4-d `recurrent_weight` is a
    convolution of the layer's own spikes with stride 1 and "same" padding.
    """
    features = tuple(input_current.shape[2:])
    plan = LayerPlan(
        "lif",
        features,
        recurrent_kernel=_recurrent_kernel(recurrent_weight, features),
        decay_mem=decay_mem,
        decay_syn=decay_syn,
        threshold=threshold,
        surrogate_slope=surrogate_slope,
        surrogate_scale=surrogate_scale(threshold, surrogate_slope, rescale=rescale_surrogate),
        detach_reset=detach_reset,
        delay=delay,
    )
    tensors = LayerTensors(recurrent_weight=recurrent_weight, state=state)
    return stack(input_current, (plan,), (tensors,), exact_membrane=exact_membrane, backend=backend)


def _recurrent_kernel(weight: Tensor | None, features: tuple[int, ...]) -> tuple[int, int] | None:
    if weight is None:
        return None
    if weight.dim() != len(features) + 1:
        raise ValueError(
            f"recurrent_weight must have {len(features) + 1} dimensions for features {features}, "
            f"got shape {tuple(weight.shape)}"
        )
    height, width = (1, 1, *weight.shape[2:])[-2:]
    return (height, width)


def readout(
    input_current: Tensor,  # (time, batch, *features)
    *,
    decay_mem: float,
    decay_syn: float,
    reduction: Literal["max", "none"] = "max",
    delay: int = 0,
    state: LIFState | None = None,
    backend: str | None = None,
) -> StackResult:
    """Leaky integrators without spikes: the maximum of U over time (eq 20) or U itself.

    The output is (batch, *features) with reduction "max", (time, batch, *features) with "none".
    """
    plan = LayerPlan(
        readout_kind(reduction),
        tuple(input_current.shape[2:]),
        decay_mem=decay_mem,
        decay_syn=decay_syn,
        delay=delay,
    )
    return stack(input_current, (plan,), (LayerTensors(state=state),), backend=backend)


def linear(
    spikes: Tensor | PackedSpikes,  # (time, batch, *features)
    weight: Tensor,  # (out_features, in_features), in_features = product of features
    bias: Tensor | None = None,  # (out_features,)
    *,
    backend: str | None = None,
) -> Tensor:
    """Dense synapses: the current (time, batch, out_features) of spikes or any other input."""
    _check_weight(weight, 2)
    link = dense_connection(tuple(spikes.shape[2:]), weight.shape[0])
    return _synapse(spikes, link, (weight.shape[0],), LayerTensors(weight, bias), backend)


def conv1d(
    spikes: Tensor | PackedSpikes,  # (time, batch, in_channels, length)
    weight: Tensor,  # (out_channels, in_channels, kernel)
    bias: Tensor | None = None,  # (out_channels,)
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolutional synapses: the current (time, batch, out_channels, out_length)."""
    _check_weight(weight, 3)
    return _conv(spikes, LayerTensors(weight, bias), stride, padding, dilation, backend)


def conv2d(
    spikes: Tensor | PackedSpikes,  # (time, batch, in_channels, height, width)
    weight: Tensor,  # (out_channels, in_channels, kernel height, kernel width)
    bias: Tensor | None = None,  # (out_channels,)
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Convolutional synapses: the current (time, batch, out_channels, out_height, out_width)."""
    _check_weight(weight, 4)
    return _conv(spikes, LayerTensors(weight, bias), stride, padding, dilation, backend)


def _conv(
    spikes: Tensor | PackedSpikes,
    tensors: LayerTensors,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    backend: str | None,
) -> Tensor:
    assert tensors.weight is not None
    out_channels, _, *kernel = tensors.weight.shape
    link, features = conv_connection(
        tuple(spikes.shape[2:]),
        out_channels,
        kernel=tuple(kernel),
        stride=as_sizes("stride", stride, len(kernel)),
        padding=as_sizes("padding", padding, len(kernel)),
        dilation=as_sizes("dilation", dilation, len(kernel)),
    )
    return _synapse(spikes, link, features, tensors, backend)


def _check_weight(weight: Tensor, n_dims: int) -> None:
    if weight.dim() != n_dims:
        raise ValueError(f"weight must have {n_dims} dimensions, got shape {tuple(weight.shape)}")


def _synapse(
    spikes: Tensor | PackedSpikes,
    link: Connection,
    features: tuple[int, ...],
    tensors: LayerTensors,
    backend: str | None,
) -> Tensor:
    plan = LayerPlan("current", features, link)
    return stack(spikes, (plan,), (tensors,), backend=backend).output
