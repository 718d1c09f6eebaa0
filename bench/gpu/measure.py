"""Times, bandwidth and memory on a device.

On a GPU times are those of events in the stream; on the CPU, where the code can be rehearsed, of
the clock. Every measurement is warmed up and repeated; the device is idle only where it has
nothing to do, as in training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.floors import Peak
from bench.measure import Forward, StepTime, Trainer
from fastlif import PackedSpikes
from fastlif.graph import GraphStep
from fastlif.models import Regularization

WARM_UP = 3
FLUSH_BYTES = 256 << 20  # several times any second-level cache


class Stopwatch:
    """Marks in the stream of a device and the seconds between them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.marks: list[Any] = []

    def mark(self) -> None:
        """Here."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the device."""
        pairs = list(zip(self.marks, self.marks[1:], strict=False))
        if self.device.type != "cuda":
            return [end - start for start, end in pairs]
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]


def cache_flusher(device: torch.device) -> Callable[[], None]:
    """A function that leaves nothing of earlier tensors in the second-level cache."""
    size = FLUSH_BYTES if device.type == "cuda" else 1  # a CPU's cache is of no interest
    scratch = torch.empty(size, dtype=torch.int8, device=device)

    def flush() -> None:
        scratch.zero_()

    return flush


def time_runs(
    run: Callable[[], object],
    device: torch.device,
    repeats: int,
    *,
    before: Callable[[], object] = lambda: None,  # not timed
) -> list[float]:
    """Seconds of every repeat, after a warm-up."""
    for _ in range(WARM_UP):
        before()
        run()
    watches = []
    for _ in range(repeats):
        before()
        watch = Stopwatch(device)
        watch.mark()
        run()
        watch.mark()
        watches.append(watch)
    return [watch.seconds()[0] for watch in watches]


class DeviceTrainer(Trainer):
    """Training steps that are timed by marks in the stream, and nothing waits between them."""

    def __init__(
        self,
        forward: Forward,
        network: nn.Module,
        bounds: Regularization,
        targets: Tensor,
        device: torch.device,
        networks: int | None = None,
    ) -> None:
        super().__init__(forward, network, bounds, targets, networks)
        self.device = device

    def reset(self) -> None:
        """The weights of the start, so that the firing rates stay."""
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.start)

    def whole_step(self, input: Tensor | PackedSpikes) -> Tensor:
        """Forward, loss, backward, optimizer; the loss, still on the device."""
        loss = self.loss(input)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def times(self, input: Tensor | PackedSpikes, repeats: int) -> list[StepTime]:
        """The parts of `repeats` steps, after a warm-up. ValueError when a loss is not finite."""
        watches, losses = [], []
        for repeat in range(-WARM_UP, repeats):
            watch = Stopwatch(self.device)
            watch.mark()
            loss = self.loss(input)
            watch.mark()
            loss.backward()
            watch.mark()
            self.optimizer.step()
            self.optimizer.zero_grad()
            watch.mark()
            self.reset()
            losses.append(loss.detach())
            del loss
            if repeat >= 0:
                watches.append(watch)
        _check_finite(losses)
        return [StepTime(*watch.seconds()) for watch in watches]

    def graph_times(self, input: PackedSpikes, repeats: int) -> list[float]:
        """Seconds of steps replayed from a CUDA graph; weights are put back in between.

        RuntimeError when the step cannot be recorded.
        """
        step = GraphStep(self.loss, self.optimizer)
        loss = None
        for _ in range(step.warmup + WARM_UP):
            loss = step(input)
            self.reset()
        if not step.captured:
            raise RuntimeError("the step was not recorded as a graph")
        seconds = time_runs(lambda: step(input), self.device, repeats, before=self.reset)
        assert isinstance(loss, Tensor)
        _check_finite([loss])  # in a graph it is the same tensor at every step
        return seconds


def _check_finite(losses: list[Tensor]) -> None:
    if not bool(torch.stack(losses).isfinite().all()):
        raise ValueError("the loss of a timed step must be finite, got another")


@dataclass(frozen=True)
class Memory:
    """Device memory in bytes."""

    before: int  # allocated before the run: parameters, input, targets
    peak: int  # the largest amount allocated during it, `before` included


def peak_memory(run: Callable[[], object], device: torch.device) -> Memory | None:
    """Of a run on a GPU, after one that is not looked at; None elsewhere."""
    run()
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return Memory(before, torch.cuda.max_memory_allocated(device))


@dataclass(frozen=True)
class KernelTime:
    """One kernel over a run."""

    name: str
    calls: int
    seconds: float  # of all calls


def kernel_times(run: Callable[[], object], device: torch.device) -> list[KernelTime]:
    """Every kernel of one run by the profiler, the longest first; RuntimeError if it has none."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    run()
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        run()
        if on_gpu:
            torch.cuda.synchronize(device)
    times = []
    for entry in profiler.key_averages():
        micro = entry.self_device_time_total if on_gpu else entry.self_cpu_time_total
        if micro > 0:
            times.append(KernelTime(entry.key, entry.count, micro * 1e-6))
    if not times:
        raise RuntimeError("the profiler saw no kernels")
    return sorted(times, key=lambda time: time.seconds, reverse=True)


def measure_device_peak(device: torch.device, *, quick: bool) -> Peak:
    """Best of several float32 and TF32 products and copies."""
    size, copied, repeats = (256, 1 << 20, 2) if quick else (8192, 1 << 28, 10)
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    product = torch.empty_like(a)
    source = torch.ones(copied, device=device)
    target = torch.zeros(copied, device=device)
    before = torch.get_float32_matmul_precision()
    rates = []
    try:
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            times = time_runs(lambda: torch.mm(a, b, out=product), device, repeats)
            rates.append(size**3 / min(times))
    finally:
        torch.set_float32_matmul_precision(before)
    copy = min(time_runs(lambda: target.copy_(source), device, repeats))
    if device.type == "cuda":
        torch.cuda.empty_cache()  # other processes share the device
    return Peak(rates[0], 2 * source.nbytes / copy, rates[1])
