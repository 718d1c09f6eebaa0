"""Layers as modules: parameters, shapes, options, copies, states and errors."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlif.layers import LIF, LIFConv1d, LIFConv2d, LIFLinear, LIFOutput, LIReadout
from fastlif.ops import LIFState, reference
from fastlif.spikes import PackedSpikes

BACKENDS = ["reference", None]
backends = pytest.mark.parametrize("backend", BACKENDS)
DOUBLE = {"dtype": torch.float64}


def random_spikes(n_steps: int, batch: int, *features: int, rate: float = 0.15) -> Tensor:
    return (torch.rand(n_steps, batch, *features) < rate).double()


def spiking(layer: nn.Module, scale: float = 3.0) -> nn.Module:
    """Weights at which a small layer fires at the densities of these tests."""
    with torch.no_grad():
        layer.weight.mul_(scale)
    return layer


# name: (constructor, features of the input, features of the output)
CASES = {
    "linear": (lambda **o: LIFLinear(11, 7, **o), (11,), (7,)),
    "linear on a map": (lambda **o: LIFLinear(12, 7, **o), (3, 4), (7,)),
    "conv1d": (lambda **o: LIFConv1d(2, 3, 5, 2, padding=1, **o), (2, 20), (3, 9)),
    "conv1d same": (
        lambda **o: LIFConv1d(2, 3, 3, padding="same", dilation=2, **o),
        (2, 9),
        (3, 9),
    ),
    "conv2d": (lambda **o: LIFConv2d(2, 3, (3, 2), (2, 1), **o), (2, 9, 6), (3, 4, 5)),
}
cases = pytest.mark.parametrize("case", CASES)


def build(case: str, **options) -> tuple[nn.Module, Tensor]:
    make, features, _ = CASES[case]
    layer = spiking(make(dtype=torch.float64, **options))
    return layer, random_spikes(40, 3, *features)


@backends
@cases
@pytest.mark.parametrize("recurrent", [False, True])
def test_a_layer_computes_its_plan(case, recurrent, backend):
    layer, input = build(case, recurrent=recurrent, backend=backend, delay=1, threshold=0.8)
    nn.init.normal_(layer.bias, std=0.1)
    input.requires_grad_()
    output = layer(input)
    assert output.shape == (40, 3, *CASES[case][2]) and output.dtype == torch.float64
    assert 0.01 < output.mean() < 0.5

    plan = layer.plan(CASES[case][1], 40)
    assert plan.decay_mem == math.exp(-0.1) and plan.decay_syn == math.exp(-0.2)
    assert (plan.delay, plan.threshold, plan.surrogate_scale) == (1, 0.8, 1.0)
    expected = reference.stack(input, [plan], [layer.tensors()]).output
    assert torch.equal(output, expected)
    weights = torch.randn_like(output)
    parameters = [input, *layer.parameters()]
    grads = torch.autograd.grad((output * weights).sum(), parameters)
    expected_grads = torch.autograd.grad((expected * weights).sum(), parameters)
    assert len(grads) == 3 + recurrent
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.norm() > 0
        torch.testing.assert_close(grad, expected_grad)


def test_parameters_follow_torch():
    for layer, twin in (
        (LIFLinear(5, 4), nn.Linear(5, 4)),
        (LIFConv1d(2, 4, 3), nn.Conv1d(2, 4, 3)),
        (LIFConv2d(2, 4, (3, 5)), nn.Conv2d(2, 4, (3, 5))),
        (LIReadout(5, 4), nn.Linear(5, 4)),
    ):
        assert layer.recurrent_weight is None
        layer.load_state_dict(twin.state_dict())
        assert torch.equal(layer.weight, twin.weight) and torch.equal(layer.bias, twin.bias)
    assert list(LIFLinear(5, 4, recurrent=True).state_dict()) == [
        "weight",
        "recurrent_weight",
        "bias",
    ]
    layer = LIFLinear(5, 4, False, recurrent=True)
    assert layer.bias is None and list(layer.state_dict()) == ["weight", "recurrent_weight"]
    assert layer.recurrent_weight.shape == (4, 4)
    layer = LIFConv1d(2, 4, 3, recurrent=True, recurrent_kernel_size=7)
    assert layer.recurrent_weight.shape == (4, 4, 7)
    layer = LIFConv2d(2, 4, 3, recurrent=True, recurrent_kernel_size=(3, 5))
    assert layer.recurrent_weight.shape == (4, 4, 3, 5)
    assert (layer.fan_in, layer.recurrent_fan_in) == (18, 60)
    assert LIFLinear(5, 4).recurrent_fan_in == 0
    assert list(LIF().state_dict()) == []
    layer = LIFLinear(5, 4, device="meta", dtype=torch.float64)
    assert layer.weight.is_meta and layer.bias.dtype == torch.float64


def test_parameters_start_fluctuation_driven():
    layer = LIFLinear(500, 400, recurrent=True)
    # sigma_W^2 = alpha sigma_U^2 / (n nu eps_hat), eps_hat = 0.0020356 at the default constants
    sigma = math.sqrt(0.9 / (500 * 10.0 * 0.0020356))
    assert layer.weight.std().item() == pytest.approx(sigma, rel=0.02)
    sigma = math.sqrt(0.1 / (400 * 10.0 * 0.0020356))
    assert layer.recurrent_weight.std().item() == pytest.approx(sigma, rel=0.02)
    readout = LIReadout(400, 300)
    assert readout.weight.std().item() == pytest.approx(1 / 20, rel=0.02)
    for module in (layer, readout):
        with torch.no_grad():
            module.weight.zero_()
            module.bias.fill_(1.0)
        module.reset_parameters()
        assert module.bias.abs().max() == 0 and module.weight.std() > 0
    torch.manual_seed(5)
    first = LIFConv1d(2, 3, 5).weight
    torch.manual_seed(5)
    assert torch.equal(LIFConv1d(2, 3, 5).weight, first)


@backends
@cases
def test_batch_first_swaps_the_first_two_dimensions(case, backend):
    layer, input = build(case, recurrent=True, backend=backend)
    expected = layer(input, return_state=True, return_spike_counts=True)
    assert 0.01 < expected.output.mean() < 0.5
    layer.batch_first = True
    result = layer(input.transpose(0, 1), return_state=True, return_spike_counts=True)
    assert torch.equal(result.output, expected.output.transpose(0, 1))
    assert torch.equal(result.spike_counts, expected.spike_counts)
    assert torch.equal(result.state.membrane, expected.state.membrane)
    packed = layer(PackedSpikes.pack(input))  # packed spikes are time first in any case
    assert torch.equal(packed, result.output)


@backends
@cases
def test_packed_spikes_equal_dense_ones(case, backend):
    layer, input = build(case, recurrent=True, backend=backend)
    dense = layer(input)
    weights = torch.randn_like(dense)
    expected = torch.autograd.grad((dense * weights).sum(), list(layer.parameters()))
    packed = layer(PackedSpikes.pack(input))
    assert 0.01 < dense.mean() < 0.5 and torch.equal(packed, dense)
    grads = torch.autograd.grad((packed * weights).sum(), list(layer.parameters()))
    for grad, expected_grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, expected_grad)


@backends
@cases
def test_input_that_is_not_binary_is_exact(case, backend):
    layer, input = build(case, backend=backend)
    analogue = input * (0.5 + torch.rand_like(input))
    # The membrane is linear in its input: half of it, twice the weights, the same spikes.
    expected = layer(analogue)
    assert 0.01 < expected.mean() < 0.5
    assert not torch.equal(layer((analogue > 0).double()), expected)
    with torch.no_grad():
        layer.weight.mul_(2.0)
    assert torch.equal(layer(analogue * 0.5), expected)


@backends
@cases
def test_chunks_with_states_equal_the_whole(case, backend):
    layer, input = build(case, recurrent=True, backend=backend, delay=1)
    whole = layer(input, return_state=True, return_spike_counts=True)
    assert 0.01 < whole.output.mean() < 0.5
    state, outputs, counts = None, [], 0.0
    for chunk in input.split([1, 33, 6]):
        output, state, chunk_counts = layer(
            chunk, state, return_state=True, return_spike_counts=True
        )
        outputs.append(output)
        counts = counts + chunk_counts
    assert torch.equal(torch.cat(outputs), whole.output)
    assert torch.equal(counts, whole.spike_counts)
    for last, expected in zip(state, whole.state, strict=True):
        assert (last is None) == (expected is None)
        assert last is None or torch.equal(last, expected)


@backends
def test_flags_decide_what_is_returned(backend):
    layer, input = build("linear", backend=backend)
    output = layer(input)
    assert isinstance(output, Tensor)
    with_state = layer(input, return_state=True)
    assert isinstance(with_state, LIFOutput) and with_state.spike_counts is None
    assert isinstance(with_state.state, LIFState) and torch.equal(with_state.output, output)
    with_counts = layer(input, return_spike_counts=True)
    assert with_counts.state is None
    assert torch.equal(with_counts.spike_counts, output.sum(0))
    (grad,) = torch.autograd.grad(with_counts.spike_counts.sum(), layer.weight)
    (expected,) = torch.autograd.grad(output.sum(), layer.weight)
    torch.testing.assert_close(grad, expected)
    readout = LIReadout(11, 2, backend=backend, **DOUBLE)(input, return_spike_counts=True)
    assert readout.spike_counts is None and readout.output.shape == (3, 2)


@backends
def test_options_reach_the_neurons(backend):
    options = {
        "tau_mem": 40e-3,
        "tau_syn": 5e-3,
        "dt": 1e-3,
        "threshold": 0.5,
        "surrogate_slope": 7.0,
        "rescale_surrogate": True,
        "detach_reset": False,
        "delay": 1,
        "backend": backend,
    }
    current = 4.0 * torch.rand(40, 2, 3, **DOUBLE)
    current.requires_grad_()
    layer = LIF(**options)
    plan = layer.plan((3,), 40)
    assert plan.decay_mem == math.exp(-1 / 40) and plan.decay_syn == math.exp(-1 / 5)
    assert (plan.threshold, plan.surrogate_slope, plan.surrogate_scale) == (0.5, 7.0, 4.5**2)
    assert plan.detach_reset is False and plan.delay == 1
    output = layer(current)
    assert 0.01 < output.mean() < 0.5
    expected = reference.stack(current, [plan], [layer.tensors()]).output
    assert torch.equal(output, expected)
    (grad,) = torch.autograd.grad(output.square().sum(), current)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), current)
    torch.testing.assert_close(grad, expected_grad)


@backends
def test_readout_scores_are_the_maximum_of_its_trace(backend):
    input = random_spikes(50, 4, 3, 5)
    readout = LIReadout(15, 6, initial_membrane=-0.02, backend=backend, **DOUBLE)
    trace_readout = copy.deepcopy(readout)
    trace_readout.reduction = "none"
    trace = trace_readout(input)
    assert trace.shape == (50, 4, 6)
    assert trace[0].unique().item() == -0.02 and trace.std() > 0.01
    torch.testing.assert_close(readout(input), trace.max(0).values, rtol=0, atol=0)
    trace_readout.batch_first = True
    assert torch.equal(trace_readout(input.transpose(0, 1)), trace.transpose(0, 1))


@backends
def test_readout_time_constant_is_the_duration_of_its_input(backend):
    input = random_spikes(50, 4, 15)
    by_duration = LIReadout(15, 6, dt=1e-3, backend=backend, **DOUBLE)
    stated = LIReadout(15, 6, dt=1e-3, tau_mem=50e-3, backend=backend, **DOUBLE)
    stated.load_state_dict(by_duration.state_dict())
    assert by_duration.plan((15,), 50).decay_mem == math.exp(-1 / 50)
    scores = stated(input)
    torch.testing.assert_close(by_duration(input), scores)
    assert (by_duration(input[:25]) - stated(input[:25])).abs().max() > 1e-4
    first = stated(input[:20], return_state=True)
    second = stated(input[20:], first.state)
    assert torch.equal(torch.maximum(first.output, second), scores)
    state = LIFState(membrane=torch.full((4, 6), 9.0, **DOUBLE))  # a given state is used as it is
    assert stated(input, state).max() == 9.0


@backends
@cases
def test_copies_and_moves_keep_everything(case, backend):
    layer, input = build(case, recurrent=True, backend=backend, tau_mem=15e-3)
    expected = layer(input)
    assert 0.01 < expected.mean() < 0.5
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.weight is not layer.weight and torch.equal(twin(input), expected)
        assert repr(twin) == repr(layer)
    assert layer.to(torch.float32)(input.float()).dtype == torch.float32


@backends
def test_a_call_leaves_no_trace_on_the_module(backend):
    layer, _ = build("conv1d", recurrent=True, backend=backend)
    inputs = [random_spikes(40, size, 2, 20) for size in (1, 2, 3, 4)]
    before = copy.copy(vars(layer))
    expected = [layer(input) for input in inputs]
    assert vars(layer).keys() == before.keys()
    assert all(vars(layer)[name] is value for name, value in before.items())
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(layer, inputs * 3))
    assert 0.01 < expected[3].mean() < 0.5
    assert all(torch.equal(r, e) for r, e in zip(results, expected * 3, strict=True))


@backends
def test_a_conv_and_neuron_pair_is_one_layer(backend):
    """What a user of another library replaces: a synapse of torch followed by neurons."""
    layer, input = build("conv1d", backend=backend)
    conv = nn.Conv1d(2, 3, 5, 2, padding=1, **DOUBLE)
    conv.load_state_dict(layer.state_dict())
    current = conv(input.flatten(0, 1)).unflatten(0, input.shape[:2])
    spikes = LIF(backend=backend)(current)
    assert 0.01 < spikes.mean() < 0.5
    assert torch.equal(layer(input), spikes)
    linear = nn.Linear(27, 4, **DOUBLE)
    readout = LIReadout(27, 4, backend=backend, **DOUBLE)
    readout.load_state_dict(linear.state_dict())
    current = F.linear(spikes.flatten(2), linear.weight, linear.bias)
    identity = LIReadout(4, 4, False, tau_mem=80e-3, backend=backend, **DOUBLE)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(4))
    torch.testing.assert_close(readout(spikes), identity(current))


def test_repr_names_what_was_chosen():
    assert repr(LIFLinear(3, 2)) == (
        "LIFLinear(in_features=3, out_features=2, bias=True, tau_mem=0.02, tau_syn=0.01, dt=0.002)"
    )
    layer = LIFConv2d(3, 2, 5, padding=1, bias=False, recurrent=True, recurrent_kernel_size=3)
    assert repr(layer) == (
        "LIFConv2d(3, 2, kernel_size=(5, 5), stride=(1, 1), padding=(1, 1), bias=False, "
        "tau_mem=0.02, tau_syn=0.01, dt=0.002, recurrent=True, recurrent_kernel_size=(3, 3))"
    )
    assert repr(LIF(batch_first=True, tau_mem=0.5)) == (
        "LIF(tau_mem=0.5, tau_syn=0.01, dt=0.002, batch_first=True)"
    )
    assert "initial_membrane=-0.01" in repr(LIReadout(3, 2, initial_membrane=-0.01))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(tau_mem=0.0), "tau_mem must be finite and > 0 seconds, got 0.0"),
        (lambda: LIF(tau_syn=math.inf), "tau_syn must be finite and > 0 seconds, got inf"),
        (lambda: LIF(dt=-1e-3), "dt must be finite and > 0 seconds, got -0.001"),
        (lambda: LIF(tau_mem=math.nan), "tau_mem must be finite"),
        (lambda: LIF(tau_mem=1e15), "tau_mem must not be so long"),
        (lambda: LIF(threshold=0.0), "threshold must be finite and > 0, got 0.0"),
        (lambda: LIF(surrogate_slope=0.0), "surrogate_slope must be finite and > 0"),
        (lambda: LIF(delay=2), "delay must be 0 or 1, got 2"),
        (lambda: LIFLinear(3, 2, delay=-1), "delay must be 0 or 1"),
        (lambda: LIFLinear(0, 2), "in_features must be an integer >= 1, got 0"),
        (lambda: LIFLinear(3, 2.0), "out_features must be an integer >= 1, got 2.0"),
        (lambda: LIFConv1d(2, 4, 3, groups=2), "groups must be 1, got 2"),
        (lambda: LIFConv1d(2, 4, 3, padding_mode="circular"), "padding_mode must be 'zeros'"),
        (lambda: LIFConv1d(2, 4, 0), r"kernel_size must be >= 1, got \(0,\)"),
        (lambda: LIFConv1d(2, 4, (3, 3)), r"kernel_size must be an int or 1 ints"),
        (lambda: LIFConv1d(2, 4, 3, padding=-1), "padding must be >= 0"),
        (lambda: LIFConv1d(2, 4, 3, padding="full"), "padding must be numbers, 'same' or 'valid'"),
        (lambda: LIFConv1d(2, 4, 3, 2, padding="same"), "padding 'same' needs stride 1"),
        (lambda: LIFConv1d(2, 4, 4, padding="same"), "padding 'same' needs kernels that reach"),
        (
            lambda: LIFConv1d(2, 4, 3, recurrent=True, recurrent_kernel_size=4),
            r"recurrent_kernel_size must be odd and >= 1, got \(4,\)",
        ),
        (lambda: LIReadout(3, 2, tau_mem=-1.0), "tau_mem must be finite and > 0 seconds"),
        (lambda: LIReadout(3, 2, reduction="mean"), "reduction must be 'max' or 'none'"),
        (lambda: LIReadout(3, 2, initial_membrane=math.nan), "initial_membrane must be finite"),
    ],
)
def test_bad_options_are_refused_by_the_constructor(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@backends
def test_bad_input_is_one_clear_error(backend):
    options = {"backend": backend}
    linear, conv = LIFLinear(6, 2, **options), LIFConv1d(2, 3, 5, **options)
    with pytest.raises(ValueError, match=r"product is in_features=6, got features \(5,\)"):
        linear(torch.zeros(4, 2, 5))
    with pytest.raises(ValueError, match=r"shape \(time, batch, \*features\), got \(4, 6\)"):
        linear(torch.zeros(4, 6))
    linear.batch_first = True
    with pytest.raises(ValueError, match=r"shape \(batch, time, \*features\), got \(4, 6\)"):
        linear(torch.zeros(4, 6))
    linear.batch_first = False
    with pytest.raises(ValueError, match=r"features \(2, length\), got \(3, 9\)"):
        conv(torch.zeros(4, 2, 3, 9))
    with pytest.raises(ValueError, match=r"features \(2, length\), got \(2,\)"):
        conv(torch.zeros(4, 2, 2))
    with pytest.raises(ValueError, match="kernel must not be larger than the padded input"):
        conv(torch.zeros(4, 2, 2, 3))
    with pytest.raises(ValueError, match=r"state.membrane must have shape \(2, 2\), got \(3, 2\)"):
        linear(torch.zeros(4, 2, 6), LIFState(torch.zeros(3, 2)))
    with pytest.raises(TypeError, match="input must be a Tensor or PackedSpikes, got list"):
        linear([[0.0]])
    with pytest.raises(TypeError, match="input must have dtype torch.float32"):
        linear(torch.zeros(4, 2, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match="weight must have dtype float32 or float64"):
        LIFLinear(6, 2, dtype=torch.float16, **options)(torch.zeros(4, 2, 6))


def test_an_unknown_backend_is_an_error():
    with pytest.raises(ValueError, match="backend 'cuda'"):
        LIFLinear(6, 2, backend="cuda")(torch.zeros(4, 2, 6))
