"""Presets: parameter counts of the paper, shapes, and that each network fires."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fastlif.init import fluctuation_driven_
from fastlif.models import PRESETS, Regularization, build, preset
from tests.tiny_tasks import features_of

# Tables 4 to 6 of the paper, feed-forward and recurrent, without the encoder of images. shd-conv1
# is as padding 0 gives it, since the printed numbers fit no network of 16 feature maps.
PARAMETERS = {
    "randman": (3840, 20224),
    "shd-dense": (92160, 108544),
    "shd-conv1": (22096, 23376),
    "shd-conv3": (24656, 51536),
    "shd-conv7": (99952, 208752),
    "shd-conv10": (157520, 327760),
    "cifar-conv2": (95456, None),
    "cifar-conv4": (109792, None),
    "dvs-conv6": (308800, None),
    "dvs-conv8": (586816, None),
}
ENCODER = 15 + 15  # gain and bias of five neurons per color


def wide(n_hidden: int, n_recurrent: int) -> int:
    return 700 * n_hidden + n_recurrent + 128 * 20


def dalian_conv3(excitatory_recurrence: bool) -> int:
    """E feature maps as in conv-3, a quarter as many I; kernels of 5 from E and 3 from I."""
    count = 64 * 5 * 20  # the readout hears 64 E maps of 5 neurons
    for maps_before, n_excitatory, kernel in ((1, 16, 21), (16, 32, 7), (32, 64, 7)):
        n_inhibitory = n_excitatory // 4
        n_both = n_excitatory + n_inhibitory
        count += n_both * maps_before * kernel + n_both * n_inhibitory * 3
        count += n_both * n_excitatory * 5 * excitatory_recurrence
    return count


# Of these the paper prints no number.
COMPUTED = {
    "shd-dense160": (700 * 160 + 160 * 20, 700 * 160 + 160 * 160 + 160 * 20),
    "shd-dalian": (wide(160, 160 * 32), wide(160, 160 * (128 + 32))),
    "shd-dalian-conv3": (dalian_conv3(False), dalian_conv3(True)),
}


def test_every_preset_has_its_parameters_pinned() -> None:
    assert set(PARAMETERS) | set(COMPUTED) == set(PRESETS)
    assert all(PRESETS[name].name == name for name in PRESETS)


def n_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("recurrent", [False, True])
def test_parameter_count(name: str, recurrent: bool) -> None:
    expected = (PARAMETERS | COMPUTED)[name][recurrent]
    if expected is None:
        assert not PRESETS[name].recurrent
        return
    model = build(name, recurrent=recurrent)
    count = n_parameters(model)
    names = {key.rpartition(".")[2] for key in model.state_dict()}
    wanted = {"weight"} | ({"recurrent_weight"} if recurrent else set())
    if PRESETS[name].data == "images":
        count -= ENCODER
        wanted |= {"bias"}  # the encoder's alone, or the count would be off
    if PRESETS[name].dalian:
        wanted |= {"inhibitory_weight"}
    assert count == expected
    assert names == wanted


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("shd-conv3", 20 * (16 * 68 + 32 * 21)),
        ("shd-dalian-conv3", 20 * (16 * 68 + 32 * 21)),  # E neurons alone
        ("cifar-conv2", 10 * 32 * 32 * 32),  # before they are pooled
        ("dvs-conv6", 11 * (2 * 32 * 1024 + 2 * 64 * 256 + 128 * 64)),
    ],
)
def test_skip_connections_add_dense_synapses(name: str, more: int) -> None:
    with_skips, without = build(name, skip=True), build(name)
    assert n_parameters(with_skips) - n_parameters(without) == more
    sizes = [p.shape for p in with_skips.parameters()][:-1]
    assert sizes == [p.shape for p in without.parameters()][:-1]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("skip", [False, True])
def test_network_fires_and_scores(name: str, skip: bool) -> None:
    network = preset(name)
    if skip and (len(network.hidden) == 1 or len(network.hidden) > 6):
        return
    generator = torch.Generator().manual_seed(0)
    features = features_of(name)
    n_steps = 30 + 6 * len(network.hidden)  # a layer needs some input before it fires
    model = build(name, backend="reference", n_inputs=features, skip=skip, duration=n_steps * 2e-3)
    fluctuation_driven_(model, rate=16.0, generator=generator)
    if network.data == "images":
        input = torch.rand((2, *features), generator=generator) * 2 - 1
    else:
        shape = (n_steps, 2, *features)
        input = (torch.rand(shape, generator=generator) < 0.032).float()
    output, _, counts = model(input, return_spike_counts=True)
    assert output.shape == (2, network.n_classes)
    assert len(counts) == len(network.hidden) + (network.data == "images")
    for layer_counts in counts:
        assert 0.001 < layer_counts.mean() / n_steps < 0.5
    assert bool(output.isfinite().all()) and output.std() > 0


def test_pooling_follows_every_second_layer() -> None:
    names = [name for name, _ in build("cifar-conv4").named_children()]
    assert names == [
        "encoder",
        "hidden1",
        "hidden2",
        "pool2",
        "hidden3",
        "hidden4",
        "pool4",
        "readout",
    ]
    pooled = [name for name, _ in build("dvs-conv8").named_children() if name.startswith("pool")]
    assert pooled == ["pool2", "pool4", "pool6", "pool8"]
    assert not any("pool" in name for name, _ in build("shd-conv3").named_children())


def test_rescaled_surrogate_reaches_every_spiking_layer() -> None:
    for name in ("shd-conv3", "shd-dalian", "cifar-conv4"):
        model = build(name, rescale_surrogate=True)
        spiking = [layer for layer in model if hasattr(layer, "rescale_surrogate")]
        expected = len(preset(name).hidden) + (preset(name).data == "images")
        assert len(spiking) == expected
        assert all(layer.rescale_surrogate for layer in spiking)


def test_neurons_and_readout_have_the_papers_constants() -> None:
    for name, network in PRESETS.items():
        model = build(name, dt=1e-3)
        readout = model.readout
        hidden = [layer for key, layer in model.named_children() if key.startswith("hidden")]
        assert len(hidden) == len(network.hidden)
        assert {(layer.tau_mem, layer.tau_syn, layer.dt) for layer in hidden} == {
            (20e-3, 10e-3, 1e-3)
        }
        assert readout.tau_mem == network.duration
        assert readout.tau_syn == 10e-3
        assert readout.initial_membrane == (-1e-3 if network.convolutional else -1e-2)
        assert [layer.recurrent for layer in hidden] == [network.recurrent] * len(hidden)


def test_excitatory_and_inhibitory_currents_have_time_constants_of_their_own() -> None:
    for name in ("shd-dalian", "shd-dalian-conv3"):
        for layer in list(build(name))[:-1]:
            assert (layer.tau_mem, layer.tau_syn, layer.tau_inhibitory) == (20e-3, 10e-3, 20e-3)


def test_tables_4_to_6_training_settings() -> None:
    assert {name: (p.batch_size, p.epochs) for name, p in PRESETS.items()} == {
        "randman": (400, 200),
        "shd-dense": (400, 200),
        "shd-dense160": (400, 200),
        "shd-dalian": (400, 200),
        "shd-conv1": (400, 200),
        "shd-conv3": (400, 200),
        "shd-conv7": (100, 200),
        "shd-conv10": (100, 200),
        "shd-dalian-conv3": (400, 200),
        "cifar-conv2": (128, 50),
        "cifar-conv4": (128, 50),
        "dvs-conv6": (16, 20),
        "dvs-conv8": (8, 20),
    }
    durations = {"randman": 0.2, "events": 0.7, "images": 0.1, "event_camera": 1.0}
    assert all(p.duration == durations[p.data] for p in PRESETS.values())


def test_data_decide_the_number_of_inputs_and_classes() -> None:
    model = build("shd-conv3", n_classes=10)
    assert model.readout.weight.shape == (10, 320)
    model = build("shd-dense", n_inputs=50, n_classes=3, recurrent=True)
    assert model.hidden1.weight.shape == (128, 50)
    assert model.hidden1.recurrent_weight.shape == (128, 128)
    assert model.readout.weight.shape == (3, 128)
    model = build("shd-conv1", n_inputs=101)
    assert model.readout.weight.shape == (20, 16 * 9)
    model = build("dvs-conv6", n_inputs=(2, 34, 34), n_classes=10, duration=0.3)  # N-MNIST
    assert model.readout.weight.shape == (10, 128 * 4 * 4)
    assert model.readout.tau_mem == 0.3


def test_precision_of_the_parameters() -> None:
    model = build("shd-conv1", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_bad_requests_are_named() -> None:
    with pytest.raises(ValueError, match=r"one of randman, shd-dense, .*; got 'shd-conv4'"):
        build("shd-conv4")
    with pytest.raises(ValueError, match="n_classes must be at least 1, got 0"):
        build("randman", n_classes=0)
    with pytest.raises(ValueError, match="n_inputs must be larger for preset 'shd-conv3', got 60"):
        build("shd-conv3", n_inputs=60)
    with pytest.raises(ValueError, match=r"larger for preset 'dvs-conv8', got \(2, 15, 40\)"):
        build("dvs-conv8", n_inputs=(2, 15, 40))
    with pytest.raises(ValueError, match=r"\(channels, height, width\) .* 'dvs-conv6', got 34"):
        build("dvs-conv6", n_inputs=34)
    with pytest.raises(ValueError, match=r"n_inputs must have 2 sizes for preset 'shd-conv1'"):
        build("shd-conv1", n_inputs=(700,))
    with pytest.raises(ValueError, match="n_inputs must be at least 1, got 0"):
        build("shd-dense", n_inputs=0)
    with pytest.raises(ValueError, match="skip must be False for preset 'randman'"):
        build("randman", skip=True)
    for dt in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match="dt must be finite and > 0"):
            build("cifar-conv2", dt=dt)


@pytest.mark.parametrize("name", ["upper_strength", "v_upper", "lower_strength", "v_lower"])
@pytest.mark.parametrize("value", [-5.0, math.nan, math.inf])
def test_bounds_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and >= 0, got {value}"):
        Regularization(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be finite and >= 0"):
        dataclasses.replace(preset("randman").regularization, **{name: value})
    assert getattr(Regularization(**{name: 0.0}), name) == 0.0


def test_the_unit_of_the_upper_bound_is_layer_or_channel() -> None:
    with pytest.raises(ValueError, match="upper_per must be 'layer' or 'channel', got 'neuron'"):
        Regularization(upper_per="neuron")
