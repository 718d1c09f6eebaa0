"""Networks side by side in one model, each as it is alone: layers, losses and optimizers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastlif
from fastlif import give_gradients, init, side_by_side
from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.models import build, preset
from fastlif.optim import SMORMS3, keep_non_negative, parameter_groups

from .emulation import emulated_cuda
from .targets import emulated_means

SIZES = {
    "randman": (20,),
    "shd-dense160": (30,),
    "shd-dalian": (30,),
    "shd-conv3": (1, 271),
    "shd-dalian-conv3": (1, 271),
    "cifar-conv2": (3, 6, 6),
    "dvs-conv6": (2, 8, 8),
}
UPPER, LOWER, STRENGTHS, RATES = (
    (3.0, 0.5, 1.0),
    (1.0, 2.0, 0.5),
    (0.1, 0.0, 3.0),
    (0.01, 1e-3, 0.1),
)


def networks_of(name, n=3):
    skip = name == "shd-conv3"
    found = []
    for seed in range(n):
        generator = torch.Generator().manual_seed(seed)
        network = build(name, n_inputs=SIZES[name], n_classes=3, duration=0.08, skip=skip)
        init.fluctuation_driven_(network, rate=40.0, sigma_u=1.0 + seed, generator=generator)
        found.append(network)
    return found


def batches(name, n, steps=2, batch=6):
    """Per step, the inputs and targets of every network."""
    generator = torch.Generator().manual_seed(9)
    shape = (n * batch, *SIZES[name])
    for _ in range(steps):
        targets = torch.randint(0, 3, (n * batch,), generator=generator)
        if preset(name).data == "images":
            yield torch.rand(shape, generator=generator) * 2 - 1, targets
        else:
            yield (torch.rand((40, *shape), generator=generator) < 0.1).float(), targets


def optimizer_of(kind, networks):
    groups = [
        group
        for network, lr in zip(networks, RATES, strict=False)
        for group in parameter_groups(network, lr=lr)
    ]
    if kind == "smorms3":
        return SMORMS3(groups)
    optimizer = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[kind](groups)
    for network in networks:
        keep_non_negative(optimizer, network)
    return optimizer


STEPS = [(name, shared, "smorms3") for name in SIZES for shared in (False, True)]
STEPS += [(name, False, kind) for name in ("randman", "shd-dalian") for kind in ("adam", "sgd")]


@pytest.mark.parametrize(("name", "shared", "kind"), STEPS)
def test_training_steps_are_bitwise_those_of_each_network_alone(name, shared, kind):
    networks = networks_of(name)
    alone = copy.deepcopy(networks)
    model = side_by_side(networks)
    before = [p.clone() for p in model.parameters()]
    optimizer = optimizer_of(kind, networks)
    own = [optimizer_of(kind, [network]) for network in alone]
    for group, lr in zip([g for o in own for g in o.param_groups], each_rate(own), strict=True):
        group["lr"] = lr
    time = 0 if preset(name).data == "images" else 1
    for inputs, targets in batches(name, 1 if shared else 3):
        scores, states, counts = model(
            inputs, return_states=True, return_spike_counts=True, shared_input=shared
        )
        losses = max_over_time_cross_entropy(scores, targets, networks=3)
        losses = losses + upper_bound(counts, UPPER, STRENGTHS, "channel", networks=3)
        losses = losses + lower_bound(counts, torch.tensor(LOWER), 0.7, networks=3)
        losses.sum().backward()
        give_gradients(model, networks)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        for number, network in enumerate(alone):
            x = inputs if shared else inputs.chunk(3, time)[number]
            y = targets if shared else targets.chunk(3)[number]
            wanted, own_states, own_counts = network(
                x, return_states=True, return_spike_counts=True
            )
            loss = max_over_time_cross_entropy(wanted, y)
            upper = upper_bound(own_counts, UPPER[number], STRENGTHS[number], "channel")
            loss = loss + upper + lower_bound(own_counts, LOWER[number], 0.7)
            loss.backward()
            own[number].step()
            own[number].zero_grad()
            assert torch.equal(scores.chunk(3)[number], wanted)
            assert torch.equal(losses[number], loss)
            for found, one in zip(counts, own_counts, strict=True):
                assert torch.equal(found.chunk(3)[number], one)
            for found, one in zip(states, own_states, strict=True):
                assert torch.equal(found.membrane.chunk(3)[number], one.membrane)
            mine, theirs = (dict(n.named_parameters()) for n in (networks[number], network))
            for key, parameter in theirs.items():
                assert torch.equal(mine[key], parameter), key
    for parameter, start in zip(model.parameters(), before, strict=True):
        assert all(not torch.equal(p, s) for p, s in zip(parameter, start, strict=True))


class Operations(TorchDispatchMode):
    """Counts operations that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returned = [one.alias_info for one in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in returned):  # a view
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["randman", "shd-dalian"])
def test_operations_of_a_step_do_not_grow_with_the_networks(name):
    """With the kernel of means that a GPU has; layers and optimizer have a kernel each."""
    counted = []
    for n in (2, 5):
        networks = networks_of(name, n)
        model = side_by_side(networks)
        optimizer = SMORMS3(
            [group for network in networks for group in parameter_groups(network, lr=0.1)]
        )
        bounds = torch.tensor([3.0] * n)
        for inputs, targets in batches(name, n):  # the optimizer makes its state in the first step
            with emulated_means(emulated_cuda()), Operations() as operations:
                scores, _, counts = model(inputs, return_spike_counts=True)
                losses = max_over_time_cross_entropy(scores, targets, networks=n)
                losses = losses + upper_bound(counts, bounds, bounds, networks=n)
                losses = losses + lower_bound(counts, bounds, bounds, networks=n)
                losses.sum().backward()
                give_gradients(model, networks)
                optimizer.step()
        counted.append(operations.names)
    assert counted[0] == counted[1]
    updates = len({group.get("minimum") for group in optimizer.param_groups})
    assert counted[0].count("fastlif.smorms3.default") == updates


