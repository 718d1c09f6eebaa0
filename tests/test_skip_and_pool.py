"""Max pooling, image encoder and skip connections: fused they are what they are one by one."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from fastlif import (
    ImageEncoder,
    LIFConv1d,
    LIFConv2d,
    LIFDalianConv1d,
    LIFLinear,
    LIReadout,
    MaxPool1d,
    MaxPool2d,
    PackedSpikes,
    Sequential,
    init,
    ops,
)

from .init_helpers import DT, poisson

DOUBLE = {"dtype": torch.float64}
backends = pytest.mark.parametrize("backend", ["reference", None])


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


def images(batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(batch, 3, 8, 8, generator=generator, dtype=torch.float64) * 2.0 - 1.0


def image_network(skip: bool, **options) -> Sequential:
    """Two convolutions, pooling, a third one, and a readout of the last or of all three."""
    torch.manual_seed(0)
    options = DOUBLE | options
    # Neurons before the readout, then of the other hidden layers.
    sources = (6 * 4, 8 * 64, 7 * 64) if skip else 6 * 4
    model = Sequential(
        ImageEncoder(3, 40, **options),
        LIFConv2d(15, 8, 3, 1, 1, **options),
        LIFConv2d(8, 7, 3, 1, 1, **options),
        MaxPool2d(2),
        LIFConv2d(7, 6, 3, 1, 1, **options),
        MaxPool2d(2, 2),
        nn.Flatten(2),
        LIReadout(sources, 4, **options),
        skip_to_readout=skip,
    )
    model[0].bias.data.fill_(0.15)
    return model


def loss_of(result) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(result.output.shape, generator=generator, dtype=torch.float64)
    return (result.output * weights).sum() + sum(count.mean() for count in result.spike_counts)


@backends
@pytest.mark.parametrize("skip", [False, True])
def test_fused_is_what_separate_modules_give(backend, skip, stack_sizes):
    model, input = image_network(skip, backend=backend), images().requires_grad_()
    result = model(input, return_spike_counts=True, return_states=True)
    assert stack_sizes == [7]
    assert [tuple(count.shape[1:]) for count in result.spike_counts] == [
        (15, 8, 8),
        (8, 8, 8),
        (7, 8, 8),
        (6, 4, 4),
    ]
    assert len(result.states) == 5
    assert all(0.01 < count.mean() / 40 < 0.5 for count in result.spike_counts)
    parameters = [input, *model.parameters()]
    grads = torch.autograd.grad(loss_of(result), parameters)

    handle = model[1].register_forward_hook(lambda *args: None)  # nothing is fused across it
    stack_sizes.clear()
    separate = model(input, return_spike_counts=True, return_states=True)
    assert len(stack_sizes) > 2
    handle.remove()
    torch.testing.assert_close(separate.output, result.output)
    for count, expected in zip(separate.spike_counts, result.spike_counts, strict=True):
        assert torch.equal(count, expected)
    assert len(separate.states) == 5
    expected_grads = torch.autograd.grad(loss_of(separate), parameters)
    for grad, expected in zip(grads, expected_grads, strict=True):
        assert expected.norm() > 0
        assert (grad - expected).norm() < 1e-6 * expected.norm()


@backends
def test_skips_by_hand(backend):
    model, input = image_network(True, backend=backend), images()
    spikes = model[0](input)
    first = model[1](spikes)
    second = model[2](first)
    third = model[4](model[3](second))
    before = model[5](third)
    heard = torch.cat([x.flatten(2) for x in (before, first, second)], dim=2)
    expected = model[7](heard)
    assert expected.std() > 0
    torch.testing.assert_close(model(input), expected)
    # What a skip carries matters.
    with torch.no_grad():
        model[7].weight[:, 24:] = 0.0
    assert not torch.allclose(model(input), expected)
    plain = image_network(False, backend=backend)
    plain.load_state_dict(
        {k: v[:, :24] if k == "7.weight" else v for k, v in model.state_dict().items()}
    )
    torch.testing.assert_close(model(input), plain(input))


def test_skips_between_other_modules_and_batch_first():
    torch.manual_seed(0)
    model = Sequential(
        LIFConv1d(1, 6, 5, 2, **DOUBLE),
        nn.Dropout(0.0),
        LIFLinear(60, 9, **DOUBLE),
        nn.Identity(),
        LIReadout(69, 3, reduction="none", tau_mem=0.1, **DOUBLE),
        skip_to_readout=True,
    )
    input = poisson(60.0, (50, 4, 1, 23), 1).double()
    model.insert(2, nn.Flatten(2))
    first = model[0](input)
    second = model[3](first.flatten(2))
    expected = model[5](torch.cat((second, first.flatten(2)), dim=2))
    assert second.mean() > 0.01
    result = model(input, return_spike_counts=True)
    torch.testing.assert_close(result.output, expected)
    assert len(result.spike_counts) == 2
    torch.testing.assert_close(model(PackedSpikes.pack(input)), expected)
    for layer in (model[0], model[3], model[5]):
        layer.batch_first = True
    torch.testing.assert_close(model(input.transpose(0, 1)), expected.transpose(0, 1))
    whole, states, chunks = model(input.transpose(0, 1)), None, []
    for chunk in input.transpose(0, 1).split([20, 30], dim=1):
        output, states, _ = model(chunk, states, return_states=True)
        chunks.append(output)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole)


def test_skips_are_refused_where_they_do_not_fit():
    with pytest.raises(ValueError, match="needs an LIReadout as the last module, got LIFLinear"):
        Sequential(LIFLinear(5, 4), skip_to_readout=True)(torch.zeros(5, 2, 5))
    layers = LIFLinear(5, 4), LIFLinear(4, 3)
    for wrong in (3, 8, (4, 3), (3, 2, 2)):
        model = Sequential(*layers, LIReadout(wrong, 2), skip_to_readout=True)
        with pytest.raises(ValueError, match=r"in_features must be \(3, 4\)"):
            model(torch.zeros(5, 2, 5))
    model = Sequential(*layers, LIReadout((3, 4), 2), skip_to_readout=True)
    assert model(torch.zeros(5, 2, 5)).shape == (2, 2)
    assert "skip_to_readout=True" in repr(model) and "in_features=(3, 4)" in repr(model)


@pytest.mark.parametrize("between", [nn.Dropout(0.0), None])
def test_skips_behind_a_pooled_encoder(between):
    torch.manual_seed(0)
    exact = between is None  # then the encoder and the layer behind it are two stacks
    readout = LIReadout(16, 5) if exact else LIReadout((16, 16), 5)
    layers = [ImageEncoder(3, 20), MaxPool2d(2), LIFConv2d(15, 4, 3, exact_membrane=exact)]
    if exact:
        model = Sequential(*layers, readout, skip_to_readout=True)
    else:
        second = LIFConv2d(4, 4, 1)
        model = Sequential(*layers[:2], between, layers[2], second, readout, skip_to_readout=True)
    input = 3.0 * torch.randn(2, 3, 8, 8)
    signals = [layers[2](layers[1](layers[0](input))).flatten(2)]
    assert signals[0].mean() > 0.0
    if not exact:
        signals.insert(0, second(signals[0].unflatten(2, (4, 2, 2))).flatten(2))
    torch.testing.assert_close(model(input), readout(torch.cat(signals, dim=2)))


def test_sources_are_compared_between_separate_stacks_too():
    layers = LIFLinear(10, 30), nn.Identity(), LIFLinear(30, 20)
    input = torch.zeros(5, 2, 10)
    for wrong in ((30, 20), (20, 15, 15), 20, 49):
        model = Sequential(*layers, LIReadout(wrong, 5), skip_to_readout=True)
        with pytest.raises(ValueError, match=r"in_features must be \(20, 30\), the neurons before"):
            model(input)
    for right in ((20, 30), 50):
        model = Sequential(*layers, LIReadout(right, 5), skip_to_readout=True)
        assert model(input).shape == (2, 5)


def test_states_of_a_network_within_a_network_are_not_lost_in_silence():
    inner = Sequential(
        LIFLinear(5, 4), LIFLinear(4, 3), LIReadout(7, 6, reduction="none"), skip_to_readout=True
    )
    model, input = Sequential(inner, LIFLinear(6, 2)), torch.zeros(5, 2, 5)
    assert model(input).shape == (5, 2, 2)
    for options in ({"states": [None]}, {"return_states": True}, {"return_spike_counts": True}):
        with pytest.raises(ValueError, match="nested Sequential with skip connections"):
            model(input, **options)
    inner.skip_to_readout = False
    inner[2] = LIReadout(3, 6, reduction="none")
    inner.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="nested Sequential with skip connections, hooks"):
        model(input, return_states=True)


def test_slices_keep_the_skips_to_their_readout():
    model = Sequential(
        LIFLinear(5, 4), LIFLinear(4, 3), LIFLinear(3, 2), LIReadout((2, 4, 3), 2),
        skip_to_readout=True,
    )  # fmt: skip
    assert model[:].skip_to_readout and model[0:4].skip_to_readout and model[1:].skip_to_readout
    assert not model[:-1].skip_to_readout and not model[:0].skip_to_readout
    assert torch.equal(model[:](torch.ones(5, 2, 5)), model(torch.ones(5, 2, 5)))
    assert model[:-1](torch.ones(5, 2, 5)).shape == (5, 2, 2)
    assert not Sequential(*model)[:].skip_to_readout and model[0] is next(iter(model))


def test_copies_keep_the_skips():
    model, input = image_network(True), images()
    expected = model(input)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(input), expected)


@backends
def test_pooling_behind_a_dalian_layer_is_fused(backend, stack_sizes):
    torch.manual_seed(0)
    options = DOUBLE | {"backend": backend}
    model = Sequential(
        LIFDalianConv1d(1, 8, 5, 1, 2, **options),
        MaxPool1d(3, 2, 1),
        LIFDalianConv1d(8, 8, 3, **options),
    )
    input = poisson(60.0, (50, 4, 1, 23), 1).double()
    result = model(input)
    assert stack_sizes == [3] and 0.01 < result.mean() < 0.5
    torch.testing.assert_close(result, nn.Sequential(*model)(input))
    stack_sizes.clear()
    assert model[:2](input).shape == (50, 4, 8, 12)  # and at the end of a stack
    assert stack_sizes == [2]


def test_pooling_alone_is_that_of_torch(stack_sizes):
    values = torch.randn(4, 3, 2, 9, 8)
    pool = MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2))
    expected = nn.MaxPool2d((3, 2), (2, 1), (1, 0), (1, 2))(values.flatten(0, 1))
    assert torch.equal(pool(values).flatten(0, 1), expected)
    assert torch.equal(Sequential(pool, nn.ReLU())(values), expected.relu().unflatten(0, (4, 3)))
    line = torch.randn(4, 3, 2, 9)
    assert torch.equal(MaxPool1d(2)(line).flatten(0, 1), nn.MaxPool1d(2)(line.flatten(0, 1)))
    assert stack_sizes == []
    with pytest.raises(ValueError, match=r"\(time, batch, channels, height, width\), got \(4, 3"):
        pool(line)
    with pytest.raises(ValueError, match=r"padding must be at most half of kernel_size \(2,\)"):
        MaxPool1d(2, padding=2)
    with pytest.raises(ValueError, match="stride must be >= 1"):
        MaxPool2d(2, 0)


@backends
@pytest.mark.parametrize("batch_first", [False, True])
def test_encoder_is_neurons_with_a_constant_current(backend, batch_first):
    encoder = ImageEncoder(3, 30, 2, backend=backend, batch_first=batch_first, **DOUBLE)
    with torch.no_grad():
        encoder.weight.copy_(torch.linspace(-1.0, 1.0, 6))
        encoder.bias.copy_(torch.linspace(0.1, 0.3, 6))
    input = images().requires_grad_()
    current = torch.empty(30, 3, 6, 8, 8, dtype=torch.float64)
    for channel in range(6):
        gain, bias = encoder.weight[channel].item(), encoder.bias[channel].item()
        current[:, :, channel] = gain * input.detach()[:, channel // 2] + bias
    decays = {"decay_mem": math.exp(-0.1), "decay_syn": math.exp(-0.2)}
    current.requires_grad_()
    expected = ops.lif(current, **decays, exact_membrane=True, backend=backend).output
    encoder.exact_membrane = True
    spikes = encoder(input)
    assert torch.equal(spikes, expected.transpose(0, 1) if batch_first else expected)
    assert 0.01 < spikes.mean() < 0.5
    weights = torch.randn_like(expected)
    (grad_current,) = torch.autograd.grad((expected * weights).sum(), current)
    weights = weights.transpose(0, 1) if batch_first else weights
    grads = torch.autograd.grad((spikes * weights).sum(), [input, encoder.weight, encoder.bias])
    per_image = grad_current.sum(0)  # (batch, 6, 8, 8)
    pixels = input.detach().repeat_interleave(2, dim=1)
    gain = encoder.weight.detach().view(6, 1, 1)
    by_pixel = (per_image * gain).unflatten(1, (3, 2)).sum(2)
    torch.testing.assert_close(grads[0], by_pixel)
    torch.testing.assert_close(grads[1], (per_image * pixels).sum((0, 2, 3)))
    torch.testing.assert_close(grads[2], per_image.sum((0, 2, 3)))


def test_encoder_is_drawn_by_its_own_rule():
    encoder = ImageEncoder(40, 5, 500, tau_syn=5e-3)
    assert float(encoder.weight.detach().std()) == pytest.approx(2.0 / 5.0, rel=0.03)
    assert float(encoder.bias.detach().std()) == pytest.approx(1.0 / math.sqrt(20000), rel=0.03)
    for bad, error in ((torch.zeros(3, 2, 8, 8), ValueError), (torch.zeros(40, 8), ValueError)):
        with pytest.raises(error, match=r"must be images \(batch, 40, height, width\)"):
            encoder(bad)
    with pytest.raises(TypeError, match="must be a Tensor of images, got PackedSpikes"):
        encoder(PackedSpikes.pack(torch.zeros(4, 2, 3)))
    with pytest.raises(ValueError, match="n_steps must be an integer >= 1"):
        ImageEncoder(3, 0)


@pytest.mark.parametrize("skip", [False, True])
def test_rates_are_measured_behind_encoder_and_pooling(skip):
    model, input = image_network(skip), images(6)
    generator = torch.Generator().manual_seed(8)
    before = model[0].weight.detach().clone()
    predictions = init.fluctuation_driven_(model, data=input, sigma_u=1.0, generator=generator)
    assert not torch.equal(model[0].weight, before)  # encoders are drawn too
    assert [p.name for p in predictions] == ["1", "2", "4", "7"]
    signal = model[0](input)
    rates = []
    for index in range(1, 6):
        if index in (1, 2, 4):
            rates.append(float(signal.detach().mean()) / DT)
        signal = model[index](signal)
    assert [p.rate for p in predictions[:3]] == pytest.approx(rates, rel=1e-6)
    assert min(rates) > 1.0
    assert predictions[3].rate == pytest.approx(float(signal.detach().mean()) / DT, rel=1e-6)
    measured = init.measure(model, input, spiking=True)
    assert [m.name for m in measured] == ["0", "1", "2", "4"]
    assert measured[1].input_rate == pytest.approx(rates[0], rel=1e-6)
    assert measured[0].firing_rate == pytest.approx(rates[0], rel=1e-6)


def test_readouts_count_the_inputs_of_every_source():
    readout = LIReadout((50, 2000), 400)
    generator = torch.Generator().manual_seed(0)
    prediction = init.readout_(readout, rate=(10.0, 30.0), tau_mem=0.2, generator=generator)
    blocks = readout.weight.detach().split((50, 2000), dim=1)
    for block, n in zip(blocks, (50, 2000), strict=True):
        assert float(block.std()) == pytest.approx(1.0 / math.sqrt(n), rel=0.03)
    assert (prediction.n, prediction.rate) == (50, 10.0)
    eps_hat = init.psp_integrals(0.2, 10e-3, DT).eps_hat
    assert prediction.sigma_u == pytest.approx(math.sqrt(40.0 * eps_hat), rel=1e-9)
    prediction = init.readout_(
        readout, method="fluctuation", rate=(10.0, 30.0), tau_mem=0.2, sigma_u=0.5
    )
    assert prediction.sigma_u == pytest.approx(0.5, rel=1e-9)
    assert prediction.sigma_w == pytest.approx(0.5 / math.sqrt(2 * 50 * 10.0 * eps_hat), rel=1e-9)
    with pytest.raises(ValueError, match="rate must be one number or 2, one per source"):
        init.readout_(readout, rate=(1.0, 2.0, 3.0))


def test_silent_and_saturated_layers_are_named_with_the_cure():
    torch.manual_seed(0)
    model = Sequential(LIFLinear(40, 60), LIReadout(60, 5))
    data = poisson(20.0, (200, 4, 40), 1)
    for sigma_u, message in (
        (0.1, r"layer '0' is silent .* Hz on this data: raise its sigma_u"),
        (30.0, r"layer '0' is saturated .* Hz on this data: lower its sigma_u"),
    ):
        with pytest.warns(init.ActivityWarning, match=message) as caught:
            init.fluctuation_driven_(model, data=data, sigma_u=sigma_u)
        assert caught[0].filename == __file__ and "\n" not in str(caught[0].message)


@pytest.mark.filterwarnings("error")
def test_active_layers_raise_no_warning():
    model = Sequential(LIFLinear(40, 60), LIReadout(60, 5))
    init.fluctuation_driven_(model, data=poisson(20.0, (200, 4, 40), 1), sigma_u=1.0)


def test_normal_draws_every_spiking_layer():
    model = Sequential(LIFLinear(40, 60, recurrent=True), LIReadout(60, 5))
    init.normal_(model, 0.5, 0.1)
    for weight in (model[0].weight, model[0].recurrent_weight):
        assert float(weight.detach().mean()) == pytest.approx(0.5, abs=0.02)
        assert float(weight.detach().std()) == pytest.approx(0.1, rel=0.1)
    assert abs(float(model[1].weight.detach().mean())) < 0.05
    with pytest.raises(ValueError, match="std must be finite and not negative, got -1"):
        init.normal_(model, 0.0, -1.0)
