"""fastlif.Sequential: what it fuses, and that fusing changes nothing."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fastlif import ops
from fastlif.layers import LIF, LIFConv1d, LIFLinear, LIReadout, Sequential, StackOutput
from fastlif.ops import reference
from fastlif.spikes import PackedSpikes

backends = pytest.mark.parametrize("backend", ["reference", None])


def random_spikes(n_steps: int, batch: int, *features: int) -> Tensor:
    return (torch.rand(n_steps, batch, *features) < 0.2).double()


def network(**options) -> Sequential:
    """Two conv layers, flattened, a recurrent dense layer and a readout."""
    options = {"dtype": torch.float64, **options}
    return Sequential(
        LIFConv1d(1, 4, 5, 2, recurrent=True, **options),
        LIFConv1d(4, 6, 3, 2, **options),
        nn.Flatten(2),
        LIFLinear(24, 9, recurrent=True, **options),
        LIReadout(9, 3, initial_membrane=-0.01, **options),
    )


def network_input() -> Tensor:
    return random_spikes(50, 3, 1, 21)


def assert_fires(counts: list[Tensor], n_steps: int = 50) -> None:
    assert all(0.01 < count.mean() / n_steps < 0.5 for count in counts)


@pytest.fixture
def stack_sizes(monkeypatch) -> list[int]:
    """Number of layers of each stack that runs."""
    sizes: list[int] = []
    run = ops.stack

    def recorded(input, plans, *args, **options):
        sizes.append(len(plans))
        return run(input, plans, *args, **options)

    monkeypatch.setattr(ops, "stack", recorded)
    return sizes


@backends
def test_fused_layers_give_what_separate_ones_give(backend, stack_sizes):
    model, input = network(backend=backend), network_input()
    fused = model(input, return_spike_counts=True)
    assert stack_sizes == [4]
    assert len(fused.spike_counts) == 3 and fused.states is None
    assert_fires(fused.spike_counts)
    separate = nn.Sequential(*model)
    expected = separate(input)
    assert stack_sizes == [4, 1, 1, 1, 1]
    torch.testing.assert_close(fused.output, expected)
    assert torch.equal(model(input), fused.output)

    weights = torch.randn_like(expected)
    parameters = list(model.parameters())
    grads = torch.autograd.grad((fused.output * weights).sum(), parameters)
    expected_grads = torch.autograd.grad((expected * weights).sum(), parameters)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.norm() > 0
        torch.testing.assert_close(grad, expected_grad)


@backends
def test_spike_counts_are_those_of_each_layer_and_carry_gradient(backend):
    model, input = network(backend=backend), network_input()
    counts = model(input, return_spike_counts=True).spike_counts
    assert_fires(counts)
    signal = input
    for layer, count in zip((model[0], model[1], model[3]), counts, strict=True):
        signal = layer(signal)
        assert torch.equal(count, signal.sum(0))
        signal = signal.detach()
    # A loss on the last layer's counts reaches the first layer, and no later one the readout.
    loss = (counts[2] * torch.randn_like(counts[2])).sum()
    grads = torch.autograd.grad(loss, [model[0].weight, model[4].weight], allow_unused=True)
    assert grads[0].norm() > 0 and (grads[1] is None or grads[1].norm() == 0)


@backends
def test_packed_input_and_batch_first(backend):
    model, input = network(backend=backend), network_input()
    expected = model(input, return_spike_counts=True)
    assert_fires(expected.spike_counts)
    assert torch.equal(model(PackedSpikes.pack(input)), expected.output)
    for layer in model:
        layer.batch_first = True
    result = model(input.transpose(0, 1), return_spike_counts=True)
    assert torch.equal(result.output, expected.output)
    assert torch.equal(result.spike_counts[1], expected.spike_counts[1])
    spikes = model[:3](input.transpose(0, 1))
    assert spikes.shape == (3, 50, 24)


@backends
@pytest.mark.parametrize("delay", [0, 1])
def test_chunks_with_states_equal_the_whole(backend, delay):
    model, input = network(backend=backend, delay=delay), network_input()
    model[4].tau_mem = 0.1
    model[4].reduction = "none"
    whole = model(input, return_states=True, return_spike_counts=True)
    assert isinstance(whole, StackOutput) and len(whole.states) == 4
    assert_fires(whole.spike_counts)
    states, outputs = None, []
    for chunk in input.split([31, 3, 16]):
        output, states, counts = model(chunk, states, return_states=True)
        assert counts is None
        outputs.append(output)
    assert torch.equal(torch.cat(outputs), whole.output)
    for state, expected in zip(states, whole.states, strict=True):
        assert torch.equal(state.membrane, expected.membrane)
        assert torch.equal(state.synaptic_current, expected.synaptic_current)
    with pytest.raises(ValueError, match="states must hold one entry per fastlif layer, 4, got 3"):
        model(input, states[:3])


@backends
def test_foreign_modules_run_in_between(backend, stack_sizes):
    options = {"backend": backend, "dtype": torch.float64}
    model = Sequential(
        nn.Linear(10, 12, dtype=torch.float64),
        LIF(threshold=0.1, backend=backend),
        LIFLinear(12, 8, **options),
        nn.Dropout(0.5),
        LIFLinear(8, 6, **options),
        LIReadout(6, 2, **options),
    )
    input = random_spikes(50, 3, 10)
    for training in (False, True):
        model.train(training)
        stack_sizes.clear()
        torch.manual_seed(1)
        result = model(input, return_states=True, return_spike_counts=True)
        assert stack_sizes == [2, 2]
        assert len(result.states) == 4
        assert_fires(result.spike_counts)
        torch.manual_seed(1)
        torch.testing.assert_close(result.output, nn.Sequential(*model)(input))
    with pytest.raises(TypeError, match="Linear needs a dense input"):
        model(PackedSpikes.pack(input))


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, [4]),
        ({"dt": 1e-3}, [2, 1, 1]),
        ({"backend": "reference"}, [2, 1, 1]),
        ({"exact_membrane": True}, [2, 2]),
        ({"forward": None}, [2, 1, 1]),
    ],
)
def test_layers_fuse_as_far_as_they_agree(changes, sizes, stack_sizes):
    model, input = network(), network_input()
    for name, value in changes.items():
        if name == "forward":
            model[3].__class__ = OwnForward
        else:
            setattr(model[3], name, value)
    result = model(input)
    assert stack_sizes == sizes
    torch.testing.assert_close(result, nn.Sequential(*model)(input))


class OwnForward(LIFLinear):
    """A user's layer: its forward is part of the model and must not be skipped."""

    def forward(self, input, state=None, **flags):
        return super().forward(input, state, **flags)


