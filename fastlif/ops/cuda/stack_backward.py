"""The backward pass of a stack, segment by segment from the last layer to the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.cuda.call import BACKWARD_ORDER, Call, address, packed
from fastlif.ops.layout import (
    FIRST_STATE,
    GRADS_PER_LAYER,
    TENSORS_PER_LAYER,
    Saved,
    per_layer,
)


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
        pointers[-1].grad_spikes = address(above)
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
        plan = self.plans[index]
        at = TENSORS_PER_LAYER * index
        needs_weight, needs_bias, needs_recurrent = self.needs[index][:3]
        if needs_weight:
            assert plan.feedforward is not None
            shape = self.grads[at].shape
            words = self.saved.spikes_into(index, self.input)
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
