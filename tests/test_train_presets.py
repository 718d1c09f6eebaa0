"""Every preset trains; initializations, optimizers, priming, homeostasis, augmentation."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastlif.data import RandmanConfig, make_randman, mean_firing_rate
from fastlif.init import ActivityWarning, fluctuation_driven_, readout_
from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.models import PRESETS, Regularization, build, preset
from fastlif.optim import SMORMS3
from fastlif.train import EpochRecord, Scores, default_config, initialize
from fastlif.train.batches import epoch_batches, epoch_generator
from fastlif.train.checkpoint import load_checkpoint
from fastlif.train.run import Run
from tests.tiny_tasks import features_of, run_tiny, tiny_config, tiny_task
from tests.training import CHECKPOINT, assert_same_run, rows, run_train

# Samples as short as these leave deep layers silent; what is said of it has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore::fastlif.init.ActivityWarning")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    deep = len(preset(name).hidden) > 4
    result = run_tiny(name, tmp_path, epochs=4, sigma_u=4.0 if deep else 1.0)
    table = rows(tmp_path)
    losses = [float(row["train_loss"]) for row in table]
    assert losses[-1] < losses[0]
    assert {row["phase"] for row in table} == {"supervised"}
    wanted = [f"hidden{number}" for number in range(1, len(preset(name).hidden) + 1)]
    if preset(name).dalian:
        wanted = [kind for one in wanted for kind in (one, f"{one}_inhibitory")]
    if preset(name).data == "images":
        wanted = ["encoder", *wanted]
    assert list(result.populations) == wanted
    rates = [float(table[0][f"rate_{one}_hz"]) for one in wanted]
    assert all(rate > 0 for rate in rates[: len(wanted) // 2 + 1])
    assert len(result.test.firing_rates) == len(wanted)


def test_randman_is_the_plain_loop_bit_for_bit(tmp_path: Path) -> None:
    """The order of all random numbers and operations, spelled out."""
    command = ("randman", "--epochs", 2, "--dt", "4e-3", "--out", tmp_path, "--threads", 1)
    assert run_train(*command).exit_code == 0

    data = make_randman(RandmanConfig(dt=4e-3)).train
    generator = torch.Generator().manual_seed(0)
    model = build("randman", dt=4e-3)
    rate = mean_firing_rate(data.spikes, 4e-3)
    fluctuation_driven_(model, rate=rate, sigma_u=1.0, generator=generator)
    readout_(model.readout, method="fluctuation", rate=rate, generator=generator)
    optimizer = SMORMS3(model.parameters(), lr=1e-2)
    for epoch in (1, 2):
        for indices in epoch_batches(8000, 20, epoch_generator(0, epoch)):
            spikes, targets = data.select(indices)
            scores, _, counts = model(spikes, return_spike_counts=True)
            bounds = upper_bound(counts, 4.0, 0.1) + lower_bound(counts, 1e-3, 100.0)
            optimizer.zero_grad()
            (max_over_time_cross_entropy(scores, targets) + bounds).backward()
            optimizer.step()
    saved = load_checkpoint(tmp_path / CHECKPOINT).model
    assert len(saved) == 2
    for name, parameter in model.named_parameters():
        assert torch.equal(saved[name], parameter)


class TestInitialization:
    def test_kaiming_has_the_variance_of_its_fan_in(self) -> None:
        model = build("shd-conv3")
        config = replace(default_config("shd-conv3"), initialization="kaiming")
        *hidden, readout = initialize(model, config, input_rate=8.0)
        for layer, prediction, fan_in in zip(model, hidden, (21, 112, 224), strict=False):
            assert prediction.sigma_w == pytest.approx((2 / fan_in) ** 0.5)
            assert layer.weight.std().item() == pytest.approx(prediction.sigma_w, rel=0.1)
            recurrent = layer.recurrent_weight
            assert prediction.sigma_v == pytest.approx((2 / (5 * len(recurrent))) ** 0.5)
            assert recurrent.std().item() == pytest.approx(prediction.sigma_v, rel=0.1)
            # Twice 2 / n times n inputs at the rate of the data.
            assert prediction.sigma_u == pytest.approx((4 * 8.0 * 0.0020356) ** 0.5, rel=1e-3)
        assert readout.sigma_w == pytest.approx(320**-0.5)

    def test_normal_has_the_numbers_given(self) -> None:
        model = build("shd-dense")
        config = default_config("shd-dense")
        config = replace(config, initialization="normal", mu_w=0.02, sigma_w=0.3)
        hidden, _ = initialize(model, config, input_rate=10.0)
        assert model.hidden1.weight.std().item() == pytest.approx(0.3, rel=0.02)
        assert model.hidden1.weight.mean().item() == pytest.approx(0.02, abs=0.004)
        assert hidden.mu_u == pytest.approx(700 * 0.02 * 10.0 * 0.011033, rel=1e-3)
        second = 0.3**2 + 0.02**2
        assert hidden.sigma_u == pytest.approx((700 * second * 10.0 * 0.0020356) ** 0.5, rel=1e-3)

    def test_distribution_of_dalian_weights(self) -> None:
        spread = {}
        for distribution in ("exponential", "lognormal"):
            model = build("shd-dalian")
            config = replace(default_config("shd-dalian"), distribution=distribution)
            initialize(model, config, input_rate=10.0)
            weights = model.hidden1.weight[:128]
            assert bool((weights >= 0).all())
            spread[distribution] = (weights.std() / weights.mean()).item()
        assert spread["exponential"] == pytest.approx(1.0, rel=0.03)
        assert spread["lognormal"] == pytest.approx((2.71828 - 1) ** 0.5, rel=0.05)

    def test_images_are_initialized_for_the_rate_of_their_encoder(self) -> None:
        task = tiny_task("cifar-conv2")
        images = task.some_images()
        assert images is not None and images.shape == (12, 3, 6, 6)
        config = tiny_config("cifar-conv2")
        model = build("cifar-conv2", n_inputs=(3, 6, 6), n_classes=3)
        first, second, readout = initialize(model, config, images=images)
        rate = model.encoder(images).mean().item() / 2e-3
        assert 1.0 < rate < 200.0
        assert first.rate == second.rate == readout.rate == pytest.approx(rate, rel=1e-5)
        assert first.sigma_w == pytest.approx((15 * 9 * rate * 0.0020356) ** -0.5, rel=1e-3)
        again = build("cifar-conv2", n_inputs=(3, 6, 6), n_classes=3)
        initialize(again, config, images=images)
        for one, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(one, other)  # all of them by the seed, the encoder's too
        initialize(again, replace(config, seed=1), images=images)
        assert not torch.equal(again.encoder.weight, model.encoder.weight)

    def test_a_rate_or_images(self) -> None:
        for given in ({}, {"input_rate": 5.0, "images": torch.zeros(1, 3, 6, 6)}):
            with pytest.raises(ValueError, match="give input_rate .* or images, one of them"):
                initialize(build("cifar-conv2"), tiny_config("cifar-conv2"), **given)


@pytest.mark.parametrize("optimizer", ["smorms3", "adam", "sgd"])
def test_optimizers_keep_dalian_weights_non_negative(optimizer: str, tmp_path: Path) -> None:
    start, end = tmp_path / "start", tmp_path / "end"
    lr = 1.0 if optimizer == "sgd" else 0.02  # large enough for some signs to change
    changes = {"lr": lr, "optimizer": optimizer, "batch_size": 1}
    for folder, epochs in ((start, 1), (end, 9)):
        run_tiny("shd-dalian", folder, epochs=epochs, **changes)
    before = load_checkpoint(start / CHECKPOINT).model
    after = load_checkpoint(end / CHECKPOINT).model  # 108 steps
    for name in ("weight", "recurrent_weight", "inhibitory_weight"):
        weights = after[f"hidden1.{name}"]
        assert bool((weights >= 0).all())
        assert bool((weights == 0).any())  # some would have changed their sign
        assert not torch.equal(weights, before[f"hidden1.{name}"])
    assert bool((after["readout.weight"] < 0).any())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("shd-dense", {"optimizer": "adam", "initialization": "kaiming"}),
        ("shd-conv1", {"optimizer": "sgd", "initialization": "normal", "sigma_w": 0.3}),
        ("shd-dalian", {"distribution": "lognormal", "priming_epochs": 2}),
        ("dvs-conv6", {"recordings": True, "skip": True}),
        ("cifar-conv2", {"rescale_surrogate": True, "optimizer": "adam"}),
    ],
)
def test_resumed_equals_uninterrupted(
    name: str, changes: dict[str, object], tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_tiny(name, whole, epochs=3, **changes)
    run_tiny(name, parts, epochs=1, **changes)
    run_tiny(name, parts, epochs=3, resume=True, **changes)
    assert_same_run(whole, parts, at_least=4)


def test_recordings_are_varied_anew_in_every_epoch(tmp_path: Path) -> None:
    task = tiny_task("dvs-conv6", recordings=True)
    run = Run(tiny_config("dvs-conv6"), task, tmp_path, resume=False)
    seen = []

    def watch(inputs, targets):
        seen.append((inputs.words.clone(), targets.clone()))

    run._step_for = lambda epoch: watch  # type: ignore[assignment,return-value]
    finite = Scores(loss=1.0, accuracy=0.0, penalty=0.0, firing_rates=(1.0,))
    run.meter.scores = lambda processes: finite  # type: ignore[method-assign]
    for epoch in (1, 2, 1):
        run.train_epoch(epoch, None)
    first, other, again = seen[:2], seen[2:4], seen[4:]
    for (words, targets), (same_words, same_targets) in zip(first, again, strict=True):
        assert torch.equal(words, same_words) and torch.equal(targets, same_targets)
    totals = [sum(int((words != 0).sum()) for words, _ in part) for part in (first, other)]
    assert totals[0] != totals[1]
    both = [run.evaluate(run.validation_set) for _ in range(2)]
    assert both[0] == both[1]  # not varied


class TestPriming:
    def test_changes_the_objective_at_its_epoch(self, tmp_path: Path) -> None:
        config = tiny_config("shd-conv1", priming_epochs=2, sigma_u=0.2)
        run = Run(config, tiny_task("shd-conv1"), tmp_path, resume=False)

        def parameters() -> dict[str, torch.Tensor]:
            return {name: p.detach().clone() for name, p in run.network.named_parameters()}

        start = parameters()
        first = run.train_epoch(1, None)
        second = run.train_epoch(2, None)
        primed = parameters()
        assert torch.equal(primed["readout.weight"], start["readout.weight"])
        assert not torch.equal(primed["hidden1.weight"], start["hidden1.weight"])
        assert 0 < second.penalty < first.penalty  # the homeostatic term, now lower
        assert second.firing_rates[0] > first.firing_rates[0]
        optimizer = run.optimizer
        third = run.train_epoch(3, None)
        assert not torch.equal(parameters()["readout.weight"], start["readout.weight"])
        assert third.penalty == 0.0  # without it
        assert run.optimizer is not optimizer  # and with no memory of it
        assert [run.phase(epoch) for epoch in (1, 2, 3, 5)] == [
            "priming", "priming", "supervised", "supervised"
        ]  # fmt: skip

    def test_supervised_epochs_come_in_addition_and_one_is_the_best(self, tmp_path: Path) -> None:
        result = run_tiny("shd-dense", tmp_path, epochs=3, priming_epochs=2)
        phases = [row["phase"] for row in rows(tmp_path)]
        assert phases == ["priming"] * 2 + ["supervised"] * 3
        assert result.epochs == 5 and result.best_epoch >= 3
        content = json.loads((tmp_path / "result.json").read_text())
        assert content["settings"]["priming_epochs"] == 2

    def test_no_epoch_of_it_is_the_best(self, tmp_path: Path) -> None:
        config = tiny_config("shd-dense", priming_epochs=1)
        run = Run(config, tiny_task("shd-dense"), tmp_path, resume=False)
        for epoch, accuracy, best_epoch in ((1, 1.0, 0), (2, 0.0, 2)):
            scores = Scores(loss=1.0, accuracy=accuracy, penalty=0.0, firing_rates=(5.0,))
            record = EpochRecord(epoch, run.phase(epoch), ("hidden1",), scores, scores, 1.0)
            assert run.finish_epoch(record) is (best_epoch == epoch)
            assert run.best_epoch == best_epoch


def test_priming_keeps_the_upper_bound(tmp_path: Path) -> None:
    rates = []
    for strength in (0.0, 1.0):
        bounds = Regularization(upper_strength=strength, v_upper=2.0)
        config = tiny_config("shd-conv1", priming_epochs=20, regularization=bounds)
        run = Run(config, tiny_task("shd-conv1"), tmp_path / f"{strength}", resume=False)
        rates.append([run.train_epoch(epoch, None).firing_rates[0] for epoch in range(1, 21)])
    free, bounded = rates
    assert free[0] > bounded[0] * 0.5  # from the same start
    assert bounded[-1] < 0.7 * free[-1]


def test_homeostasis_wakes_a_silent_network(tmp_path: Path) -> None:
    tables = []
    for strength in (0.0, 1.0):
        bounds = Regularization(lower_strength=strength)
        folder = tmp_path / str(strength)
        run_tiny("shd-dense", folder, sigma_u=0.1, epochs=10, regularization=bounds)
        tables.append(rows(folder))
    without, with_it = ([float(row["rate_hidden1_hz"]) for row in table] for table in tables)
    assert without[0] == with_it[0] < 0.1
    assert with_it[-1] > 2 * without[-1]
    terms = [float(row["train_penalty"]) for row in tables[1]]
    assert terms[0] > 0.99 and terms[-1] < 0.2  # the square of what a spike lacks to one


class TestActivityWarnings:
    """One line for a layer that the start leaves silent or saturated, and what to do about it."""

    def warned(self, folder: Path, **changes: object) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ActivityWarning)
            Run(tiny_config("shd-dense", **changes), tiny_task("shd-dense"), folder, resume=False)
        return [str(one.message) for one in caught if one.category is ActivityWarning]

    def test_none_for_a_good_start(self, tmp_path: Path) -> None:
        assert self.warned(tmp_path) == []

    @pytest.mark.parametrize(
        ("changes", "state", "cure"),
        [
            ({"sigma_u": 0.05}, "silent", "raise its sigma_u"),
            (
                {"initialization": "normal", "sigma_w": 1e-3},
                "silent",
                'take initialization "fluctuation", or a lower bound on spike counts',
            ),
            (
                {"initialization": "normal", "mu_w": 10.0, "sigma_w": 1.0},
                "saturated",
                'take initialization "fluctuation"',
            ),
        ],
    )
    def test_names_layer_and_cure(
        self, changes: dict[str, object], state: str, cure: str, tmp_path: Path
    ) -> None:
        (message,) = self.warned(tmp_path, **changes)
        assert message.startswith(f"layer 'hidden1' is {state} after initialization")
        assert cure in message and "\n" not in message


def test_bounds_are_for_each_population_and_not_for_the_encoder() -> None:
    from fastlif.train.objective import populations

    dalian = populations(build("shd-dalian-conv3", n_inputs=features_of("shd-dalian-conv3")))
    assert [(one.name, one.layer, one.bounded) for one in dalian[:3]] == [
        ("hidden1", 0, True), ("hidden1_inhibitory", 0, True), ("hidden2", 1, True)
    ]  # fmt: skip
    assert (dalian[1].channels, dalian[0].channels) == (slice(16, None), slice(0, 16))
    encoder, *hidden = populations(build("cifar-conv2"))
    assert (encoder.name, encoder.bounded) == ("encoder", False)
    assert [one.bounded for one in hidden] == [True, True]


class TestSettingsThatExcludeEachOther:
    @pytest.mark.parametrize(
        ("name", "changes", "words"),
        [
            ("shd-dense", {"initialization": "normal"}, "sigma_w must be given"),
            ("shd-dense", {"sigma_w": 0.3}, 'are for initialization "normal"'),
            ("shd-dense", {"mu_w": 0.3}, 'are for initialization "normal"'),
            ("shd-dense", {"initialization": "kaiming", "sigma_u": 2.0}, "sigma_u is for"),
            (
                "shd-dense",
                {"initialization": "he"},
                "one of fluctuation, kaiming, normal, got 'he'",
            ),
            ("shd-dense", {"distribution": "lognormal"}, "distribution is for presets that obey"),
            ("shd-dalian", {"distribution": "gamma"}, "one of exponential, lognormal, got 'gamma'"),
            ("shd-dalian", {"initialization": "kaiming"}, "must not be negative, got 'kaiming'"),
            ("shd-dense", {"skip": True}, "skip must be False"),
            ("dvs-conv6", {"channel_shift": 3}, "channel_shift must be 0"),
            ("shd-dense", {"n_samples": 1}, "n_samples must be at least 2, got 1"),
            ("shd-dense", {"priming_epochs": -1}, "priming_epochs must be at least 0, got -1"),
        ],
    )
    def test_are_refused(self, name: str, changes: dict[str, object], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            tiny_config(name, **changes)

    def test_optimizers_have_rates_of_their_own(self) -> None:
        rates = [default_config("randman", one).lr for one in ("smorms3", "adam", "sgd")]
        assert rates == [1e-2, 3e-3, 1.0]
        with pytest.raises(ValueError, match="smorms3, adam, sgd, got 'lbfgs'"):
            default_config("randman", "lbfgs")  # type: ignore[arg-type]
