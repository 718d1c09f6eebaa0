"""The forward pass of a stack: segments of layers, a launch each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.cuda.call import FORWARD_ORDER, Call, address, packed, side_by_side
from fastlif.ops.cuda.sources import emitted_words, readout_current
from fastlif.ops.layout import (
    FIRST_STATE,
    TENSORS_PER_LAYER,
    LayerOutputs,
    StackOutputs,
    kept_dtype,
)
from fastlif.ops.plan import EMITS_SPIKES, LayerPlan


def pack(input: Tensor, call: Call) -> tuple[Tensor, bool]:
    """Dense input as words, and whether all of it was 0 or 1, which waits for the device.

    While a graph is captured nothing may wait: the input then counts as not binary.
    """
    link = call.shapes.plans[0].feedforward
    assert link is not None
    words = call.empty(call.shapes.input_words, torch.int32)
    if call.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return words, False
    not_binary = call.empty((1,), torch.int32)
    call.kernels.pack_words(
        input.data_ptr(), is_double=input.dtype == torch.float64, time_stride=input.stride(0),
        batch_stride=input.stride(1), n_steps=call.shapes.n_steps, batch=call.shapes.input[1],
        shape=link.in_shape, words=words.data_ptr(), not_binary=not_binary.data_ptr(),
        stream=call.stream,
    )  # fmt: skip
    return words, not bool(not_binary.item())


def run(call: Call, input: Tensor, tensors: list[Tensor], keep: bool) -> StackOutputs:
    """Outputs of all layers; with `keep`, also what the backward pass needs."""
    shapes, plans = call.shapes, call.shapes.plans
    words, is_binary, injected = call.empty((0,), torch.int32), False, None
    if input.dtype == torch.int32:
        words, is_binary = input.contiguous(), True
    elif plans[0].feedforward is None:
        injected = dense.to_flat(input, plans[0].features)
        if shapes.shares_input:
            injected = injected.repeat(1, shapes.networks, 1)
    else:
        if not input[0, 0].is_contiguous():
            input = input.contiguous()
        words, is_binary = pack(input, call)
        if not is_binary:
            injected = _current_of_numbers(call, input, tensors[0], tensors[1])

    output = call.empty(shapes.output)
    best_step = call.empty(shapes.best_step, torch.int32)
    segments = call.segments("forward")
    # Their spikes leave the launch.
    ends = {last - 1 for _, last in segments} | set(plans[-1].skips)
    layers = [_outputs(call, plan, keep, keep or index in ends) for index, plan in enumerate(plans)]
    spikes = words
    for start, end in segments:
        alive: list[Tensor] = []  # until they are queued
        if plans[start].kind == "max_pool":
            _pool(call, start, spikes, layers[start].words)
            spikes = layers[start].words
            continue
        if plans[start].skips:
            own = tensors[TENSORS_PER_LAYER * start :]
            skipped = [emitted_words(layers[i].words, plans[i]) for i in plans[start].skips]
            injected = readout_current(call, [spikes, *skipped], own[0], own[1])
        pointers = [
            _pointers(call, plans[i], tensors[TENSORS_PER_LAYER * i :], layers[i], alive)
            for i in range(start, end)
        ]
        if end == len(plans) and plans[-1].kind not in EMITS_SPIKES:
            pointers[-1].output, pointers[-1].best_step = output.data_ptr(), address(best_step)
        _launch(call, (start, end), pointers, injected, spikes)
        injected = None
        spikes = emitted_words(layers[end - 1].words, plans[end - 1])
    if plans[-1].kind in EMITS_SPIKES:
        shape = plans[-1].emitted_shape
        call.kernels.unpack_words(
            spikes.data_ptr(), n_steps=shapes.n_steps, batch=shapes.batch, shape=shape,
            dense=output.data_ptr(), is_double=call.is_double, stream=call.stream,
        )  # fmt: skip
    # What is handed out must not depend on the values of the input, and not be the input itself.
    none = call.empty((0,), torch.int32)
    if not keep:
        layers = [layer._replace(words=none) for layer in layers]
    if not keep or input.dtype == torch.int32:
        words = none
    # On the CPU whatever the default device is: backward must not wait to read it.
    flag = torch.tensor([is_binary], dtype=torch.bool, device="cpu")
    return StackOutputs(output, best_step, words, flag, layers)


def _current_of_numbers(call: Call, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """J of the first layer from numbers that are not spikes, flat (time, batch, N)."""
    shapes = call.shapes
    each = zip(
        call.samples_of_each(input, shared=shapes.shares_input),
        call.weights_of_each(weight),
        call.weights_of_each(bias),
        strict=True,
    )
    return side_by_side(
        [
            dense.injected_current(values, shapes.plans[0], own, given if given.numel() else None)
            for values, own, given in each
        ]
    )


def _outputs(call: Call, plan: LayerPlan, keep: bool, keep_words: bool) -> LayerOutputs:
    shapes = call.shapes
    return LayerOutputs(
        kept=call.empty(shapes.kept(plan) if keep else (0,), kept_dtype(shapes.dtype, call.exact)),
        words=call.empty(shapes.words(plan) if keep_words else (0,), torch.int32),
        counts=call.empty(shapes.counts(plan)),
        membrane=call.empty(shapes.state(plan)),
        synaptic_current=call.empty(shapes.state(plan)),
        pending_current=call.empty(shapes.pending(plan)),
        inhibitory_current=call.empty(shapes.inhibitory(plan)),
        pending_inhibitory=call.empty(shapes.pending_inhibitory(plan)),
    )


def _launch(
    call: Call,
    segment: tuple[int, int],
    pointers: list[Any],  # one ForwardLayer per layer of the segment
    injected: Tensor | None,  # flat current of the first layer, where its input is not spikes
    spikes: Tensor,  # words that the segment reads otherwise
) -> None:
    masks = None
    if injected is None:
        masks = call.masks(spikes)
    else:
        pointers[0].injected, pointers[0].weight, pointers[0].bias = injected.data_ptr(), 0, 0
    plan = call.shapes.plans[segment[0]]
    if plan.inhibition is not None:
        call.kernels.dale_forward(
            call.plan, segment[0], pointers[0], input_masks=address(masks),
            shared_bytes=call.shared_bytes, **call.network_arguments(segment[0]), **call.common(),
        )  # fmt: skip
        return
    alone = segment[1] - segment[0] == 1 and plan.kind == "lif" and plan.recurrent_kernel is None
    if alone and injected is not None:
        call.kernels.scan_forward(call.plan, segment[0], pointers[0], **call.common())
    else:
        call.kernels.stack_forward(
            call.plan, segment, input_masks=address(masks), layers=pointers,
            shared_bytes=call.shared_bytes, **call.network_arguments(segment[0]), **call.common(),
        )  # fmt: skip


def _pool(call: Call, layer: int, words: Tensor, pooled: Tensor) -> None:
    """Words of a "max_pool" layer from those of its sources."""
    call.kernels.pool_words(
        call.plan, layer, words=words.data_ptr(), n_steps=call.shapes.n_steps,
        batch=call.shapes.batch, pooled=pooled.data_ptr(), stream=call.stream,
    )  # fmt: skip


def _pointers(
    call: Call, plan: LayerPlan, tensors: Sequence[Tensor], out: LayerOutputs, alive: list[Tensor]
) -> Any:
    weight, bias, recurrent_weight, inhibitory_weight = tensors[:FIRST_STATE]
    states = tensors[FIRST_STATE:TENSORS_PER_LAYER]
    p = call.kernels.ForwardLayer()
    if plan.feedforward is not None and not plan.skips:
        weight = packed(weight, plan.feedforward.weight_shape, FORWARD_ORDER)
    if plan.recurrent_weight_shape is not None:
        recurrent_weight = packed(recurrent_weight, plan.recurrent_weight_shape, FORWARD_ORDER)
    if plan.inhibitory_weight_shape is not None:
        own = plan.inhibitory_weight_shape
        inhibitory_weight = packed(inhibitory_weight, own, FORWARD_ORDER)
    alive += [weight, recurrent_weight, inhibitory_weight]
    p.weight, p.bias, p.recurrent_weight = map(address, (weight, bias, recurrent_weight))
    p.inhibitory_weight = address(inhibitory_weight)
    p.membrane0, p.current0, p.pending0, p.inhibitory0, p.pending_inhibitory0 = map(address, states)
    p.kept, p.words, p.counts = map(address, out[:3])
    p.membrane, p.current, p.pending, p.inhibitory, p.pending_inhibitory = map(address, out[3:])
    return p