def test_exact_membranes_do_not_concern_a_readout(stack_sizes):
    model = network()
    for layer in model:
        if not isinstance(layer, (nn.Flatten, LIReadout)):
            layer.exact_membrane = True
    model(network_input())
    assert stack_sizes == [4]


@pytest.mark.parametrize("fused", [True, False])
def test_exact_membranes_make_exact_gradients(fused):
    """Errors of float16 membranes are about 1e-3 or less, far above those of float32."""
    input = network_input().float()
    errors = []
    for exact in (False, True):
        torch.manual_seed(0)
        model = network(dtype=torch.float32)[:2]
        model[0].exact_membrane = model[1].exact_membrane = exact
        output = (model if fused else nn.Sequential(*model))(input)
        spikes = [model[0](input), output]
        features, plans = (1, 21), []
        for layer in model:
            plans.append(layer.plan(features, 50))
            features = plans[-1].features
        tensors = [layer.tensors() for layer in model]
        expected = reference.stack(input, plans, tensors, replay_spikes=spikes).output
        assert torch.equal(output, expected) and 0.01 < output.mean() < 0.5
        weights = torch.randn(output.shape)
        (grad,) = torch.autograd.grad((output * weights).sum(), model[0].weight)
        (expected_grad,) = torch.autograd.grad((expected * weights).sum(), model[0].weight)
        errors.append(((grad - expected_grad).norm() / expected_grad.norm()).item())
    assert errors[1] < 1e-5 < errors[0] < 1e-2


def test_a_current_and_a_readout_bound_a_stack(stack_sizes):
    double = {"dtype": torch.float64}
    model = Sequential(
        LIFLinear(10, 8, **double),
        LIF(threshold=0.1),
        LIReadout(8, 5, reduction="none", **double),
        LIFLinear(5, 4, **double),
    )
    input = random_spikes(50, 3, 10)
    result = model(input, return_spike_counts=True)
    assert stack_sizes == [1, 2, 1] and len(result.spike_counts) == 3
    torch.testing.assert_close(result.output, nn.Sequential(*model)(input))


def test_layers_with_hooks_are_called(stack_sizes):
    model, input = network(), network_input()
    expected = model(input)
    seen: list[Tensor] = []
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output))
    stack_sizes.clear()
    torch.testing.assert_close(model(input), expected)
    assert stack_sizes == [1, 1, 2] and seen[0].shape == (50, 3, 6, 4)
    assert 0.01 < seen[0].mean() < 0.5
    handle.remove()
    stack_sizes.clear()
    model(input)
    assert stack_sizes == [4]


def test_nested_sequentials_are_one_stack(stack_sizes):
    model, input = network(), network_input()
    expected = model(input)
    stack_sizes.clear()
    nested = Sequential(
        OrderedDict(conv=Sequential(*model[:3]), dense=nn.Sequential(model[3], model[4]))
    )
    result = nested(input, return_spike_counts=True)
    assert stack_sizes == [4] and len(result.spike_counts) == 3
    assert torch.equal(result.output, expected)
    assert list(nested.state_dict())[0] == "conv.0.weight"


def test_other_flattens_are_not_absorbed(stack_sizes):
    input = random_spikes(20, 3, 2, 5)
    model = Sequential(LIFConv1d(2, 3, 1, dtype=torch.float64), nn.Flatten(2))
    assert model(input).shape == (20, 3, 15)
    model = Sequential(nn.Flatten(2, 3), LIFLinear(10, 4, dtype=torch.float64))
    assert model(input).shape == (20, 3, 4)
    assert stack_sizes == [1, 1]


def test_copies():
    model, input = network(), network_input()
    expected = model(input)
    assert expected.std() > 0
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(input), expected)
    other = network()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(input), expected)


def test_an_empty_sequential_passes_tensors_on():
    input = network_input()
    assert Sequential()(input) is input
    with pytest.raises(TypeError, match="empty Sequential needs a dense input"):
        Sequential()(PackedSpikes.pack(input))
