"""A whole training step as one CUDA graph: one launch, and nothing waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastlif.spikes import PackedSpikes

__all__ = ["GraphStep"]

Outputs = Tensor | tuple[Tensor, ...]


class GraphStep:
    """A training step: forward, loss, backward and optimizer step for one batch.

    `objective` is given a batch and returns the loss, a scalar, or a tuple that begins with it::

        def objective(spikes, labels):
            scores, _, counts = model(spikes, return_spike_counts=True)
            loss = max_over_time_cross_entropy(scores, labels) + upper_bound(counts, 7.0, 0.01)
            return loss, (scores.argmax(1) == labels).sum()

        step = GraphStep(objective, SMORMS3(model.parameters()))
        for spikes, labels in batches:
            loss, n_correct = step(spikes, labels)

    With the parameters on a GPU, the first `warmup` batches of every shape take ordinary steps, the
    next one is recorded as a CUDA graph, and from then on a step is a copy of the batch and one
    launch. Every call makes exactly one step, recorded or not. On other devices, and with
    `capture=False`, all steps are ordinary ones. `captured` says what the last call did.

    A batch of another shape gets a graph of its own, so a last, smaller batch is allowed; memory
    is shared, but the number of shapes should be small.

    In a graph, the results are the same tensors at every call: read them, or add them up on the
    device, before the next one. What Python did in `objective` is fixed: branches, numbers, the
    mode of the model. Nothing in it may wait for the device, not even to see whether dense input is
    binary: in a graph it counts as numbers. Spikes therefore have to come as PackedSpikes; events
    come in buffers of one size, for `PackedSpikes.from_events(..., validate=False)`. Tensors that
    it changes in place, such as sums over an epoch, go on changing.

    Learning rates can be changed at any time as `optimizer.param_groups[i]["lr"]`, by schedulers
    too; where the group is `capturable` (SMORMS3 always is) they become tensors on the device. Any
    other change of a group, or loading a state, makes the step start over with its warm-up.
    Gradients can be clipped in a hook of the optimizer (`register_step_pre_hook`) and are None
    after the step. Calls may come from different streams, but from one thread at a time.

    Args:
        objective: called with the batch, on the device of the parameters.
        optimizer: of all that is trained. Its step must not wait for the device either: SMORMS3, or
            an optimizer of torch with `capturable=True`.
        capture: None for graphs on a GPU only; True insists on them, False is without.
        warmup: ordinary steps of a shape before its graph is recorded, at least 1.

    Raises:
        ValueError: parameters on several devices, `capture=True` without a GPU, `warmup` below 1.
    """

    def __init__(
        self,
        objective: Callable[..., Outputs],
        optimizer: Optimizer,
        *,
        capture: bool | None = None,
        warmup: int = 2,
    ) -> None:
        devices = {p.device for group in optimizer.param_groups for p in group["params"]}
        if len(devices) != 1:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(f"optimizer must have parameters on one device, got {names or 'none'}")
        if warmup < 1:
            raise ValueError(f"warmup must be at least 1, got {warmup}")
        self.objective = objective
        self.optimizer = optimizer
        self.warmup = warmup
        (self.device,) = devices
        self.captured = False  # whether the last call replayed a graph
        if capture is None:
            capture = self.device.type == "cuda"
        self._recorder = _Recorder(self.device) if capture else None
        self._shapes: dict[Any, _Shape] = {}
        self._rates: dict[int, Tensor] = {}
        self._optimizer_seen: tuple[Any, ...] | None = None

    def __call__(self, *batch: Tensor | PackedSpikes) -> Outputs:
        """Make one step; returns what `objective` does, detached.

        The batch may be on another device: from page-locked memory it is copied without waiting.

        Raises:
            TypeError: a part of the batch or a result is of another type, or the loss no scalar.
            RuntimeError: the step cannot be recorded as a graph.
        """
        kind = tuple(_kind(part) for part in batch)
        if self._recorder is None:
            return self._step([part.to(self.device, non_blocking=True) for part in batch])
        with self._recorder.turn():
            self._follow_optimizer()
            if kind not in self._shapes:
                self._shapes[kind] = _Shape([_buffer(part, self.device) for part in batch])
            shape = self._shapes[kind]
            for buffer, part in zip(shape.inputs, batch, strict=True):
                _words(buffer).copy_(_words(part), non_blocking=True)
            self.captured = shape.steps >= self.warmup
            if not self.captured:
                shape.steps += 1
                return self._recorder.run(lambda: self._step(shape.inputs))
            if shape.replay is None:
                shape.replay, shape.outputs = self._recorder.record(
                    lambda: self._step(shape.inputs)
                )
            shape.replay()
            return shape.outputs

    def _step(self, batch: Sequence[Tensor | PackedSpikes]) -> Outputs:
        self.optimizer.zero_grad(set_to_none=True)
        result = self.objective(*batch)
        results = result if isinstance(result, tuple) else (result,)
        if not results or not all(isinstance(tensor, Tensor) for tensor in results):
            kinds = ", ".join(type(tensor).__name__ for tensor in results)
            raise TypeError(f"objective must return a tensor or a tuple of tensors, got ({kinds})")
        if results[0].numel() != 1:
            raise TypeError(
                f"objective must return a scalar loss first, got shape {tuple(results[0].shape)}"
            )
        results[0].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        detached = tuple(tensor.detach() for tensor in results)
        return detached if isinstance(result, tuple) else detached[0]

    def _follow_optimizer(self) -> None:
        """Take over new learning rates; forget the graphs if anything else is new."""
        groups = self.optimizer.param_groups
        for index, group in enumerate(groups):
            if group.get("capturable"):
                self._place_rate(index, group)
        seen = (
            _Same(self.optimizer.state),
            [
                {name: _Same(v) if isinstance(v, Tensor) else v for name, v in group.items()}
                | {"params": [(p.data_ptr(), p.requires_grad) for p in group["params"]]}
                for group in groups
            ],
        )
        if seen != self._optimizer_seen:
            self._shapes.clear()
            self._optimizer_seen = seen

    def _place_rate(self, index: int, group: dict[str, Any]) -> None:
        """Put a learning rate that is not on the device into the tensor that the graphs read."""
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device == self.device:
            return
        if index not in self._rates:
            dtype = group["params"][0].dtype
            self._rates[index] = torch.empty((), dtype=dtype, device=self.device)
        group["lr"] = self._rates[index].fill_(float(lr))


@dataclass
class _Shape:
    """Batches of one shape: the buffers they are copied to, and the graph that reads these."""

    inputs: list[Tensor | PackedSpikes]
    steps: int = 0  # ordinary ones so far
    replay: Callable[[], None] | None = None
    outputs: Outputs = ()


@dataclass(frozen=True)
class _Same:
    """Equal to another one only if they hold the same object."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value


