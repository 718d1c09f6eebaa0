"""The shapes every backend is tested on, listed once: ragged steps, neurons and feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlif.ops.connection import Connection, conv_connection, dense_connection
from fastlif.ops.networks import of_networks
from fastlif.ops.plan import (
    Inhibition,
    LayerPlan,
    LayerTensors,
    LIFState,
    source_columns,
    surrogate_scale,
)

DECAY_MEM, DECAY_SYN = math.exp(-0.1), math.exp(-0.2)  # 20 ms, 10 ms at 2 ms a step


@dataclass(frozen=True)
class Case:
    """A stack of two spiking layers and a readout (or less) and its input."""

    name: str
    n_steps: int
    batch: int
    features: tuple[int, ...]  # of the input
    kernels: tuple[tuple[int, ...], ...] = ()  # convolutional layers; empty: dense
    channels: tuple[int, ...] = ()
    stride: tuple[int, ...] = (1,)
    padding: tuple[int, ...] = (0,)
    dilation: tuple[int, ...] = (1,)
    recurrent: tuple[int, ...] = ()  # recurrent kernel of the convolutional layers
    readout: str = "readout_max"
    inhibitory: tuple[int, ...] = ()  # of the channels of each layer, so many are inhibitory
    inhibitory_kernel: tuple[int, ...] = (1,)
    excitatory_recurrence: bool = True  # of layers with inhibition
    pool: tuple[int, ...] = ()  # windows of max pooling behind every spiking layer
    pool_stride: tuple[int, ...] = (2,)
    pool_padding: tuple[int, ...] = (0,)
    skips: bool = False  # the readout hears the spikes of every layer
    networks: int = 1
    shared_input: bool = False  # of all networks; else `batch` is that of each


DENSE = [
    Case("dense-1-step", 1, 3, (5,), channels=(1, 31)),
    Case("dense-2-steps", 2, 5, (31,), channels=(31, 130)),
    Case("dense-3-steps", 3, 2, (130,), channels=(130, 1)),
    Case("dense-33-steps", 33, 9, (23,), channels=(257, 31), readout="readout_trace"),
    Case("dense-70-steps", 70, 17, (40,), channels=(128, 16)),
]
CONV = [
    Case("conv1d-shd", 70, 3, (1, 120), ((21,), (7,)), (16, 32), (10,), recurrent=(5,)),
    Case("conv1d-ragged", 33, 2, (3, 31), ((5,), (3,)), (20, 33), (2,), (2,), recurrent=(3,)),
    Case("conv1d-dilated", 35, 2, (2, 30), ((3,), (3,)), (20, 5), (2,), (2,), (2,)),
    Case("conv2d", 34, 2, (2, 9, 8), ((3, 3), (3, 3)), (18, 33), (2, 1), (1, 1), (1, 1), (3, 5)),
    Case("conv2d-uneven", 33, 2, (3, 9, 8), ((3, 2),), (5,), (1, 2), (1, 1), (2, 2), (5, 3)),
    Case("conv1d-gaps", 33, 2, (4, 16), ((2,),), (16,), (3,), recurrent=(7,)),
]
INHIBITION = [
    Case("dalian-dense", 70, 9, (40,), channels=(160, 20), inhibitory=(32, 4)),
    Case("dalian-dense-ragged", 33, 5, (23,), channels=(41, 7), inhibitory=(10, 1)),
    Case(
        "dalian-inhibition-only", 35, 4, (17,), channels=(53, 24), inhibitory=(13, 8),
        excitatory_recurrence=False, readout="readout_trace",
    ),
    Case(
        "dalian-conv1d", 70, 2, (1, 60), ((7,), (5,)), (20, 40), (3,), (2,), recurrent=(5,),
        inhibitory=(4, 8), inhibitory_kernel=(3,),
    ),
    Case(
        "dalian-conv2d", 33, 2, (2, 7, 6), ((3, 3), (3, 3)), (9, 21), padding=(1,),
        recurrent=(3, 3), inhibitory=(2, 4), inhibitory_kernel=(3, 5),
    ),
]  # fmt: skip
POOLING = [
    Case(
        "pool2d", 34, 2, (2, 9, 8), ((3, 3), (3, 3)), (18, 5), padding=(1,), pool=(2, 2),
    ),
    Case(
        "pool2d-overlapping", 33, 3, (3, 8, 9), ((3, 3),), (16,), padding=(1,), pool=(3, 2),
        pool_stride=(2, 1), pool_padding=(1,), recurrent=(3, 3),
    ),
    Case("pool1d", 40, 3, (1, 50), ((5,), (3,)), (16, 33), (2,), pool=(3,), pool_stride=(3,)),
    Case(
        "pool-dalian", 34, 2, (2, 8, 8), ((3, 3),), (20,), padding=(1,), recurrent=(3, 3),
        inhibitory=(4,), inhibitory_kernel=(3, 3), pool=(2, 2),
    ),
]  # fmt: skip
SKIPS = [
    Case("skips-dense", 40, 5, (23,), channels=(37, 16, 20), skips=True),
    Case("skips-conv1d", 35, 3, (1, 60), ((7,), (5,), (3,)), (16, 20, 5), (3,), recurrent=(5,),
         skips=True, readout="readout_trace"),
    Case(
        "skips-pool-dalian", 33, 2, (2, 8, 8), ((3, 3), (3, 3)), (20, 9), padding=(1,),
        recurrent=(3, 3), inhibitory=(4, 2), inhibitory_kernel=(3, 3), pool=(2, 2), skips=True,
    ),
    Case(
        "skips-pool", 40, 19, (1, 40), ((5,), (3,)), (16, 20), (2,), recurrent=(3,), pool=(2,),
        skips=True,
    ),
]  # fmt: skip
NETWORKS = [
    Case("networks-dense", 33, 17, (23,), channels=(37, 16), networks=3),
    Case("networks-conv1d", 35, 3, (1, 60), ((7,), (5,)), (16, 20), (3,), recurrent=(5,),
         networks=2, shared_input=True),
    Case(
        "networks-skips-pool-dalian", 33, 2, (2, 8, 8), ((3, 3), (3, 3)), (20, 9), padding=(1,),
        recurrent=(3, 3), inhibitory=(4, 2), inhibitory_kernel=(3, 3), pool=(2, 2), skips=True,
        networks=2, readout="readout_trace",
    ),
    Case("networks-dalian", 33, 5, (23,), channels=(41, 7), inhibitory=(10, 1), networks=3,
         shared_input=True),
]  # fmt: skip


@dataclass(frozen=True)
class Stack:
    """A case with weights: plans, float64 parameters and input."""

    plans: tuple[LayerPlan, ...]
    parameters: tuple[LayerTensors, ...]  # without states
    input: Tensor


def build(
    case: Case,
    *,
    detach_reset: bool = True,
    delay: int = 0,
    rescale: bool = False,
    binary: bool = True,
    seed: int = 0,
) -> Stack:
    """Weights that make the neurons fire, and an input of about 100 Hz."""
    if case.networks > 1:
        options = {"detach_reset": detach_reset, "delay": delay, "rescale": rescale}
        return _side_by_side(case, **options, binary=binary, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = {
        "decay_mem": DECAY_MEM,
        "decay_syn": DECAY_SYN,
        "surrogate_scale": surrogate_scale(1.0, 20.0, rescale=rescale),
        "detach_reset": detach_reset,
        "delay": delay,
    }
    plans: list[LayerPlan] = []
    parameters: list[LayerTensors] = []
    features = case.features
    for index, width in enumerate(case.channels):
        gain = 10.0 if index == 0 else 6.0
        n_inhibitory = case.inhibitory[index] if case.inhibitory else 0
        link, shape, kernel = _synapse(case, index, features)
        recurrent = kernel if not case.kernels or case.recurrent else None
        if n_inhibitory and not case.excitatory_recurrence:
            recurrent = None
        plan = LayerPlan("lif", shape, link, recurrent, **options)
        if n_inhibitory:
            plan = replace(plan, inhibition=_inhibition(case, n_inhibitory))
        plans.append(plan)
        weight = normal(*_user_shape(link.weight_shape, shape)) * gain / math.sqrt(link.fan_in)
        own = inhibitory = None
        if plan.recurrent_weight_shape is not None:
            own = normal(*_user_shape(plan.recurrent_weight_shape, shape))
            own = own / math.sqrt(math.prod(own.shape[1:]))
        if plan.inhibitory_weight_shape is not None:
            inhibitory = normal(*_user_shape(plan.inhibitory_weight_shape, shape)).abs()
            inhibitory = inhibitory / math.sqrt(math.prod(inhibitory.shape[1:]))
        bias = normal(width) * 0.3 if index == 0 else None
        parameters.append(LayerTensors(weight, bias, own, inhibitory_weight=inhibitory))
        features = plan.emitted_features
        if case.pool:
            plans.append(_pool(case, features))
            parameters.append(LayerTensors())
            features = plans[-1].features
    last = len(plans) - 1
    spiking = [i for i, plan in enumerate(plans) if plan.kind == "lif" and i != last]
    out = LayerPlan(
        case.readout,
        (5,),
        dense_connection(features, 5),
        decay_mem=0.99,
        decay_syn=DECAY_SYN,
        delay=delay,
        skips=tuple(spiking) if case.skips else (),
    )
    plans.append(out)
    fan_in = source_columns(tuple(plans), last + 1)[-1].stop
    parameters.append(LayerTensors(normal(5, fan_in) / math.sqrt(fan_in), normal(5) * 0.1))
    shape = (case.n_steps, case.batch, *case.features)
    spikes = (torch.rand(*shape, generator=generator, dtype=torch.float64) < 0.2).double()
    return Stack(tuple(plans), tuple(parameters), spikes if binary else spikes * normal(*shape))


def _side_by_side(case: Case, **options: Any) -> Stack:
    """The networks of a case, of different seeds, as one stack."""
    alone = replace(case, networks=1, shared_input=False)
    seed = options.pop("seed")
    parts = [build(alone, **options, seed=seed + number) for number in range(case.networks)]
    plans = tuple(
        of_networks(plan, case.networks, case.shared_input and index == 0)
        for index, plan in enumerate(parts[0].plans)
    )
    parameters = tuple(
        LayerTensors(
            *(None if own[0] is None else torch.stack(own) for own in zip(*layers, strict=True))
        )
        for layers in zip(*(part.parameters for part in parts), strict=True)
    )
    inputs = [part.input for part in parts]
    return Stack(plans, parameters, inputs[0] if case.shared_input else torch.cat(inputs, 1))


def _synapse(
    case: Case, index: int, features: tuple[int, ...]
) -> tuple[Connection, tuple[int, ...], tuple[int, int]]:
    """Connection into a layer, the layer's features, and the kernel of its recurrence."""
    width = case.channels[index]
    if not case.kernels:
        return dense_connection(features, width), (width,), (1, 1)
    kernel = case.kernels[index]
    first, n = index == 0, len(kernel)
    link, shape = conv_connection(
        features,
        width,
        kernel=kernel,
        stride=_dims(case.stride if first else (1,), n),
        padding=_dims(case.padding if first else (1,), n),
        dilation=_dims(case.dilation if first else (1,), n),
    )
    height, width = (1, 1, *case.recurrent)[-2:]
    return link, shape, (height, width)


