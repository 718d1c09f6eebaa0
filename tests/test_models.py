"""Presets: parameter counts of the paper, shapes, and that each network fires."""

from __future__ import annotations

import pytest
import torch

from fastlif.init import fluctuation_driven_
from fastlif.models import PRESETS, build, preset

# Tables 4 and 5 of the paper; shd-conv1 as padding 0 gives it, since the printed numbers fit no
# network of 16 feature maps.
PARAMETERS = {
    "randman": (3840, 20224),
    "shd-dense": (92160, 108544),
    "shd-conv1": (22096, 23376),
    "shd-conv3": (24656, 51536),
    "shd-conv7": (99952, 208752),
    "shd-conv10": (157520, 327760),
}


def test_every_preset_has_its_parameters_pinned() -> None:
    assert set(PARAMETERS) == set(PRESETS)
    assert all(PRESETS[name].name == name for name in PRESETS)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("recurrent", [False, True])
def test_parameter_count(name: str, recurrent: bool) -> None:
    model = build(name, recurrent=recurrent)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == PARAMETERS[name][recurrent]
    names = {key.rpartition(".")[2] for key in model.state_dict()}
    assert names == ({"weight", "recurrent_weight"} if recurrent else {"weight"})


@pytest.mark.parametrize("name", PARAMETERS)
def test_network_fires_and_scores(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = build(name, backend="reference")
    fluctuation_driven_(model, rate=16.0, generator=generator)
    network = preset(name)
    n_steps = 30 + 6 * len(network.hidden)  # a layer needs some input before it fires
    shape = (n_steps, 2, *network.input_features())
    spikes = (torch.rand(shape, generator=generator) < 0.032).float()
    output, _, counts = model(spikes, return_spike_counts=True)
    assert output.shape == (2, network.n_classes)
    assert len(counts) == len(network.hidden)
    for layer_counts in counts:
        assert 0.001 < layer_counts.mean() / n_steps < 0.5
    assert bool(output.isfinite().all()) and output.std() > 0


def test_neurons_and_readout_have_the_papers_constants() -> None:
    for name, network in PRESETS.items():
        model = build(name, dt=1e-3)
        *hidden, readout = model
        assert {(layer.tau_mem, layer.tau_syn, layer.dt) for layer in hidden} == {
            (20e-3, 10e-3, 1e-3)
        }
        assert readout.tau_mem == network.duration
        assert readout.tau_syn == 10e-3
        assert readout.initial_membrane == (-1e-3 if network.convolutional else -1e-2)
        assert [layer.recurrent for layer in hidden] == [network.recurrent] * len(hidden)


def test_table_4_and_5_training_settings() -> None:
    assert {name: (p.batch_size, p.epochs) for name, p in PRESETS.items()} == {
        "randman": (400, 200),
        "shd-dense": (400, 200),
        "shd-conv1": (400, 200),
        "shd-conv3": (400, 200),
        "shd-conv7": (100, 200),
        "shd-conv10": (100, 200),
    }


def test_data_decide_the_number_of_inputs_and_classes() -> None:
    model = build("shd-conv3", n_classes=10)
    assert model.readout.weight.shape == (10, 320)
    model = build("shd-dense", n_inputs=50, n_classes=3, recurrent=True)
    assert model.hidden1.weight.shape == (128, 50)
    assert model.hidden1.recurrent_weight.shape == (128, 128)
    assert model.readout.weight.shape == (3, 128)
    model = build("shd-conv1", n_inputs=101)
    assert model.readout.weight.shape == (20, 16 * 9)


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
    with pytest.raises(ValueError, match="dt must be finite and > 0"):
        build("randman", dt=-1.0)