def each_rate(own):
    """The learning rate of every group of several optimizers, one for each network."""
    return [lr for lr, one in zip(RATES, own, strict=True) for _ in one.param_groups]


def test_a_network_is_a_view_of_the_model():
    networks = networks_of("shd-dalian")
    model = side_by_side(networks)
    assert model.hidden1.weight.shape == (3, 160, 30) and "networks=3" in repr(model.hidden1)
    with torch.no_grad():
        networks[1].hidden1.weight.fill_(0.5)
    assert model.hidden1.weight[1].eq(0.5).all() and not model.hidden1.weight[0].eq(0.5).any()
    init.fluctuation_driven_(networks[2], rate=10.0)
    assert torch.equal(model.hidden1.recurrent_weight[2], networks[2].hidden1.recurrent_weight)
    networks[0].load_state_dict(networks[1].state_dict())
    assert torch.equal(model.readout.weight[0], networks[1].readout.weight)
    again = side_by_side(networks[1:])  # another selection takes them over
    with torch.no_grad():
        again.readout.weight.zero_()
    assert networks[1].readout.weight.eq(0).all() and not model.readout.weight[1].eq(0).all()


def test_one_network_has_no_dimension_of_networks():
    (network,) = networks_of("randman", 1)
    model = side_by_side([network])
    assert model.hidden1.weight.shape == (128, 20)
    (inputs, targets), *_ = batches("randman", 1)
    scores = model(inputs, shared_input=True)
    assert torch.equal(scores, network(inputs))
    max_over_time_cross_entropy(scores, targets, networks=1).sum().backward()
    give_gradients(model, [network])
    assert network.readout.weight.grad.abs().sum() > 0


