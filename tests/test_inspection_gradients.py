"""Gradients and updates in `fastlif.inspection`: those of training, the model left as it was."""

from __future__ import annotations

import copy

import pytest
import torch

from fastlif import init, layers, losses, optim
from fastlif.inspection import batches, check_activity, inspect, record
from fastlif.spikes import PackedSpikes

from .init_helpers import drawn_model, generator, poisson


def test_gradients_are_those_of_a_plain_backward_pass(monkeypatch):
    model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
    targets = torch.arange(6) % 10
    hidden = model[0](data)
    hidden.retain_grad()
    middle = model[1](hidden)
    middle.retain_grad()
    loss = losses.max_over_time_cross_entropy(model[2](middle), targets)
    loss.backward()
    for slice_numbers in (1 << 25, 3 * 60 * 120 * 2):  # at once, and two samples at a time
        monkeypatch.setattr(batches, "SLICE_NUMBERS", slice_numbers)
        report = inspect(model, PackedSpikes.pack(data), targets)
        assert report.loss == pytest.approx(loss.item(), rel=1e-5)
        for layer, module, output in zip(report.layers, model, (hidden, middle), strict=False):
            own = layer.gradients
            assert own.output.norm == pytest.approx(float(output.grad.norm()), rel=1e-4)
            assert own.output.mean == pytest.approx(float(output.grad.abs().mean()), rel=1e-4)
            assert own.output.n == output.numel()
            for name, parameter in module.named_parameters():
                found = own.parameters[name]
                assert found.gradient.norm == pytest.approx(float(parameter.grad.norm()), rel=1e-4)
                assert found.value.norm == pytest.approx(float(parameter.detach().norm()), rel=1e-5)
        assert report.readouts[0].gradients.output.n == 60


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_regularizer_of_the_spike_counts_is_part_of_the_gradients(batch_first):
    model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
    targets = torch.arange(6) % 10

    def bound(counts):
        return losses.upper_bound(counts, v_upper=0.1, strength=3.0)

    hidden = model[0](data)
    hidden.retain_grad()
    middle = model[1](hidden)
    middle.retain_grad()
    loss = losses.max_over_time_cross_entropy(model[2](middle), targets)
    penalty = bound([hidden.sum(0), middle.sum(0)])
    assert penalty.item() > 0.1
    (loss + penalty).backward()
    for layer in model:
        layer.batch_first = batch_first
    inputs = data.transpose(0, 1) if batch_first else data
    report = inspect(model, inputs, targets, regularizer=bound)
    assert report.loss == pytest.approx(loss.item(), rel=1e-5)
    assert report.penalty == pytest.approx(penalty.item(), rel=1e-5)
    for layer, module, output in zip(report.layers, model, (hidden, middle), strict=False):
        own = layer.gradients
        assert own.output.norm == pytest.approx(float(output.grad.norm()), rel=1e-4)
        gradient = own.parameters["weight"].gradient
        assert gradient.norm == pytest.approx(float(module.weight.grad.norm()), rel=1e-4)


def test_of_a_dalian_layer_the_emitted_spikes_have_the_regularizers_gradient():
    torch.manual_seed(0)
    model = layers.Sequential(layers.LIFDalianLinear(40, 24, 6), layers.LIReadout(24, 10))
    init.fluctuation_driven_(model, rate=20.0, generator=generator(0))
    data, targets = poisson(20.0, (60, 6, 40), 8), torch.arange(6) % 10
    emitted = model[0](data)
    emitted.retain_grad()
    loss = losses.max_over_time_cross_entropy(model[1](emitted), targets)
    (loss + losses.upper_bound([emitted.sum(0)], v_upper=0.1, strength=3.0)).backward()

    def bound(counts):
        return losses.upper_bound([counts[0][:, :24]], v_upper=0.1, strength=3.0)

    (own,) = (layer.gradients for layer in inspect(model, data, targets, regularizer=bound).layers)
    assert own.output.norm == pytest.approx(float(emitted.grad.norm()), rel=1e-4)
    assert own.output.n == 60 * 6 * 24


