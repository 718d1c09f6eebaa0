"""The part that is written in Ray Tune's terms: the experiment, its callback, its scheduler."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from fastlif.sweep.driver import Ledger, SweepStopped
from fastlif.sweep.folder import TRIALS_FOLDER
from fastlif.sweep.records import Outcome
from fastlif.sweep.spec import Asha, SweepSpec, Trial
from fastlif.sweep.tables import read_history
from fastlif.sweep.trainable import Job, TrialActor

__all__ = ["Halving", "Stop", "Watch", "fit"]

_LOOK_SECONDS = 10.0  # between two looks at the nodes while no trial runs


def fit(
    spec: SweepSpec,
    packs: Sequence[Sequence[Trial]],
    folder: Path,
    name: str,
    ledger: Ledger,
) -> None:
    """Run trials on the Ray that this process is connected to.

    To Tune, trials that are trained side by side are one.

    Args:
        spec: the whole sweep.
        packs: its trials that have not ended, those side by side together.
        folder: of the sweep.
        name: of a folder in it for what Tune writes.
        ledger: takes down what happens.

    Raises:
        SweepStopped: a trial reported something that stops all of them.
    """
    trials = {trial.number: trial for trial in spec.trials}
    trials_folder = folder / TRIALS_FOLDER
    job = Job(
        folder=trials_folder,
        data=spec.data,
        trials=trials,
        resources=spec.resources,
        waits=spec.asha is not None,
    )
    scheduler = None
    if spec.asha is not None:
        waiting = {trial.number for pack in packs for trial in pack}
        scheduler = Halving(spec.asha, trials, waiting, trials_folder)
    watch = Watch(ledger)
    resources = {"cpu": spec.resources.cpus, "gpu": spec.resources.gpus}
    tune.Tuner(
        tune.with_resources(tune.with_parameters(TrialActor, job=job), resources),
        param_space={
            "numbers": tune.grid_search([[trial.number for trial in pack] for pack in packs])
        },
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            reuse_actors=True,
            trial_name_creator=lambda trial: trials[trial.config["numbers"][0]].name,
            trial_dirname_creator=lambda trial: trials[trial.config["numbers"][0]].name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(folder),
            # Checkpoints are training's own.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=spec.retries),
            callbacks=[watch],
            stop=Stop(watch),
            verbose=0,
        ),
    ).fit()
    if watch.broken is not None:
        raise watch.broken


def _keeping(method: Callable[..., None]) -> Callable[..., None]:
    """A callback whose errors end the sweep, as themselves: Tune would make a text of them."""

    @wraps(method)
    def kept(self: Watch, *arguments: Any, **named: Any) -> None:
        if self.broken is None:
            try:
                method(self, *arguments, **named)
            except Exception as error:
                self.broken = error

    return kept


class Watch(tune.Callback):
    """Tells the ledger what Tune does.

    broken: why all trials have to stop, if they have.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._look_at = time.monotonic() + _LOOK_SECONDS
        self.broken: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps a copy for its own way to resume, which is not used here.
        return {}

    @_keeping
    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Trials got their place."""
        self._ledger.pace.begun(trial.config["numbers"])

    @_keeping
    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an epoch or its end."""
        number = result["number"]
        if "mend" in result:
            raise SweepStopped(f"trial {self._ledger.name(number)}: {result['mend']}")
        if "status" in result:
            if self._ledger.pace.has_ended(number):
                return  # said again by an actor that took over from a lost one
            ended = Outcome(result["status"], result["message"])
            self._ledger.ended(number, ended, recorded=True)
            return
        self._ledger.pace.epoch_done(number, result)
        if result.get("done"):  # which the scheduler decided
            ended = Outcome("stopped", f"behind others after epoch {result['epoch']}")
            self._ledger.ended(number, ended, recorded=False)

    @_keeping
    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Trials were lost and will be tried again."""
        self._ledger.pace.interrupted(trial.config["numbers"])

    @_keeping
    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Trials were lost as often as may be."""
        ended = _loss(trial.get_pickled_error())
        for number in trial.config["numbers"]:
            if not self._ledger.pace.has_ended(number):
                self._ledger.ended(number, ended, recorded=False)

    @_keeping
    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Tune looked at its trials."""
        self._ledger.tick()
        if not self._ledger.pace.is_running and time.monotonic() > self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            if not any(node["Alive"] for node in ray.nodes()):
                # Tune would wait for ever.
                raise SweepStopped("no node of Ray's is left: see its logs, and resume the sweep")


def _loss(error: BaseException | None) -> Outcome:
    """What became of a trial whose last attempt ended with an error of Ray's."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines()]
    reason = next((line for line in reversed(lines) if line), type(error).__name__)
    # Ray ends processes before a machine has no memory left.
    status = "out of memory" if isinstance(error, OutOfMemoryError) else "lost"
    return Outcome(status, reason)


class Stop(tune.Stopper):
    """Stops all trials once something is broken."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Whether one trial has to stop."""
        return False

    def stop_all(self) -> bool:
        """Whether all have to."""
        return self._watch.broken is not None


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving that knows what trials reported before a resume.

    A trial is compared with all that reached its rung, whenever that was. One that has done all
    its epochs is not stopped any more: only its test is left.
    """

    # Tune would insist on it in every result, the last of a trial among them.
    metric = None

    def __init__(
        self, asha: Asha, trials: dict[int, Trial], waiting: set[int], folder: Path
    ) -> None:
        self._epochs = {number: trial.config.all_epochs for number, trial in trials.items()}
        super().__init__(
            time_attr="epoch",
            metric=asha.metric,
            mode="max",
            max_t=max(asha.grace_epochs, *self._epochs.values()),
            grace_period=asha.grace_epochs,
            reduction_factor=asha.reduction,
            stop_last_trials=False,
        )
        self._before = {number: read_history(folder / t.name) for number, t in trials.items()}
        for number in trials.keys() - waiting:
            ended = SimpleNamespace(trial_id=f"ended {number}", config={"numbers": [number]})
            self.on_trial_add(None, ended)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Take up a trial, with the epochs that it did before."""
        super().on_trial_add(tune_controller, trial)
        for row in self._before.pop(trial.config["numbers"][0], []):
            super().on_trial_result(tune_controller, trial, row)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if result.get("epoch") == self._epochs[trial.config["numbers"][0]]:
            return str(TrialScheduler.CONTINUE)
        return str(decision)
