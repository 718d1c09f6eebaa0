"""Plans as flat tuples of int and float, all an operation's schema can carry, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

from fastlif.ops.connection import Connection
from fastlif.ops.plan import KINDS, Inhibition, LayerPlan
from fastlif.ops.remember import remembered

INTS_PER_LAYER = 28
FLOATS_PER_LAYER = 9


def encode(plans: Sequence[LayerPlan]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Plans as flat tuples: the number of layers and 28 ints a layer; 9 floats a layer.

    Ints of a layer: kind (index in KINDS), number of feature dimensions, C, H, W; has feedforward,
    in C, H, W, kernel h, w, stride h, w, padding h, w, dilation h, w; is recurrent, recurrent
    kernel h, w; detach_reset, delay; inhibitory channels, inhibitory kernel h, w; skips as bits;
    networks beyond the first, shared_input.
    Floats of a layer: decay_mem, decay_syn, threshold, surrogate_slope, surrogate_scale; of the
    inhibition decay_syn, neuron_decay_mem, neuron_decay_syn, neuron_decay_inhibitory.
    """
    return _encode(tuple(plans))


@remembered
def _encode(plans: tuple[LayerPlan, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    ints: list[int] = [len(plans)]
    floats: list[float] = []
    for plan in plans:
        code = [KINDS.index(plan.kind), len(plan.features), *plan.shape]
        link = plan.feedforward
        if link is None:
            code += [0] * 12
        else:
            code += [1, *link.in_shape, *link.kernel, *link.stride, *link.padding, *link.dilation]
        recurrent = plan.recurrent_kernel
        code += [0, 0, 0] if recurrent is None else [1, *recurrent]
        code += [int(plan.detach_reset), plan.delay]
        own = plan.inhibition
        code += [0, 0, 0] if own is None else [own.channels, *own.kernel]
        code += [sum(1 << index for index in plan.skips)]
        ints += [*code, plan.networks - 1, int(plan.shared_input)]
        floats += [
            plan.decay_mem,
            plan.decay_syn,
            plan.threshold,
            plan.surrogate_slope,
            plan.surrogate_scale,
            *((0.0,) * 4 if own is None else astuple(own)[2:]),
        ]
    return tuple(ints), tuple(float(value) for value in floats)


@remembered
def decode(ints: tuple[int, ...], floats: tuple[float, ...]) -> tuple[LayerPlan, ...]:
    """Give back the plans that `encode` was given; ValueError when the lengths do not fit."""
    n_layers = ints[0] if ints else 0
    if len(ints) != 1 + n_layers * INTS_PER_LAYER or len(floats) != n_layers * FLOATS_PER_LAYER:
        raise ValueError(
            f"{n_layers} layers need {1 + n_layers * INTS_PER_LAYER} ints and "
            f"{n_layers * FLOATS_PER_LAYER} floats, got {len(ints)} and {len(floats)}"
        )
    plans = []
    for index in range(n_layers):
        code = iter(ints[1 + index * INTS_PER_LAYER : 1 + (index + 1) * INTS_PER_LAYER])
        plans.append(_decode_layer(code, iter(floats[index * FLOATS_PER_LAYER :])))
    return tuple(plans)


def _decode_layer(ints: Iterator[int], floats: Iterator[float]) -> LayerPlan:
    """One layer, its numbers taken in the order in which `encode` lists them."""

    def pair() -> tuple[int, int]:
        return next(ints), next(ints)

    def triple() -> tuple[int, int, int]:
        return next(ints), next(ints), next(ints)

    kind, n_dims, shape = KINDS[next(ints)], next(ints), triple()
    features = ((shape[0],), (shape[0], shape[2]), shape)[n_dims - 1]
    has_feedforward, in_shape = next(ints), triple()
    kernel, stride, padding, dilation = pair(), pair(), pair(), pair()
    is_recurrent, recurrent_kernel = next(ints), pair()
    link = None
    if has_feedforward:
        link = Connection(in_shape, shape, kernel, stride, padding, dilation)
    options: dict[str, Any] = {
        "decay_mem": next(floats),
        "decay_syn": next(floats),
        "threshold": next(floats),
        "surrogate_slope": next(floats),
        "surrogate_scale": next(floats),
        "detach_reset": bool(next(ints)),
        "delay": next(ints),
    }
    channels, inhibitory_kernel, skips = next(ints), pair(), next(ints)
    if channels:
        decays = (next(floats), next(floats), next(floats), next(floats))
        options["inhibition"] = Inhibition(channels, inhibitory_kernel, *decays)
    options["skips"] = tuple(bit for bit in range(skips.bit_length()) if skips >> bit & 1)
    options |= {"networks": 1 + next(ints), "shared_input": bool(next(ints))}
    return LayerPlan(kind, features, link, recurrent_kernel if is_recurrent else None, **options)
