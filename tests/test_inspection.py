"""`fastlif.inspection`: known cases and predictions against simulation."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from fastlif import init, layers
from fastlif.init.formulas import psp_integrals
from fastlif.inspection import (
    activity,
    activity_warnings,
    batches,
    check_activity,
    inspect,
    membranes,
    record,
)
from fastlif.ops.reference import stack_trace
from fastlif.spikes import PackedSpikes

from .init_helpers import DT, drawn_model, generator, poisson


def silenced(layer: layers.LIFLinear, currents: list[float]) -> layers.LIFLinear:
    """A layer whose neurons hear nothing but a constant current each."""
    layer.weight.data.zero_()
    assert layer.bias is not None
    layer.bias.data.copy_(torch.tensor(currents))
    return layer


class TestActivity:
    def test_silent_and_saturated_neurons_are_counted(self):
        # I settles at bias / (1 - decay_syn). -1: never; 0.5: at times; 100: at every other step.
        layer = silenced(layers.LIFLinear(3, 4), [-1.0, 0.0, 0.5, 100.0])
        inputs = torch.zeros(200, 2, 3)
        (found,) = activity(layer, inputs)
        rates = layer(inputs).mean((0, 1)) / DT
        assert (found.layer, found.population) == ("LIFLinear", "all")
        assert (found.n_neurons, found.n_samples) == (4, 2)
        assert found.silent == 0.5 and found.saturated == 0.25
        assert torch.allclose(found.neuron_rates, rates.double(), rtol=1e-6)
        assert found.neuron_rates[3] == pytest.approx(250.0, rel=0.05)
        assert 0.0 < found.neuron_rates[2] < 125.0
        assert found.firing_rate == pytest.approx(float(rates.detach().mean()), rel=1e-6)

    def test_a_neuron_that_fires_in_one_sample_is_not_silent(self):
        layer = layers.LIFLinear(1, 1, bias=False)
        layer.weight.data.fill_(50.0)
        inputs = torch.zeros(20, 3, 1)
        inputs[0, 1] = 1.0
        (found,) = activity(layer, inputs)
        assert found.silent == 0.0 and found.n_samples == 3

    @pytest.mark.parametrize("batch_first", [False, True])
    def test_fused_runs_and_single_layers_tell_the_same(self, batch_first, monkeypatch):
        model, data = drawn_model(), poisson(20.0, (100, 7, 40), 3)
        for layer in model:
            layer.batch_first = batch_first
        data = data.transpose(0, 1) if batch_first else data
        fused = activity(model, data)
        monkeypatch.setattr(batches, "SLICE_NUMBERS", 4 * 100 * 60 * 3)  # three samples a slice
        alone = activity(nn.Sequential(*model), data)
        assert [one.layer for one in fused] == [one.layer for one in alone] == ["0", "1"]
        for one, other in zip(fused, alone, strict=True):
            assert one.firing_rate > 1.0 and one.n_samples == other.n_samples == 7
            assert one == other and torch.equal(one.neuron_rates, other.neuron_rates)

    def test_warnings_name_layer_and_cure(self):
        model = layers.Sequential(
            silenced(layers.LIFLinear(3, 10), [-1.0] * 10),
            silenced(layers.LIFLinear(10, 4), [0.0, 100.0, 100.0, 0.5]),
            silenced(layers.LIFLinear(4, 2), [0.5, 0.5]),
            layers.LIReadout(2, 2),
        )
        silent, saturated = check_activity(model, torch.zeros(100, 1, 3))
        assert silent.startswith("layer '0' is silent (0.0 Hz; 100% of 10 neurons")
        assert "raise sigma_u" in silent and "--lower-strength" in silent and "priming" in silent
        assert saturated.startswith("layer '1' is saturated (") and "lower sigma_u" in saturated
        assert activity_warnings(activity(drawn_model(), poisson(20.0, (200, 9, 40), 1))) == []

    def test_populations_of_a_dalian_layer_are_apart(self):
        layer = layers.LIFDalianLinear(20, 8, 2)
        for parameter in layer.parameters():
            parameter.data.zero_()
        layer.weight.data[8:] = 5.0  # the inhibitory neurons fire alone
        inputs = poisson(100.0, (100, 4, 20), 2)
        excitatory, inhibitory = activity(layer, inputs)
        assert (excitatory.population, excitatory.n_neurons) == ("excitatory", 8)
        assert (inhibitory.population, inhibitory.n_neurons) == ("inhibitory", 2)
        assert excitatory.silent == 1.0 and inhibitory.silent == 0.0
        assert inhibitory.firing_rate > 50.0
        (line, *_) = check_activity(layer, inputs)
        assert line.startswith("the excitatory population of layer 'LIFDalianLinear' is silent")


class TestMembranes:
    def test_a_constant_current_is_predicted_and_measured(self):
        layer = silenced(layers.LIFLinear(3, 5), [-0.2, -0.1, 0.0, 0.1, 0.2])
        layer.bias.data += 0.05
        report = inspect(layer, torch.zeros(400, 2, 3), warmup=300)
        found = report.layers[0].populations[0].membranes
        expected = 0.05 / (1.0 - math.exp(-0.2))  # where I settles, and U with it
        assert found.mu_u == pytest.approx(expected, rel=1e-4)
        assert found.predicted_mu_u == pytest.approx(expected, rel=1e-5)
        assert found.sigma_u == pytest.approx(0.0, abs=1e-3)
        assert found.predicted_sigma_u == 0.0
        assert found.mu_u_reset < found.mu_u  # two neurons spike

    def test_prediction_by_hand(self):
        layer = layers.LIFLinear(2, 1, bias=False)
        layer.weight.data.copy_(torch.tensor([[0.5, -0.3]]))
        inputs = torch.zeros(100, 1, 2)
        inputs[::10, 0, 0] = 1.0  # 50 Hz
        inputs[::20, 0, 1] = 1.0  # 25 Hz
        report = inspect(layer, inputs)
        found = report.layers[0].populations[0].membranes
        psp = psp_integrals(20e-3, 10e-3, DT)
        assert report.layers[0].input_rate == pytest.approx(37.5)
        assert found.predicted_mu_u == pytest.approx(
            (0.5 * 50.0 - 0.3 * 25.0) * psp.eps_bar, rel=1e-5
        )
        assert found.predicted_sigma_u == pytest.approx(
            math.sqrt((0.25 * 50.0 + 0.09 * 25.0) * psp.eps_hat), rel=1e-5
        )

    @pytest.mark.parametrize("kind", ["dense", "conv", "recurrent", "dalian", "dalian-conv"])
    def test_prediction_against_poisson_input(self, kind):
        rate, n_steps = 10.0, 1500
        shape: tuple[int, ...] = (n_steps, 4, 60)
        if kind == "conv":
            layer, shape = layers.LIFConv1d(3, 16, 5, 2, padding=2, bias=False), (1500, 4, 3, 40)
        elif kind == "dalian":
            layer = layers.LIFDalianLinear(60, 120, 40, tau_mem=(20e-3, 10e-3))
        elif kind == "dalian-conv":
            layer, shape = layers.LIFDalianConv1d(3, 16, 5, 2, 2), (1500, 4, 3, 40)
        else:
            layer = layers.LIFLinear(60, 200, bias=False, recurrent=kind == "recurrent")
        init.fluctuation_driven_(layer, rate=rate, sigma_u=0.5, generator=generator())
        inputs = PackedSpikes.pack(poisson(rate, shape, 5))
        (reached,) = batches.reached_layers(layer, inputs).values()
        # Own spikes that are independent of the input, as the theory has them.
        own = poisson(rate, (*shape[:2], *reached.plan.features), 6)
        expected = membranes.expectation(reached, inputs, own)
        with torch.no_grad():
            trace = stack_trace(
                inputs.unpack(),
                [reached.plan],
                [layer.tensors(None)],
                replay_spikes=[own],
                spiking=False,
            )
        membrane = trace.membranes[0][50:]
        for _, channels in reached.populations():
            part = membrane[:, :, channels]
            mean, variance = expected.mean[channels].mean(), expected.std[channels].square().mean()
            assert float(mean) == pytest.approx(float(part.mean()), abs=0.03)
            assert float(variance) == pytest.approx(float(part.var(0).mean()), rel=0.1)
        # Neuron by neuron too: their means scatter, and the prediction knows it.
        own_means = membrane.mean((0, 1)).flatten()
        assert float(own_means.std()) > 0.1
        both = torch.stack((own_means, expected.mean.flatten()))
        assert float(torch.corrcoef(both)[0, 1]) > 0.98

    def test_zero_padding_is_part_of_the_prediction(self):
        layer = layers.LIFConv1d(1, 1, 3, padding=1, bias=False)
        layer.weight.data.fill_(1.0)
        report = inspect(layer, torch.ones(50, 1, 1, 4))
        bar = psp_integrals(20e-3, 10e-3, DT).eps_bar / DT
        found = report.layers[0].populations[0].membranes
        assert found.predicted_mu_u == pytest.approx(bar * (2 + 3 + 3 + 2) / 4, rel=1e-5)

    @pytest.mark.parametrize("kind", ["recurrent", "dalian", "dalian-conv", "delay"])
    def test_membranes_are_those_of_the_reference(self, kind):
        shape: tuple[int, ...] = (80, 3, 30)
        if kind == "dalian":
            layer = layers.LIFDalianLinear(30, 24, tau_mem=(20e-3, 12e-3), tau_syn=(9e-3, 5e-3))
        elif kind == "dalian-conv":
            layer = layers.LIFDalianConv1d(2, 8, 5, 2, tau_inhibitory=(15e-3, 8e-3))
            shape = (80, 3, 2, 21)
        else:
            layer = layers.LIFLinear(30, 25, recurrent=True, delay=int(kind == "delay"))
        init.fluctuation_driven_(layer, rate=40.0, sigma_u=1.5, generator=generator())
        layer.double()
        inputs = poisson(40.0, shape, 6).double()
        report = inspect(layer, inputs, warmup=5)
        plan, tensors = layer.plan(tuple(shape[2:]), 80), layer.tensors(None)
        with torch.no_grad():
            real = stack_trace(inputs, [plan], [tensors])
            free = stack_trace(inputs, [plan], [tensors], replay_spikes=real.spikes, spiking=False)
        assert 0.01 < float(real.spikes[0].mean()) < 0.5
        n_excitatory = plan.emitted_features[0]
        parts = [slice(0, n_excitatory), slice(n_excitatory, None)]
        for part, channels in zip(report.layers[0].populations, parts, strict=False):
            for mu_u, sigma_u, trace in (
                (part.membranes.mu_u, part.membranes.sigma_u, free),
                (part.membranes.mu_u_reset, part.membranes.sigma_u_reset, real),
            ):
                membrane = trace.membranes[0][5:, :, channels].numpy()
                assert mu_u == pytest.approx(membrane.mean(), rel=1e-9)
                assert sigma_u == pytest.approx(math.sqrt(membrane.var(axis=0).mean()), rel=1e-9)
            spikes = real.spikes[0][:, :, channels]
            assert part.activity.firing_rate == pytest.approx(float(spikes.mean()) / DT, rel=1e-9)

    def test_histograms_are_densities_and_the_prediction_a_mixture(self):
        model = drawn_model()
        report = inspect(model, poisson(20.0, (300, 6, 40), 7), warmup=20)
        for layer in report.layers:
            histogram = layer.populations[0].membranes.histogram
            width = histogram.edges.diff()
            assert 0.95 < float((histogram.free * width).sum()) <= 1.0 + 1e-9
            assert 0.7 < float((histogram.reset * width).sum()) <= 1.0 + 1e-9
            assert 0.95 < float((histogram.predicted * width).sum()) <= 1.0 + 1e-9
            distance = ((histogram.free - histogram.predicted).abs() * width).sum()
            assert float(distance) < 0.25
            assert float(histogram.edges[0]) < -1.0 and float(histogram.edges[-1]) > 1.0

    def test_few_samples_are_kept_of_large_layers(self, monkeypatch):
        monkeypatch.setattr(membranes, "MEMBRANE_NUMBERS", 1)
        monkeypatch.setattr("fastlif.inspection.run.MEMBRANE_NUMBERS", 2 * 60 * 100)
        report = inspect(drawn_model(), poisson(20.0, (100, 5, 40), 7))
        kept = [layer.populations[0].membranes.n_samples for layer in report.layers]
        assert kept == [2, 2] and report.n_samples == 5


class TestReport:
    def test_rows_table_and_files(self, tmp_path: Path):
        model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
        predictions = init.fluctuation_driven_(model, rate=20.0, generator=generator())
        report = inspect(model, data, torch.arange(6), predictions=predictions)
        rows = report.rows()
        assert [row["layer"] for row in rows] == ["0", "1", "2"]
        assert rows[0]["target_sigma_u"] == 1.0 and rows[0]["neurons"] == 60
        assert rows[2]["population"] == "readout" and rows[2]["rate_hz"] is None
        assert rows[2]["largest_u"] > rows[2]["smallest_u"]
        table = report.table().splitlines()
        assert len(table) == 5 and "sigma_U" in table[0] and "|dL/dS|" in table[0]
        assert f"{rows[0]['rate_hz']:.1f}" in table[2]
        assert "|dL/dS|" not in inspect(model, data).table()

        report.to_csv(tmp_path / "a.csv")
        with open(tmp_path / "a.csv", newline="") as file:
            written = list(csv.DictReader(file))
        assert float(written[1]["sigma_u"]) == rows[1]["sigma_u"]
        assert written[2]["rate_hz"] == ""
        report.to_json(tmp_path / "a.json")
        content = json.loads((tmp_path / "a.json").read_text())
        assert content["rows"] == rows
        assert len(content["populations"][0]["neuron_rates_hz"]) == 60
        assert set(content["parameters"]["0"]) == {"weight", "recurrent_weight", "bias"}

    def test_a_dalian_layer_has_two_rows_and_its_gradients_once(self):
        model = layers.Sequential(layers.LIFDalianLinear(40, 16), layers.LIReadout(16, 3))
        init.fluctuation_driven_(model, rate=30.0, generator=generator())
        report = inspect(model, poisson(30.0, (80, 6, 40), 8), torch.arange(6) % 3)
        excitatory, inhibitory, readout = report.rows()
        kinds = [row["population"] for row in report.rows()]
        assert kinds == ["excitatory", "inhibitory", "readout"]
        assert (excitatory["neurons"], inhibitory["neurons"]) == (16, 4)
        assert excitatory["output_gradient_norm"] > 0.0
        assert inhibitory["output_gradient_norm"] is None
        assert excitatory["rate_hz"] != inhibitory["rate_hz"]

    def test_images_pooling_and_skip_connections(self):
        model = layers.Sequential(
            layers.ImageEncoder(1, 40, 3),
            layers.LIFConv2d(3, 4, 3, padding=1),
            layers.MaxPool2d(2),
            layers.LIFConv2d(4, 5, 3, padding=1),
            layers.LIReadout(5 * 9 + 4 * 36, 3),
            skip_to_readout=True,
        )
        images = torch.rand(4, 1, 6, 6, generator=generator(3)) * 2.0 - 1.0
        model[0].weight.data.fill_(0.6)
        model[0].bias.data.fill_(0.5)
        init.fluctuation_driven_(model[1], rate=40.0, sigma_u=2.0, generator=generator())
        report = inspect(model, images, torch.arange(4) % 3)
        assert [layer.name for layer in report.layers] == ["0", "1", "3"]
        assert report.layers[0].input_rate is None
        assert report.layers[0].populations[0].membranes.predicted_sigma_u is None
        assert report.layers[1].populations[0].membranes.predicted_sigma_u > 0.0
        assert report.layers[0].gradients.parameters.keys() == {"weight", "bias"}
        recording = record(model, images, 2)
        assert recording.input is None and len(recording.populations) == 3
        assert torch.allclose(recording.readouts["4"].amax(0), model(images)[2], atol=1e-5)

    def test_what_does_not_fit_is_refused(self):
        model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
        with pytest.raises(ValueError, match="Linear contains no spiking fastlif layer"):
            inspect(nn.Linear(3, 3), data)
        with pytest.raises(ValueError, match="at least one sample, got none"):
            inspect(model, data[:, :0])
        with pytest.raises(ValueError, match="targets must be one per sample, 6, got 5"):
            inspect(model, data, torch.arange(5))
        with pytest.raises(ValueError, match="warmup must be between 0 and 59 steps, got 60"):
            inspect(model, data, warmup=60)
        with pytest.raises(ValueError, match="sample must be between 0 and 5, got 6"):
            record(model, data, 6)
        model.append(nn.Identity())
        model.unused = layers.LIFLinear(2, 2)
        lost = nn.Module()
        lost.model, lost.forward = model[0], lambda input: input
        with pytest.raises(ValueError, match="inputs did not reach the layers"):
            inspect(lost, data)


def test_a_recording_is_what_the_model_does():
    model, data = drawn_model(), poisson(20.0, (60, 6, 40), 8)
    recording = record(model, PackedSpikes.pack(data), 4, targets=torch.arange(6))
    assert recording.target == 4 and recording.dt == DT
    assert torch.equal(recording.input, data[:, 4].bool())
    first, second = recording.populations
    emitted = model[0](data)
    assert torch.equal(first.spikes, emitted[:, 4].bool()) and first.spikes.any()
    assert torch.equal(second.spikes, model[1](emitted)[:, 4].bool())
    assert torch.equal(first.membrane > first.threshold, first.spikes)
    assert torch.allclose(recording.readouts["2"].amax(0), model(data)[4], atol=1e-5)
