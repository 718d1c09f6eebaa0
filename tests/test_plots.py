"""`fastlif.plots`: figures hold what they should, and matplotlib's settings stay as they are."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from fastlif import init, layers, plots
from fastlif.inspection import ModelReport, Recording, inspect, record
from fastlif.plots import samples
from fastlif.plots.style import MM_PER_INCH, PNG_DPI

from .init_helpers import generator, poisson, small_model


@pytest.fixture(scope="module")
def looked_at() -> tuple[ModelReport, Recording]:
    """A network of an ordinary and a Dalian layer and a readout."""
    model = layers.Sequential(
        layers.LIFLinear(40, 60), layers.LIFDalianLinear(60, 20), layers.LIReadout(20, 4)
    )
    predictions = init.fluctuation_driven_(model, rate=30.0, generator=generator())
    data, targets = poisson(30.0, (100, 4, 40), 1), torch.arange(4)
    report = inspect(model, data, targets, predictions=predictions)
    return report, record(model, data, 1, targets=targets)


def texts(figure) -> str:
    """All that is written in a figure."""
    found = figure.findobj(matplotlib.text.Text)
    return " | ".join(one.get_text() for one in found if one.get_visible())


@pytest.mark.parametrize("name", ["raster", "trace", "membrane", "depth"])
def test_figures_are_written_and_labelled(looked_at, tmp_path: Path, name: str):
    report, recording = looked_at
    draw, labels = {
        "raster": (
            lambda: plots.raster_figure(recording),
            ("input", "0", "1, inhibitory", "time (ms)", "neuron", "Hz", "class 1 (true)"),
        ),
        "trace": (
            lambda: plots.trace_figure(recording),
            ("0", "1, excitatory", "1, inhibitory", "time (ms)", "$U$", "θ"),
        ),
        "membrane": (
            lambda: plots.membrane_figure(report),
            ("membrane $U$", "density", "predicted", "target", "threshold", "1, inhibitory"),
        ),
        "depth": (
            lambda: plots.depth_figure(report),
            ("firing rate (Hz)", "excitatory", "silent", "neurons (%)", r"\partial S", "layer"),
        ),
    }[name]
    before = dict(matplotlib.rcParams)
    figure = draw()
    files = plots.save(figure, tmp_path / name)
    assert dict(matplotlib.rcParams) == before
    assert all(label in texts(figure) for label in labels)
    pdf, png = files
    assert pdf.read_bytes()[:5] == b"%PDF-" and b"FontFile2" in pdf.read_bytes()
    image = np.asarray(Image.open(png).convert("L"), dtype=float)
    assert image.std() > 10.0  # something is drawn
    width = figure.get_size_inches()[0]
    assert width * MM_PER_INCH <= plots.PAGE + 1e-6
    assert abs(image.shape[1] - width * PNG_DPI) <= 1
    # Nothing is cut off: the outermost pixels are background.
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (border == 255.0).mean() > 0.99
    for axes in figure.axes:
        if axes.axison:
            assert not axes.spines["top"].get_visible()


def test_a_raster_has_a_dot_for_each_spike():
    spikes = torch.zeros(50, 10, dtype=torch.bool)
    spikes[5, 3] = spikes[40, 9] = True
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.raster(axes, spikes, 2e-3)
    (line,) = axes.get_lines()
    assert line.get_xydata().tolist() == [[10.0, 3.0], [80.0, 9.0]]
    assert axes.get_xlim() == (0.0, 100.0)


def test_rasters_of_large_layers_are_thinned_evenly():
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.raster(axes, torch.ones(2, 4 * samples.MOST_ROWS, dtype=torch.bool), 2e-3)
    neurons = np.unique(axes.get_lines()[0].get_ydata())
    assert len(neurons) == samples.MOST_ROWS and neurons[-1] == 4 * samples.MOST_ROWS - 1
    assert {3.0, 4.0, 5.0} >= set(np.diff(neurons))


def test_membrane_traces_have_threshold_and_spikes(looked_at):
    _, recording = looked_at
    population = recording.populations[0]
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.membrane_traces(axes, population, recording.dt, n_neurons=3)
    thresholds, traces = axes.get_lines()[::2], axes.get_lines()[1::2]
    assert len(thresholds) == len(traces) == 3
    n_spikes = 0
    for threshold, trace, spikes in zip(thresholds, traces, axes.collections, strict=True):
        height = threshold.get_ydata()[0]
        assert trace.get_ydata().max() <= height + 1e-6
        assert len(trace.get_ydata()) == 100
        n_spikes += len(spikes.get_segments())
        assert all(segment[0][1] == height for segment in spikes.get_segments())
    assert n_spikes > 3


def test_a_silent_layer_shows_its_highest_membranes():
    model = layers.LIFLinear(4, 6, bias=False)
    model.weight.data.copy_(torch.linspace(-0.1, 0.1, 24).view(6, 4))
    recording = record(model, poisson(100.0, (50, 1, 4), 1))
    assert not recording.populations[0].spikes.any()
    assert samples._chosen_neurons(recording.populations[0], 2) == [5, 4]
    assert plots.trace_figure(recording).axes


def test_histograms_show_what_was_measured(looked_at):
    report, _ = looked_at
    found = report.layers[0].populations[0].membranes
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.membrane_histogram(axes, found, threshold=1.25, target=(0.0, 1.0))
    by_label = {line.get_label(): line for line in axes.get_lines()}
    assert by_label["threshold"].get_xdata()[0] == 1.25
    assert np.allclose(by_label["predicted"].get_ydata(), found.histogram.predicted)
    assert by_label["target"].get_ydata().max() == pytest.approx(0.3989, rel=0.01)
    free, reset = axes.patches
    assert np.allclose(free.get_data().values, found.histogram.free)
    assert np.allclose(reset.get_data().values, found.histogram.reset)


def test_magnitudes_on_a_log_scale_and_zeros_as_triangles():
    model = small_model()
    init.fluctuation_driven_(model, rate=20.0, generator=generator())
    model[1].weight.data.zero_()  # nothing passes: no spikes behind, no gradients before
    model[1].bias.data.zero_()
    report = inspect(model, poisson(20.0, (60, 3, 40), 1), torch.arange(3))
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.magnitudes_by_depth(axes, report, "output")
    line, zeros = axes.get_lines()
    values = np.array([layer.gradients.output.mean for layer in report.all_layers()])
    assert axes.get_yscale() == "log" and values[0] == 0.0 and values[2] > 0.0
    drawn = np.where(values > 0.0, values, np.nan)
    assert np.allclose(line.get_ydata(), drawn, equal_nan=True)
    assert zeros.get_xdata().tolist() == [1, 2] and zeros.get_marker() == "v"
    with pytest.raises(ValueError, match="kind must be one of output, gradient, update"):
        plots.magnitudes_by_depth(axes, report, "spikes")
    with pytest.raises(ValueError, match="report must hold gradients"):
        plots.magnitudes_by_depth(axes, inspect(model, poisson(20.0, (60, 3, 40), 1)))


def test_the_readout_shows_the_true_class_and_its_rival():
    membrane = torch.zeros(20, 3)
    membrane[12, 0], membrane[5, 2] = 1.0, 0.5
    with plots.style():
        axes = plots.figure(40.0).add_subplot()
        plots.readout_traces(axes, membrane, 2e-3, target=2)
    labels = {line.get_label(): line for line in axes.get_lines()}
    assert np.argmax(labels["class 2 (true)"].get_ydata()) == 5
    assert np.argmax(labels["class 0 (largest other)"].get_ydata()) == 12
    dots = [line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xdata()) == 1]
    assert dots == [[[24.0, 1.0]], [[10.0, 0.5]]]
