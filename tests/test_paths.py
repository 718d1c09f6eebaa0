"""Max pooling and skip connections beyond the common cases: their geometry and their neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F

from fastlif import ops
from fastlif.ops.connection import conv_connection, dense_connection
from fastlif.ops.plan import LayerPlan, LayerTensors, check_stack, source_columns

from .cases import DECAY_MEM, DECAY_SYN, Stack, layer_tensors, named_leaves
from .compare import loss, relative, replay
from .targets import BY_NAME, Target

DECAYS = {"decay_mem": DECAY_MEM, "decay_syn": DECAY_SYN}
CPU = BY_NAME["cpu"]


def pool(
    features: tuple[int, ...],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
) -> LayerPlan:
    link, shape = conv_connection(
        features,
        features[0],
        kernel=kernel,
        stride=stride,
        padding=padding or (0,) * len(kernel),
        dilation=dilation or (1,) * len(kernel),
    )
    return LayerPlan("max_pool", shape, link)


def conv(features: tuple[int, ...], channels: int, *, recurrent: bool = False) -> LayerPlan:
    n = len(features) - 1
    link, shape = conv_connection(
        features, channels, kernel=(3,) * n, stride=(1,) * n, padding=(1,) * n, dilation=(1,) * n
    )
    kernel = (3 if n == 2 else 1, 3)
    return LayerPlan("lif", shape, link, kernel if recurrent else None, **DECAYS)


def dense(features: tuple[int, ...], neurons: int, *, recurrent: bool = False) -> LayerPlan:
    kernel = (1, 1) if recurrent else None
    return LayerPlan("lif", (neurons,), dense_connection(features, neurons), kernel, **DECAYS)


def readout(
    features: tuple[int, ...], *, kind: str = "readout_max", skips: tuple[int, ...] = ()
) -> LayerPlan:
    link = dense_connection(features, 5)
    return LayerPlan(kind, (5,), link, decay_mem=0.99, decay_syn=DECAY_SYN, skips=skips)


def stack_of(plans: Sequence[LayerPlan], *, n_steps: int = 40, batch: int = 2) -> Stack:
    """Weights that make these layers fire."""
    check_stack(plans)
    generator = torch.Generator().manual_seed(0)

    def normal(shape: Sequence[int]) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values / math.sqrt(math.prod(shape[1:]))

    parameters = []
    for index, plan in enumerate(plans):
        link = plan.feedforward
        if plan.kind == "max_pool":
            parameters.append(LayerTensors())
        elif plan.kind == "lif":
            spatial = len(plan.features) - 1
            dims = {0: (), 1: (3,), 2: (3, 3)}[spatial]
            sources = link.in_shape[0] if spatial else math.prod(link.in_shape)
            own = normal((*[plan.features[0]] * 2, *dims)) if plan.recurrent_kernel else None
            weight = normal((plan.features[0], sources, *dims)) * (7.0 if index else 10.0)
            parameters.append(LayerTensors(weight, None, own))
        else:
            columns = source_columns(tuple(plans), index)[-1].stop
            parameters.append(LayerTensors(normal((5, columns)), normal((5, 1))[:, 0]))
    first = plans[0].feedforward.in_shape
    features = {1: first[:1], 2: (first[0], first[2]), 3: first}[len(plans[0].features)]
    spikes = torch.rand(n_steps, batch, *features, generator=generator, dtype=torch.float64) < 0.2
    return Stack(tuple(plans), tuple(parameters), spikes.double())


def chain(*steps: object, features: tuple[int, ...]) -> tuple[LayerPlan, ...]:
    """Plans from functions of the features before them."""
    plans: list[LayerPlan] = []
    for step in steps:
        plans.append(step(features))
        features = plans[-1].features
    return tuple(plans)


def check(stack: Stack, *, target: Target = CPU) -> None:
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found = replay(stack, dtype, exact=True, target=target)
        assert found.wrong_spikes == 0 and found.output_error < 1e-5
        error, name = found.worst
        assert error < tolerance, f"gradient of {name} is off by {error:.2e}"
        assert all(0.01 < rate < 0.5 for rate in found.firing), found.firing


WINDOWS = {
    "dilated": ((3, 2), (2, 1), (1, 0), (2, 3)),
    "gaps between windows": ((2, 2), (3, 3), (0, 0), (1, 1)),
    "one window": ((9, 8), (1, 1), (0, 0), (1, 1)),
    "every position": ((3, 3), (1, 1), (1, 1), (1, 1)),
    "one position a window": ((1, 1), (2, 2), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_windows(window):
    plans = chain(
        lambda f: conv(f, 18), lambda f: pool(f, *window), lambda f: readout(f), features=(2, 9, 8)
    )
    check(stack_of(plans))


PLACES = {
    "last": chain(
        lambda f: conv(f, 20, recurrent=True),
        lambda f: pool(f, (2,), (2,)),
        features=(2, 31),
    ),
    "twice, then last": chain(
        lambda f: conv(f, 16),
        lambda f: pool(f, (3, 3), (1, 1), (1, 1)),
        lambda f: pool(f, (2, 2), (2, 2)),
        features=(1, 8, 9),
    ),
    "before dense recurrence": chain(
        lambda f: conv(f, 5),
        lambda f: pool(f, (4,), (3,)),
        lambda f: dense(f, 37, recurrent=True),
        lambda f: readout(f, kind="readout_trace"),
        features=(3, 30),
    ),
    # More masks than one run of windows holds, with a remainder.
    "a long map": chain(
        lambda f: conv(f, 64), lambda f: pool(f, (5,), (2,), (2,)), lambda f: readout(f),
        features=(1, 121),
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_places_of_pooling(place):
    # Dense recurrence takes several samples at a time, of batches that are large enough.
    batch = 37 if place == "before dense recurrence" else 3
    check(stack_of(PLACES[place], batch=batch))


SKIPS = {
    "from a pooled layer": chain(
        lambda f: conv(f, 18),
        lambda f: pool(f, (2, 2), (2, 2)),
        lambda f: conv(f, 5, recurrent=True),
        lambda f: pool(f, (2, 2), (2, 2)),
        lambda f: readout(f, skips=(1, 2)),
        features=(2, 8, 8),
    ),
    "past a dense layer": chain(
        lambda f: conv(f, 9),
        lambda f: dense(f, 33, recurrent=True),
        lambda f: dense(f, 20),
        lambda f: readout(f, kind="readout_trace", skips=(0,)),
        features=(3, 20),
    ),
}


@pytest.mark.parametrize("plans", SKIPS.values(), ids=SKIPS)
def test_skips(plans):
    check(stack_of(plans, n_steps=70, batch=19))


@pytest.mark.parametrize("wanted", ["input", "0.weight", "2.weight", "3.weight", "3.bias"])
def test_gradients_of_some_tensors_only(wanted):
    plans = chain(
        lambda f: conv(f, 9),
        lambda f: pool(f, (2,), (2,)),
        lambda f: dense(f, 20),
        lambda f: readout(f, skips=(0, 1)),
        features=(3, 20),
    )
    stack = stack_of(plans, batch=5)
    grads = []
    for everything in (True, False):
        tensors = layer_tensors(stack, torch.float64, torch.float64, state=False)
        input = stack.input.clone().requires_grad_()
        leaves = named_leaves(tensors) | {"input": input}
        for name, leaf in leaves.items():
            leaf.requires_grad_(everything or name == wanted)
        loss(ops.stack(input, plans, tensors)).backward()
        assert all((leaf.grad is not None) == leaf.requires_grad for leaf in leaves.values())
        grads.append(leaves[wanted].grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(*grads)


def test_the_gradient_goes_where_torch_sends_it():
    """A window at a time: the first spike in row-major order, the first source of a silent one."""
    current = torch.zeros(3, 1, 16, 4, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(16, 4, 4, generator=generator) < 0.3
    membrane = torch.where(pattern, 2.0, 0.5).double()[None].requires_grad_()
    lif = LayerPlan("lif", (16, 4, 4), None, surrogate_slope=1e-9, **DECAYS)
    pooled = pool((16, 4, 4), (2, 2), (2, 2))
    state = ops.LIFState(membrane)
    output = ops.stack(current, (lif, pooled), (LayerTensors(state=state), LayerTensors())).output
    weights = torch.randn(1, 16, 2, 2, generator=generator, dtype=torch.float64)
    (output[0] * weights).sum().backward()
    spikes = pattern.double()[None].requires_grad_()
    (F.max_pool2d(spikes, 2) * weights).sum().backward()
    assert 0.1 < output[0].mean() < 0.95
    assert torch.allclose(membrane.grad, spikes.grad, atol=1e-6)


def test_a_broken_sample_leaves_the_others_alone():
    plans = PLACES["before dense recurrence"]
    stack = stack_of(plans, batch=20)
    tensors = layer_tensors(stack, torch.float32, torch.float32, state=False)
    input = stack.input.float().requires_grad_()
    output = ops.stack(input, plans, tensors).output
    grad = torch.ones_like(output)
    grad[-1, 4, 0] = float("nan")
    output.backward(grad)
    broken = ~torch.isfinite(input.grad).flatten(2).all(2).all(0)
    assert broken.nonzero().flatten().tolist() == [4]


def test_a_readout_without_the_skip_columns():
    """Weights of a skip that are zero change nothing, and get a gradient of their own."""
    plans = SKIPS["past a dense layer"]
    stack = stack_of(plans)
    plain = (*plans[:-1], readout((20,), kind="readout_trace"))
    tensors = layer_tensors(stack, torch.float64, torch.float64, state=False)
    with torch.no_grad():
        tensors[-1].weight[:, 20:] = 0
    narrow = [*tensors[:-1], tensors[-1]._replace(weight=tensors[-1].weight[:, :20])]
    with_skip = ops.stack(stack.input, plans, tensors).output
    assert torch.equal(with_skip, ops.stack(stack.input, plain, narrow).output)
    with_skip.square().sum().backward()
    reference = layer_tensors(stack, torch.float64, torch.float64, state=False)
    with torch.no_grad():
        reference[-1].weight[:, 20:] = 0
    output = ops.stack(stack.input, plans, reference, backend="reference").output
    output.square().sum().backward()
    expected = reference[-1].weight.grad
    assert expected[:, 20:].abs().sum() > 0
    assert relative(tensors[-1].weight.grad, expected) < 1e-9
