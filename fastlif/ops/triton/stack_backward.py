"""The backward pass of a stack, from the last layer to the first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.layout import (
    FIRST_STATE,
    GRADS_PER_LAYER,
    TENSORS_PER_LAYER,
    Saved,
    StackShapes,
    per_layer,
)
from fastlif.ops.plan import LayerPlan
from fastlif.ops.triton import launch, pairs, pool, recurrent, retreat, synapse
from fastlif.ops.triton.products import (
    Source,
    emitted_words,
    is_recurrent,
    recurrence,
    recurrent_gradients,
    sources,
    unpacked,
    window_steps,
)


def run(
    grad_output: Tensor,  # empty where absent, as all gradients here
    grad_layers: Sequence[Tensor],  # per layer: counts and the five final states
    input: Tensor,
    tensors: Sequence[Tensor],
    saved: Saved,
    shapes: StackShapes,
    *,
    needs: Sequence[bool],  # input, then nine per layer
) -> list[Tensor]:
    """Gradients of the input and of every tensor, empty where not needed."""
    return _Backward(grad_output, grad_layers, input, tensors, saved, shapes, needs).run()


class _Backward:
    """The backward pass of one call."""

    def __init__(
        self,
        grad_output: Tensor,
        grad_layers: Sequence[Tensor],
        input: Tensor,
        tensors: Sequence[Tensor],
        saved: Saved,
        shapes: StackShapes,
        needs: Sequence[bool],
    ) -> None:
        self.grad_output = grad_output.contiguous()
        self.grad_layers = [launch.present(grad.contiguous()) for grad in grad_layers]
        self.input = input
        self.tensors = list(per_layer([tensor.contiguous() for tensor in tensors]))
        self.saved = saved
        self.shapes = shapes
        self.needs_input = needs[0]
        self.needs = needs[1:]
        self.reduced = dense.reduced_products_allowed(shapes.dtype)
        self.grads = [
            self._empty(tensor.shape if needed else (0,))
            for tensor, needed in zip(tensors, self.needs, strict=True)
        ]

    def _empty(self, shape: Sequence[int]) -> Tensor:
        device = self.input.device
        return torch.empty(tuple(shape), dtype=self.shapes.dtype, device=device)

    def run(self) -> list[Tensor]:
        """Gradients of the input and of every tensor."""
        plans = self.shapes.plans
        above: Tensor | None = None  # flat dL/dS, or dL/d output of the last layer
        if self.grad_output.numel() and plans[-1].kind != "readout_max":
            above = dense.to_flat(self.grad_output, plans[-1].emitted_features)
        of_last: Tensor | None = None  # dL/dJ of the last layer, when it has skips
        for index in reversed(range(len(plans))):
            plan = plans[index]
            if index in plans[-1].skips:
                assert of_last is not None
                above = self._with_skip(index, above, of_last)
            if plan.kind == "max_pool":
                above = self._source_of_pooling(index, plan, above)
                continue
            injected, inhibiting = self._injected(index, plan, above)
            self._parameters(index, injected)
            self._recurrent_parameters(index, plan, injected, inhibiting)
            of_last = injected if plan.skips else of_last
            if index > 0:
                above = self._source_gradient(index, sources(plans, index)[0], injected)
        return [self._input_gradient(injected), *self.grads]

    def _injected(
        self, index: int, plan: LayerPlan, above: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """dL/dJ and, with inhibition, dL/dK of a layer, flat (time, batch, N).

        May take the memory of `above`.
        """
        shape = (self.shapes.n_steps, self.shapes.batch, self.shapes.neurons(plan))
        if plan.kind == "current":
            return self._empty(shape).zero_() if above is None else above, None
        stepwise = is_recurrent(plan)
        # Not the caller's, and not read again after it was written.
        reusable = None if stepwise or index + 1 == len(self.shapes.plans) else above
        given = self.grad_layers[GRADS_PER_LAYER * index : GRADS_PER_LAYER * (index + 1)]
        first = TENSORS_PER_LAYER * index + FIRST_STATE
        initial = self.grads[first : TENSORS_PER_LAYER * (index + 1)]
        adjoint = retreat.Adjoint(
            plan,
            launch.constants(plan, self.shapes.dtype, self.input.device),
            self.shapes.n_steps,
            grad_counts=given[0],
            grad_final=given[1:],
            kept=self.saved.kept[index],
            words=self.saved.words[index],
            grad_initial=[launch.present(grad) for grad in initial],
            grad_injected=self._empty(shape) if reusable is None else reusable,
            grad_inhibiting=self._empty(shape) if plan.inhibition else None,
        )
        if plan.kind != "lif":
            is_max = plan.kind == "readout_max"
            grad = launch.present(self.grad_output) if is_max else above
            best_step = self.saved.best_step if is_max else None
            retreat.readout_backward(adjoint, grad, best_step)
        elif not stepwise:
            state = self._empty((0,))  # one window: nothing to hand on
            none = (None, None)
            retreat.lif_backward(adjoint, above, none, state, 0, self.shapes.n_steps)
        elif recurrent.fits(adjoint):
            parts = synapse.split_weight(self.tensors[index][2])
            recurrent.recurrent_backward(adjoint, above, parts, reduced=self.reduced)
        else:
            weights = (launch.present(weight) for weight in self.tensors[index][2:4])
            products = recurrent_gradients(plan, *weights, reduced=self.reduced)
            pairs.recurrent_backward(adjoint, above, products)
        return adjoint.grad_injected, adjoint.grad_inhibiting

    def _source_of_pooling(
        self, index: int, plan: LayerPlan, above: Tensor | None
    ) -> Tensor | None:
        """dL/dS of what a pooling layer hears, flat (time, batch, N of the input)."""
        words = self._words_of(index - 1)
        assert plan.feedforward is not None and words is not None
        return None if above is None else pool.pool_backward(words, above, plan.feedforward)

    def _with_skip(self, index: int, above: Tensor | None, of_last: Tensor) -> Tensor:
        """dL/dS of a layer that the last one hears through a skip; may change `above`."""
        last = len(self.shapes.plans) - 1
        (skip,) = (s for s in sources(self.shapes.plans, last)[1:] if s.layer == index)
        grad = self._source_gradient(last, skip, of_last)
        return grad if above is None else above.add_(grad)

    def _words_of(self, layer: int) -> Tensor | None:
        """Words of what a layer emits, -1 for the input; None when that is numbers."""
        words = self.saved.spikes_into(layer + 1, self.input)
        if layer < 0 or words is None:
            return words
        return emitted_words(self.shapes.plans[layer], words)

    def _parameters(self, index: int, injected: Tensor) -> None:
        """Gradients of weight and bias of a layer."""
        grad_weight, grad_bias = self.grads[TENSORS_PER_LAYER * index :][:2]
        plans = self.shapes.plans
        if grad_weight.numel():
            for source in sources(plans, index):
                words = self._words_of(source.layer)
                grad = self._weight_gradient(source.plan, injected, words)
                source.weight(grad_weight).copy_(grad.flatten(1))
        if grad_bias.numel():
            channels = plans[index].shape[0]
            torch.sum(injected.reshape(-1, channels), 0, out=grad_bias)

    def _recurrent_parameters(
        self, index: int, plan: LayerPlan, injected: Tensor, inhibiting: Tensor | None
    ) -> None:
        """Gradients of recurrent and inhibitory weight of a layer."""
        grad_recurrent, grad_inhibitory = self.grads[TENSORS_PER_LAYER * index :][2:4]
        words, channels = self.saved.words[index], plan.shape[0]
        if grad_recurrent.numel():
            own = emitted_words(plan, words)
            grad = self._weight_gradient(recurrence(plan), injected, own)
            grad_recurrent.copy_(grad.reshape(grad_recurrent.shape))
        if grad_inhibitory.numel():
            assert inhibiting is not None
            own = dense.select_channels(words, channels, plan.emitted_features[0], channels)
            grad = self._weight_gradient(recurrence(plan, inhibitory=True), inhibiting, own)
            grad_inhibitory.copy_(grad.reshape(grad_inhibitory.shape))

    def _weight_gradient(self, plan: LayerPlan, injected: Tensor, words: Tensor | None) -> Tensor:
        """dL/dW, (out channels, in channels, kernel height, kernel width); no words: the input."""
        link = plan.feedforward
        assert link is not None
        if words is not None and self.shapes.dtype == torch.float32:
            return synapse.weight_gradient(words, injected, link, reduced=self.reduced)
        channels, height, width = link.in_shape
        size = self.shapes.batch * channels * height * width
        n_steps = self.shapes.n_steps
        window = window_steps(size * injected.element_size(), n_steps)
        total: Tensor | None = None
        for start in range(0, n_steps, window):
            stop = min(start + window, n_steps)
            if words is None:
                source = self.input[start:stop]
            else:
                source = unpacked(words, link.in_shape, injected.dtype, start, stop)
            part = dense.weight_gradient(injected[start:stop], source, plan, reduced=self.reduced)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def _source_gradient(self, index: int, source: Source, injected: Tensor) -> Tensor:
        """W^T dL/dJ of a layer for one of its sources, flat (time, batch, N of the source)."""
        weight = source.weight(self.tensors[index][0])
        return dense.input_gradient(injected, source.plan, weight, reduced=self.reduced)

    def _input_gradient(self, injected: Tensor) -> Tensor:
        if not self.needs_input:
            return self._empty((0,))
        first = self.shapes.plans[0]
        features = self.shapes.input[2:]
        if first.feedforward is None:
            return dense.to_user(injected, features)
        grad = self._source_gradient(0, sources(self.shapes.plans, 0)[0], injected)
        return dense.to_user(grad, features)
