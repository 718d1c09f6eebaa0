"""Sweeps that lose a node or their driver, on local nodes that talk over the loopback interface."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastlif.sweep import Asha, Resources, SweepSpec, read_spec
from fastlif.sweep.driver import SweepStopped
from fastlif.sweep.progress import Progress
from fastlif.sweep.records import attempts, outcome
from fastlif.sweep.run import run_sweep
from fastlif.sweep.tables import read_epochs, read_trials
from fastlif.train import load_task, train
from tests.sweeps import (
    GRID,
    N_EPOCHS,
    N_FAILED,
    N_TRIALS,
    Watcher,
    assert_same_sweep,
    tiny_sweep,
    tiny_trial,
)

# Before Ray is imported: this machine's address is 127.0.0.1 then.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
ray = pytest.importorskip("ray", reason="sweeps need Ray: pip install 'fastlif[sweep]'")

# A node that is gone refuses connections, which counts at once. One that is slow has the time that
# Ray gives it: tests run on busy machines.
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two local nodes of one CPU each, beside a head that runs no trials: either may be killed."""
    from ray.cluster_utils import Cluster

    two = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK},
    )
    for _ in range(2):
        two.add_node(num_cpus=1)
    yield two
    two.shutdown()


@pytest.fixture(scope="module")
def sweep_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "tiny.yaml"
    path.write_text(GRID)
    return path


@pytest.fixture(scope="module")
def spec(sweep_file: Path) -> SweepSpec:
    return read_spec(sweep_file)


