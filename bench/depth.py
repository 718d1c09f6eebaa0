"""How deep a network trains within a given amount of memory: `python -m bench growth layers`.

The network begins like the preset shd-conv10: kernel 5, stride 2, 16 and 32 channels, then 64. The
preset's stride of 2 halves the length until it is 1, after which a layer costs next to nothing; so
every layer behind the first one of 64 channels has stride 1 and keeps its length of 88, 5632
neurons, unless `--deep-stride 2` asks for the preset's.

The limit holds for the whole process, PyTorch, data and parameters included: its data segment
(RLIMIT_DATA) and its largest resident size must both stay below. Real steps, each in a process of
its own, look for a depth that fits while the next one does not; the line through those of two
shallow networks says where to begin.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.alone import Died, alone
from bench.measure import peak_rss
from bench.points import SIDES, Network, trainer_and_input
from fastlif.memory import is_out_of_memory
from fastlif.models import ConvSize, preset

GIB = 1 << 30
SPARE_BYTES = GIB // 2  # for the rest of the system
SHALLOW = 3  # layers, of which the last is as large as all that may follow


@dataclass(frozen=True)
class Search:
    """What is looked for: most layers of `deep_network` that fit."""

    limit: int  # bytes
    batch: int = 100
    n_steps: int = 350
    features: tuple[int, ...] = (1, 700)
    deep_stride: int = 1

    def network(self, n_layers: int) -> Network:
        """The network of `n_layers` recurrent layers."""
        hidden = deep_layers(n_layers, self.deep_stride)
        return Network(self.features, hidden, self.batch, self.n_steps)


@dataclass(frozen=True)
class Attempt:
    """One real training step under the limit."""

    n_layers: int
    fits: bool
    peak_rss: int | None  # bytes; None where the process was refused memory
    reason: str  # why it does not fit


@dataclass(frozen=True)
class Depth:
    """The answer for one side."""

    n_layers: int | None  # None: no step was confirmed to fit in the time there was
    is_largest: bool  # whether a step with one layer more was tried and did not fit
    expected: int
    attempts: list[Attempt]


def deep_layers(n_layers: int, deep_stride: int) -> tuple[ConvSize, ...]:
    """The first layers of preset shd-conv10, then more like its deep ones."""
    *narrow, wide = preset("shd-conv10").hidden[:3]
    assert isinstance(wide, ConvSize)
    deep = dataclasses.replace(wide, stride=deep_stride)
    return (*narrow, wide, *[deep] * (n_layers - 3))[:n_layers]  # type: ignore[return-value]


def limited_step(search: Search, n_layers: int, side: str) -> Attempt:
    """One step of the whole batch in this process, which is limited from here on."""
    # What is loaded and started with the first step says something else when it gets no memory.
    _step(dataclasses.replace(search, batch=1, n_steps=8), 1, side)
    resource.setrlimit(resource.RLIMIT_DATA, (search.limit, search.limit))
    try:
        peak = _step(search, n_layers, side)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0]
        return Attempt(n_layers, False, None, f"out of memory: {first_line}")
    assert peak is not None  # Linux: RLIMIT_DATA counts nothing useful elsewhere
    fits = peak <= search.limit
    return Attempt(n_layers, fits, peak, "" if fits else "resident size above the limit")


def _step(search: Search, n_layers: int, side: str) -> int | None:
    # The layers' own default weights: memory does not depend on how often neurons fire.
    network = search.network(n_layers)
    trainer, input = trainer_and_input(network, network.build(), side)
    return peak_rss(lambda: trainer.step(input))


def attempt(search: Search, n_layers: int, side: str) -> Attempt:
    """`limited_step` in a process of its own."""
    try:
        return alone(limited_step, search, n_layers, side)
    except Died as death:
        # bad_alloc in a kernel's thread aborts, and the system may kill what takes its memory.
        return Attempt(n_layers, False, None, str(death))


def search_depth(search: Search, side: str, deadline: float) -> Depth:
    """Guess, then confirm by real steps until `deadline` (of time.monotonic) at most.

    ValueError where the machine has less free memory than the limit.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}; got {side!r}")
    available = available_bytes()
    if available < search.limit + SPARE_BYTES:
        raise ValueError(
            f"a limit of {search.limit / GIB:.1f} GiB needs {SPARE_BYTES / GIB:.1f} GiB more of "
            f"free memory, there are {available / GIB:.1f} GiB: see --memory"
        )
    attempts: dict[int, Attempt] = {}

    def fits(n_layers: int) -> bool:
        if n_layers not in attempts:
            attempts[n_layers] = attempt(search, n_layers, side)
        return attempts[n_layers].fits

    expected = SHALLOW
    if fits(SHALLOW) and fits(SHALLOW + 1):
        first, second = attempts[SHALLOW], attempts[SHALLOW + 1]
        expected = _end_of_line(search.limit, first, second)
        # One layer more is little to go by; a third of the way, a step is still quick.
        third = expected // 3
        if third > SHALLOW + 1 and fits(third):
            expected = _end_of_line(search.limit, second, attempts[third])
    best, is_largest = confirm(expected, fits, lambda: time.monotonic() > deadline)
    return Depth(best, is_largest, expected, list(attempts.values()))


