"""How large a piece of work may be, recurrences seen as synapses, and spikes as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from fastlif.ops import dense
from fastlif.ops.plan import Connection, LayerPlan
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
def recurrence(plan: LayerPlan) -> LayerPlan:
    """The recurrent synapse of a layer as the feed-forward one of a plan like it."""
    assert plan.recurrent_kernel is not None
    height, width = plan.recurrent_kernel
    link = Connection(plan.shape, plan.shape, (height, width), padding=(height // 2, width // 2))
    return replace(plan, feedforward=link, recurrent_kernel=None)


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


def recurrent_product(plan: LayerPlan, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """V S of a layer, flat (steps, batch, N) to the same, by torch's libraries."""
    if _is_dense(plan):
        return lambda spikes: spikes @ weight.t()
    own = recurrence(plan)
    return lambda spikes: dense.injected_current(
        dense.to_user(spikes, plan.features), own, weight, None
    )


def recurrent_gradient(
    plan: LayerPlan, weight: Tensor, *, reduced: bool
) -> Callable[[Tensor], Tensor]:
    """V^T dL/dJ of a layer, flat (steps, batch, N) to the same, by torch's libraries."""
    if _is_dense(plan):
        return lambda grad: grad @ weight
    own = recurrence(plan)
    return lambda grad: dense.input_gradient(grad, own, weight, reduced=reduced)


def _is_dense(plan: LayerPlan) -> bool:
    return plan.shape[1:] == (1, 1) and plan.recurrent_kernel == (1, 1)
