"""A trial's actor and its training process, without a cluster; halving; how trials end."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="sweeps need Ray: pip install 'fastlif[sweep]'")

from ray.exceptions import OutOfMemoryError

from fastlif.files import held_by_this_process
from fastlif.sweep import Asha, Resources, Trial, tuning
from fastlif.sweep.driver import SweepStopped
from fastlif.sweep.folder import SWEEP_NAME, TRIALS_FOLDER
from fastlif.sweep.packs import check_pack_size, packs_of
from fastlif.sweep.process import TrainingProcess
from fastlif.sweep.records import Outcome, attempts, open_again, outcome, record
from fastlif.sweep.trainable import Job, TrialActor, TrialLost
from fastlif.sweep.tuning import Halving, Stop, Watch
from fastlif.sweep.worker import Order, Ordered
from tests.sweeps import tiny_sweep, tiny_trial


@pytest.fixture(scope="module")
def process() -> Iterator[TrainingProcess]:
    """One for several tests: its start takes seconds."""
    one = TrainingProcess()
    yield one
    one.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of trials, in that of a sweep."""
    (tmp_path / SWEEP_NAME).write_text("{}")
    (tmp_path / TRIALS_FOLDER).mkdir()
    return tmp_path / TRIALS_FOLDER


def actor_of(
    folder: Path, trial: Trial, process: TrainingProcess | None, *more: Trial, **resources: Any
) -> TrialActor:
    """An actor as Tune would make it, with a training process that runs already.

    more: trials side by side with the first.
    """
    actor = object.__new__(TrialActor)
    trials = {one.number: one for one in (trial, *more)}
    job = Job(folder, None, trials, Resources(**resources), waits=False)
    actor.setup({"numbers": list(trials)}, job=job)
    actor._process = process
    return actor


def end_of(actor: TrialActor) -> dict[str, Any]:
    """The last result of a trial."""
    while not (result := actor.step()).get("done"):
        assert result["epoch"] >= 1
    return result


def test_a_finished_trial_is_not_run_again(folder: Path, process: TrainingProcess) -> None:
    trial = tiny_trial(0)
    assert end_of(actor_of(folder, trial, process))["status"] == "finished"
    before = (folder / trial.name / "result.json").stat()
    assert end_of(actor_of(folder, trial, None))["status"] == "finished"  # no process is asked
    assert (folder / trial.name / "result.json").stat() == before
    assert len(attempts(folder / trial.name)) == 1


def test_a_trial_that_diverges_is_recorded(folder: Path, process: TrainingProcess) -> None:
    trial = tiny_trial(0, optimizer="sgd", lr=1e38)
    result = end_of(actor_of(folder, trial, process))
    assert result["status"] == "failed" and "loss must stay finite" in result["message"]
    assert outcome(folder / trial.name) == Outcome("failed", result["message"])
    recorded = json.loads((folder / trial.name / "failed.json").read_text())
    assert recorded["settings"]["lr"] == 1e38 and recorded["versions"]["torch"]


def test_packs_hold_what_fits_together() -> None:
    trials = [tiny_trial(0), tiny_trial(1, lr=0.1), tiny_trial(2, dt=2e-2), tiny_trial(3, seed=1)]
    trials += [tiny_trial(4, sigma_u=2.0), tiny_trial(5, dt=2e-2, data_seed=7)]
    for size, numbers in (
        (1, [[0], [1], [2], [3], [4], [5]]),
        (3, [[0, 1, 3], [2, 5], [4]]),
        (9, [[0, 1, 3, 4], [2, 5]]),
    ):
        assert [[one.number for one in pack] for pack in packs_of(trials, size)] == numbers
    with pytest.raises(ValueError, match="pack must be at least 1, got 0"):
        check_pack_size(tiny_sweep(*trials), 0)
    halving = tiny_sweep(*trials, asha=Asha(grace_epochs=1))
    with pytest.raises(ValueError, match="pack must be 1 for a sweep with a scheduler, got 2"):
        check_pack_size(halving, 2)
    check_pack_size(halving, 1)


