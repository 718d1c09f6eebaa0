"""From a sweep file to its trials: axes, draws, seeds and names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch

from fastlif.sweep import Asha, Resources, SweepSpec
from fastlif.sweep.document import read_document
from fastlif.sweep.estimate import at_once, estimate
from fastlif.sweep.problems import Problems
from fastlif.train import default_config
from tests.sweep_files import RIGHT, event_folder, read, write


def options(spec: SweepSpec, *names: str) -> list[tuple[object, ...]]:
    return [tuple(trial.options[name] for name in names) for trial in spec.trials]


def test_scalars_mean_what_yaml_1_2_says(tmp_path):
    text = (
        "[1e-3, 1E+3, .5, 5., -3, +3, 0x1f, 0o17, 012, .inf, -.Inf, 1_000, 12:30, 2001-01-01, "
        "on, yes, n, true, False, ~, null, '1', \"true\", e3, ., -, <<]"
    )
    values = read_document(write(tmp_path, text.replace(", -,", ",")), Problems(""))
    assert values == [
        1e-3, 1e3, 0.5, 5.0, -3, 3, 31, 15, 12, float("inf"), float("-inf"), "1_000", "12:30",
        "2001-01-01", "on", "yes", "n", True, False, None, None, "1", "true", "e3", ".", "<<",
    ]  # fmt: skip
    assert [type(value) for value in values[:5]] == [float, float, float, float, int]


def test_lines_are_those_of_keys_and_list_entries(tmp_path):
    text = "# note\na:\n  b: &b\n    - 1\n    - [2,\n       3]\n'c': *b\nd:\n  1\n"
    problems = Problems("")
    values = read_document(write(tmp_path, text), problems)
    assert values == {"a": {"b": [1, [2, 3]]}, "c": [1, [2, 3]], "d": 1}
    places = [("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1), ("a", "b", 1, 1), ("c",), ("d",)]
    assert [problems.line(place) for place in places] == [2, 3, 4, 5, 6, 7, 8]
    assert problems.line(("a", "x")) == 2  # the nearest that is there


def test_axes_combine_in_their_order_with_the_seeds_inside(tmp_path):
    spec = read(tmp_path, RIGHT)
    assert spec.varied == ("sigma_u", "lr") and spec.name == "small" and spec.data is None
    assert options(spec, "sigma_u", "lr") == [
        (sigma_u, lr) for sigma_u in (0.5, 1.0) for lr in (1e-3, 1e-2, 1e-1) for _ in range(2)
    ]
    assert [trial.config.seed for trial in spec.trials] == [0, 1] * 6
    assert [trial.number for trial in spec.trials] == list(range(12))
    for trial in spec.trials:
        config = trial.config
        assert (config.sigma_u, config.lr) == (trial.options["sigma_u"], trial.options["lr"])
        assert (config.epochs, config.batch_size, config.device) == (4, 50, "cpu")
        assert config.regularization == default_config("randman").regularization


def test_the_example_of_the_documentation(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "sweeps.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    assert len(read(tmp_path, example).trials) == 81


def test_what_a_file_leaves_out(tmp_path):
    spec = read(tmp_path, "preset: randman\n")
    (trial,) = spec.trials
    assert trial.config == default_config("randman") and trial.options == {} and spec.varied == ()
    assert spec == SweepSpec("sweep", None, (trial,), (), report=spec.report)


def test_what_a_file_says_of_trials(tmp_path):
    more = "scheduler: {asha: {grace_epochs: 2, reduction: 4}}\nretries: 0\n" + (
        "resources: {cpus: 0.5, gpus: 0.25, memory: 1.5 GiB, hours: 2}\n"
    )
    spec = read(tmp_path, RIGHT + more)
    assert spec.asha == Asha(2, 4, "validation_accuracy") and spec.retries == 0
    assert spec.resources == Resources(0.5, 0.25, 3 << 29, 2.0)
    assert {trial.config.device for trial in spec.trials} == {"cuda"}
    assert read(tmp_path, f"{RIGHT}scheduler: none\n").asha is None
    for text, size in (("4 GB", 4 * 10**9), ("512MiB", 512 << 20), ("100", 100), ("2.5 kB", 2500)):
        spec = read(tmp_path, f"{RIGHT}resources: {{memory: {text}}}\n")
        assert spec.resources.memory == size


def test_an_axis_of_presets_takes_each_ones_own_settings(tmp_path):
    folder = event_folder(tmp_path / "data")
    text = "preset: [randman, shd-dense]\nsearch: {upper_strength: [0, 1]}\n"
    spec = read(tmp_path, text, folder)
    assert spec.varied == ("preset", "upper_strength") and spec.data == folder
    assert options(spec, "preset", "upper_strength") == [
        ("randman", 0.0), ("randman", 1.0), ("shd-dense", 0.0), ("shd-dense", 1.0)
    ]  # fmt: skip
    assert [trial.config.lr for trial in spec.trials] == [1e-2, 1e-2, 5e-3, 5e-3]
    assert [trial.config.regularization.v_upper for trial in spec.trials] == [4, 4, 7, 7]
    # Below search it has the place that the file gives it.
    text = "search: {upper_strength: [0, 1], preset: [randman, shd-dense]}\n"
    assert read(tmp_path, text, folder).varied == ("upper_strength", "preset")


def test_an_optimizer_brings_its_own_learning_rate(tmp_path):
    spec = read(tmp_path, "preset: randman\nsearch: {optimizer: [smorms3, adam, sgd]}\n")
    assert [trial.config.lr for trial in spec.trials] == [1e-2, 3e-3, 1.0]


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("dt: {range: [1e-3, 3e-3], points: 5}", [1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3]),
        ("lr: {log_range: [1e-4, 1e-2], points: 5}", [1e-4, 0.000316228, 1e-3, 0.00316228, 1e-2]),
        ("sigma_u: {range: [0.1, 0.7], points: 4}", [0.1, 0.3, 0.5, 0.7]),
        ("epochs: {range: [1, 100], points: 3}", [1, 50, 100]),
        ("batch_size: {log_range: [1, 100], points: 3}", [1, 10, 100]),
        ("n_samples: [null, 100]", [None, 100]),
        ("recurrent: [true, false]", [True, False]),
        ("upper_per: [layer, channel]", ["layer", "channel"]),
        ("data_seed: {grid: [3, 1]}", [3, 1]),
    ],
)
def test_values_of_an_axis(tmp_path, axis, values):
    spec = read(tmp_path, f"preset: randman\nsearch:\n  {axis}\n")
    (name,) = spec.varied
    assert [trial.options[name] for trial in spec.trials] == values
    assert [type(trial.options[name]) for trial in spec.trials] == [type(v) for v in values]
    configs = [trial.config for trial in spec.trials]
    assert [config.as_dict()[name] for config in configs] == values


RANDOM = """\
preset: randman
settings: {initialization: normal}
search:
  mu_w: {uniform: [-1, 1]}
  optimizer: [smorms3, adam]
  sigma_w: {log_uniform: [1e-2, 1e+1]}
  epochs: {choice: [1, 2, 3]}
