"""Arguments that the operations refuse, each with one message that names it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastlif import ops
from fastlif.ops import Inhibition, LayerPlan, LayerTensors, LIFState
from fastlif.ops.connection import conv_connection, dense_connection
from fastlif.ops.engines import ENGINES, chosen
from fastlif.spikes import PackedSpikes

DECAYS = {"decay_mem": 0.9, "decay_syn": 0.8}
LINK, FEATURES = conv_connection((2, 9), 3, kernel=(4,), stride=(1,), padding=(0,), dilation=(1,))
PLAN = LayerPlan("lif", FEATURES, LINK, (1, 3), **DECAYS)
TENSORS = LayerTensors(torch.ones(3, 2, 4), torch.ones(3), torch.ones(3, 3, 3))
SPIKES = torch.ones(5, 2, 2, 9)


@pytest.mark.parametrize("backend", ["reference", None])
def test_what_fits_runs(backend):
    result = ops.stack(SPIKES, [PLAN], [TENSORS], backend=backend)
    assert result.output.shape == (5, 2, 3, 6) and result.output.sum() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": torch.ones(3, 2, 5)}, r"weight must have shape \(3, 2, 4\), got \(3, 2, 5\)"),
        ({"weight": None}, r"weight must be a Tensor of shape \(3, 2, 4\), got NoneType"),
        ({"bias": torch.ones(2)}, r"layer 0: bias must have shape \(3,\), got \(2,\)"),
        ({"recurrent_weight": None}, "recurrent_weight must be a Tensor"),
        (
            {"recurrent_weight": torch.ones(3, 3, 5)},
            r"recurrent_weight must have shape \(3, 3, 3\)",
        ),
        (
            {"weight": torch.ones(3, 2, 4, dtype=torch.float64)},
            "bias must have dtype torch.float64",
        ),
        ({"weight": torch.ones(3, 2, 4).half()}, "weight must have dtype float32 or float64"),
        ({"bias": torch.ones(3, device="meta")}, "bias must be on the device of the input, cpu"),
        ({"state": LIFState(torch.ones(2, 3, 5))}, r"state.membrane must have shape \(2, 3, 6\)"),
        (
            {"state": LIFState(None, torch.ones(3, 3, 6))},
            r"state.synaptic_current must have shape \(2, 3, 6\)",
        ),
        (
            {"state": LIFState(None, torch.ones(2, 3, 6).double())},
            "state.synaptic_current must have dtype torch.float32",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_plan(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.stack(SPIKES, [PLAN], [TENSORS._replace(**changes)])


@pytest.mark.parametrize(
    ("input", "message"),
    [
        (SPIKES[0, 0], r"input must have shape \(time, batch, \*features\), got \(2, 9\)"),
        (SPIKES[..., :8], r"input must have features \(2, 1, 9\), got shape \(5, 2, 2, 8\)"),
        (SPIKES[:0], "at least one step and one sample"),
        (SPIKES[:, :0], "at least one step and one sample"),
        (SPIKES.double(), "input must have dtype torch.float32, that of the parameters"),
        (SPIKES.half(), "input must have dtype torch.float32"),
        (SPIKES.cfloat(), "input must be real"),
        (SPIKES.numpy(), "input must be a Tensor or PackedSpikes, got ndarray"),
    ],
)
def test_inputs_that_do_not_fit(input, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.stack(input, [PLAN], [TENSORS])


def test_one_entry_of_tensors_per_layer():
    with pytest.raises(ValueError, match="tensors must hold one entry per layer, 1, got 2"):
        ops.stack(SPIKES, [PLAN], [TENSORS, TENSORS])


def test_tensors_a_layer_has_no_use_for():
    current = torch.zeros(4, 2, 6)
    plan = LayerPlan("lif", (6,), **DECAYS)
    for name in ("weight", "bias", "recurrent_weight"):
        with pytest.raises(ValueError, match=f"{name} must be None for this kind of layer"):
            ops.stack(current, [plan], [LayerTensors(**{name: torch.ones(6)})])
    plan = LayerPlan("current", (2,), dense_connection((6,), 2))
    tensors = LayerTensors(torch.ones(2, 6), state=LIFState(torch.zeros(2, 2)))
    with pytest.raises(ValueError, match="state.membrane must be None for this kind of layer"):
        ops.stack(current, [plan], [tensors])


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("CPU", "backend 'CPU' is unknown; there are reference, cpu, cuda, triton"),
        ("", "backend '' is unknown"),
        ("cuda", "backend 'cuda' needs a GPU; the input is on cpu"),
        ("triton", "backend 'triton' needs a GPU; the input is on cpu"),
    ],
)
def test_a_backend_that_cannot_run_is_never_replaced(backend, message):
    with pytest.raises(ValueError, match=message):
        ops.stack(SPIKES, [PLAN], [TENSORS], backend=backend)


def test_while_tracing_the_operation_itself_refuses():
    """torch.compile passes the early check by; the choice of engine says the same."""
    device = torch.device("cpu")
    with pytest.raises(ValueError, match="backend 'cuda' needs a GPU; the input is on cpu"):
        chosen("cuda", device, [PLAN], torch.float32)
    with pytest.raises(ValueError, match="no fastlif kernels for a tensor on meta: .*needs a GPU"):
        chosen("auto", torch.device("meta"), [PLAN], torch.float32)
    assert chosen("auto", device, [PLAN], torch.float32) is ENGINES["cpu"]


def test_a_backend_needs_tensors_on_its_device():
    meta = SPIKES.to("meta")
    with pytest.raises(ValueError, match="backend 'cpu' needs tensors on cpu; .* on meta"):
        ops.stack(meta, [PLAN], [TENSORS], backend="cpu")


def test_operations_check_dimensions_of_their_weights():
    for operation, weight, dims in (
        (ops.linear, torch.ones(3, 2, 1), 2),
        (ops.conv1d, torch.ones(3, 2), 3),
        (ops.conv2d, torch.ones(3, 2, 1), 4),
    ):
        with pytest.raises(ValueError, match=f"weight must have {dims} dimensions"):
            operation(SPIKES, weight)
    with pytest.raises(ValueError, match=r"stride must be an int or 1 ints, got \(1, 2\)"):
        ops.conv1d(SPIKES, torch.ones(3, 2, 4), stride=(1, 2))
    with pytest.raises(ValueError, match="recurrent_weight must have 2 dimensions"):
        ops.lif(torch.zeros(3, 2, 4), recurrent_weight=torch.ones(4, 4, 3), **DECAYS)
    with pytest.raises(ValueError, match=r"recurrent_kernel must be odd .* got \(1, 2\)"):
        ops.lif(SPIKES, recurrent_weight=torch.ones(2, 2, 2), **DECAYS)
    with pytest.raises(ValueError, match="reduction must be 'max' or 'none', got 'mean'"):
        ops.readout(torch.zeros(3, 2, 4), reduction="mean", **DECAYS)


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_whole_numbers_are_taken_in_the_parameters_dtype(dtype, backend):
    # int32 too: packed spikes have words of that dtype and must not be confused with counts.
    counts = (torch.rand(20, 2, 2, 9) < 0.3).to(dtype)
    if dtype != torch.bool:
        counts *= 3
    weights = TENSORS._replace(weight=torch.rand(3, 2, 4, dtype=torch.float64), bias=None)
    weights = weights._replace(recurrent_weight=-torch.rand(3, 3, 3, dtype=torch.float64))
    result = ops.stack(counts, [PLAN], [weights], backend=backend)
    expected = ops.stack(counts.double(), [PLAN], [weights], backend=backend)
    assert result.output.dtype == torch.float64
    assert 0.01 < expected.output.mean() < 0.5
    assert torch.equal(result.output, expected.output)


@pytest.mark.parametrize("backend", ["reference", None])
def test_packed_spikes_can_be_a_current(backend):
    dense = (torch.rand(20, 2, 3) < 0.5).float()
    options = {"decay_mem": 0.5, "decay_syn": 0.8, "backend": backend}
    expected = ops.lif(4.0 * dense, threshold=4.0, **options).output
    result = ops.lif(PackedSpikes.pack(dense), **options).output
    assert 0.01 < expected.mean() < 0.5
    assert torch.equal(result, expected)


def inhibitory(n: int) -> Inhibition:
    return Inhibition(n, (1, 1), 0.9, 0.9, 0.8, 0.9)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (LayerPlan("lif", (500,), recurrent_kernel=(1, 1)), "cuda"),
        (LayerPlan("lif", (520,), recurrent_kernel=(1, 1)), "triton"),
        # 500 * 400 recurrent and 500 * 100 inhibitory weights, then 520 * 420 and 520 * 100.
        (LayerPlan("lif", (500,), recurrent_kernel=(1, 1), inhibition=inhibitory(100)), "cuda"),
        (LayerPlan("lif", (520,), recurrent_kernel=(1, 1), inhibition=inhibitory(100)), "triton"),
        (LayerPlan("lif", (500,), inhibition=inhibitory(100)), "cuda"),
        (LayerPlan("lif", (1000,), inhibition=inhibitory(300)), "triton"),
    ],
)
def test_on_a_gpu_layers_with_many_own_weights_go_to_triton(plan, expected, monkeypatch):
    for name in ("cuda", "triton"):
        able = dataclasses.replace(ENGINES[name], reason=lambda *_: "")
        monkeypatch.setitem(ENGINES, name, able)
    assert chosen("auto", torch.device("cuda"), (plan,), torch.float32) is ENGINES[expected]
