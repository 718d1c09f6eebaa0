"""The backward pass of a stack, segment by segment from the last layer to the first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.cuda.call import BACKWARD_ORDER, Call, address, packed, side_by_side
from fastlif.ops.cuda.sources import emitted_words, inhibitory_words, readout_parts, stands_alone
from fastlif.ops.layout import (
    FIRST_STATE,
    GRADS_PER_LAYER,
    TENSORS_PER_LAYER,
    Saved,
    per_layer,
)
from fastlif.ops.plan import LayerPlan

INHIBITORY_WEIGHT = 3  # its index in the tensors of a layer


class Backward:
    """The backward pass of one call, segment by segment from the last layer to the first."""

    def __init__(
        self,
        call: Call,
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
        self.needs = list(per_layer(needs[1:]))
        self.reduced = dense.reduced_products_allowed(call.shapes.dtype)
        shapes = (t.shape for t in tensors)
        self.grads = [
            call.empty(shape if needed else (0,))
            for shape, needed in zip(shapes, needs[1:], strict=True)
        ]

    def run(self) -> list[Tensor]:
        """Gradients of the input and of every tensor."""
        above: Tensor | None = None  # flat dL/dS of the segment's last layer
        if self.grad_output.numel() and self.plans[-1].kind != "readout_max":
            above = dense.to_flat(self.grad_output, self.plans[-1].emitted_features)
        skipping: Tensor | None = None  # dL/dJ of a readout with skips
        for start, end in reversed(self.call.segments("backward")):
            if skipping is not None and end - 1 in self.plans[-1].skips:
                assert above is not None
                self._add_skip(end - 1, skipping, above)
            if self.plans[start].kind == "max_pool":
                above = self._pool(start, above)
                continue
            if self.plans[start].inhibition is not None:
                injected = [self._dale(start, above)]
            else:
                injected = self._segment(start, end, above)
            for index in range(start, end):
                self._parameters(index, injected[index - start])
            bottom = injected[0]
            if self.plans[start].skips:
                skipping = bottom
            if start > 0:
                above = self._below(start, bottom)
        return [self._input(bottom), *self.grads]

    def _below(self, layer: int, injected: Tensor) -> Tensor:
        """W^T dL/dJ, dL/dS of the layer before, flat (time, batch, N)."""
        plan, weight = self.plans[layer], self.tensors[layer][0]
        if plan.skips:
            before = readout_parts(self.plans)[0]
            plan, weight = before.plan, before.weight(weight)
        return self._towards_input(plan, injected, weight)

    def _towards_input(self, plan: LayerPlan, injected: Tensor, weight: Tensor) -> Tensor:
        """W^T dL/dJ, flat (time, batch, N of the input)."""
        call = self.call
        each = zip(call.samples_of_each(injected), call.weights_of_each(weight), strict=True)
        return side_by_side(
            [dense.input_gradient(own, plan, w, reduced=self.reduced) for own, w in each]
        )

    def _add_skip(self, layer: int, injected: Tensor, grad_spikes: Tensor) -> None:
        """Add to dL/dS of a layer what a readout's skip from it, with dL/dJ `injected`, brings."""
        for part in readout_parts(self.plans)[1:]:
            if part.layer == layer:
                weight = part.weight(self.tensors[-1][0])
                grad_spikes += self._towards_input(part.plan, injected, weight)

    def _pool(self, layer: int, grad_pooled: Tensor | None) -> Tensor:
        """dL/dS of the sources of a "max_pool" layer, flat (time, batch, N)."""
        call, link = self.call, self.plans[layer].feedforward
        assert link is not None
        steps, batch = call.shapes.n_steps, call.shapes.batch
        grad_spikes = call.empty((steps, batch, math.prod(link.in_shape)))
        if grad_pooled is None:
            return grad_spikes.zero_()
        words = self._spikes_into(layer)
        assert words is not None
        call.kernels.pool_gradient(
            call.plan, layer, words=words.data_ptr(), grad_pooled=grad_pooled.data_ptr(),
            n_steps=steps, batch=batch, is_double=call.is_double,
            grad_spikes=grad_spikes.data_ptr(), stream=call.stream,
        )  # fmt: skip
        return grad_spikes

    def _emitted(self, layer: int) -> Tensor:
        """Words of the spikes that leave a layer."""
        return emitted_words(self.saved.words[layer], self.plans[layer])

    def _spikes_into(self, layer: int) -> Tensor | None:
        """Words of the spikes that drove a layer; None when numbers did."""
        return self._emitted(layer - 1) if layer else self.saved.spikes_into(0, self.input)

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
        pointers[-1].grad_spikes = address(above)
        if end - start == 1 and plans[start].kind == "lif" and not plans[start].recurrent_kernel:
            call.kernels.scan_backward(call.plan, start, pointers[0], **call.common())
        else:
            call.kernels.stack_backward(
                call.plan, (start, end), products=int(self.reduced), layers=pointers,
                shared_bytes=call.shared_bytes, networks=call.shapes.networks, **call.common(),
            )  # fmt: skip
        return injected

    def _dale(self, index: int, above: Tensor | None) -> Tensor:
        """dL/dJ of a layer with inhibition, flat, and the gradient of its inhibitory weight.

        `above` is dL/dS of its excitatory neurons.
        """
        call, plan = self.call, self.plans[index]
        own = plan.inhibitory_weight_shape
        assert own is not None
        steps, batch = call.shapes.n_steps, call.shapes.batch
        injected = call.empty((steps, batch, call.shapes.neurons(plan)))
        needed = self.needs[index][INHIBITORY_WEIGHT]
        inhibitory = torch.empty_like(injected) if needed else None  # dL/dK
        alive: list[Tensor] = []
        p = self._pointers(index, injected, alive, call.kernels.DaleBackwardLayer())
        alive.append(packed(self.tensors[index][INHIBITORY_WEIGHT], own, BACKWARD_ORDER))
        p.inhibitory_weight = address(alive[-1])
        p.grad_spikes, p.grad_inhibitory_injected = address(above), address(inhibitory)
        given = self.grad_layers[GRADS_PER_LAYER * index :][:GRADS_PER_LAYER]
        p.grad_inhibitory, p.grad_pending_inhibitory = map(address, given[4:])
        states = self.grads[TENSORS_PER_LAYER * index :][FIRST_STATE + 3 : TENSORS_PER_LAYER]
        p.grad_inhibitory0, p.grad_pending_inhibitory0 = map(address, states)
        call.kernels.dale_backward(
            call.plan, index, p, shared_bytes=call.shared_bytes, networks=call.shapes.networks,
            **call.common(),
        )  # fmt: skip
        if inhibitory is not None:
            words = inhibitory_words(self.saved.words[index], plan)
            grad = self._events((call.plan, index, "inhibitory"), words, inhibitory, own)
            at = TENSORS_PER_LAYER * index + INHIBITORY_WEIGHT
            self.grads[at] = grad.reshape(self.grads[at].shape).contiguous()
        return injected

    def _pointers(
        self, index: int, injected: Tensor, alive: list[Tensor], layer: Any = None
    ) -> Any:
        """Addresses of a layer's tensors, in `layer` where one is given."""
        plan = self.plans[index]
        weight, _, recurrent_weight = self.tensors[index][:3]
        p = layer or self.call.kernels.BackwardLayer()
        if plan.feedforward is not None and not stands_alone(plan):
            alive.append(packed(weight, plan.feedforward.weight_shape, BACKWARD_ORDER))
            p.weight = address(alive[-1])
        if plan.recurrent_weight_shape is not None:
            alive.append(packed(recurrent_weight, plan.recurrent_weight_shape, BACKWARD_ORDER))
            p.recurrent_weight = address(alive[-1])
        p.kept, p.words = address(self.saved.kept[index]), address(self.saved.words[index])
        if plan.kind == "readout_max":
            p.grad_score, p.best_step = address(self.grad_output), address(self.saved.best_step)
        given = self.grad_layers[GRADS_PER_LAYER * index : GRADS_PER_LAYER * (index + 1)]
        p.grad_counts, p.grad_membrane, p.grad_current, p.grad_pending = map(address, given[:4])
        states = self.grads[TENSORS_PER_LAYER * index + FIRST_STATE :][:3]
        p.grad_membrane0, p.grad_current0, p.grad_pending0 = map(address, states)
        p.grad_injected = injected.data_ptr()
        return p

    def _parameters(self, index: int, injected: Tensor) -> None:
        """Gradients of weight, bias and recurrent weight from dL/dJ."""
        call, plan = self.call, self.plans[index]
        at = TENSORS_PER_LAYER * index
        needs_weight, needs_bias, needs_recurrent = self.needs[index][:3]
        if needs_weight:
            assert plan.feedforward is not None
            shape = self.grads[at].shape
            words = self._spikes_into(index)
            if plan.skips:
                grad = self._readout_weight(injected)
            elif words is None:
                grad = self._weight_of_numbers(injected)
            else:
                view = plan.feedforward.weight_shape
                shared = index == 0 and call.shapes.shares_input
                synapses = (call.plan, index, "input")
                grad = self._events(synapses, words, injected, view, shared_input=shared)
            self.grads[at] = grad.reshape(shape).contiguous()
        if needs_bias:
            parts = call.samples_of_each(injected)
            sums = [part.view(-1, plan.shape[0]).sum(0) for part in parts]
            self.grads[at + 1] = _of_networks(sums)
        if needs_recurrent:
            own = plan.recurrent_weight_shape
            assert own is not None
            words = self._emitted(index)
            grad = self._events((call.plan, index, "layer"), words, injected, own)
            self.grads[at + 2] = grad.reshape(self.grads[at + 2].shape).contiguous()

    def _weight_of_numbers(self, injected: Tensor) -> Tensor:
        """Gradient of the first layer's weight, where numbers drive it."""
        call, plan = self.call, self.plans[0]
        inputs = call.samples_of_each(self.input, shared=call.shapes.shares_input)
        each = zip(call.samples_of_each(injected), inputs, strict=True)
        return _of_networks(
            [dense.weight_gradient(own, x, plan, reduced=self.reduced) for own, x in each]
        )

    def _readout_weight(self, injected: Tensor) -> Tensor:
        """Gradient of the weight of a readout with skips, a block of columns for each source."""
        blocks = []
        for part in readout_parts(self.plans):
            link = part.plan.feedforward
            assert link is not None
            synapses = (part.kernel_plan(self.call), 0, "input")
            words = self._emitted(part.layer)
            blocks.append(self._events(synapses, words, injected, link.weight_shape).flatten(2))
        return torch.cat(blocks, -1)

    def _events(
        self,
        synapses: tuple[Any, int, str],  # plan, layer in it, sources of the synapses
        words: Tensor,
        injected: Tensor,
        view: tuple[int, int, int, int],
        *,
        shared_input: bool = False,  # the words are those of one network's samples
    ) -> Tensor:
        """Gradient of a weight as (network, out channels, in channels, kernel height and width)."""
        call = self.call
        steps, batch, networks = call.shapes.n_steps, call.shapes.batch, call.shapes.networks
        out_channels, in_channels, height, width = view
        splits = call.kernels.weight_gradient_splits(*synapses, steps, call.samples)
        packed = (height, width, in_channels, out_channels)
        grad, partials = call.empty((networks, *packed)), call.empty((networks, splits, *packed))
        call.kernels.weight_gradient(
            *synapses, words=words.data_ptr(), grad_injected=injected.data_ptr(),
            n_steps=steps, batch=batch, networks=networks, shared_input=shared_input,
            is_double=call.is_double, partials=partials.data_ptr(), grad=grad.data_ptr(),
            stream=call.stream,
        )  # fmt: skip
        return grad.permute(0, 4, 3, 1, 2)

    def _input(self, injected: Tensor) -> Tensor:
        """Gradient of the input, (time, batch, *features) as it was given."""
        if not self.needs_input:
            return self.call.empty((0,))
        plan, shapes = self.plans[0], self.call.shapes
        if plan.feedforward is None:
            user = dense.to_user(injected, plan.features)
        else:
            flat = self._towards_input(plan, injected, self.tensors[0][0])
            user = dense.to_user(flat, plan.feedforward.in_shape)
        if shapes.shares_input:
            user = torch.stack(user.chunk(shapes.networks, 1)).sum(0)
        return user.reshape(shapes.input)


def _of_networks(gradients: list[Tensor]) -> Tensor:
    """Of parameters of each network, as one tensor; of one network as they are."""
    return torch.stack(gradients) if len(gradients) > 1 else gradients[0]