samples: 200
search_seed: 7
"""


def test_draws_lie_in_their_ranges_and_meet_every_grid_value(tmp_path):
    spec = read(tmp_path, RANDOM)
    assert spec.varied == ("mu_w", "optimizer", "sigma_w", "epochs")
    drawn = options(spec, "mu_w", "sigma_w", "epochs")
    assert len(drawn) == 400 and drawn[::2] == drawn[1::2]  # draws stand where the first one does
    assert len(set(drawn)) == 200
    means, stds, epochs = ([one[i] for one in drawn[::2]] for i in range(3))
    assert all(-1 <= mean <= 1 for mean in means) and abs(sum(means) / 200) < 0.15
    assert all(1e-2 <= std <= 10 for std in stds)
    # Evenly in the logarithm: a third of them in every decade.
    decades = [sum(10.0**low <= std < 10.0 ** (low + 1) for std in stds) for low in (-2, -1, 0)]
    assert all(45 < count < 90 for count in decades)
    assert all(45 < epochs.count(n) < 90 for n in (1, 2, 3))
    assert all(value == float(f"{value:.6g}") for value in (*means, *stds))


def test_draws_are_those_of_the_seed_whatever_else_the_file_has(tmp_path):
    def draws(text: str) -> list[object]:
        return list(dict.fromkeys(trial.options["mu_w"] for trial in read(tmp_path, text).trials))

    first = draws(RANDOM)
    assert draws(RANDOM) == first
    assert draws(RANDOM.replace("samples: 200", "samples: 50")) == first[:50]
    assert draws(re.sub("  sigma_w.*", "  sigma_w: [1, 2]", RANDOM)) == first
    assert draws(RANDOM.replace("search_seed: 7\n", "")) != first
    # What they are, on any machine and with any version of Python.
    assert first[:3] == [0.148377, 0.0786417, -0.278637]


def test_a_combination_that_is_drawn_twice_is_one_trial(tmp_path):
    text = "preset: randman\nsearch: {epochs: {choice: [1, 2]}, skip: {choice: [false]}}\n"
    spec = read(tmp_path, f"{text}samples: 30\n")
    assert sorted(options(spec, "epochs", "skip")) == [(1, False), (2, False)]


def test_names_tell_settings_and_data_apart_and_nothing_else(tmp_path):
    text = RIGHT.replace("randman", "shd-dense")
    folder = event_folder(tmp_path / "data")
    names = [trial.name for trial in read(tmp_path, text, folder).trials]
    assert all(re.fullmatch(r"\d{4}-[0-9a-f]{8}", name) for name in names)
    assert [name[:4] for name in names] == [f"{n:04d}" for n in range(12)]
    assert len({name[5:] for name in names}) == 12

    def digests(text: str, data: Path = folder) -> list[str]:
        return [trial.name[5:] for trial in read(tmp_path, text, data).trials]

    # Another name, order, folder of the same data, limits, or a setting without influence.
    (tmp_path / "copy").mkdir()
    for path in folder.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    first = digests(text)
    assert digests(text.replace("small", "other"), tmp_path / "copy") == first
    assert digests(f"{text}resources: {{hours: 1, memory: 1 GB}}\nretries: 5\n") == first
    assert digests(text.replace("epochs: 4", "epochs: 4, graph: false")) == first
    assert digests(text.replace("[0.5, 1]", "[1, 0.5]")) == first[6:] + first[:6]
    # Other settings, or other data.
    assert not set(digests(text.replace("epochs: 4", "epochs: 5"))) & set(first)
    with open(tmp_path / "copy" / "train.h5", "ab") as file:
        file.write(b"more")
    assert not set(digests(text, tmp_path / "copy")) & set(first)


def test_a_name_is_made_of_what_a_trial_computes_with(tmp_path):
    trial = read(tmp_path, RIGHT).trials[7]
    settings = {k: v for k, v in trial.config.as_dict().items() if k != "graph"}
    content = json.dumps([settings, "randman"], sort_keys=True).encode()
    assert trial.name == f"0007-{hashlib.sha256(content).hexdigest()[:8]}"


def test_hours_of_a_sweep(tmp_path):
    spec = read(tmp_path, RIGHT.replace("epochs: 4", "epochs: 36, n_samples: 500"))
    hours = estimate(spec)
    # 0.1 s an epoch and thousand samples.
    assert hours.trials == pytest.approx([0.1 * 0.5 * 36 / 3600] * 12)
    assert hours.total == pytest.approx(12 * hours.trials[0])
    assert hours.elapsed(1) == pytest.approx(hours.total)
    assert hours.elapsed(5) == pytest.approx(3 * hours.trials[0])
    assert hours.rough == frozenset(range(12))
    limited = read(tmp_path, f"{RIGHT}resources: {{hours: 1e-6}}\n")
    assert estimate(limited).trials == (1e-6,) * 12


def test_hours_come_from_trials_that_are_done(tmp_path):
    result = (
        '{"settings": {"preset": "randman", "recurrent": false, "device": "cpu"}, '
        '"seconds_per_epoch": 8.0, "data": {"n_train": 800}}'
    )
    (tmp_path / "trials" / "0000-0").mkdir(parents=True)
    (tmp_path / "trials" / "0000-0" / "result.json").write_text(result)
    spec = read(tmp_path, RIGHT.replace("  lr:", "  recurrent: [true, false]\n  lr:"))
    hours = estimate(spec, tmp_path / "trials")
    assert hours.rough == {t.number for t in spec.trials if t.config.recurrent}
    measured = [hours.trials[t.number] for t in spec.trials if not t.config.recurrent]
    assert measured == pytest.approx([8.0 / 800 * 8000 * 4 / 3600] * 12)


def test_trials_that_run_at_once(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [at_once(Resources(cpus=cpus)) for cpus in (1, 0.5, 4, 7)] == [6, 12, 1, 0]
    assert [at_once(Resources(0.1, gpus)) for gpus in (1.0, 0.1, 0.4)] == [2, 20, 4]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert at_once(Resources(1, 0.5)) == 0
