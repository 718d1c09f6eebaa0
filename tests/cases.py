"""The shapes every backend is tested on, listed once: ragged steps, neurons and feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastlif.ops.plan import (
    LayerPlan,
    LayerTensors,
    LIFState,
    conv_connection,
    dense_connection,
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


@dataclass(frozen=True)
class Stack:
    """A case with weights: plans, float64 parameters and input."""

    plans: tuple[LayerPlan, ...]
    parameters: tuple[tuple[Tensor | None, Tensor | None, Tensor | None], ...]
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
    parameters: list[tuple[Tensor | None, Tensor | None, Tensor | None]] = []
    features = case.features
    for index, width in enumerate(case.channels):
        gain = 10.0 if index == 0 else 6.0
        bias = normal(width) * 0.3 if index == 0 else None
        if case.kernels:
            kernel = case.kernels[index]
            first = index == 0
            n = len(kernel)
            link, shape = conv_connection(
                features,
                width,
                kernel=kernel,
                stride=_dims(case.stride if first else (1,), n),
                padding=_dims(case.padding if first else (1,), n),
                dilation=_dims(case.dilation if first else (1,), n),
            )
            recurrent = (1, *case.recurrent)[-2:] if case.recurrent else None
            weight = normal(width, features[0], *kernel) * gain / math.sqrt(link.fan_in)
            own = None
            if recurrent:
                own = normal(width, width, *case.recurrent)
                own = own / math.sqrt(width * math.prod(case.recurrent))
        else:
            link, shape, recurrent = dense_connection(features, width), (width,), (1, 1)
            weight = normal(width, link.fan_in) * gain / math.sqrt(link.fan_in)
            own = normal(width, width) / math.sqrt(width)
        plans.append(LayerPlan("lif", shape, link, recurrent, **options))
        parameters.append((weight, bias, own))
        features = shape
    out = LayerPlan(
        case.readout,
        (5,),
        dense_connection(features, 5),
        decay_mem=0.99,
        decay_syn=DECAY_SYN,
        delay=delay,
    )
    fan_in = math.prod(features)
    plans.append(out)
    parameters.append((normal(5, fan_in) / math.sqrt(fan_in), normal(5) * 0.1, None))
    shape = (case.n_steps, case.batch, *case.features)
    spikes = (torch.rand(*shape, generator=generator, dtype=torch.float64) < 0.2).double()
    return Stack(tuple(plans), tuple(parameters), spikes if binary else spikes * normal(*shape))


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
    batch = stack.input.shape[1]

    def leaf(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return tensor.detach().to(like).to(device, dtype, copy=True).requires_grad_()

    result = []
    for plan, (weight, bias, own) in zip(stack.plans, stack.parameters, strict=True):
        start = None
        if state:
            shape = (batch, *plan.features)
            numbers = [
                leaf(torch.randn(shape, generator=generator, dtype=torch.float64) * 0.7)
                for _ in range(3 if plan.delay else 2)
            ]
            start = LIFState(*numbers)
        result.append(LayerTensors(leaf(weight), leaf(bias), leaf(own), start))
    return result


def named_leaves(tensors: Sequence[LayerTensors]) -> dict[str, Tensor]:
    """All tensors that carry a gradient, by layer and name."""
    leaves = {}
    for index, layer in enumerate(tensors):
        state = {} if layer.state is None else layer.state._asdict()
        own = {k: getattr(layer, k) for k in ("weight", "bias", "recurrent_weight")}
        for name, tensor in (own | state).items():
            if tensor is not None:
                leaves[f"{index}.{name}"] = tensor
    return leaves