def results_of(actor: TrialActor) -> list[dict[str, Any]]:
    """All results but those of epochs; the last one, and it alone, says that it is."""
    results = [actor.step()]
    while not results[-1].get("done"):
        results.append(actor.step())
    return [result for result in results if "epoch" not in result]


def test_each_of_trials_side_by_side_ends_as_it_does_alone(
    folder: Path, process: TrainingProcess
) -> None:
    """One had ended before, one diverges, one has a target that cannot be reached."""
    trials = [tiny_trial(0), tiny_trial(1, seed=3), tiny_trial(2, lr=1e38, optimizer="sgd")]
    trials += [tiny_trial(3, sigma_u=1e200)]
    trials += [tiny_trial(4, lr=0.1, optimizer="sgd")]
    assert end_of(actor_of(folder, trials[0], process))["status"] == "finished"
    packs = (trials[0], trials[1], trials[3]), (trials[2], trials[4])
    found = {}
    for first, *more in packs:
        actor = actor_of(folder, first, process, *more)
        for result in results_of(actor):
            assert result["number"] not in found
            found[result["number"]] = result
        assert len(attempts(folder / first.name)) == 1
    assert {number: result["status"] for number, result in found.items()} == {
        0: "finished", 1: "finished", 2: "failed", 3: "failed", 4: "finished"
    }  # fmt: skip
    assert "loss must stay finite" in found[2]["message"]
    assert "sigma_u=1e+200 cannot be reached" in found[3]["message"]
    for number in (2, 3):
        ended = outcome(folder / trials[number].name)
        assert ended == Outcome("failed", found[number]["message"])


def test_a_trial_that_diverges_is_known_before_the_others_end(
    folder: Path, process: TrainingProcess
) -> None:
    first, second = (
        tiny_trial(number, optimizer="sgd", epochs=20, lr=lr)
        for number, lr in ((0, 0.1), (1, 1e38))
    )
    actor = actor_of(folder, first, process, second)
    found = [actor.step()]
    while not found[-1].get("done"):
        found.append(actor.step())
    said = [(one["number"], one.get("status", one.get("epoch"))) for one in found]
    assert said[-1] == (0, "finished")
    assert said.index((1, "failed")) < said.index((0, 15))


