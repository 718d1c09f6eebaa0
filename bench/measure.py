"""Timing and memory of training steps."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastlif import PackedSpikes, Sequential, extension
from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.models import Regularization
from fastlif.optim import SMORMS3

LEARNING_RATE = 5e-3
Forward = Callable[[Tensor | PackedSpikes], tuple[Tensor, list[Tensor]]]  # scores, spike counts


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one training step."""

    forward: float  # with the loss
    backward: float
    optimizer: float

    @property
    def step(self) -> float:
        """The whole step."""
        return self.forward + self.backward + self.optimizer

    def scaled(self, factor: float) -> StepTime:
        """For a sample `factor` times as long; the optimizer does not see time."""
        return StepTime(self.forward * factor, self.backward * factor, self.optimizer)


def fused_forward(model: Sequential) -> Forward:
    """fastlif's network as a `Forward`."""

    def forward(spikes: Tensor | PackedSpikes) -> tuple[Tensor, list[Tensor]]:
        output, _, counts = model(spikes, return_spike_counts=True)
        return output, counts

    return forward


class Trainer:
    """Training steps that all start from the same weights, so that the firing rates stay."""

    def __init__(
        self,
        forward: Forward,
        network: nn.Module,
        bounds: Regularization | None,
        targets: Tensor | None,
        networks: int | None = None,  # side by side, whose losses add up
    ) -> None:
        self.networks = networks
        self.forward = forward
        self.bounds = bounds
        self.targets = targets
        self.parameters = list(network.parameters())
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = SMORMS3(self.parameters, lr=LEARNING_RATE)

    def loss(self, input: Tensor | PackedSpikes) -> Tensor:
        """Cross-entropy of the maximum over time plus the preset's bounds; without, the mean."""
        scores, counts = self.forward(input)
        bounds = self.bounds
        if bounds is None or self.targets is None:
            return scores.mean()
        n = self.networks
        loss = max_over_time_cross_entropy(scores, self.targets, n)
        upper = (bounds.v_upper, bounds.upper_strength, bounds.upper_per)
        loss = loss + upper_bound(counts, *upper, networks=n)
        if bounds.lower_strength > 0:
            loss = loss + lower_bound(counts, bounds.v_lower, bounds.lower_strength, n)
        return loss if n is None else loss.sum()

    def step(self, input: Tensor | PackedSpikes) -> StepTime:
        """One timed step."""
        begin = time.perf_counter()
        loss = self.loss(input)
        forward_done = time.perf_counter()
        loss.backward()
        backward_done = time.perf_counter()
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = time.perf_counter()
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss of a timed step must be finite, got {loss.item()}")
        if isinstance(input, Tensor):
            input.grad = None
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.start)
        return StepTime(forward_done - begin, backward_done - forward_done, end - backward_done)

    def turn(self, input: Tensor | PackedSpikes, seconds: float) -> StepTime:
        """The median of steps one after the other, as many as begin within some seconds."""
        times: list[StepTime] = []
        end = time.monotonic() + seconds
        while not times or time.monotonic() < end:
            times.append(self.step(input))
        times.sort(key=lambda one: one.step)
        return times[len(times) // 2]

    def kept_bytes(self, input: Tensor | PackedSpikes) -> int:
        """Bytes that autograd keeps between forward and backward, beside input and parameters."""
        given = input.words if isinstance(input, PackedSpikes) else input
        not_counted = {t.untyped_storage().data_ptr() for t in (given, *self.parameters)}
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in not_counted:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self.loss(input)  # alive while its graph is, so that no address is used twice
        total = sum(sizes.values())
        del loss
        return total


@dataclass(frozen=True)
class Spread:
    """Seconds over the repeats."""

    median: float
    smallest: float
    largest: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        """Median and range."""
        seconds = list(values)
        return Spread(statistics.median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True)
class StepSpread:
    """Spread of every part of a step; the parts' medians need not add up to the step's."""

    forward: Spread
    backward: Spread
    optimizer: Spread
    step: Spread

    @staticmethod
    def of(times: list[StepTime]) -> StepSpread:
        """Over the repeats."""
        names = ("forward", "backward", "optimizer", "step")
        return StepSpread(*(Spread.of(getattr(time, name) for time in times) for name in names))


# Operators that move no data: they make, name or shape tensors.
BOOKKEEPING = {
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty",
    "aten::resize_", "aten::set_", "aten::view", "aten::reshape", "aten::_unsafe_view",
    "aten::as_strided", "aten::expand", "aten::expand_as", "aten::select", "aten::slice",
    "aten::narrow", "aten::split", "aten::unbind", "aten::t", "aten::transpose", "aten::permute",
    "aten::squeeze", "aten::unsqueeze", "aten::flatten", "aten::unflatten", "aten::detach",
    "aten::detach_", "detach", "detach_", "aten::alias", "aten::lift_fresh", "aten::item",
    "aten::_local_scalar_dense", "aten::result_type", "aten::is_nonzero", "aten::view_as",
    "aten::to", "aten::contiguous", "aten::resolve_conj", "aten::resolve_neg", "aten::numpy_T",
}  # fmt: skip


def launches(run: Callable[[], object]) -> int:
    """Operators that a run on a CPU starts and that call no other, by torch's profiler.

    Those that only make, name or shape tensors do not count.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run()
    events = profiler.events() or []
    return sum(_leaves(event) for event in events if event.cpu_parent is None)


def _leaves(event: Any) -> int:
    below = sum(_leaves(child) for child in event.cpu_children)
    is_operator = "::" in event.name and not event.name.startswith(("autograd::", "Optimizer"))
    return below or int(is_operator and event.name not in BOOKKEEPING)


def peak_rss(run: Callable[[], object]) -> int | None:
    """Largest resident memory of this process in bytes while `run` runs; None outside Linux."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        run()
        return None
    reset.write_text("5")  # sets the peak back to the present size
    run()
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def release_freed_memory() -> None:
    """Give back to the system what is free: used again, it would hide memory that a step takes."""
    gc.collect()
    if extension.is_available():
        extension.load().release_pool()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def resident_bytes() -> int | None:
    """Resident memory of this process now; None outside Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024
