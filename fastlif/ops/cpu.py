"""The CPU kernels: allocate, launch, return. What they compute is `fastlif.ops.reference`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlif import extension
from fastlif.ops.layout import (
    FIRST_STATE,
    GRADS_PER_LAYER,
    TENSORS_PER_LAYER,
    LayerOutputs,
    Saved,
    StackOutputs,
    StackShapes,
    kept_dtype,
    per_layer,
)
from fastlif.ops.plan import LayerPlan
from fastlif.spikes import pack_words

BITS, VALUES, CURRENT = range(3)  # kinds of input, as in csrc/engine.h
LARGE = 1 << 22  # bytes; below, torch's allocator is as good


def reason(device: torch.device, plans: Sequence[LayerPlan], dtype: torch.dtype) -> str:
    """Why these kernels cannot run on a device; "" when they can."""
    return "" if device.type == "cpu" else f"needs tensors on cpu; the input is on {device}"


@lru_cache(maxsize=64)
def _plan(ints: tuple[int, ...], floats: tuple[float, ...]) -> Any:
    """The kernels' own tables for this stack."""
    return extension.load().Plan(ints, floats)


def _precision(dtype: torch.dtype, exact: bool) -> int:
    return 2 if dtype == torch.float64 else int(exact)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(tuple(shape), dtype=dtype)
    size = tensor.numel() * tensor.element_size()
    if size >= LARGE:
        extension.load().advise_huge_pages(tensor.data_ptr(), size)
    return tensor


