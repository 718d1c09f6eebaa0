"""Size of a reproduction, its runs, where its data comes from, and its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlif.cli.reproducing import NAMES
from fastlif.reproduce import EXPERIMENTS, Options, Sources, Table
from fastlif.reproduce.estimate import Estimator
from fastlif.reproduce.plan import KAIMING, PLAIN, Plan
from fastlif.reproduce.table import COLUMNS, METRIC_COLUMNS
from fastlif.sweep.paper import paper_sweep
from fastlif.train import default_config

TARGETS = paper_sweep("4a").axes["sigma_u"]


def test_full_size_is_the_papers():
    options = Options()
    assert list(options.seeds_of()) == [0, 1, 2, 3, 4]
    assert [options.epochs_of(n) for n in (200, 50, 20)] == [200, 50, 20]
    assert options.targets_of(TARGETS) == tuple(sorted(TARGETS))
    assert options.grid_of((1.0, 2.0, 3.0, 4.0), 2.0) == (1.0, 2.0, 3.0, 4.0)
    assert options.samples_of(54000) is None


@pytest.mark.parametrize(
    ("scale", "seeds", "epochs", "targets", "samples"),
    [
        (0.5, 2, 100, 6, 27000),
        (0.2, 1, 40, 2, 10800),
        (0.05, 1, 10, 2, 10000),
        (0.001, 1, 2, 2, 10000),
    ],
)
def test_a_scale_shrinks_each_size_down_to_a_floor(scale, seeds, epochs, targets, samples):
    options = Options(scale=scale)
    assert len(options.seeds_of()) == seeds
    assert options.epochs_of(200) == epochs
    assert len(options.targets_of(TARGETS)) == targets
    assert options.samples_of(54000) == samples
    assert options.samples_of(7340) is None  # small enough as it is


def test_the_most_telling_targets_stay():
    assert Options(scale=0.05).targets_of(TARGETS) == (0.2, 1.0)
    assert Options(scale=0.25).targets_of(TARGETS) == (0.2, 1.0, 20.0)


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("keep", [-4.0, -0.5, 0.0, 2.0])
def test_a_grid_keeps_its_middle_and_its_ends(scale, keep):
    values = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    chosen = Options(scale=scale).grid_of(values, keep)
    assert keep in chosen and chosen[0] == -4.0 and chosen[-1] == 2.0
    assert len(chosen) == max(3, round(scale**0.5 * 8)) and list(chosen) == sorted(chosen)


def test_what_is_given_wins_over_the_scale():
    options = Options(scale=0.05, seeds=3, epochs=7, targets=(2.0, 0.5, 2.0), samples=100)
    assert len(options.seeds_of()) == 3 and options.epochs_of(200) == 7
    assert options.targets_of(TARGETS) == (0.5, 2.0)
    assert options.samples_of(7340) == 100


def test_files_of_a_part_have_names_of_their_own():
    assert Options().suffix() == ""
    assert Options(device="cuda", backend="reference").suffix() == ""
    assert Options(scale=0.05, only=("conv-7",)).suffix() == "-scale0.05-only-conv-7"
    assert Options(only=("b", "CIFAR conv-2")).suffix() == "-only-CIFAR_conv-2-b"
    named = [Options(targets=t, seeds=2).suffix() for t in ((1.0, 0.2), (0.2, 1.0, 1.0))]
    assert named == ["-seeds2-targets0.2_1"] * 2


def test_priming_takes_no_more_than_half_of_the_epochs():
    assert Options().priming_of(10, 200) == 10
    assert Options().priming_of(10, 10) == 5
    assert Options().priming_of(10, 1) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.0}, "scale must lie in"),
        ({"scale": 1.5}, "got 1.5"),
        ({"seeds": 0}, "seeds must be at least 1, got 0"),
        ({"epochs": -1}, "epochs must be at least 1"),
        ({"targets": ()}, "targets must name"),
        ({"targets": (1.0, -2.0)}, "targets must be finite and > 0, got -2.0"),
        ({"channel_shift": -1}, "channel_shift must be at least 0"),
    ],
)
def test_bad_sizes_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Options(**wrong)


def test_the_command_names_all_experiments():
    assert NAMES == tuple(EXPERIMENTS)


def test_runs_of_the_full_size():
    plan = EXPERIMENTS["table1"].planned(Options())
    assert plan.shrunk() == ""
    # Seven networks, two initializations each and homeostasis for three of them.
    assert len(plan.runs) == 5 * (2 * 7 + 3)
    (run,) = {
        r for r in plan.runs if r.config.seed == 3 and r.label().startswith("conv-7, Kaiming +")
    }
    assert run.config.initialization == "kaiming" and run.target is None
    assert run.config.regularization.lower_strength == 0.1
    assert run.config.regularization.upper_strength == 0.01  # the preset's own stays
    assert run.config.epochs == 200 and run.config.batch_size == 100


def test_what_is_shrunk_is_said():
    options = Options(scale=0.05, channel_shift=20, batch_size=100)
    plan = EXPERIMENTS["fig4"].planned(options)
    text = plan.shrunk()
    for part in ("scale 0.05", "10 of 200 epochs", "1 of 5 seeds", "2 of 12 targets"):
        assert part in text
    assert "batches of 100" in text and "20 channels" in text
    assert "below scale 0.1 without conv-10, conv-1 feed-forward" in text
    assert "5 of 200 epochs" in text  # of the deeper ones
    assert {run.config.batch_size for run in plan.runs} == {100}
    assert {(run.network, run.config.epochs) for run in plan.runs} == {
        ("conv-1", 10), ("conv-3", 10), ("conv-7", 5)
    }  # fmt: skip
    assert {run.network for run in plan.runs} == {"conv-1", "conv-3", "conv-7"}
    trained = [run for run in plan.runs if run.trained]
    assert {(run.network, run.condition, run.target) for run in trained} == {
        (network, *start)
        for network in ("conv-1", "conv-3", "conv-7")
        for start in ((PLAIN, 0.2), (PLAIN, 1.0), (KAIMING, None))
    }


def test_a_run_that_two_panels_need_is_one_run():
    plan = Plan(Options(seeds=1))
    plan.add("a", "conv-7", "shd-conv7", targets=(0.2, 1.0), records=("example",))
    plan.look("d", "conv-7", "shd-conv7", (1.0, 20.0))
    assert [(run.target, run.panels, run.trained) for run in plan.runs] == [
        (0.2, "a", True),
        (1.0, "ad", True),
        (20.0, "d", False),
    ]
    assert plan.runs[1].records == ("example", "initial")


def test_only_panels_or_networks_that_are_asked_for():
    figure = EXPERIMENTS["fig4"]
    conv7 = figure.planned(Options(scale=0.05, only=("conv-7",)))
    assert {run.network for run in conv7.runs} == {"conv-7"}
    assert not any(run.trained for run in figure.planned(Options(scale=0.05, only=("d",))).runs)
    with pytest.raises(ValueError, match="only must name .* fig4, got conv-8"):
        figure.planned(Options(only=("conv-8",)))


def test_runs_differ_in_their_folders_by_settings_and_data(tmp_path: Path):
    for name, size in (("one", 3), ("two", 4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a_train.h5").write_bytes(b"x" * size)
    sources = [Sources({"events": tmp_path / name}) for name in ("one", "two")]
    runs = EXPERIMENTS["fig5"].planned(Options(scale=0.5)).runs
    names = {run.folder_name(source) for run in runs for source in sources}
    assert len(names) == 2 * len(runs)
    shared = EXPERIMENTS["fig4"].planned(Options(scale=0.5)).runs
    mine = {run.folder_name(sources[0]) for run in runs if run.condition == PLAIN}
    assert mine <= {run.folder_name(sources[0]) for run in shared}


def test_folders_are_told_by_what_they_hold(tmp_path: Path):
    for folder, file in (
        ("digits", "digits_train.h5"),
        ("shd", "shd_train.h5"),
        ("pictures", "cifar10_train.npz"),
        ("batches", "data_batch_1"),
        ("camera", "user01.aedat"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    given = [tmp_path / name for name in ("digits", "pictures", "camera")]
    sources = Sources.sorted(given, events=None)
    assert sources.folder("events") == tmp_path / "digits"
    assert sources.name("events") == "digits" and sources.name("images") == "pictures"
    assert sources.name("event_camera") == "DVS-Gesture"
    assert Sources.sorted(given, events=tmp_path / "shd").name("events") == "SHD"
    assert Sources.sorted([tmp_path / "batches"]).name("images") == "CIFAR-10"
    assert "--data-dvs FOLDER" in (Sources().missing("event_camera") or "")
    assert Sources().missing("randman") is None
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Sources.sorted([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no data of a known kind"):
        Sources.sorted([tmp_path / "empty"])
    with pytest.raises(ValueError, match=r"one folder of each kind, got .*digits and .*shd"):
        Sources.sorted([tmp_path / "digits", tmp_path / "shd"])


def test_a_damaged_event_file_is_named(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / f"shd_{part}.h5").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"shd_train\.h5: not a readable HDF5 file"):
        Sources({"events": tmp_path}).n_train("events")


def test_a_fingerprint_is_of_the_files_that_are_read(tmp_path: Path):
    def write(name: str, content: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path.parent

    def of(folder: str, kind: str = "events") -> str:
        return Sources({kind: tmp_path / folder}).fingerprint(kind)

    for folder in ("a", "b"):
        write(f"{folder}/x_train.h5", "1234")
        write(f"{folder}/x_test.h5", "12")
    assert of("a") == of("b")  # a copy
    write("b/notes.txt", "no data")
    assert of("a") == of("b")
    write("b/x_test.h5", "123")
    assert of("a") != of("b")
    for folder, number in (("c", "1"), ("d", "2")):
        write(f"{folder}/DVS/ibmGestureTrain/user{number}/0.npy", "1")
        write(f"{folder}/DVS/ibmGestureTest/user3/0.npy", "1")
    assert of("c", "event_camera") != of("d", "event_camera")
    assert of("c", "event_camera") == of("c/DVS", "event_camera")


def test_estimates_grow_with_epochs_and_samples():
    sources = Sources()
    runs = {
        epochs: EXPERIMENTS["figS5"].planned(Options(epochs=epochs, only=("a",))).runs[0]
        for epochs in (10, 100)
    }
    estimator = Estimator(sources, Path("nowhere"))
    assert estimator.seconds(runs[100]) == pytest.approx(10 * estimator.seconds(runs[10]))
    assert not estimator.is_measured(runs[10])
    estimator.times.learn(("randman", True, "cuda"), 0.1)
    assert not estimator.is_measured(runs[10])
    estimator.times.learn(("randman", True, "cpu"), 0.5)
    assert estimator.is_measured(runs[10])
    assert estimator.seconds(runs[10]) == pytest.approx(0.5 * 8000 * 10)


def test_a_table_comes_back_from_its_file(tmp_path: Path):
    rows = [
        {"network": "dense", "target": 1.0, "seed": 0, "lr": 0.005, "metric": "test_accuracy",
         "layer": "1", "value": 0.5, "status": "finished", "recurrent": True},
        {"network": "dense", "target": None, "seed": 1, "message": "why, then", "status": "failed"},
    ]  # fmt: skip
    table = Table(rows)
    header = table.text().splitlines()[0].split(",")
    assert header == [*COLUMNS, "lr", "recurrent", *METRIC_COLUMNS]
    path = tmp_path / "table.csv"
    path.write_text(table.text())
    back = Table.read(path)
    assert back.rows[0]["lr"] == 0.005 and back.rows[0]["recurrent"] is True
    assert back.rows[0]["layer"] == "1" and back.rows[1]["message"] == "why, then"
    assert back.rows[1]["target"] is None
    assert back.where(network="dense", target=1.0).values() == [0.5]
    assert back.where(status=("finished", "failed")).distinct("seed") == [0, 1]


def test_summaries_are_over_the_seeds():
    rows = [{"target": t, "value": v} for t, v in ((1.0, 0.2), (1.0, 0.4), (0.1, 0.5), (9.0, None))]
    found = Table(rows).over("target")
    assert list(found) == [(0.1,), (1.0,)]
    assert found[(1.0,)].mean == pytest.approx(0.3) and found[(1.0,)].n == 2
    assert found[(1.0,)].std == pytest.approx(0.2 / 2**0.5)
    assert found[(0.1,)].std == 0.0


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_run_differs_from_the_presets_own_settings_as_it_should(name):
    for run in EXPERIMENTS[name].planned(Options()).runs:
        own = default_config(run.config.preset, run.config.optimizer)
        assert run.config.epochs == own.epochs and run.config.lr == own.lr
        if run.condition in (PLAIN, KAIMING):
            assert run.config.regularization == own.regularization
            assert run.config.recurrent == own.recurrent