def test_a_layer_that_stands_twice_is_refused_with_a_regularizer():
    twice = layers.LIFLinear(40, 40)
    model = layers.Sequential(twice, twice, layers.LIReadout(40, 10))
    with pytest.raises(ValueError, match="a layer must not stand in it twice"):
        inspect(
            model,
            poisson(20.0, (60, 2, 40), 8),
            torch.arange(2),
            regularizer=lambda counts: losses.upper_bound(counts, 0.1, 1.0),
        )


def test_a_regularizer_needs_spike_counts():
    model = drawn_model()
    inside = torch.nn.Sequential(*model)
    with pytest.raises(ValueError, match="regularizer needs a fastlif.Sequential.* got torch.nn"):
        inspect(inside, poisson(20.0, (60, 2, 40), 8), regularizer=lambda counts: None)


def test_accuracy():
    model, data = drawn_model(), poisson(20.0, (60, 8, 40), 8)
    best = model(data).argmax(1)
    targets = torch.cat([best[:6], (best[6:] + 1) % 10])
    assert inspect(model, data, targets).accuracy == 0.75


@pytest.mark.parametrize("kind", ["sgd", "adam", "smorms3"])
def test_the_step_is_that_of_the_optimizer(kind):
    model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
    targets = torch.arange(6) % 10
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "adam": lambda p: torch.optim.Adam(p, lr=0.01),
        "smorms3": lambda p: optim.SMORMS3(p, lr=0.01),
    }[kind](model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        losses.max_over_time_cross_entropy(model(data), targets).backward()
        optimizer.step()

    step()  # so that there is a state
    report = inspect(model, data, targets, optimizer=optimizer)
    before = copy.deepcopy(model.state_dict())
    step()
    for layer, number in ((report.layers[0], 0), (report.readouts[0], 2)):
        for name, change in layer.gradients.parameters.items():
            moved = model[number].get_parameter(name).detach() - before[f"{number}.{name}"]
            assert change.update.norm == pytest.approx(float(moved.norm()), rel=1e-3)


def test_everything_is_left_as_it_was():
    model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
    targets = torch.arange(6) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses.max_over_time_cross_entropy(model(data), targets).backward()
    optimizer.step()
    parts = (model.state_dict(), optimizer.state_dict()["state"])
    before = copy.deepcopy(parts)
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    random_numbers = torch.get_rng_state()
    inspect(model, data, targets, optimizer=optimizer)
    record(model, data, targets=targets)
    check_activity(model, data)
    for name, tensor in parts[0].items():
        assert torch.equal(tensor, before[0][name]), name
    for number, state in parts[1].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, before[1][number][name]), name
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_dalian_weights_stop_at_zero_in_the_step():
    layer = layers.LIFDalianLinear(20, 8, 2)
    init.fluctuation_driven_(layer, rate=50.0, generator=generator())
    model = layers.Sequential(layer, layers.LIReadout(8, 3))
    data, targets, lr = poisson(50.0, (60, 6, 20), 8), torch.arange(6) % 3, 1e3
    losses.max_over_time_cross_entropy(model(data), targets).backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    report = inspect(model, data, targets, optimizer=optimizer)
    changes = report.layers[0].gradients.parameters
    assert set(changes) == {"weight", "recurrent_weight", "inhibitory_weight"}
    for name, parameter in layer.named_parameters():
        free = parameter - lr * parameter.grad
        assert (free < 0.0).any()
        moved = float((free.clamp_min(0.0) - parameter).norm())
        assert changes[name].update.norm == pytest.approx(moved, rel=1e-3)


def test_gradients_that_vanish_in_float32_are_still_told_apart():
    model = drawn_model()
    tiny = inspect(
        model,
        poisson(20.0, (60, 2, 40), 8),
        torch.tensor([1, 2]),
        loss=lambda output, targets: 1e-25 * output.square().mean(),
    )
    norm = tiny.layers[0].gradients.output.norm
    assert 1e-40 < norm < 1e-24
