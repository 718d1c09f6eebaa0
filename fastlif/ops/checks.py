"""Checks of what a user hands to an operation, done once, before any backend runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlif.ops.engines import ENGINES
from fastlif.ops.plan import (
    LayerPlan,
    LayerTensors,
    LIFState,
    check_stack,
    source_columns,
    spatial_shape,
)
from fastlif.spikes import PackedSpikes

DTYPES = (torch.float32, torch.float64)


def check_inputs(
    input: Tensor | PackedSpikes,  # (time, batch, *features)
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    backend: str | None,
) -> Tensor | PackedSpikes:
    """Check that everything fits together and return the input in a form backends can trust.

    Integer and bool tensors are converted to the dtype of the parameters; packed spikes are
    unpacked where the first layer takes a current. Raises ValueError or TypeError.
    """
    if not isinstance(input, (Tensor, PackedSpikes)):
        raise TypeError(f"input must be a Tensor or PackedSpikes, got {type(input).__name__}")
    if backend not in (None, "reference", *ENGINES):
        known = ", ".join(("reference", *ENGINES))
        raise ValueError(f"backend {backend!r} is unknown; there are {known}")
    check_stack(plans)
    _check_backend(backend, input.device, plans)
    if len(tensors) != len(plans):
        raise ValueError(f"tensors must hold one entry per layer, {len(plans)}, got {len(tensors)}")
    _check_input_shape(tuple(input.shape), plans[0])
    batch = input.shape[1] * (plans[0].networks if plans[0].shared_input else 1)
    for index, (plan, layer_tensors) in enumerate(zip(plans, tensors, strict=True)):
        columns = source_columns(tuple(plans), index)[1:] if plan.skips else ()
        skipped = sum(one.stop - one.first for one in columns)
        _check_shapes(f"layer {index}: ", plan, layer_tensors, batch, skipped)
    dtype = _common_dtype(input, tensors)
    if isinstance(input, PackedSpikes):
        return input.unpack(dtype) if plans[0].feedforward is None else input
    return input if input.dtype.is_floating_point else input.to(dtype)


def _check_backend(backend: str | None, device: torch.device, plans: Sequence[LayerPlan]) -> None:
    """ValueError when a backend asked for by name cannot run; while tracing, the op says so."""
    if backend in ENGINES and not torch.compiler.is_compiling():
        reason = ENGINES[backend].reason(device, plans, torch.float32)
        if reason:
            raise ValueError(f"backend {backend!r} {reason}")


def _check_input_shape(shape: tuple[int, ...], plan: LayerPlan) -> None:
    link = plan.feedforward
    if len(shape) < 3:
        raise ValueError(f"input must have shape (time, batch, *features), got {shape}")
    features = shape[2:]
    if link is None:
        fits, expected = features == plan.features, plan.features
    else:
        fits, expected = (
            len(features) <= 3 and spatial_shape(features) == link.in_shape,
            link.in_shape,
        )
    if not fits:
        raise ValueError(f"input must have features {expected}, got shape {shape}")
    if not plan.shared_input and shape[1] % plan.networks:
        raise ValueError(
            f"input must have as many samples for each of {plan.networks} networks, got shape "
            f"{shape}; shared_input gives all samples to every network"
        )
    if shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"input must have at least one step and one sample, got shape {shape}")


def _check_shapes(
    where: str, plan: LayerPlan, tensors: LayerTensors, batch: int, skipped: int
) -> None:
    """`skipped`: number of neurons that a readout hears through skips."""
    link = None if plan.kind == "max_pool" else plan.feedforward
    view = None if link is None else link.weight_shape
    _check_shape(f"{where}weight", tensors.weight, _weight_shape(view, plan, skipped))
    if tensors.bias is not None:
        bias_shape = None if link is None else (*_leading(plan), link.out_shape[0])
        _check_shape(f"{where}bias", tensors.bias, bias_shape)
    for name in ("recurrent_weight", "inhibitory_weight"):
        shape = _weight_shape(getattr(plan, f"{name}_shape"), plan)
        _check_shape(f"{where}{name}", getattr(tensors, name), shape)
    if tensors.state is not None:
        if not isinstance(tensors.state, LIFState):
            raise TypeError(f"{where}state must be a LIFState, got {type(tensors.state).__name__}")
        for name in ("pending_current", "pending_inhibitory"):
            if getattr(tensors.state, name) is not None and plan.delay == 0:
                raise ValueError(f"{where}state.{name} must be None with delay 0, got a tensor")
        for name in ("inhibitory_current", "pending_inhibitory"):
            if getattr(tensors.state, name) is not None and plan.inhibition is None:
                raise ValueError(
                    f"{where}state.{name} must be None without inhibition, got a tensor"
                )
        stateless = plan.kind in ("current", "max_pool")
        state_shape = None if stateless else (batch, *plan.features)
        for name, value in tensors.state._asdict().items():
            if value is not None:
                _check_shape(f"{where}state.{name}", value, state_shape)


def _weight_shape(
    view: tuple[int, int, int, int] | None, plan: LayerPlan, skipped: int = 0
) -> tuple[int, ...] | None:
    """Shape of a weight as torch keeps it, from its 4-d view; None where there is none."""
    if view is None:
        return None
    out_channels, in_channels, height, width = view
    if len(plan.features) == 1:
        return (*_leading(plan), out_channels, in_channels * height * width + skipped)
    own = (out_channels, in_channels, width) if len(plan.features) == 2 else view
    return (*_leading(plan), *own)


def _leading(plan: LayerPlan) -> tuple[int, ...]:
    """What comes before the shape that a parameter has in a single network."""
    return (plan.networks,) if plan.networks > 1 else ()


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...] | None) -> None:
    if tensor is None and shape is None:
        return
    if shape is None:
        raise ValueError(f"{name} must be None for this kind of layer, got a tensor")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor of shape {shape}, got {type(tensor).__name__}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _named_tensors(tensors: Sequence[LayerTensors]) -> Iterator[tuple[str, Tensor]]:
    for index, layer in enumerate(tensors):
        parameters = layer._asdict()
        state = parameters.pop("state")
        states = {} if state is None else {f"state.{k}": v for k, v in state._asdict().items()}
        for name, tensor in (parameters | states).items():
            if tensor is not None:
                yield f"layer {index}: {name}", tensor


def _common_dtype(input: Tensor | PackedSpikes, tensors: Sequence[LayerTensors]) -> torch.dtype:
    """Dtype of all parameters and states, which must share it and the input's device."""
    dtype = None
    for name, tensor in _named_tensors(tensors):
        if tensor.device != input.device:
            raise ValueError(
                f"{name} must be on the device of the input, {input.device}, got {tensor.device}"
            )
        if tensor.dtype not in DTYPES or (dtype is not None and tensor.dtype != dtype):
            expected = "float32 or float64" if dtype is None else dtype
            raise TypeError(f"{name} must have dtype {expected}, got {tensor.dtype}")
        dtype = tensor.dtype
    if isinstance(input, Tensor) and input.dtype.is_floating_point:
        if input.dtype not in DTYPES or (dtype is not None and input.dtype != dtype):
            expected = "float32 or float64" if dtype is None else f"{dtype}, that of the parameters"
            raise TypeError(f"input must have dtype {expected}, got {input.dtype}")
        return input.dtype
    if isinstance(input, Tensor) and input.dtype.is_complex:
        raise TypeError(f"input must be real, got {input.dtype}")
    return torch.get_default_dtype() if dtype is None else dtype
