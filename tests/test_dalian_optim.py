"""Weights that must not become negative: after every step, of any optimizer, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from fastlif import GraphStep, LIFDalianConv1d, LIFDalianLinear, LIReadout, Sequential
from fastlif.optim import SMORMS3, keep_non_negative, parameter_groups


def network() -> Sequential:
    torch.manual_seed(0)
    return Sequential(
        LIFDalianConv1d(1, 8, 5, 3),
        nn.Flatten(2),
        LIFDalianLinear(48, 12),
        LIReadout(12, 3),
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    spikes = (torch.rand(30, 6, 1, 20, generator=generator) < 0.25).float()
    return spikes, torch.tensor([0, 1, 2, 0, 1, 2])


def constrained(name: str, model: nn.Module) -> Optimizer:
    if name == "smorms3":
        return SMORMS3(parameter_groups(model), lr=0.1)
    if name == "adam":
        optimizer: Optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    keep_non_negative(optimizer, model)
    return optimizer


def loss_of(model: nn.Module, spikes: Tensor, labels: Tensor, price: float = 1.0) -> Tensor:
    """With a price of spikes, which pushes excitatory weights down, or if negative inhibition."""
    scores, _, counts = model(spikes, return_spike_counts=True)
    activity = sum(count.mean() for count in counts)
    return functional.cross_entropy(scores, labels) + price * activity


def weights_of(model: nn.Module) -> list[Tensor]:
    return [weight for layer in (model[0], model[2]) for weight in layer.non_negative_parameters()]


@pytest.mark.parametrize("name", ["smorms3", "adam", "sgd"])
def test_weights_stay_non_negative_after_every_step(name):
    model = network()
    optimizer = constrained(name, model)
    assert len(weights_of(model)) == 6
    assert all(weight.min() > 0.0 for weight in weights_of(model))
    most_at_bound = [0] * 6
    for price in (-1.0, 1.0):

        def objective(*data: Tensor, price: float = price) -> Tensor:
            return loss_of(model, *data, price=price)

        step = GraphStep(objective, optimizer)
        for _ in range(50):
            step(*batch())
            assert all(weight.min() >= 0.0 for weight in weights_of(model))
            at_bound = [int((weight == 0.0).sum()) for weight in weights_of(model)]
            most_at_bound = [max(pair) for pair in zip(most_at_bound, at_bound, strict=True)]
    for of_layer in (most_at_bound[:3], most_at_bound[3:]):  # learning really pushes
        assert sum(of_layer) >= 10
    assert model[3].weight.min() < 0.0  # the readout is free


def test_without_the_constraint_weights_become_negative():
    model = network()
    optimizer = SMORMS3(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(model, *batch()).backward()
        optimizer.step()
    assert min(float(weight.detach().min()) for weight in weights_of(model)) < 0.0


@pytest.mark.parametrize("name", ["smorms3", "adam", "sgd"])
@pytest.mark.parametrize("way", ["state dicts", "pickle", "deepcopy"])
def test_the_constraint_survives_saving(name, way):
    model = network()
    optimizer = constrained(name, model)

    def steps(model: nn.Module, optimizer: Optimizer) -> None:
        for _ in range(15):
            optimizer.zero_grad()
            loss_of(model, *batch()).backward()
            optimizer.step()
            assert all(weight.min() >= 0.0 for weight in weights_of(model))

    steps(model, optimizer)
    if way == "state dicts":
        saved = io.BytesIO()
        torch.save((model.state_dict(), optimizer.state_dict()), saved)
        saved.seek(0)
        weights, state = torch.load(saved)
        twin = network()
        other = constrained(name, twin)
        twin.load_state_dict(weights)
        other.load_state_dict(state)
    else:
        both = model, optimizer
        twin, other = copy.deepcopy(both) if way == "deepcopy" else pickle.loads(pickle.dumps(both))
        if name != "smorms3":  # torch drops hooks
            keep_non_negative(other, twin)
    steps(twin, other)
    steps(model, optimizer)
    for weight, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected)
    assert any((weight == 0.0).any() for weight in weights_of(twin))


def test_groups_hold_every_parameter_once():
    model = network()
    model.register_module("again", model[2])
    free, bounded = parameter_groups(model, lr=0.1)
    assert free["lr"] == bounded["lr"] == 0.1
    assert "minimum" not in free and bounded["minimum"] == 0.0
    assert [id(p) for p in bounded["params"]] == [id(weight) for weight in weights_of(model)]
    assert {id(p) for p in free["params"] + bounded["params"]} == {
        id(p) for p in model.parameters()
    }
    assert len(free["params"]) == 2
    assert len(parameter_groups(nn.Linear(2, 2))) == 1
    assert parameter_groups(nn.Identity()) == []
    handle = keep_non_negative(torch.optim.SGD(nn.Linear(2, 2).parameters()), nn.Linear(2, 2))
    handle.remove()


def test_a_removed_constraint_no_longer_holds():
    layer = LIFDalianLinear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
    handle = keep_non_negative(optimizer, layer)
    for expected in (True, False):
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert all(bool((p >= 0.0).all()) is expected for p in layer.parameters())
        handle.remove()
