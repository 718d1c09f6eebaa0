"""The CUDA kernels: allocate, launch, return. What they compute is `fastlif.ops.reference`.

A stack runs in segments of layers that share one launch (csrc/cuda/launch.h); between segments
spikes travel as bits, gradients as numbers. Everything is queued on the current stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlif import extension
from fastlif.ops import dense
from fastlif.ops.layout import (
    GRADS_PER_LAYER,
    TENSORS_PER_LAYER,
    LayerOutputs,
    Saved,
    StackOutputs,
    StackShapes,
    kept_dtype,
    per_layer,
)
from fastlif.ops.plan import LayerPlan, encode
from fastlif.spikes import n_words

EMULATED_SHARED_BYTES = 227 * 1024  # of a block of the emulated device, as on an H100


def reason(device: torch.device, plans: Sequence[LayerPlan], dtype: torch.dtype) -> str:
    """Why these kernels cannot run these layers on a device; "" when they can."""
    if device.type != "cuda":
        return f"needs a GPU; the input is on {device}"
    if not extension.is_available(extension.CUDA):
        return f"is not built: {extension.reason(extension.CUDA)}"
    index = device.index or 0
    unusable = _unusable(index)
    if unusable:
        return f"cannot use this GPU: {unusable}"
    ints, floats = encode(plans)
    shared_bytes = _shared_bytes(index)
    return _misfit(extension.load(extension.CUDA), ints, floats, dtype, shared_bytes)


@lru_cache(maxsize=64)
def _misfit(
    kernels: ModuleType,
    ints: tuple[int, ...],
    floats: tuple[float, ...],
    dtype: torch.dtype,
    shared_bytes: int,
) -> str:
    plan = _plan(kernels, ints, floats)
    precision = _precision(dtype, True)
    try:
        kernels.forward_segments(plan, precision, shared_bytes)
        kernels.backward_segments(plan, precision, shared_bytes)
    except ValueError as error:
        return f"cannot hold it: {error}"
    return ""


@lru_cache(maxsize=64)
def _plan(kernels: ModuleType, ints: tuple[int, ...], floats: tuple[float, ...]) -> Any:
    return kernels.Plan(ints, floats)


@lru_cache(maxsize=16)
def _unusable(index: int) -> str:
    with torch.cuda.device(index):
        return str(extension.load(extension.CUDA).unusable())


@lru_cache(maxsize=16)
def _shared_bytes(index: int) -> int:
    properties: Any = torch.cuda.get_device_properties(index)
    return int(properties.shared_memory_per_block_optin)


def _precision(dtype: torch.dtype, exact: bool) -> int:
    return 2 if dtype == torch.float64 else int(exact)


def _address(tensor: Tensor | None) -> int:
    return tensor.data_ptr() if tensor is not None and tensor.numel() else 0


@dataclass(frozen=True)
class _Call:
    """One run of a stack: the kernels, the problem's shape, and where it is queued."""

    kernels: ModuleType
    shapes: StackShapes
    exact: bool
    device: torch.device

    @property
    def plan(self) -> Any:
        return _plan(self.kernels, self.shapes.ints, self.shapes.floats)

    @property
    def shared_bytes(self) -> int:
        if self.device.type == "cpu":
            return EMULATED_SHARED_BYTES
        return _shared_bytes(self.device.index or 0)

    @property
    def is_double(self) -> bool:
        return self.shapes.dtype == torch.float64

    @property
    def stream(self) -> int:
        if self.device.type == "cpu":
            return 0
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def common(self) -> dict[str, int]:
        """Arguments that all kernels over the steps share."""
        return {
            "n_steps": self.shapes.n_steps,
            "batch": self.shapes.batch,
            "precision": _precision(self.shapes.dtype, self.exact),
            "stream": self.stream,
        }

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype or self.shapes.dtype, device=self.device)

    def segments(self, direction: str) -> list[tuple[int, int]]:
        find = getattr(self.kernels, f"{direction}_segments")
        precision = _precision(self.shapes.dtype, self.exact)
        return find(self.plan, precision, self.shared_bytes)

    def masks(self, words: Tensor) -> Tensor:
        """Words (words, batch, N) as masks (time, batch, ceil(N / 32)) of neighbouring neurons."""
        neurons = words.shape[2]
        steps, batch = self.shapes.n_steps, self.shapes.batch
        masks = self.empty((steps, batch, n_words(neurons)), torch.int32)
        self.kernels.words_to_masks(
            words.data_ptr(), n_steps=steps, batch=batch, neurons=neurons,
            masks=masks.data_ptr(), stream=self.stream,
        )  # fmt: skip
        return masks