def _pooled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An empty tensor in memory that the next training step uses again."""
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.empty(tuple(shape), dtype=dtype)
    block = extension.load().PooledBlock(size)
    return torch.frombuffer(block, dtype=dtype).view(tuple(shape))


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.numel() else 0


def _input_kind(shapes: StackShapes, is_binary: bool) -> int:
    if shapes.plans[0].feedforward is None:
        return CURRENT
    return BITS if is_binary else VALUES


def _input_fields(kind: int, input: Tensor, words: Tensor) -> dict[str, int]:
    dense = kind != BITS and input.numel() > 0  # a current is not read again in backward
    return {
        "input_kind": kind,
        "input": input.data_ptr() if dense else _address(words),
        "time_stride": input.stride(0) if dense else 0,
        "batch_stride": input.stride(1) if dense else 0,
    }


def _with_contiguous_features(input: Tensor) -> Tensor:
    """The kernels take any strides of time and batch, but features must lie side by side."""
    return input if input[0, 0].is_contiguous() else input.contiguous()


def _pointers(tensors: Sequence[Tensor]) -> list[Any]:
    """One LayerPointers per layer with the addresses of parameters and initial state."""
    layers = []
    for own in per_layer(tensors):
        p = extension.load().LayerPointers()
        p.weight, p.bias, p.recurrent_weight, p.inhibitory_weight = map(_address, own[:FIRST_STATE])
        states = map(_address, own[FIRST_STATE:])
        p.membrane0, p.current0, p.pending0, p.inhibitory0, p.pending_inhibitory0 = states
        layers.append(p)
    return layers


def forward(
    input: Tensor,  # (time, batch, *features), or int32 words
    tensors: Sequence[Tensor],  # nine per layer, empty where absent
    shapes: StackShapes,
    *,
    exact: bool,
    keep: bool,
) -> StackOutputs:
    """Run the stack; with `keep`, also return what the backward pass needs."""
    tensors = [t.contiguous() for t in tensors]
    none = input.new_empty(0, dtype=torch.int32)
    words, is_binary = none, False
    if input.dtype == torch.int32:
        words, is_binary = input.contiguous(), True
    else:
        input = _with_contiguous_features(input)
        if shapes.plans[0].feedforward is not None:
            packed = pack_words(input)
            is_binary = packed is not None
            words = none if packed is None else packed
    kind = _input_kind(shapes, is_binary)
    dtype = shapes.dtype
    output = _empty(shapes.output, dtype)
    best_step = _empty(shapes.best_step, torch.int32)
    layers: list[LayerOutputs] = []
    pointers = _pointers(tensors)
    for p, plan in zip(pointers, shapes.plans, strict=True):
        out = LayerOutputs(
            kept=_pooled(shapes.kept(plan) if keep else (0,), kept_dtype(dtype, exact)),
            words=_pooled(shapes.words(plan) if keep else (0,), torch.int32),
            counts=_empty(shapes.counts(plan), dtype),
            membrane=_empty(shapes.state(plan), dtype),
            synaptic_current=_empty(shapes.state(plan), dtype),
            pending_current=_empty(shapes.pending(plan), dtype),
            inhibitory_current=_empty(shapes.inhibitory(plan), dtype),
            pending_inhibitory=_empty(shapes.pending_inhibitory(plan), dtype),
        )
        p.kept, p.words, p.counts = _address(out.kept), _address(out.words), _address(out.counts)
        p.membrane, p.current = _address(out.membrane), _address(out.synaptic_current)
        p.pending = _address(out.pending_current)
        p.inhibitory = _address(out.inhibitory_current)
        p.pending_inhibitory = _address(out.pending_inhibitory)
        layers.append(out)
    problem = extension.load().Problem(
        plan=_plan(shapes.ints, shapes.floats),
        n_steps=shapes.n_steps,
        batch=shapes.batch,
        networks=shapes.networks,
        input_batch=shapes.input[1],
        threads=torch.get_num_threads(),
        layers=pointers,
        output=output.data_ptr(),
        best_step=_address(best_step),
        **_input_fields(kind, input, words),
    )
    problem.forward(_precision(dtype, exact))
    flag = torch.tensor([is_binary], dtype=torch.bool, device="cpu")
    # A tensor handed in must not be handed out again: packed input is kept by the caller. The shape
    # handed out must not depend on the values.
    if not keep or input.dtype == torch.int32:
        words = none
    elif not is_binary:
        words = torch.zeros(shapes.input_words, dtype=torch.int32)
    return StackOutputs(output, best_step, words, flag, layers)


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
    dtype = shapes.dtype
    tensors = [t.contiguous() for t in tensors]
    grad_layers = [g.contiguous() for g in grad_layers]
    grad_output = grad_output.contiguous()
    is_binary = bool(saved.is_binary)
    kind = _input_kind(shapes, is_binary)
    words = input.contiguous() if input.dtype == torch.int32 else saved.input_words
    if kind == VALUES:
        input = _with_contiguous_features(input)
    fields = (
        _input_fields(kind, input, words) if kind != CURRENT else _input_fields(BITS, input, words)
    )
    fields["input_kind"] = kind
    # Of a shared input, what each network adds to its gradient.
    input_shape = (shapes.n_steps, shapes.batch, *shapes.input[2:])
    grads = [
        _empty(shape if needed else (0,), dtype)
        for shape, needed in zip((input_shape, *(t.shape for t in tensors)), needs, strict=True)
    ]
    pointers = _pointers(tensors)
    for layer, p in enumerate(pointers):
        p.kept, p.words = _address(saved.kept[layer]), _address(saved.words[layer])
        start = 1 + TENSORS_PER_LAYER * layer
        own = [_address(grad) for grad in grads[start : start + TENSORS_PER_LAYER]]
        p.grad_weight, p.grad_bias, p.grad_recurrent_weight, p.grad_inhibitory_weight = own[:4]
        p.grad_membrane0, p.grad_current0, p.grad_pending0 = own[FIRST_STATE : FIRST_STATE + 3]
        p.grad_inhibitory0, p.grad_pending_inhibitory0 = own[FIRST_STATE + 3 :]
        given = [_address(grad) for grad in grad_layers[GRADS_PER_LAYER * layer :]]
        p.grad_counts, p.grad_membrane, p.grad_current, p.grad_pending = given[:4]
        p.grad_inhibitory, p.grad_pending_inhibitory = given[4:GRADS_PER_LAYER]
    problem = extension.load().Problem(
        plan=_plan(shapes.ints, shapes.floats),
        n_steps=shapes.n_steps,
        batch=shapes.batch,
        networks=shapes.networks,
        input_batch=shapes.input[1],
        threads=torch.get_num_threads(),
        layers=pointers,
        best_step=_address(saved.best_step),
        grad_output=_address(grad_output),
        grad_input=_address(grads[0]),
        **_input_fields(kind, input, words),
    )
    problem.backward(_precision(dtype, exact))
    if shapes.shares_input and needs[0]:
        grads[0] = grads[0].unflatten(1, (shapes.networks, -1)).sum(1)
    return grads