@pytest.fixture(scope="module")
def undisturbed(cluster: Any, spec: SweepSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the sweep, run without trouble."""
    folder = tmp_path_factory.mktemp("undisturbed")
    watcher = Watcher()
    summary = run_sweep(spec, folder, address=cluster.address, reporter=watcher)
    assert summary.statuses == {"finished": N_TRIALS - N_FAILED, "failed": N_FAILED}
    assert sorted(number for number, _ in watcher.ended) == list(range(N_TRIALS))
    assert watcher.seen[-1].running == 0 or watcher.seen[-1].n_ended < N_TRIALS
    return folder


def test_what_a_sweep_leaves(undisturbed: Path, spec: SweepSpec) -> None:
    trials, epochs = read_trials(undisturbed), read_epochs(undisturbed)
    assert [row["number"] for row in trials] == list(range(N_TRIALS))
    assert [row["name"] for row in trials] == [trial.name for trial in spec.trials]
    for row, trial in zip(trials, spec.trials, strict=True):
        assert (row["sigma_u"], row["lr"], row["seed"]) == (
            trial.config.sigma_u, trial.config.lr, trial.config.seed
        )  # fmt: skip
        assert row["preset"] == "randman" and row["torch"] and row["fastlif"]
        assert row["attempts"] == 1 and row["node"]
        if row["status"] == "finished":
            own = [epoch for epoch in epochs if epoch["number"] == row["number"]]
            assert [epoch["epoch"] for epoch in own] == list(range(1, N_EPOCHS + 1))
            best = own[row["best_epoch"] - 1]
            assert row["validation_accuracy"] == best["validation_accuracy"]
            assert 0.0 < row["test_rate_hidden1_hz"] < 100.0 and row["test_accuracy"] >= 0.0
        else:
            assert row["lr"] == 1e38 and "the loss must stay finite" in row["message"]
            assert row["test_accuracy"] is None
    assert not list(undisturbed.glob(".tune")) and not list(undisturbed.rglob("*.tmp"))


def test_trials_side_by_side_have_the_results_of_single_ones(
    cluster: Any, undisturbed: Path, spec: SweepSpec, tmp_path: Path
) -> None:
    """In packs of up to 5: some with trials that diverge, all with different seeds."""
    watcher = Watcher()
    run_sweep(spec, tmp_path, address=cluster.address, pack=5, reporter=watcher)
    assert_same_sweep(undisturbed, tmp_path)
    assert sorted(number for number, _ in watcher.ended) == list(range(N_TRIALS))
    assert max(progress.running for progress in watcher.seen) > 2  # more than there are nodes


def test_what_stops_all_trials_loses_nothing(cluster: Any, tmp_path: Path) -> None:
    good, bad = tiny_trial(0), tiny_trial(1, preset="shd-dense")
    with pytest.raises(SweepStopped, match="trial 0001-tiny: preset 'shd-dense' needs data"):
        run_sweep(tiny_sweep(good, bad), tmp_path, address=cluster.address)
    assert not list(tmp_path.rglob("failed.json")) and not (tmp_path / ".tune").exists()


def test_halving_stops_what_falls_behind(cluster: Any, tmp_path: Path) -> None:
    """Behind a trial that had ended before a resume. One needs more memory than it may have."""
    settings = {"n_samples": 600, "epochs": 9, "sigma_u": 1.0}
    good, *bad = (tiny_trial(i, lr=lr, **settings) for i, lr in enumerate((3e-2, 1e-5, 1e-6)))
    large = tiny_trial(3, dt=1e-5)
    train(good.config, load_task(good.config, None), tmp_path / "trials" / good.name)
    spec = tiny_sweep(
        good,
        *bad,
        large,
        asha=Asha(grace_epochs=3, reduction=3, metric="train_accuracy"),
        resources=Resources(memory=700 << 20),
    )
    run_sweep(spec, tmp_path, address=cluster.address, resume=True)
    rows = read_trials(tmp_path)
    statuses = [row["status"] for row in rows]
    assert statuses == ["finished", "stopped", "stopped", "out of memory"]
    assert [row["epochs_done"] for row in rows] == [9, 3, 3, 0]
    assert rows[1]["message"] == rows[2]["message"] == "behind others after epoch 3"
    assert rows[1]["train_accuracy"] < rows[0]["train_accuracy"]
    assert "can't allocate memory" in rows[3]["message"]
    assert len(read_epochs(tmp_path)) == 9 + 3 + 3


def test_the_driver_is_killed_and_the_sweep_goes_on(
    undisturbed: Path, sweep_file: Path, spec: SweepSpec, cluster: Any, tmp_path: Path
) -> None:
    """With a Ray of its own, which dies with it; then on the cluster."""
    folder = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "fastlif", "sweep", str(sweep_file), "--out", str(folder)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as driver:
        try:
            wait_for(lambda: len(list(folder.glob("trials/*/result.json"))) >= 6, driver)
        finally:
            driver.send_signal(signal.SIGKILL)
    ended = {
        path: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.glob("trials/*/*.json")
        if path.name in ("result.json", "failed.json")
    }
    assert 6 <= len(ended) < N_TRIALS
    watcher = Watcher()
    run_sweep(spec, folder, resume=True, address=cluster.address, reporter=watcher)
    assert_same_sweep(undisturbed, folder)
    for path, before in ended.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == before
    assert len(watcher.ended) == N_TRIALS - len(ended)
    assert watcher.seen[0].n_ended == len(ended)


def test_a_node_is_killed_half_way(
    undisturbed: Path, spec: SweepSpec, cluster: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "disturbed"
    nodes = {node.node_id: node for node in cluster.worker_nodes}

    class Killer(Watcher):
        """Kills a node in the middle of a trial, as soon as half of them ended."""

        killed: Path | None = None

        def progressed(self, progress: Progress) -> None:
            give_up = time.monotonic() + 0.5  # in which the trial given out last begins
            if len(self.ended) >= N_TRIALS // 2:
                while self.killed is None and time.monotonic() < give_up:
                    self.kill()
                    time.sleep(0.01)  # a trial takes half a second

        def kill(self) -> None:
            for path in folder.glob("trials/*/epochs.csv"):
                if outcome(path.parent) is None:
                    last = attempts(path.parent)[-1]
                    os.kill(last["process"], signal.SIGKILL)
                    cluster.remove_node(nodes[last["ray_node"]], allow_graceful=False)
                    self.killed = path.parent
                    return

    killer = Killer()
    run_sweep(spec, folder, address=cluster.address, reporter=killer)
    assert killer.killed is not None
    assert sorted(number for number, _ in killer.ended) == list(range(N_TRIALS))
    assert_same_sweep(undisturbed, folder)
    first, *_, last = attempts(killer.killed)
    assert first["ray_node"] != last["ray_node"]
    assert first["epochs_done"] == 0 < last["epochs_done"]  # it went on where it was


def wait_for(true: Any, process: subprocess.Popen[str], seconds: float = 400.0) -> None:
    give_up = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up
        time.sleep(0.02)