class Crashing:
    """A training process that ends when it is given a trial with this number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.orders: list[list[int]] = []

    def order(self, order: Order) -> None:
        self.orders.append([trial.number for trial in order.trials])

    def answer(self, timeout: float | None = None) -> dict[str, Any]:
        if self.number in self.orders[-1]:
            return {"kind": "end", "number": None, "status": "again", "message": "it crashed"}
        (number,) = self.orders[-1]
        return {"kind": "end", "number": number, "status": "failed", "message": "made up"}


def test_one_that_crashes_takes_no_others_with_it(folder: Path) -> None:
    trials = [tiny_trial(number) for number in range(3)]
    crashing: Any = Crashing(1)
    actor = actor_of(folder, trials[0], crashing, *trials[1:])
    for number in (0, 2):
        result = actor.step()
        assert (result["number"], result["status"], result["done"]) == (number, "failed", False)
    assert crashing.orders == [[0, 1, 2], [0], [1], [2]]
    with pytest.raises(TrialLost, match="it crashed"):
        actor.step()


def test_a_trial_waits_for_a_folder_in_use(folder: Path, process: TrainingProcess) -> None:
    trial = tiny_trial(0)
    actor = actor_of(folder, trial, process)
    with held_by_this_process(folder / trial.name):
        process.order(order_of(trial, folder))
        assert process.answer(timeout=1.0) is None
    actor._begun, actor._running = True, [trial]
    actor._seconds_left, actor._charged_at = 1e9, time.monotonic()
    assert end_of(actor)["status"] == "finished"


def test_what_a_user_can_mend_is_no_end(folder: Path, process: TrainingProcess) -> None:
    for changes, words in (
        ({"backend": "cuda"}, "backend 'cuda' needs a GPU"),
        ({"preset": "shd-dense"}, "preset 'shd-dense' needs data"),
    ):
        trial = tiny_trial(0, **changes)
        assert words in end_of(actor_of(folder, trial, process))["mend"]
        assert outcome(folder / trial.name) is None
    (folder.parent / SWEEP_NAME).unlink()
    result = end_of(actor_of(folder, tiny_trial(0), process))
    assert "all nodes" in result["mend"] and str(folder.parent) in result["mend"]


def test_a_full_disk_is_an_error_that_loses_nothing(folder: Path, process: TrainingProcess) -> None:
    """On a file system that has room for a part of the trial."""
    trial = tiny_trial(0, epochs=80)
    disk = folder / trial.name
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is for root alone")
    try:
        result = end_of(actor_of(folder, trial, process))
        assert os.strerror(errno.ENOSPC) in result["mend"] and outcome(disk) is None
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        actor = actor_of(folder, trial, process)
        assert actor.step()["epoch"] > 1
        assert attempts(disk)[-1]["epochs_done"] >= 1
        assert end_of(actor)["status"] == "finished"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_limits_end_a_trial_and_larger_ones_open_it_again(
    folder: Path, process: TrainingProcess
) -> None:
    """Without memory twice: the process had run another trial, which may have left something.

    The last test of this process, which it ends.
    """
    actor = actor_of(folder, tiny_trial(0), process, memory=600 << 20)
    assert end_of(actor)["status"] == "finished"
    large = tiny_trial(1, dt=1e-5)
    actor._job.trials[1] = large
    assert actor.reset_config({"numbers": [1]})
    result = end_of(actor)
    assert result["status"] == "out of memory" and "can't allocate memory" in result["message"]
    assert actor._process is not process

    # Side by side they may take twice as much, and each may still do so alone.
    again = [tiny_trial(number, dt=1e-5) for number in (3, 4)]
    actor._job.trials.update({trial.number: trial for trial in again})
    assert actor.reset_config({"numbers": [3, 4]})
    assert [(one["number"], one["status"]) for one in results_of(actor)] == [
        (3, "out of memory"), (4, "out of memory")
    ]  # fmt: skip

    slow = tiny_trial(2, epochs=10_000)
    actor._job = Job(folder, None, {2: slow}, Resources(hours=1e-4), waits=False)
    assert actor.reset_config({"numbers": [2]})
    assert end_of(actor)["message"] == "above 0.0001 hours"
    assert actor._process is None

    for trial, more in ((large, {"memory": 601 << 20}), (slow, {"hours": None})):
        held = folder / trial.name
        before = outcome(held)
        open_again(held, Resources(memory=600 << 20, hours=1e-4))
        assert outcome(held) == before
        open_again(held, Resources(**{"memory": 600 << 20, "hours": 1e-4} | more))
        assert outcome(held) is None


def test_a_training_process_ends_with_its_actor_and_its_trial_is_tried_again(
    folder: Path,
) -> None:
    trial = tiny_trial(0, epochs=10_000)
    actor = actor_of(folder, trial, None)
    assert actor.step()["epoch"] == 1
    assert actor._process is not None
    process = actor._process._process
    assert process.stdin is not None
    process.stdin.close()  # as the system does for an actor that is killed
    assert process.wait(timeout=10.0) == 1
    with held_by_this_process(folder / trial.name):
        pass
    with pytest.raises(TrialLost, match="the training process ended by exit code 1"):
        end_of(actor)
    assert outcome(folder / trial.name) is None and len(attempts(folder / trial.name)) == 1


def order_of(trial: Trial, folder: Path) -> Order:
    ordered = Ordered(trial.number, trial.config.as_dict(), str(folder / trial.name))
    return Order((ordered,), None, node="")


def test_what_was_lost_goes_on_with_a_resume(folder: Path) -> None:
    trial = tiny_trial(0)
    held = folder / trial.name
    for status, is_open in (("lost", True), ("failed", False), ("stopped", False)):
        record(held, Outcome(status, "why"), trial.config, Resources())
        assert outcome(held) == Outcome(status, "why")
        open_again(held, Resources())
        assert (outcome(held) is None) == is_open


def test_halving_knows_what_trials_reported_before_a_resume(folder: Path) -> None:
    trials = {number: tiny_trial(number, epochs=9) for number in range(5)}
    for number, accuracy in ((0, 0.9), (1, 0.8), (2, 0.7)):
        path = folder / trials[number].name / "epochs.csv"
        path.parent.mkdir()
        n_epochs = 9 if number < 2 else 3
        lines = [f"{epoch},supervised,{accuracy}" for epoch in range(1, n_epochs + 1)]
        path.write_text("\n".join(["epoch,phase,validation_accuracy", *lines, ""]))
    halving = Halving(Asha(grace_epochs=3), trials, {2, 3, 4}, folder)
    decisions = {}
    for number, accuracy, epoch in ((2, 0.1, 4), (3, 0.75, 3), (4, 0.95, 3), (4, 0.1, 9)):
        trial = SimpleNamespace(trial_id=str(number), config={"numbers": [number]})
        halving.on_trial_add(None, trial)
        row = {"epoch": epoch, "validation_accuracy": accuracy}
        decisions[number, epoch] = halving.on_trial_result(None, trial, row)
    assert decisions == {
        (2, 4): "CONTINUE",  # was compared at epoch 3, before
        (3, 3): "STOP",  # below the best third of 0.9, 0.8 and 0.7
        (4, 3): "CONTINUE",
        (4, 9): "CONTINUE",  # at its end
    }


class Ledger:
    """Notes what a callback tells it, and fails if asked to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.told: list[tuple[int, Outcome, bool]] = []
        self.pace: Any = None

    def tick(self) -> None:
        pass

    def ended(self, number: int, how: Outcome, *, recorded: bool) -> None:
        if self.error is not None:
            raise self.error
        self.told.append((number, how, recorded))


