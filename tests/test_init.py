"""Initialization of layers and models: simulation against prediction, weights, rates from data."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastlif import init, layers
from fastlif.spikes import PackedSpikes

from .init_helpers import DT, SHD, assert_drawn_from, generator, poisson, small_model

RATE = 10.0
STEPS, WARMUP = 1800, 200


def simulate(
    make_layer: Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    own_shape: tuple[int, ...] | None = None,
    n_draws: int = 1,
    **target: float,
) -> tuple[float, float, float, float]:
    """Predicted (mu_u, sigma_u) and their averages over n_draws draws of weights and spikes."""
    layer = make_layer()
    means, variances = [], []
    for seed in range(n_draws):
        generator = torch.Generator().manual_seed(100 + seed)
        (prediction,) = init.fluctuation_driven_(layer, rate=RATE, generator=generator, **target)
        own = None if own_shape is None else poisson(RATE, (STEPS, 1, *own_shape), 300 + seed)
        (result,) = init.measure(
            layer,
            poisson(RATE, (STEPS, 1, *input_shape), 200 + seed),
            recurrent_input=own,
            warmup=WARMUP,
        )
        assert result.input_rate == pytest.approx(RATE, rel=0.1)
        assert n_draws * result.n_neurons >= 2000
        means.append(result.mu_u)
        variances.append(result.sigma_u**2)
    measured = float(np.mean(means)), math.sqrt(np.mean(variances))
    return prediction.mu_u, prediction.sigma_u, *measured


def dense() -> nn.Module:
    return layers.LIFLinear(200, 4096)


def dense_recurrent() -> nn.Module:
    return layers.LIFLinear(200, 2048, recurrent=True)


def conv1d() -> nn.Module:
    return layers.LIFConv1d(16, 2048, 9, stride=5)


def conv1d_recurrent() -> nn.Module:
    return layers.LIFConv1d(64, 128, 9, stride=5, recurrent=True, recurrent_kernel_size=3)


def conv2d() -> nn.Module:
    return layers.LIFConv2d(8, 2048, 3, stride=2)


def conv2d_recurrent() -> nn.Module:
    return layers.LIFConv2d(32, 128, 3, recurrent=True, recurrent_kernel_size=(1, 3))


CENTRED = {"sigma_u": 1.0}
BELOW = {"sigma_u": 0.8, "mu_u": -0.5}
ABOVE = {"xi": 2.0, "mu_u": 0.3}


@pytest.mark.parametrize(
    ("make_layer", "input_shape", "own_shape", "n_draws", "target"),
    [
        (dense, (200,), None, 1, CENTRED),
        (dense, (200,), None, 1, BELOW),
        (dense, (200,), None, 1, ABOVE),
        (dense_recurrent, (200,), (2048,), 2, CENTRED | {"alpha": 0.9}),
        (dense_recurrent, (200,), (2048,), 2, BELOW | {"alpha": 0.5}),
        (conv1d, (16, 24), None, 1, CENTRED),
        (conv1d, (16, 24), None, 1, BELOW),
        (conv2d, (8, 5, 5), None, 1, CENTRED),
        # Recurrent maps are padded, so they are long: few neurons lack inputs at the border.
        (conv1d_recurrent, (64, 64), (128, 12), 16, CENTRED | {"alpha": 0.9}),
        (conv1d_recurrent, (64, 64), (128, 12), 16, BELOW | {"alpha": 0.7}),
        (conv2d_recurrent, (32, 4, 14), (128, 2, 12), 16, BELOW | {"alpha": 0.8}),
    ],
)
def test_membranes_reach_the_predicted_mean_and_sigma(
    make_layer, input_shape, own_shape, n_draws, target
):
    mu_u, sigma_u, measured_mu, measured_sigma = simulate(
        make_layer, input_shape, own_shape, n_draws, **target
    )
    assert measured_mu == pytest.approx(mu_u, abs=0.05 * sigma_u)
    assert measured_sigma == pytest.approx(sigma_u, abs=0.05 * sigma_u)


def test_model_is_drawn_from_what_it_predicts():
    model = small_model()
    for layer in model:
        layer.bias.data.fill_(3.0)
    predictions = init.fluctuation_driven_(
        model, rate=[8.0, 25.0], sigma_u=[0.6, 1.2], mu_u=-0.2, alpha=0.6, generator=generator()
    )
    assert [p.name for p in predictions] == ["0", "1", "2"]
    assert [p.n for p in predictions] == [40, 60, 50]
    assert [p.rate for p in predictions] == [8.0, 25.0, None]
    assert [p.sigma_u for p in predictions] == [0.6, 1.2, None]
    assert [p.mu_u for p in predictions] == [-0.2, -0.2, 0.0]
    expected = init.recurrent_distributions([40], [60], 8.0, SHD, sigma_u=0.6, mu_u=-0.2, alpha=0.6)
    assert predictions[0].sigma_w == expected.feedforward[0].std
    assert predictions[0].sigma_v == expected.recurrent[0].std
    assert predictions[0].mu_w == expected.feedforward[0].mean
    assert predictions[1].sigma_v is None
    assert_drawn_from(model[0].recurrent_weight, predictions[0].mu_w, predictions[0].sigma_v)
    for layer, prediction in zip(model, predictions, strict=True):
        assert_drawn_from(layer.weight, prediction.mu_w, prediction.sigma_w)
        assert not layer.bias.any()


def test_layers_are_found_inside_foreign_modules():
    model = nn.ModuleDict(
        {"encoder": nn.Linear(5, 5), "body": small_model(), "neuron": layers.LIF()}
    )
    untouched = model["encoder"].weight.clone()
    names = [p.name for p in init.fluctuation_driven_(model, rate=10.0)]
    assert names == ["body.0", "body.1", "body.2"]
    assert torch.equal(model["encoder"].weight, untouched)
    with pytest.raises(ValueError, match="no fastlif layer with weights: Linear"):
        init.fluctuation_driven_(nn.Linear(3, 3), rate=10.0)
    with pytest.raises(ValueError, match="no fastlif layer with weights: LIF"):
        init.kaiming_(layers.LIF())


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    first, again, other = small_model(), small_model(), small_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        init.fluctuation_driven_(model, rate=10.0, generator=generator(seed))
        init.kaiming_(model[1], generator=generator(seed))
    assert torch.equal(torch.rand(3), expected)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert "bias" in name or not torch.equal(weight, other.state_dict()[name])


def test_unreachable_target_leaves_the_model_unchanged():
    model = small_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"mu_u=9, sigma_u=0\.3 cannot be reached"):
        init.fluctuation_driven_(model, rate=10.0, mu_u=[0.0, 9.0], sigma_u=0.3)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("layer_class", [layers.LIFLinear, layers.LIFDalianLinear])
@pytest.mark.parametrize("sigma_u", [1e-60, 1e60])
def test_a_target_whose_weights_are_no_float32_is_unreachable(layer_class, sigma_u):
    model = torch.nn.Sequential(layer_class(40, 30))
    before = model[0].weight.clone()
    with pytest.raises(init.UnreachableTarget, match="layer '0' cannot be reached.*float32"):
        init.fluctuation_driven_(model, rate=10.0, sigma_u=sigma_u)
    assert torch.equal(model[0].weight, before)
    init.fluctuation_driven_(model.double(), rate=10.0, sigma_u=sigma_u)


def test_a_target_too_large_to_be_squared_is_unreachable():
    with pytest.raises(init.UnreachableTarget, match=r"sigma_u=1e\+200 cannot be reached"):
        init.fluctuation_driven_(small_model(), rate=10.0, sigma_u=1e200)


def test_a_model_without_storage_gives_the_predictions_alone():
    predictions = [
        init.fluctuation_driven_(model.to(device), rate=10.0, sigma_u=0.5)
        for device, model in (("cpu", small_model()), ("meta", small_model()))
    ]
    assert predictions[0] == predictions[1]


def test_xi_uses_the_threshold_of_each_layer():
    model = layers.Sequential(
        layers.LIFLinear(30, 30, threshold=2.0), layers.LIFLinear(30, 30, threshold=0.5)
    )
    predictions = init.fluctuation_driven_(model, rate=10.0, mu_u=0.25, xi=[1.0, 2.0])
    assert [p.sigma_u for p in predictions] == pytest.approx([1.75, 0.125])


def test_layers_start_at_ten_hertz_and_sigma_one():
    layer = layers.LIFLinear(2000, 500, recurrent=True, dt=1e-3, tau_mem=30e-3)
    psp = init.psp_integrals(30e-3, 10e-3, 1e-3)
    expected = init.recurrent_distributions([2000], [500], 10.0, psp)
    assert_drawn_from(layer.weight, 0.0, expected.feedforward[0].std)
    assert_drawn_from(layer.recurrent_weight, 0.0, expected.recurrent[0].std)
    assert not layer.bias.any()


def test_bad_arguments_are_refused():
    model = small_model()
    data = poisson(20.0, (50, 2, 40), 0)
    with pytest.raises(ValueError, match="one of them: got neither"):
        init.fluctuation_driven_(model)
    with pytest.raises(ValueError, match="one of them: got both"):
        init.fluctuation_driven_(model, rate=10.0, data=data)
    with pytest.raises(ValueError, match=r"rate must be one number or one per spiking layer \(2\)"):
        init.fluctuation_driven_(model, rate=[10.0, 10.0, 10.0])
    with pytest.raises(ValueError, match="sigma_u or xi, not both"):
        init.fluctuation_driven_(model, rate=10.0, sigma_u=1.0, xi=2.0)
    with pytest.raises(ValueError, match="rate of the input of layer '1' must be positive"):
        init.fluctuation_driven_(model, rate=[10.0, -3.0])
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        init.fluctuation_driven_(model, rate=10.0, alpha=1.5)


def test_kaiming_is_two_over_fan_in():
    model = layers.Sequential(
        layers.LIFConv1d(6, 40, 7, recurrent=True), layers.LIReadout(40 * 20, 12)
    )
    for layer in model:
        layer.bias.data.fill_(1.0)
    init.kaiming_(model, generator=generator())
    assert_drawn_from(model[0].weight, 0.0, math.sqrt(2 / 42))
    assert_drawn_from(model[0].recurrent_weight, 0.0, math.sqrt(2 / 200))
    assert_drawn_from(model[1].weight, 0.0, 1 / math.sqrt(800))
    assert not model[0].bias.any() and not model[1].bias.any()


def test_readout_unit_start_and_its_prediction():
    readout = layers.LIReadout(500, 40, tau_mem=0.2)
    prediction = init.readout_(readout, rate=12.0, generator=generator())
    assert_drawn_from(readout.weight, 0.0, 1 / math.sqrt(500))
    psp = init.psp_integrals(0.2, 10e-3, DT)
    assert prediction.sigma_u == pytest.approx(math.sqrt(12.0 * psp.eps_hat))


def test_readout_by_the_centred_formula_uses_its_own_time_constants():
    readout = layers.LIReadout(128, 400)
    arguments = {"method": "fluctuation", "rate": 8.0, "sigma_u": 0.7}
    prediction = init.readout_(readout, **arguments, tau_mem=0.2, generator=generator())
    psp = init.psp_integrals(0.2, 10e-3, DT)
    expected = init.centred_distribution(128, 8.0, psp, sigma_u=0.7)
    assert (prediction.mu_w, prediction.sigma_w) == (0.0, expected.std)
    assert prediction.sigma_u == pytest.approx(0.7)
    assert_drawn_from(readout.weight, 0.0, expected.std)
    with pytest.raises(ValueError, match="give tau_mem in seconds"):
        init.readout_(readout, **arguments)
    with pytest.raises(ValueError, match="needs rate"):
        init.readout_(readout, method="fluctuation", tau_mem=0.2)
    with pytest.raises(ValueError, match='"unit" or "fluctuation", got .kaiming.'):
        init.readout_(readout, method="kaiming")
    with pytest.raises(ValueError, match="rate must be finite and not negative"):
        init.readout_(readout, rate=-1.0)
    with pytest.raises(TypeError, match="layer must be an LIReadout, got LIFLinear"):
        init.readout_(layers.LIFLinear(3, 3))


class Foreign(nn.Module):
    """Layers behind a forward of their own, registered in another order than they run."""

    def __init__(self) -> None:
        super().__init__()
        self.second = layers.LIFLinear(60, 50)
        self.first = layers.LIFLinear(40, 60)

    def forward(self, input: Tensor) -> Tensor:
        return self.second(input=self.first(input))


@pytest.mark.parametrize("make_model", [small_model, Foreign])
def test_rates_come_from_the_layers_drawn_before(make_model):
    model = make_model()
    data = poisson(20.0, (400, 8, 40), 3)
    predictions = init.fluctuation_driven_(model, data=data, generator=generator())
    by_layer = dict(zip(model.children(), predictions, strict=True))
    signal = data
    in_order = [model.first, model.second] if make_model is Foreign else list(model)
    for layer in in_order:
        rate = signal.mean().item() / DT
        assert 1.0 < rate < 100.0
        assert by_layer[layer].rate == pytest.approx(rate, rel=1e-5)
        signal = layer(signal)
    psp = init.psp_integrals(20e-3, 10e-3, DT)
    second = by_layer[in_order[1]]
    assert second.sigma_w == pytest.approx(init.centred_distribution(60, second.rate, psp).std)
    if make_model is small_model:  # the readout's tau_mem is the duration of the data
        eps_hat = init.psp_integrals(0.8, 10e-3, DT).eps_hat
        assert predictions[2].sigma_u == pytest.approx(math.sqrt(predictions[2].rate * eps_hat))


def test_rates_of_packed_and_batch_first_data():
    data = poisson(20.0, (120, 4, 40), 3)
    model = small_model()
    expected = init.fluctuation_driven_(model, data=data, generator=generator())
    packed = init.fluctuation_driven_(model, data=PackedSpikes.pack(data), generator=generator())
    assert [p.rate for p in packed] == pytest.approx([p.rate for p in expected])
    for layer in model:
        layer.batch_first = True
    turned = init.fluctuation_driven_(model, data=data.transpose(0, 1), generator=generator())
    assert [p.rate for p in turned] == pytest.approx([p.rate for p in expected])
    assert turned[-1].sigma_u == pytest.approx(expected[-1].sigma_u)


def test_silence_and_unused_layers_are_errors():
    model = small_model()
    data = poisson(20.0, (100, 2, 40), 0)
    with pytest.raises(ValueError, match="input of layer '1' must be positive.*the layer before"):
        init.fluctuation_driven_(model, data=data, sigma_u=[0.01, 1.0])
    model = Foreign()
    model.third = layers.LIFLinear(4, 4)
    with pytest.raises(ValueError, match=r"did not reach the layers \['third'\]"):
        init.fluctuation_driven_(model, data=data)
    with pytest.raises(ValueError, match=r"did not reach the layers \['third'\]"):
        init.measure(model, data)