def _inhibition(case: Case, n_inhibitory: int) -> Inhibition:
    """Inhibitory neurons with a time constant of their own for everything."""
    height, width = (1, 1, *case.inhibitory_kernel)[-2:]
    decays = [math.exp(-2e-3 / tau) for tau in (20e-3, 15e-3, 8e-3, 25e-3)]
    return Inhibition(n_inhibitory, (height, width), *decays)


def _pool(case: Case, features: tuple[int, ...]) -> LayerPlan:
    n = len(case.pool)
    link, shape = conv_connection(
        features,
        features[0],
        kernel=case.pool,
        stride=_dims(case.pool_stride, n),
        padding=_dims(case.pool_padding, n),
        dilation=_dims((1,), n),
    )
    return LayerPlan("max_pool", shape, link)


def _user_shape(view: tuple[int, int, int, int], features: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a weight as torch keeps it, from its 4-d view."""
    out_channels, in_channels, height, width = view
    if len(features) == 1:
        return (out_channels, in_channels * height * width)
    return (out_channels, in_channels, width) if len(features) == 2 else view


def _dims(values: tuple[int, ...], n: int) -> tuple[int, ...]:
    return values if len(values) == n else values * n


def layer_tensors(
    stack: Stack,
    dtype: torch.dtype,
    like: torch.dtype,
    *,
    state: bool,
    seed: int = 1,
    device: str = "cpu",
) -> list[LayerTensors]:
    """Fresh leaves that require gradients, rounded to `like` and stored as `dtype`.

    Two calls with the same `like` give the same numbers. With `state`, every layer starts from a
    random state that makes some neurons spike at the first step.
    """
    generator = torch.Generator().manual_seed(seed)
    first = stack.plans[0]
    batch = stack.input.shape[1] * (first.networks if first.shared_input else 1)

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().to(like).to(device, dtype, copy=True).requires_grad_()

    result = []
    for plan, own in zip(stack.plans, stack.parameters, strict=True):
        start = None
        if state and plan.kind != "max_pool":
            shape = (batch, *plan.features)

            def number(present: object = True, shape: tuple[int, ...] = shape) -> Tensor | None:
                if not present:
                    return None
                return leaf(torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7)

            inhibition = plan.inhibition
            start = LIFState(
                number(), number(), number(plan.delay), number(inhibition),
                number(inhibition and plan.delay),
            )  # fmt: skip
        result.append(
            LayerTensors(
                leaf(own.weight),
                leaf(own.bias),
                leaf(own.recurrent_weight),
                start,
                leaf(own.inhibitory_weight),
            )
        )
    return result


def named_leaves(tensors: Sequence[LayerTensors]) -> dict[str, Tensor]:
    """All tensors that carry a gradient, by layer and name."""
    leaves = {}
    for index, layer in enumerate(tensors):
        own = layer._asdict()
        state = own.pop("state")
        for name, tensor in (own | ({} if state is None else state._asdict())).items():
            if tensor is not None:
                leaves[f"{index}.{name}"] = tensor
    return leaves
