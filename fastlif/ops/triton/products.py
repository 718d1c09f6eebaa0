"""How large a piece of work may be, recurrences seen as synapses, and spikes as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.connection import Connection, dense_connection
from fastlif.ops.plan import LayerPlan, SourceColumns, source_columns
from fastlif.ops.remember import remembered
from fastlif.ops.triton import pack
from fastlif.spikes import WORD_STEPS

WORKSPACE = 256 << 20  # bytes that hold a current, or spikes as numbers, at one time


def window_steps(bytes_per_step: int, n_steps: int) -> int:
    """Steps that fit into the workspace: a multiple of 32, or all."""
    steps = WORKSPACE // bytes_per_step // WORD_STEPS * WORD_STEPS
    return n_steps if steps >= n_steps else max(steps, WORD_STEPS)


@contextmanager
def plainly_on(device: torch.device) -> Iterator[None]:
    """The device as the current one, without recording of gradients or autocast inside."""
    current = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with current, torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@lru_cache(maxsize=256)
def recurrence(plan: LayerPlan, *, inhibitory: bool = False) -> LayerPlan:
    """Recurrent synapses of a layer as the feed-forward ones of a plan like it.

    Those of its inhibitory neurons, or those of the others.
    """
    shape = plan.inhibitory_weight_shape if inhibitory else plan.recurrent_weight_shape
    assert shape is not None
    _, channels, height, width = shape
    sources = (channels, *plan.shape[1:])
    link = Connection(sources, plan.shape, (height, width), padding=(height // 2, width // 2))
    return replace(plan, feedforward=link, recurrent_kernel=None, inhibition=None)


class Source(NamedTuple):
    """What one layer hears of another."""

    columns: SourceColumns
    plan: LayerPlan  # the hearing layer as if it heard nothing else

    @property
    def layer(self) -> int:
        """Number of the layer that is heard; -1 is the input."""
        return self.columns.layer

    def weight(self, whole: Tensor) -> Tensor:
        """The part of the layer's weight, or of its gradient, that belongs to this source."""
        return whole.flatten(1)[:, self.columns.first : self.columns.stop]


@remembered
def sources(plans: tuple[LayerPlan, ...], index: int) -> tuple[Source, ...]:
    """What a layer with synapses hears: the layer before it, then the skips."""
    plan = plans[index]
    before, *skips = source_columns(plans, index)
    found = [Source(before, plan)]
    for columns in skips:
        link = dense_connection(plans[columns.layer].emitted_features, plan.shape[0])
        found.append(Source(columns, replace(plan, feedforward=link, skips=())))
    return tuple(found)


def is_recurrent(plan: LayerPlan) -> bool:
    """Whether a layer hears any of its own neurons."""
    return plan.recurrent_kernel is not None or plan.inhibition is not None


def emitted_words(plan: LayerPlan, words: Tensor) -> Tensor:
    """Of a layer's words, int32 (words, batch, N), those of the neurons that others hear."""
    return dense.select_channels(words, plan.shape[0], 0, plan.emitted_features[0])


def unpacked(
    words: Tensor,  # int32 (words, batch, N)
    shape: tuple[int, int, int],  # (channels, height, width)
    dtype: torch.dtype,
    start: int,  # a multiple of 32
    stop: int,
) -> Tensor:
    """Spikes of the steps from start to stop as numbers, (steps, batch, C, H, W) channels last."""
    batch, neurons = words.shape[1:]
    flat = torch.empty((stop - start, batch, neurons), dtype=dtype, device=words.device)
    pack.unpack(words, flat, start, stop, shape, user=False)
    channels, height, width = shape
    return flat.view(stop - start, batch, height, width, channels).permute(0, 1, 4, 2, 3)


Product = Callable[[Tensor], Tensor]


class RecurrentProducts(NamedTuple):
    """The recurrent synapses of a layer, forward or backward; None where it has none.

    Forward, from the spikes of a population to the current of all neurons; backward, from the
    gradient of that current to that of the spikes. All flat, (steps, batch, N).
    """

    excitatory: Product | None
    inhibitory: Product | None

    def of(
        self, excitatory: Tensor | None, inhibitory: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Both products."""
        first = None
        if self.excitatory is not None and excitatory is not None:
            first = self.excitatory(excitatory)
        second = None
        if self.inhibitory is not None and inhibitory is not None:
            second = self.inhibitory(inhibitory)
        return first, second


def recurrent_currents(
    plan: LayerPlan, weight: Tensor | None, inhibitory_weight: Tensor | None
) -> RecurrentProducts:
    """V S and K of a layer from its spikes, by torch's libraries."""

    def product(weight: Tensor | None, inhibitory: bool) -> Product | None:
        if weight is None:
            return None
        own, given = recurrence(plan, inhibitory=inhibitory), weight
        link = own.feedforward
        assert link is not None
        if _is_dense(link):
            return lambda spikes: spikes @ given.t()
        sources = (link.in_shape[0], *plan.features[1:])
        return lambda spikes: dense.injected_current(
            dense.to_user(spikes, sources), own, given, None
        )

    return RecurrentProducts(product(weight, False), product(inhibitory_weight, True))


def recurrent_gradients(
    plan: LayerPlan, weight: Tensor | None, inhibitory_weight: Tensor | None, *, reduced: bool
) -> RecurrentProducts:
    """Gradients of a layer's spikes from dL/dJ and dL/dK, by torch's libraries."""

    def product(weight: Tensor | None, inhibitory: bool) -> Product | None:
        if weight is None:
            return None
        own, given = recurrence(plan, inhibitory=inhibitory), weight
        assert own.feedforward is not None
        if _is_dense(own.feedforward):
            return lambda grad: grad @ given
        return lambda grad: dense.input_gradient(grad, own, given, reduced=reduced)

    return RecurrentProducts(product(weight, False), product(inhibitory_weight, True))


def _is_dense(link: Connection) -> bool:
    return link.out_shape[1:] == (1, 1) and link.kernel == (1, 1)