class _Recorder:
    """A stream beside the user's on which steps are warmed up and recorded."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"capture=True needs parameters on a GPU, they are on {device}")
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._last = torch.cuda.Event()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """What is done inside follows the last turn, whatever the current stream was then."""
        with torch.cuda.device(self._device):
            torch.cuda.current_stream().wait_event(self._last)
            yield
            self._last.record()

    def run(self, function: Callable[[], Outputs]) -> Outputs:
        """Run on the stream on which the graphs are recorded, as their backward pass needs it."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function()
        current.wait_stream(self._stream)
        for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
            tensor.record_stream(current)
        return outputs

    def record(self, function: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Record a graph without running it: what replays it, and the results of a replay."""
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer stream context puts the user's stream back when the capture fails. Other
            # threads, such as one that loads data, may go on talking to the device.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",
                ),
            ):
                outputs = function()
        except RuntimeError as error:
            raise RuntimeError(
                "the step cannot be recorded as a CUDA graph: nothing in it may wait for the "
                "device, as .item(), dense spikes (give PackedSpikes) and optimizers without "
                "capturable=True do; capture=False goes without a graph"
            ) from error
        return graph.replay, outputs


def _words(part: Tensor | PackedSpikes) -> Tensor:
    return part.words if isinstance(part, PackedSpikes) else part


def _kind(part: Tensor | PackedSpikes) -> tuple[Any, ...]:
    """All of a part of a batch but its numbers."""
    if isinstance(part, PackedSpikes):
        return (part.n_steps, part.features, tuple(part.words.shape))
    if isinstance(part, Tensor):
        return (part.dtype, tuple(part.shape))
    raise TypeError(f"a batch must hold Tensors and PackedSpikes, got {type(part).__name__}")


def _buffer(part: Tensor | PackedSpikes, device: torch.device) -> Tensor | PackedSpikes:
    words = _words(part)
    empty = torch.empty(words.shape, dtype=words.dtype, device=device)
    if isinstance(part, PackedSpikes):
        return PackedSpikes(empty, part.n_steps, part.features)
    return empty