def _call(kernels: ModuleType | None, shapes: StackShapes, exact: bool, like: Tensor) -> _Call:
    return _Call(kernels or extension.load(extension.CUDA), shapes, exact, like.device)


def _on(device: torch.device) -> Any:
    """The device of a tensor as the current one, which launches go to."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def _packed(weight: Tensor, view: tuple[int, int, int, int], order: tuple[int, ...]) -> Tensor:
    """A weight in the order in which a kernel reads it; empty where there is none."""
    return weight.reshape(view).permute(order).contiguous() if weight.numel() else weight


FORWARD_ORDER = (2, 3, 1, 0)  # (kernel height, kernel width, in channels, out channels)
BACKWARD_ORDER = (2, 3, 0, 1)


def pack(input: Tensor, call: _Call) -> tuple[Tensor, bool]:
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
        batch_stride=input.stride(1), n_steps=call.shapes.n_steps, batch=call.shapes.batch,
        shape=link.in_shape, words=words.data_ptr(), not_binary=not_binary.data_ptr(),
        stream=call.stream,
    )  # fmt: skip
    return words, not bool(not_binary.item())


def forward(
    input: Tensor,  # (time, batch, *features), or int32 words
    tensors: Sequence[Tensor],  # six per layer, empty where absent
    shapes: StackShapes,
    *,
    exact: bool,
    keep: bool,
    kernels: ModuleType | None = None,  # None: fastlif._cuda
) -> StackOutputs:
    """Run the stack; with `keep`, also return what the backward pass needs."""
    call = _call(kernels, shapes, exact, input)
    with _on(call.device):
        return _forward(call, input, [t.contiguous() for t in tensors], keep)


def _forward(call: _Call, input: Tensor, tensors: list[Tensor], keep: bool) -> StackOutputs:
    shapes, plans = call.shapes, call.shapes.plans
    first = plans[0]
    words, is_binary, injected = call.empty((0,), torch.int32), False, None
    if input.dtype == torch.int32:
        words, is_binary = input.contiguous(), True
    elif first.feedforward is None:
        injected = dense.to_flat(input, first.features)
    else:
        if not input[0, 0].is_contiguous():
            input = input.contiguous()
        words, is_binary = pack(input, call)
        if not is_binary:
            bias = tensors[1] if tensors[1].numel() else None
            injected = dense.injected_current(input, first, tensors[0], bias)

    output = call.empty(shapes.output)
    best_step = call.empty(shapes.best_step, torch.int32)
    segments = call.segments("forward")
    ends = {last - 1 for _, last in segments}  # their spikes leave the launch
    layers = []
    for index, plan in enumerate(plans):
        layers.append(
            LayerOutputs(
                kept=call.empty(
                    shapes.kept(plan) if keep else (0,), kept_dtype(shapes.dtype, call.exact)
                ),
                words=call.empty(
                    shapes.words(plan) if keep or index in ends else (0,), torch.int32
                ),
                counts=call.empty(shapes.counts(plan)),
                membrane=call.empty(shapes.state(plan)),
                synaptic_current=call.empty(shapes.state(plan)),
                pending_current=call.empty(shapes.pending(plan)),
            )
        )
    spikes = words
    for segment in segments:
        start, end = segment
        alive: list[Tensor] = []  # until they are queued
        pointers = [
            _forward_pointers(call, plans[i], tensors[6 * i : 6 * i + 6], layers[i], alive)
            for i in range(start, end)
        ]
        if end == len(plans) and plans[-1].kind != "lif":
            pointers[-1].output, pointers[-1].best_step = output.data_ptr(), _address(best_step)
        masks = None
        if start == 0 and injected is not None:
            pointers[0].injected, pointers[0].weight, pointers[0].bias = injected.data_ptr(), 0, 0
        else:
            masks = call.masks(spikes)
        if masks is None and end == 1 and first.kind == "lif" and first.recurrent_kernel is None:
            call.kernels.scan_forward(call.plan, 0, pointers[0], **call.common())
        else:
            call.kernels.stack_forward(
                call.plan, segment, input_masks=_address(masks), layers=pointers,
                shared_bytes=call.shared_bytes, **call.common(),
            )  # fmt: skip
        spikes = layers[end - 1].words
    if plans[-1].kind == "lif":
        call.kernels.unpack_words(
            spikes.data_ptr(), n_steps=shapes.n_steps, batch=shapes.batch, shape=plans[-1].shape,
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


def _forward_pointers(
    call: _Call, plan: LayerPlan, tensors: Sequence[Tensor], out: LayerOutputs, alive: list[Tensor]
) -> Any:
    weight, bias, recurrent_weight, membrane, current, pending = tensors
    p = call.kernels.ForwardLayer()
    if plan.feedforward is not None:
        weight = _packed(weight, plan.feedforward.weight_shape, FORWARD_ORDER)
    if plan.recurrent_weight_shape is not None:
        recurrent_weight = _packed(recurrent_weight, plan.recurrent_weight_shape, FORWARD_ORDER)
    alive += [weight, recurrent_weight]
    p.weight, p.bias, p.recurrent_weight = map(_address, (weight, bias, recurrent_weight))
    p.membrane0, p.current0, p.pending0 = map(_address, (membrane, current, pending))
    p.kept, p.words, p.counts = map(_address, out[:3])
    p.membrane, p.current, p.pending = map(_address, out[3:])
    return p


def backward(
    grad_output: Tensor,  # empty where absent, as all gradients here
    grad_layers: Sequence[Tensor],  # per layer: counts, membrane, synaptic and pending current
    input: Tensor,  # as in forward; not read when its words are there
    tensors: Sequence[Tensor],
    saved: Saved,
    shapes: StackShapes,
    *,
    exact: bool,
    needs: Sequence[bool],  # input, then six per layer
    kernels: ModuleType | None = None,
) -> list[Tensor]:
    """Gradients of the input and of every tensor, empty where not needed."""
    call = _call(kernels, shapes, exact, input)
    with _on(call.device):
        gradients = _Backward(call, grad_output, grad_layers, input, tensors, saved, needs)
        return gradients.run()


class _Backward:
    """The backward pass of one call, segment by segment from the last layer to the first."""

    def __init__(
        self,
        call: _Call,
        grad_output: Tensor,
        grad_layers: Sequence[Tensor],
        input: Tensor,
        tensors: Sequence[Tensor],
        saved: Saved,
        needs: Sequence[bool],
    ) -> None:
        self.call = call
        self.plans = call.shapes.plans
        self.grad_output = grad_output.contiguous()
        self.grad_layers = [grad.contiguous() for grad in grad_layers]
        self.input = input
        self.tensors = list(per_layer([t.contiguous() for t in tensors]))
        self.saved = saved
        self.needs_input = needs[0]
        self.needs = list(per_layer(needs[1:]))  # type: ignore[arg-type]
        self.reduced = dense.reduced_products_allowed(call.shapes.dtype)
        shapes = (t.shape for t in tensors)
        self.grads = [
            call.empty(shape if needed else (0,))
            for shape, needed in zip(shapes, needs[1:], strict=True)
        ]

    def run(self) -> list[Tensor]:
        """Gradients of the input and of every tensor."""
        last = len(self.plans) - 1
        above: Tensor | None = None  # flat dL/dS of the segment's last layer
        if self.grad_output.numel() and self.plans[-1].kind != "readout_max":
            above = dense.to_flat(self.grad_output, self.plans[-1].features)
        for start, end in reversed(self.call.segments("backward")):
            injected = self._segment(start, end, above)
            for index in range(start, end):
                self._parameters(index, injected[index - start])
            bottom = injected[0]
            if start > 0:
                above = dense.input_gradient(
                    bottom, self.plans[start], self.tensors[start][0], reduced=self.reduced
                )
        assert start == 0 and last >= 0
        return [self._input(bottom), *self.grads]

    def _segment(self, start: int, end: int, above: Tensor | None) -> list[Tensor]:
        """dL/dJ of the layers of one launch, each flat (time, batch, N)."""
        call, plans = self.call, self.plans
        steps, batch = call.shapes.n_steps, call.shapes.batch
        if plans[start].kind == "current":
            neurons = call.shapes.neurons(plans[start])
            return [call.empty((steps, batch, neurons)).zero_() if above is None else above]
        alive: list[Tensor] = []
        injected = [
            call.empty((steps, batch, call.shapes.neurons(plan))) for plan in plans[start:end]
        ]
        pointers = [
            self._pointers(index, injected[index - start], alive) for index in range(start, end)
        ]
        pointers[-1].grad_spikes = _address(above)
        if end - start == 1 and plans[start].kind == "lif" and not plans[start].recurrent_kernel:
            call.kernels.scan_backward(call.plan, start, pointers[0], **call.common())
        else:
            call.kernels.stack_backward(
                call.plan, (start, end), products=int(self.reduced), layers=pointers,
                shared_bytes=call.shared_bytes, **call.common(),
            )  # fmt: skip
        return injected

    def _pointers(self, index: int, injected: Tensor, alive: list[Tensor]) -> Any:
        plan = self.plans[index]
        weight, _, recurrent_weight = self.tensors[index][:3]
        p = self.call.kernels.BackwardLayer()
        if plan.feedforward is not None:
            packed = _packed(weight, plan.feedforward.weight_shape, BACKWARD_ORDER)
            alive.append(packed)
            p.weight = _address(packed)
        if plan.recurrent_weight_shape is not None:
            packed = _packed(recurrent_weight, plan.recurrent_weight_shape, BACKWARD_ORDER)
            alive.append(packed)
            p.recurrent_weight = _address(packed)
        p.kept, p.words = _address(self.saved.kept[index]), _address(self.saved.words[index])
        if plan.kind == "readout_max":
            p.grad_score, p.best_step = _address(self.grad_output), _address(self.saved.best_step)
        given = self.grad_layers[GRADS_PER_LAYER * index : GRADS_PER_LAYER * (index + 1)]
        p.grad_counts, p.grad_membrane, p.grad_current, p.grad_pending = map(_address, given)
        states = self.grads[TENSORS_PER_LAYER * index + 3 : TENSORS_PER_LAYER * (index + 1)]
        p.grad_membrane0, p.grad_current0, p.grad_pending0 = map(_address, states)
        p.grad_injected = injected.data_ptr()
        return p

    def _parameters(self, index: int, injected: Tensor) -> None:
        """Gradients of weight, bias and recurrent weight from dL/dJ."""
        plan = self.plans[index]
        at = TENSORS_PER_LAYER * index
        needs_weight, needs_bias, needs_recurrent = self.needs[index][:3]
        if needs_weight:
            assert plan.feedforward is not None
            shape = self.grads[at].shape
            words = self._source(index)
            if words is None:
                grad = dense.weight_gradient(injected, self.input, plan, reduced=self.reduced)
            else:
                view = plan.feedforward.weight_shape
                grad = self._events(index, False, words, injected, view)
            self.grads[at] = grad.reshape(shape).contiguous()
        if needs_bias:
            channels = plan.shape[0]
            self.grads[at + 1] = injected.view(-1, channels).sum(0)
        if needs_recurrent:
            own = plan.recurrent_weight_shape
            assert own is not None
            grad = self._events(index, True, self.saved.words[index], injected, own)
            self.grads[at + 2] = grad.reshape(self.grads[at + 2].shape).contiguous()

    def _source(self, index: int) -> Tensor | None:
        """Words of the spikes that drove a layer; None when numbers did."""
        if index > 0:
            return self.saved.words[index - 1]
        if self.input.dtype == torch.int32:
            return self.input.contiguous()
        return self.saved.input_words if bool(self.saved.is_binary) else None

    def _events(
        self,
        index: int,
        recurrent: bool,
        words: Tensor,
        injected: Tensor,
        view: tuple[int, int, int, int],
    ) -> Tensor:
        """Gradient of a weight as (out channels, in channels, kernel height, kernel width)."""
        call = self.call
        steps, batch = call.shapes.n_steps, call.shapes.batch
        out_channels, in_channels, height, width = view
        splits = call.kernels.weight_gradient_splits(call.plan, index, recurrent, steps, batch)
        packed = (height, width, in_channels, out_channels)
        grad, partials = call.empty(packed), call.empty((splits, *packed))
        call.kernels.weight_gradient(
            call.plan, index, recurrent, words=words.data_ptr(),
            grad_injected=injected.data_ptr(), n_steps=steps, batch=batch,
            is_double=call.is_double, partials=partials.data_ptr(), grad=grad.data_ptr(),
            stream=call.stream,
        )  # fmt: skip
        return grad.permute(3, 2, 0, 1)

    def _input(self, injected: Tensor) -> Tensor:
        """Gradient of the input, (time, batch, *features) as it was given."""
        if not self.needs_input:
            return self.call.empty((0,))
        plan = self.plans[0]
        if plan.feedforward is None:
            return dense.to_user(injected, plan.features)
        flat = dense.input_gradient(injected, plan, self.tensors[0][0], reduced=self.reduced)
        user = dense.to_user(flat, plan.feedforward.in_shape)
        return user.reshape(self.call.shapes.input)
