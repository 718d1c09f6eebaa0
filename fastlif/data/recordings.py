"""Recordings of event cameras: kept as lists of events, and turned into spikes batch by batch.

A camera reports an event, at a microsecond, whenever a pixel grew brighter (polarity 1) or darker
(polarity 0). As in the paper, events are dropped at random, pixels are merged into larger ones, and
a piece of fixed duration is cut out. Merging is done once, while a recording is read: whether an
event is dropped before or after it makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlif.data.dataset import n_steps_of, to_device
from fastlif.spikes import PackedSpikes

__all__ = ["CameraEvents", "EventRecordings", "PixelGrid", "collect"]

_LONGEST = 2**31 - 1  # microseconds from the start of a recording: 35 minutes
_DRAWS = 2**24  # values of which an event draws one; those below drop * _DRAWS drop it


class CameraEvents(NamedTuple):
    """Events of one recording as a file has them, any integer types, all equally long."""

    x: NDArray[Any]  # column
    y: NDArray[Any]  # row
    polarity: NDArray[Any]  # 0: darker, 1: brighter
    time: NDArray[Any]  # microseconds

    def at(self, part: slice | NDArray[Any]) -> CameraEvents:
        """The events of a slice, at indices or under a mask."""
        return CameraEvents(*(field[part] for field in self))


@dataclass(frozen=True)
class PixelGrid:
    """How the pixels of a square sensor become those of a network's input.

    Raises:
        ValueError: what is left after cropping cannot be divided into larger pixels.
    """

    sensor: int  # pixels along each side
    crop: int = 0  # pixels cut off at each of the four edges
    downsample: int = 1  # this many pixels a side become one

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.crop < self.sensor:
            raise ValueError(
                f"crop must leave some of {self.sensor} pixels and be at least 0, got {self.crop}"
            )
        left = self.sensor - 2 * self.crop
        if self.downsample < 1 or left % self.downsample:
            raise ValueError(
                f"downsample must divide the {left} pixels of a side, got {self.downsample}"
            )

    @property
    def side(self) -> int:
        """Larger pixels along each side."""
        return (self.sensor - 2 * self.crop) // self.downsample

    @property
    def features(self) -> tuple[int, int, int]:
        """(polarity, row, column)."""
        return (2, self.side, self.side)

    def place(
        self, events: CameraEvents, origin: int, where: str
    ) -> tuple[Tensor, Tensor]:  # (events,) int32 and (events,) int16 or int32
        """Times since `origin` in microseconds, ascending, and neurons of the events left.

        Neurons count polarity first, then columns, then rows: the channels-last order of packed
        spikes. Raises ValueError, which starts with `where`, for what is not on the sensor.
        """
        _check(events.x, self.sensor, "x", where)
        _check(events.y, self.sensor, "y", where)
        _check(events.polarity, 2, "polarity", where)
        time = events.time.astype(np.int64) - origin
        _check(time, _LONGEST, "time in microseconds since the start", where)
        x = (events.x.astype(np.int32) - self.crop) // self.downsample
        y = (events.y.astype(np.int32) - self.crop) // self.downsample
        neuron = (y * self.side + x) * 2 + events.polarity.astype(np.int32)
        if self.crop:
            inside = (x >= 0) & (x < self.side) & (y >= 0) & (y < self.side)
            time, neuron = time[inside], neuron[inside]
        if (np.diff(time) < 0).any():
            order = np.argsort(time, kind="stable")
            time, neuron = time[order], neuron[order]
        small = 2 * self.side**2 <= 2**15
        return (
            torch.from_numpy(time.astype(np.int32)),
            torch.from_numpy(neuron.astype(np.int16 if small else np.int32)),
        )


def _check(values: NDArray[Any], end: int, name: str, where: str) -> None:
    outside = ~((values >= 0) & (values < end))  # true of NaN too
    if outside.any():
        event = int(np.argmax(outside))
        raise ValueError(
            f"{where}: event {event}: {name} must lie in 0..{end - 1}, got {values[event]}"
        )


@dataclass(frozen=True)
class EventRecordings:
    """Labelled recordings of an event camera, 6 bytes an event (8 with more than 32768 neurons).

    A batch takes `duration` seconds of each recording, drops each event with probability `drop`
    and has at most one spike per pixel, polarity and step of `dt` seconds.

    Training (`select` with a generator) draws the start of the piece, among all that lie within the
    recording, and the events to drop. Evaluation (without) takes the piece from the middle of the
    recording and drops events too, since a network trained on half of them expects half of them;
    which ones depends on the number of the sample and of the event alone, so results do not depend
    on how samples are batched. A recording shorter than `duration` starts with the piece, which
    ends in silence.

    Raises:
        ValueError: `dt` is not a whole number of microseconds, `drop` is not in [0, 1), `duration`
            holds no step, or the parts do not fit together.
    """

    times: Tensor  # (events,) int32 microseconds since a recording's start, ascending in each
    neurons: Tensor  # (events,) int16 or int32, (row * W + column) * 2 + polarity
    offsets: Tensor  # (samples + 1,) int64, on the CPU; events of sample i are offsets[i]:[i + 1]
    targets: Tensor  # (samples,) int64 class numbers
    features: tuple[int, int, int]  # (2, H, W)
    n_classes: int
    duration: float = 1.0  # seconds
    dt: float = 2e-3  # seconds
    drop: float = 0.5

    def __post_init__(self) -> None:
        n_steps_of(self.duration, self.dt)
        if not np.isclose(self.dt * 1e6, self.step_us, rtol=1e-9, atol=0.0):
            raise ValueError(f"dt must be a whole number of microseconds, got {self.dt} s")
        if not 0.0 <= self.drop < 1.0:
            raise ValueError(f"drop must lie in [0, 1), got {self.drop}")
        if len(self.times) != len(self.neurons) or int(self.offsets[-1]) != len(self.times):
            raise ValueError(
                "times, neurons and the last offset must agree on the number of events, got "
                f"{len(self.times)}, {len(self.neurons)} and {int(self.offsets[-1])}"
            )
        if len(self.offsets) != len(self) + 1:
            raise ValueError(
                f"offsets must have {len(self) + 1} entries for {len(self)} targets, "
                f"got {len(self.offsets)}"
            )

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def n_steps(self) -> int:
        """Steps of a batch."""
        return n_steps_of(self.duration, self.dt)

    @property
    def step_us(self) -> int:
        """Microseconds per step."""
        return round(self.dt * 1e6)

    @property
    def n_bytes(self) -> int:
        """Memory of the events."""
        return sum(part.numel() * part.element_size() for part in (self.times, self.neurons))

    @cached_property
    def lengths(self) -> Tensor:
        """(samples,) int64 microseconds up to and with each recording's last event, on the CPU."""
        if len(self.times) == 0:
            return torch.zeros(len(self), dtype=torch.int64)
        last = (self.offsets[1:] - 1).clamp_min(0)
        ends = self.times[last.to(self.times.device)].cpu().to(torch.int64) + 1
        return torch.where(self.offsets.diff() > 0, ends, 0)

    def to(self, device: torch.device | str) -> EventRecordings:
        """The same recordings on another device, where batches are then made."""
        return EventRecordings(
            self.times.to(device),
            self.neurons.to(device),
            self.offsets,
            self.targets.to(device),
            self.features,
            self.n_classes,
            self.duration,
            self.dt,
            self.drop,
        )

    def select(
        self,
        indices: Tensor,  # (batch,) int64, on the device of the recordings
        device: torch.device | None = None,
        generator: torch.Generator | None = None,
        part: slice = slice(None),
    ) -> tuple[PackedSpikes, Tensor]:
        """Spikes (time, batch, 2, H, W) and targets (batch,) at `indices[part]`, put on `device`.

        With a generator (on the CPU), which it asks for two numbers for each of `indices`, the
        batch is augmented; the same numbers give the same batch on every device. Recordings on a
        GPU make the host wait for it once.
        """
        chosen = indices.cpu()
        starts, seeds = (drawn[part] for drawn in self._draw(chosen, generator))
        indices, chosen = indices[part], chosen[part]
        spans = self._spans(chosen, starts)
        counts = torch.tensor([0] + [last - first for first, last in spans])
        home = self.times.device
        times = torch.cat(
            [
                self.times[first:last] - start
                for (first, last), start in zip(spans, starts.tolist(), strict=True)
            ]
        )
        neurons = torch.cat([self.neurons[first:last] for first, last in spans])
        steps = torch.div(times, self.step_us, rounding_mode="floor")
        if self.drop:
            begins = self.offsets[chosen].tolist()
            draws = torch.cat(
                [
                    torch.arange(first - begin, last - begin, dtype=torch.int32, device=home) + seed
                    for (first, last), begin, seed in zip(
                        spans, begins, seeds.tolist(), strict=True
                    )
                ]
            )
            # A step behind the last one drops the event, which is cheaper than taking it out.
            steps.masked_fill_(_uniform(draws) < round(self.drop * _DRAWS), self.n_steps)
        spikes = PackedSpikes.from_events(
            steps,
            neurons.to(torch.int32),
            counts.cumsum(0).to(home),
            n_steps=self.n_steps,
            features=self.features,
            validate=home.type == "cpu",  # on a GPU that waits, and neurons were checked before
        )
        words = to_device(spikes.words, device)
        targets = to_device(self.targets.index_select(0, indices), device)
        return PackedSpikes(words, spikes.n_steps, spikes.features), targets

    def _draw(
        self, chosen: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # (batch,) int64 both, on the CPU
        """First microsecond of the piece of each recording, and where its random numbers start."""
        slack = (self.lengths[chosen] - self.n_steps * self.step_us).clamp_min(0)
        if generator is None:
            return slack // 2, _mixed(chosen.to(torch.int32)).to(torch.int64)
        share = torch.rand(len(chosen), dtype=torch.float64, generator=generator)
        starts = (share * (slack + 1)).floor().to(torch.int64)
        seeds = torch.randint(-(2**31), 2**31, (len(chosen),), generator=generator)
        return starts, seeds

    def _spans(self, chosen: Tensor, starts: Tensor) -> list[tuple[int, int]]:
        """First and last + 1 of the events of each piece."""
        ends = (starts + self.n_steps * self.step_us).clamp_max(_LONGEST)
        bounds = torch.stack((starts, ends), dim=1).to(torch.int32).to(self.times.device)
        begins, limits = self.offsets[chosen], self.offsets[chosen + 1]
        within = [
            torch.searchsorted(self.times[begin:limit], bounds[sample])
            for sample, (begin, limit) in enumerate(
                zip(begins.tolist(), limits.tolist(), strict=True)
            )
        ]
        spans = torch.stack(within).cpu() + begins.unsqueeze(1)
        return [(first, last) for first, last in spans.tolist()]


def _mixed(numbers: Tensor) -> Tensor:
    """A one-to-one scrambling of int32 numbers, after which neighbours look unrelated.

    Multiplications and shifts of Wellons' "lowbias32"; they wrap around the same way on every
    device, and need no state, so that an event's draw depends on its number alone.
    """
    numbers = numbers ^ _shifted(numbers, 16)
    numbers.mul_(0x7FEB352D)
    numbers ^= _shifted(numbers, 15)
    numbers.mul_(0x846CA68B - 2**32)
    numbers ^= _shifted(numbers, 16)
    return numbers


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Bits moved down, with zeros from above (a shift of a signed number repeats its sign)."""
    return (numbers >> bits).bitwise_and_((1 << (32 - bits)) - 1)


def _uniform(numbers: Tensor) -> Tensor:
    """One of `_DRAWS` values for each int32 number."""
    return _shifted(_mixed(numbers), 8)


def collect(
    samples: Sequence[tuple[Tensor, Tensor]],  # times and neurons of each
    labels: Sequence[int],
    grid: PixelGrid,
    n_classes: int,
    **settings: float,
) -> EventRecordings:
    """Recordings one after the other; `settings` are `duration`, `dt` and `drop`."""
    counts = torch.tensor([0] + [len(times) for times, _ in samples])
    return EventRecordings(
        torch.cat([times for times, _ in samples]),
        torch.cat([neurons for _, neurons in samples]),
        counts.cumsum(0),
        torch.tensor(labels, dtype=torch.int64),
        grid.features,
        n_classes,
        **settings,
    )
