"""The raw operations fastlif::stack_forward and fastlif::stack_backward, and their autograd.

Both are opaque to torch.compile, which learns the shapes of their results from the fake versions
here. Autograd goes through `torch.autograd.Function`, which unlike a registered autograd formula
also serves `torch.func.grad`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastlif.ops import autocast, networks
from fastlif.ops.encoding import decode, encode
from fastlif.ops.engines import AUTO, chosen, steps_outermost
from fastlif.ops.layout import (
    GRADS_PER_LAYER,
    OUTPUTS_PER_LAYER,
    LayerOutputs,
    Saved,
    StackOutputs,
    StackShapes,
    kept_dtype,
)
from fastlif.ops.plan import LayerPlan, LayerTensors, LIFState, StackResult, common_dtype
from fastlif.spikes import PackedSpikes

_library = torch.library.Library("fastlif", "DEF")
_PROBLEM = (
    "int[] ints, float[] floats, SymInt[] input_shape, ScalarType dtype, bool exact, str backend"
)
_library.define(f"stack_forward(Tensor input, Tensor[] tensors, {_PROBLEM}, bool keep) -> Tensor[]")
_library.define(
    "stack_backward(Tensor grad_output, Tensor[] grad_layers, Tensor input, Tensor[] tensors, "
    f"Tensor[] saved, {_PROBLEM}, bool[] needs) -> Tensor[]"
)


def _shapes(
    ints: Sequence[int],
    floats: Sequence[float],
    input_shape: Sequence[int],
    dtype: torch.dtype,
    outermost: bool,
) -> StackShapes:
    shape = tuple(input_shape)
    flat = tuple(ints), tuple(floats)
    first = decode(*flat)[0]
    batch = shape[1] * first.networks if first.shared_input else shape[1]
    return StackShapes(*flat, shape[0], batch, shape, dtype, outermost)


@torch.library.impl(_library, "stack_forward", "CPU")
@torch.library.impl(_library, "stack_forward", "CUDA")
def _forward(
    input: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    input_shape: Sequence[int],
    dtype: torch.dtype,
    exact: bool,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    outermost = steps_outermost(backend, input.device)
    shapes = _shapes(ints, floats, input_shape, dtype, outermost)
    engine = chosen(backend, input.device, shapes.plans, dtype)
    one_by_one = shapes.networks > 1 and not engine.networks_at_once
    run = networks.forward_of(engine.forward) if one_by_one else engine.forward
    return run(input, tensors, shapes, exact=exact, keep=keep).flat()


@torch.library.impl(_library, "stack_backward", "CPU")
@torch.library.impl(_library, "stack_backward", "CUDA")
def _backward(
    grad_output: Tensor,
    grad_layers: Sequence[Tensor],
    input: Tensor,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    input_shape: Sequence[int],
    dtype: torch.dtype,
    exact: bool,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    outermost = steps_outermost(backend, input.device)
    shapes = _shapes(ints, floats, input_shape, dtype, outermost)
    engine = chosen(backend, input.device, shapes.plans, dtype)
    one_by_one = shapes.networks > 1 and not engine.networks_at_once
    run = networks.backward_of(engine.backward) if one_by_one else engine.backward
    return run(
        grad_output,
        grad_layers,
        input,
        tensors,
        Saved.grouped(saved),
        shapes,
        exact=exact,
        needs=needs,
    )


@torch.library.register_fake("fastlif::stack_forward", lib=_library)
def _forward_fake(
    input: Tensor,
    tensors: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    input_shape: Sequence[int],
    dtype: torch.dtype,
    exact: bool,
    backend: str,
    keep: bool,
) -> list[Tensor]:
    outermost = steps_outermost(backend, input.device)
    shapes = _shapes(ints, floats, input_shape, dtype, outermost)

    def empty(shape: Sequence[int], kind: torch.dtype = dtype) -> Tensor:
        return input.new_empty(tuple(shape), dtype=kind)

    layers = [
        LayerOutputs(
            empty(shapes.kept(plan) if keep else (0,), kept_dtype(dtype, exact)),
            empty(shapes.words(plan) if keep else (0,), torch.int32),
            empty(shapes.counts(plan)),
            empty(shapes.state(plan)),
            empty(shapes.state(plan)),
            empty(shapes.pending(plan)),
            empty(shapes.inhibitory(plan)),
            empty(shapes.pending_inhibitory(plan)),
        )
        for plan in shapes.plans
    ]
    return StackOutputs(
        empty(shapes.output),
        empty(shapes.best_step, torch.int32),
        empty(shapes.input_words if keep and input.dtype != torch.int32 else (0,), torch.int32),
        torch.empty((1,), dtype=torch.bool, device="cpu"),
        layers,
    ).flat()


@torch.library.register_fake("fastlif::stack_backward", lib=_library)
def _backward_fake(
    grad_output: Tensor,
    grad_layers: Sequence[Tensor],
    input: Tensor,
    tensors: Sequence[Tensor],
    saved: Sequence[Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    input_shape: Sequence[int],
    dtype: torch.dtype,
    exact: bool,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    shapes = (tuple(input_shape), *(t.shape for t in tensors))
    return [
        input.new_empty(tuple(shape) if needed else (0,), dtype=dtype)
        for shape, needed in zip(shapes, needs, strict=True)
    ]


# ints, floats, input_shape, dtype, exact, backend
_Options = tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...], torch.dtype, bool, str]


class _Stack(torch.autograd.Function):
    """stack_forward, differentiable."""

    @staticmethod
    def forward(
        options: _Options, keep: bool, input: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(torch.ops.fastlif.stack_forward(input, list(tensors), *options, keep))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, _, input, *tensors = inputs
        saved = StackOutputs.grouped(output).saved()
        ctx.mark_non_differentiable(*saved.flat())
        ctx.set_materialize_grads(False)
        ctx.options = options
        ctx.n_tensors = len(tensors)
        if not torch.compiler.is_compiling() and input.dtype != torch.int32:
            # Binary input is kept as bits, other input as it is, a current not at all.
            takes_current = decode(*options[:2])[0].feedforward is None
            if takes_current or bool(saved.is_binary):
                input = input.new_empty(0)
            else:
                saved = saved._replace(input_words=saved.input_words.new_empty(0))
        ctx.save_for_backward(input, *tensors, *saved.flat())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        input, *rest = ctx.saved_tensors
        tensors, saved = rest[: ctx.n_tensors], rest[ctx.n_tensors :]
        dtype = ctx.options[3]

        def present(grad: Tensor | None) -> Tensor:
            return input.new_empty(0, dtype=dtype) if grad is None else grad

        grad_layers = [
            present(grads[start + offset])
            for start in range(4, len(grads), OUTPUTS_PER_LAYER)
            for offset in range(OUTPUTS_PER_LAYER - GRADS_PER_LAYER, OUTPUTS_PER_LAYER)
        ]
        needs = list(ctx.needs_input_grad[2:])
        with autocast.off(input.device):  # backward may be called inside the context too
            result = torch.ops.fastlif.stack_backward(
                present(grads[0]), grad_layers, input, tensors, saved, *ctx.options, needs
            )
        given = (grad if needed else None for grad, needed in zip(result, needs, strict=True))
        return (None, None, *given)


def run_stack(
    input: Tensor | PackedSpikes,
    plans: Sequence[LayerPlan],
    tensors: Sequence[LayerTensors],
    *,
    exact_membrane: bool,
    backend: str | None,
) -> StackResult:
    """Run checked arguments on the kernels of the backend, None for those of the input's device.

    Raises ValueError when no kernels serve that device, RuntimeError when they are not built.
    """
    flat_input = input.words if isinstance(input, PackedSpikes) else input
    flat = [t for layer in tensors for t in flat_tensors(layer, flat_input)]
    dtype = tensor_dtype(input, tensors)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (flat_input, *flat))
    shape = tuple(input.shape)
    options = (*encode(plans), shape, dtype, exact_membrane, backend or AUTO)
    outputs = StackOutputs.grouped(_Stack.apply(options, keep, flat_input, *flat))
    counts = tuple(
        layer.counts
        for layer, plan in zip(outputs.layers, plans, strict=True)
        if plan.kind == "lif"
    )
    states = tuple(_state(layer, plan) for layer, plan in zip(outputs.layers, plans, strict=True))
    return StackResult(outputs.output, counts, states)


def _state(layer: LayerOutputs, plan: LayerPlan) -> LIFState:
    if plan.kind in ("current", "max_pool"):
        return LIFState()
    has_inhibition = plan.inhibition is not None
    return LIFState(
        layer.membrane,
        layer.synaptic_current,
        layer.pending_current if plan.delay else None,
        layer.inhibitory_current if has_inhibition else None,
        layer.pending_inhibitory if has_inhibition and plan.delay else None,
    )


def flat_tensors(layer: LayerTensors, like: Tensor) -> list[Tensor]:
    """A layer's tensors as the raw operations take them; `like` is on their device."""
    state = layer.state or LIFState()
    weights = (layer.weight, layer.bias, layer.recurrent_weight, layer.inhibitory_weight)
    tensors = (*weights, *state)
    return [like.new_empty(0, dtype=torch.float32) if t is None else t for t in tensors]


def tensor_dtype(input: Tensor | PackedSpikes, tensors: Sequence[LayerTensors]) -> torch.dtype:
    """The dtype that a stack computes in: that of its parameters and states, else the input's."""
    dtype = common_dtype(tensors)
    if dtype is not None:
        return dtype
    return input.dtype if isinstance(input, Tensor) else torch.get_default_dtype()
