"""The forward pass of a stack: layer by layer, windows of steps that bound the workspace."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastlif.ops import dense, pooling
from fastlif.ops.layout import (
    FIRST_STATE,
    LayerOutputs,
    StackOutputs,
    StackShapes,
    kept_dtype,
    per_layer,
)
from fastlif.ops.plan import EMITS_SPIKES, LayerPlan, LIFState
from fastlif.ops.triton import launch, pack, pairs, recurrent, scan, synapse
from fastlif.ops.triton.products import (
    Source,
    emitted_words,
    is_recurrent,
    recurrent_currents,
    sources,
    unpacked,
    window_steps,
)

Current = Callable[[int, int], Tensor]  # flat J, without the recurrent part, of start .. stop


def run(
    input: Tensor,  # (time, batch, *features), or int32 words
    tensors: Sequence[Tensor],  # nine per layer, empty where absent
    shapes: StackShapes,
    *,
    exact: bool,
    keep: bool,
) -> StackOutputs:
    """Outputs of all layers; with `keep`, also what the backward pass needs."""
    device, dtype = input.device, shapes.dtype
    is_words = input.dtype == torch.int32
    words = input.contiguous() if is_words else torch.empty(0, dtype=torch.int32, device=device)
    is_binary = is_words
    if not is_words and shapes.plans[0].feedforward is not None:
        input = input if input[0, 0].is_contiguous() else input.contiguous()
        words, is_binary = _packed(input, shapes)
    output = torch.empty(shapes.output, dtype=dtype, device=device)
    best_step = torch.empty(shapes.best_step, dtype=torch.int32, device=device)
    layers: list[LayerOutputs] = []
    heard = [words if is_binary else None]  # of the input and of every layer
    for index, (plan, own) in enumerate(zip(shapes.plans, per_layer(tensors), strict=True)):
        out = _outputs(plan, shapes, kept_dtype(dtype, exact) if keep else None, device)
        spikes = heard[-1]
        if plan.kind == "max_pool":
            assert plan.feedforward is not None and spikes is not None
            out = out._replace(words=pooling.pooled_words(spikes, plan.feedforward))
        else:
            if spikes is None:
                current = _current_of_values(plan, own, input)
            else:
                current = _current_of_spikes(sources(shapes.plans, index), own, heard, dtype)
            _layer(plan, own, shapes, out, current, output, best_step)
        if plan.kind == "lif":
            pack.count(out.words, out.counts, plan.features)
        heard.append(emitted_words(plan, out.words))
        layers.append(out)
    last = shapes.plans[-1]
    if last.kind in EMITS_SPIKES:
        spikes, features = emitted_words(last, layers[-1].words), last.emitted_features
        pack.unpack(spikes, output, 0, shapes.n_steps, features, user=True)
    # What is handed out must not depend on the values of the input, and not be the input itself.
    none = words.new_empty(0)
    if not keep:
        layers = [layer._replace(words=none) for layer in layers]
    if not keep or is_words:
        words = none
    flag = torch.tensor([is_binary], dtype=torch.bool, device="cpu")
    return StackOutputs(output, best_step, words, flag, layers)


def _packed(input: Tensor, shapes: StackShapes) -> tuple[Tensor, bool]:
    """Dense input as words, and whether it was binary, which waits for the device.

    While a graph is captured nothing may wait: the input then counts as not binary.
    """
    if input.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        return torch.zeros(shapes.input_words, dtype=torch.int32, device=input.device), False
    words, not_binary = pack.pack(input)
    return words, not bool(not_binary.item())


def _outputs(
    plan: LayerPlan, shapes: StackShapes, kept: torch.dtype | None, device: torch.device
) -> LayerOutputs:
    def empty(shape: Sequence[int], dtype: torch.dtype = shapes.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    return LayerOutputs(
        kept=empty((0,)) if kept is None else empty(shapes.kept(plan), kept),
        words=empty(shapes.words(plan), torch.int32),
        counts=empty(shapes.counts(plan)),
        membrane=empty(shapes.state(plan)),
        synaptic_current=empty(shapes.state(plan)),
        pending_current=empty(shapes.pending(plan)),
        inhibitory_current=empty(shapes.inhibitory(plan)),
        pending_inhibitory=empty(shapes.pending_inhibitory(plan)),
    )


def _current_of_values(
    plan: LayerPlan,
    tensors: Sequence[Tensor],
    values: Tensor,  # user (time, batch, *features), not spikes
) -> Current:
    """How the current of a layer is made that takes it as its input, or makes it from numbers."""
    if plan.feedforward is None:
        return lambda start, stop: dense.to_flat(values[start:stop], plan.features)
    weight, bias = tensors[0], launch.present(tensors[1])
    return lambda start, stop: dense.injected_current(values[start:stop], plan, weight, bias)


def _current_of_spikes(
    heard: Sequence[Source],
    tensors: Sequence[Tensor],
    words: Sequence[Tensor | None],  # of the input and of every layer before
    dtype: torch.dtype,
) -> Current:
    """How the current is made that the spikes of these sources inject, in their order."""
    bias = launch.present(tensors[1])
    parts: list[Current] = []
    for source in heard:
        spikes = words[source.layer + 1]
        assert spikes is not None
        first_bias = None if parts else bias
        parts.append(_synapse(source.plan, source.weight(tensors[0]), first_bias, spikes, dtype))

    def total(start: int, stop: int) -> Tensor:
        current = parts[0](start, stop)
        for part in parts[1:]:
            current += part(start, stop)
        return current

    return total


def _synapse(
    plan: LayerPlan, weight: Tensor, bias: Tensor | None, words: Tensor, dtype: torch.dtype
) -> Current:
    link = plan.feedforward
    assert link is not None
    if dtype == torch.float32:
        reduced = dense.reduced_products_allowed(dtype)
        parts = synapse.split_weight(synapse.forward_weight(link, weight))
        return lambda start, stop: synapse.injected_current(
            words, link, parts, bias, start, stop, reduced=reduced
        )
    return lambda start, stop: dense.injected_current(
        unpacked(words, link.in_shape, dtype, start, stop), plan, weight, bias
    )


def _layer(
    plan: LayerPlan,
    tensors: Sequence[Tensor],
    shapes: StackShapes,
    out: LayerOutputs,
    current: Current,
    output: Tensor,
    best_step: Tensor,
) -> None:
    """Run one layer over all steps."""
    n_steps = shapes.n_steps
    # A step's current, and its inputs as numbers where there are such.
    numbers = shapes.neurons(plan) + sum(shapes.neurons(shapes.plans[i]) for i in plan.skips)
    if plan.feedforward is not None:
        channels, height, width = plan.feedforward.in_shape
        numbers += channels * height * width
    window = window_steps(shapes.batch * numbers * output.element_size(), n_steps)
    windows = [(start, min(start + window, n_steps)) for start in range(0, n_steps, window)]
    if plan.kind == "current":
        for start, stop in windows:
            output[start:stop] = dense.to_user(current(start, stop), plan.features)
        return
    neurons = scan.Neurons(
        plan,
        launch.constants(plan, shapes.dtype, output.device),
        LIFState(*(launch.present(t.contiguous()) for t in tensors[FIRST_STATE:])),
        out,
        output.new_empty((5 if plan.inhibition else 3, shapes.batch, shapes.neurons(plan))),
        n_steps,
    )
    if is_recurrent(plan) and not recurrent.fits(neurons):
        weights = launch.present(tensors[2]), launch.present(tensors[3])
        pairs.recurrent_forward(neurons, current, window, recurrent_currents(plan, *weights))
        return
    reduced = dense.reduced_products_allowed(shapes.dtype)
    if plan.recurrent_kernel is not None:
        parts = synapse.split_weight(tensors[2].t())
    for start, stop in windows:
        injected = current(start, stop)
        if plan.recurrent_kernel is not None:
            recurrent.recurrent_forward(neurons, injected, parts, start, stop, reduced=reduced)
        elif plan.kind == "lif":
            scan.lif_forward(neurons, injected, start, stop)
        else:
            scan.readout_forward(neurons, injected, output, best_step, start, stop)