def test_layers_that_cannot_run_as_one_stack():
    """The signal between stacks holds all networks, whatever the first of them was given."""
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        layers = fastlif.LIFLinear(9, 16), torch.nn.Dropout(0.0), fastlif.LIReadout(16, 3)
        networks.append(fastlif.Sequential(*layers))
    model = side_by_side(networks)
    spikes = (torch.rand(30, 4, 9, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    scores = model(spikes, shared_input=True)
    assert torch.equal(scores, torch.cat([network(spikes) for network in networks]))
    hooked = model[0].register_forward_hook(lambda *args: None)
    assert torch.equal(model(spikes, shared_input=True), scores)
    hooked.remove()
    single = model[0](spikes, shared_input=True)
    assert torch.equal(single, torch.cat([network[0](spikes) for network in networks], 1))


def test_an_input_that_would_not_reach_all_networks_is_refused():
    networks = []
    for seed in range(2):
        torch.manual_seed(seed)
        block = fastlif.Sequential(fastlif.LIFLinear(9, 16), fastlif.LIFLinear(16, 16))
        networks.append(fastlif.Sequential(block, fastlif.LIReadout(16, 3)))
    model = side_by_side(networks)
    spikes = (torch.rand(30, 4, 9, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    scores = model(spikes, shared_input=True)
    assert torch.equal(scores, torch.cat([network(spikes) for network in networks]))
    model[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match="shared_input must reach the first layer.*Sequential"):
        model(spikes, shared_input=True)
    assert torch.equal(model(torch.cat([spikes, spikes], 1)), scores)


def test_what_cannot_stand_side_by_side():
    one, two = networks_of("randman", 2)
    with pytest.raises(ValueError, match="at least one network"):
        side_by_side([])
    with pytest.raises(ValueError, match="must be different modules"):
        side_by_side([one, one])
    other = build("randman", n_inputs=20, n_classes=3, duration=0.08, dt=1e-3)
    with pytest.raises(ValueError, match="must be alike in all but the values.*got 1"):
        side_by_side([one, other])
    with pytest.raises(ValueError, match="must be alike"):
        side_by_side([one, copy.deepcopy(two).double()])
    foreign = torch.nn.Sequential(torch.nn.Linear(20, 20), copy.deepcopy(one))
    with pytest.raises(ValueError, match=r"fastlif's layers alone, got weight of 0 \(Linear\)"):
        side_by_side([foreign])
    model = side_by_side([one, two])
    with pytest.raises(ValueError, match="networks must be single ones"):
        side_by_side([model])
    with pytest.raises(ValueError, match="drawn of one network at a time, got a layer of 2"):
        init.fluctuation_driven_(model, rate=10.0)
    with pytest.raises(ValueError, match="drawn of one network at a time"):
        init.kaiming_(model)
    with pytest.raises(ValueError, match="drawn of one network at a time"):
        init.readout_(model.readout)
    with pytest.raises(ValueError, match="as many samples for each of 2 networks"):
        model(torch.zeros(40, 5, 20))


def test_losses_refuse_what_does_not_fit():
    scores, targets = torch.zeros(6, 3), torch.zeros(6, dtype=torch.int64)
    with pytest.raises(ValueError, match="divide the 6 samples of scores, got 4"):
        max_over_time_cross_entropy(scores, targets, networks=4)
    with pytest.raises(ValueError, match="targets must have shape"):
        max_over_time_cross_entropy(scores, targets[:3], networks=3)
    assert max_over_time_cross_entropy(scores, targets[:2], networks=3).shape == (3,)
    counts = [torch.ones(6, 5)]
    with pytest.raises(ValueError, match=r"v_upper must be one number or 3, got \(1.0, 2.0\)"):
        upper_bound(counts, (1.0, 2.0), 1.0, networks=3)
    with pytest.raises(ValueError, match=r"strength must be one number, got \(1.0, 2.0\)"):
        lower_bound(counts, 1.0, (1.0, 2.0))
    with pytest.raises(ValueError, match="strength must be finite and >= 0, got -1"):
        lower_bound(counts, 1.0, (1.0, -1.0), networks=2)
    with pytest.raises(ValueError, match=r"divide the 6 samples of spike_counts\[0\], got 0"):
        lower_bound(counts, 1.0, 1.0, networks=0)