def test_what_tune_says_of_a_lost_trial_is_taken_down() -> None:
    for error, ended in (
        (RuntimeError("ray::step()\n  the node died\n"), Outcome("lost", "the node died")),
        (OutOfMemoryError("95 % used"), Outcome("out of memory", "95 % used")),
        (None, Outcome("lost", "None")),
    ):
        ledger = Ledger()
        ledger.pace = SimpleNamespace(has_ended=lambda number: number == 6)
        lost = SimpleNamespace(
            config={"numbers": [6, 7]}, get_pickled_error=lambda error=error: error
        )
        Watch(ledger).on_trial_error(iteration=1, trials=[], trial=lost)
        assert ledger.told == [(7, ended, False)]


def test_an_error_of_the_driver_s_own_stops_the_sweep_as_itself() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "trials.csv")
    watch = Watch(Ledger(full))
    stop = Stop(watch)
    assert not stop.stop_all()
    watch._ledger.pace = SimpleNamespace(has_ended=lambda number: False)
    result = {"number": 0, "done": True, "status": "finished", "message": ""}
    trial = SimpleNamespace(config={"numbers": [0]})
    watch.on_trial_result(iteration=1, trials=[], trial=trial, result=result)
    assert watch.broken is full and stop.stop_all()


def test_an_end_that_is_said_twice_counts_once() -> None:
    """By an actor, and by the one that took over when its node was lost."""
    ledger = Ledger()
    ended: set[int] = set()
    ledger.pace = SimpleNamespace(has_ended=lambda number: number in ended)
    trial = SimpleNamespace(config={"numbers": [0, 1]})
    result = {"number": 0, "done": False, "status": "finished", "message": ""}
    for _ in range(2):
        Watch(ledger).on_trial_result(iteration=1, trials=[], trial=trial, result=result)
        ended.add(0)
    assert ledger.told == [(0, Outcome("finished"), True)]


def test_a_sweep_without_nodes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_LOOK_SECONDS", -1.0)
    ledger = Ledger()
    for running, alive, ends in ((True, False, False), (False, True, False), (False, False, True)):
        ledger.pace = SimpleNamespace(is_running=running)
        monkeypatch.setattr(tuning.ray, "nodes", lambda alive=alive: [{"Alive": alive}])
        watch = Watch(ledger)
        watch.on_step_end(iteration=1, trials=[])
        assert isinstance(watch.broken, SweepStopped) == ends