def _end_of_line(limit: int, first: Attempt, second: Attempt) -> int:
    """How deep a network fits, if every layer takes what the last of the second one's takes."""
    assert first.peak_rss is not None and second.peak_rss is not None  # both fit
    per_layer = (second.peak_rss - first.peak_rss) // (second.n_layers - first.n_layers)
    per_layer = max(1, per_layer)
    return second.n_layers + (limit - second.peak_rss) // per_layer


def confirm(
    guess: int, fits: Callable[[int], bool], is_over: Callable[[], bool]
) -> tuple[int | None, bool]:
    """The largest n >= 1 that fits and whether n + 1 was tried, starting from a good guess.

    Walks from the guess in growing strides until one number fits and one does not, then halves.
    Ends early when `is_over`; 0 where even 1 does not fit, None where it is not known.
    """
    low: int | None = None  # the largest that fits
    high: int | None = None  # the smallest that does not
    n, stride = guess, 1
    while not is_over():
        low, high = (n, high) if fits(n) else (low, n)
        if high == 1:
            return 0, True
        if low is not None and high is not None:
            if high - low == 1:
                return low, True
            n = (low + high) // 2
            continue
        n = max(1, n + stride if high is None else n - stride)
        stride *= 2
    return low, False


def quick_search() -> Search:
    """A small one: few neurons, and a limit not far above what one layer takes."""
    small = Search(0, batch=10, n_steps=32, features=(1, 88))
    return dataclasses.replace(small, limit=alone(_size_after_a_step, small) + 24 * (1 << 20))


def _size_after_a_step(search: Search) -> int:
    """Largest resident size of this process, or its data segment where that is larger."""
    peak = max(_step(search, 1, side) or 0 for side in SIDES)
    status = Path("/proc/self/status").read_text().splitlines()
    return max(peak, *(int(one.split()[1]) * 1024 for one in status if one.startswith("VmData:")))


def available_bytes() -> float:
    """Memory that processes can still take; without a limit outside Linux."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return math.inf
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def depth_text(side: str, depth: Depth, limit: int) -> str:
    """One line."""
    if depth.n_layers is None:
        return f"  {side:<8} none confirmed, {depth.expected} expected"
    tried = ", ".join(f"{one.n_layers}: {_attempt_text(one)}" for one in depth.attempts)
    bound = "" if depth.is_largest else "at least "
    return f"  {side:<8} {bound}{depth.n_layers} layers within {limit / GIB:.2f} GiB ({tried})"


def _attempt_text(attempt: Attempt) -> str:
    if attempt.peak_rss is None:
        return "refused"
    return f"{attempt.peak_rss / GIB:.2f} GiB" + ("" if attempt.fits else ", too much")
