"""A run in progress: what an epoch does, and how it is saved and continued."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from fastlif.data import SampleSource
from fastlif.init.activity import warn_of_activity
from fastlif.layers import Sequential
from fastlif.losses import max_over_time_cross_entropy
from fastlif.memory import check_device
from fastlif.models import build
from fastlif.train.batches import epoch_generator, training_batches
from fastlif.train.checkpoint import (
    Checkpoint,
    check_same_run,
    load_checkpoint,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_checkpoint,
)
from fastlif.train.config import TrainConfig
from fastlif.train.initialization import initialize
from fastlif.train.logs import EpochRecord, Phase, Scores, with_phase, write_csv
from fastlif.train.objective import Meter, Objective, populations
from fastlif.train.optimizers import make_optimizer
from fastlif.train.parallel import Processes, Step, check_together, make_step
from fastlif.train.task import Task

__all__ = ["CHECKPOINT_NAME", "CSV_NAME", "Reporter", "Run", "TrainingFailed", "check_finite"]

CHECKPOINT_NAME = "checkpoint.safetensors"
CSV_NAME = "epochs.csv"


class TrainingFailed(ValueError):
    """Training cannot go on, with these settings, whatever the machine: the loss is not finite."""


class Reporter(Protocol):
    """Told of the progress of a run; the command line shows it."""

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        """Training begins or goes on after `epochs_done` epochs, priming among them."""

    def batch_done(self) -> None:
        """One optimizer step was made."""

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """An epoch was validated, logged and saved."""


class Run:
    """Network, optimizer, data on their device, and what happened so far."""

    def __init__(
        self,
        config: TrainConfig,
        task: Task,
        folder: Path,
        processes: Processes | None = None,  # None: this one alone
        *,
        resume: bool,
    ) -> None:
        processes = Processes() if processes is None else processes
        self.config = config
        self.folder = folder
        self.processes = processes
        self.duration = task.duration
        self.settings = config.as_dict()
        self.data = task.summary(config.dt)
        self.network = build_network(config, task)
        initialize(
            self.network, config, input_rate=self.data["input_rate"], images=task.some_images()
        )
        self.populations = populations(self.network)
        self.epoch = 0  # epochs done
        self.best_epoch = 0
        self.best_model: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        check_device(config.device)
        # Imported here: it takes seconds, which a look at finished runs should not.
        from lightning_fabric import Fabric

        devices = [processes.gpu] if config.device == "cuda" else 1
        fabric = Fabric(accelerator=config.device, devices=devices)
        self.device = fabric.device
        self.model = fabric.setup_module(self.network)
        # After the move: the optimizer's state is made, and restored, where the parameters are.
        self.optimizer = make_optimizer(self.network, config, self.device)
        if processes.are_several:
            processes.check_equal({"resume": resume})  # loading is done together too
        if resume:
            self._restore()
        self._phase: Phase | None = None  # for which the step was made
        self._step: Step | None = None
        self.meter = Meter(self.duration, self.device)
        bounds = config.regularization
        self.objective = Objective(self.model, self.populations, bounds, self.meter)
        parts, home = (task.train, task.validation, task.test), task.home(self.device)
        self.train_set, self.validation_set, self.test_set = (part.to(home) for part in parts)
        self.n_batches = math.ceil(len(self.train_set) / config.batch_size)
        check_together(processes, config, task, self.network)
        if not resume and processes.is_first:
            self._warn_of_activity()

    @property
    def checkpoint_path(self) -> Path:
        """Where the run is saved."""
        return self.folder / CHECKPOINT_NAME

    @property
    def population_names(self) -> tuple[str, ...]:
        """Of the populations, in the order of firing rates."""
        return tuple(population.name for population in self.populations)

    def phase(self, epoch: int) -> Phase:
        """What an epoch is for."""
        return "priming" if epoch <= self.config.priming_epochs else "supervised"

    def train_epoch(self, epoch: int, reporter: Reporter | None) -> Scores:
        """One pass over the training samples; the weights change with every batch."""
        step = self._step_for(epoch)
        self.meter.reset()
        batches = training_batches(
            self.train_set,
            self.n_batches,
            epoch_generator(self.config.seed, epoch),
            self.device,
            channel_shift=self.config.channel_shift,
            share=self.processes.share,
        )
        for inputs, targets in batches:
            step(inputs, targets)
            if reporter is not None:
                reporter.batch_done()
        scores = self.meter.scores(self.processes)
        check_finite(scores, epoch)
        return scores

    def _step_for(self, epoch: int) -> Step:
        """The training step of an epoch's phase. Supervised training begins with a new optimizer.

        What the optimizer learned of the gradients of priming says nothing of those that follow.
        """
        phase = self.phase(epoch)
        if epoch == self.config.priming_epochs + 1 and epoch > 1:
            self.optimizer = make_optimizer(self.network, self.config, self.device)
        if self._step is None or phase != self._phase:
            self._phase = phase
            objective = self.objective
            self._step = make_step(
                objective.supervised if phase == "supervised" else objective.priming,
                self.optimizer,
                self.processes,
                graph=self.config.graph,
            )
        return self._step

    @torch.no_grad()
    def evaluate(self, source: SampleSource) -> Scores:
        """One pass over samples, not augmented, with the weights as they are."""
        meter = Meter(self.duration, self.device)
        samples = torch.arange(len(source), device=source.targets.device)
        for batch in samples.split(self.config.batch_size):
            indices = batch[self.processes.share(len(batch))]
            if not len(indices):  # the last batch may have fewer samples than there are processes
                continue
            inputs, targets = source.select(indices, self.device)
            output, counts = self.objective.forward(inputs)
            meter.add(output, targets, counts, max_over_time_cross_entropy(output, targets), None)
        return meter.scores(self.processes)

    def finish_epoch(self, record: EpochRecord) -> bool:
        """Take over an epoch's record, save the run, and tell whether it is the best so far."""
        is_best = record.phase == "supervised" and self._is_best(record.validation)
        self.epoch = record.epoch
        self.history.append(record.row())
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        if is_best:
            self.best_epoch = record.epoch
            self.best_model = {name: tensor.clone() for name, tensor in parameters.items()}
        self.processes.on_first(lambda: self._save(parameters))
        return is_best

    def _save(self, parameters: dict[str, Tensor]) -> None:
        save_checkpoint(
            Checkpoint(
                settings=self.settings,
                data=self.data,
                epoch=self.epoch,
                best_epoch=self.best_epoch,
                history=self.history,
                model=parameters,
                best_model=self.best_model,
                optimizer=optimizer_tensors(self.optimizer, self.network),
            ),
            self.checkpoint_path,
        )
        write_csv(self.folder / CSV_NAME, self.history)

    def _is_best(self, validation: Scores) -> bool:
        if not self.best_epoch:
            return True
        best = self.history[self.best_epoch - 1]
        # Small validation sets tie often; the loss then decides.
        return (validation.accuracy, -validation.loss) > (
            best["validation_accuracy"],
            -best["validation_loss"],
        )

    def test_best(self) -> Scores:
        """Scores of the test samples; leaves the network with the best epoch's weights."""
        restore_model(self.network, self.best_model, self.checkpoint_path)
        return self.evaluate(self.test_set)

    @torch.no_grad()
    def _warn_of_activity(self) -> None:
        """An ActivityWarning for each hidden layer that a batch leaves silent or saturates."""
        first = torch.arange(
            min(self.config.batch_size, len(self.train_set)), device=self.train_set.targets.device
        )
        _, counts = self.objective.forward(self.train_set.select(first, self.device)[0])
        silent = saturated = None  # the cures of a wrong sigma_u
        if self.config.initialization != "fluctuation":
            saturated = 'take initialization "fluctuation"'
            silent = f"{saturated}, or a lower bound on spike counts or priming epochs"
        for population, own in zip(self.populations, counts, strict=True):
            if population.bounded:
                dt = self.config.dt
                shares_of_steps = own.mean(0).flatten() * dt / self.duration
                warn_of_activity(
                    population.name, shares_of_steps, dt, silent=silent, saturated=saturated
                )

    def _load(self) -> Checkpoint:
        checkpoint = load_checkpoint(self.checkpoint_path)
        check_same_run(checkpoint, self.settings, self.data, self.checkpoint_path)
        return checkpoint

    def _restore(self) -> None:
        path, checkpoint = self.checkpoint_path, self.processes.on_first(self._load)
        restore_model(self.network, checkpoint.model, path)
        restore_optimizer(self.optimizer, self.network, checkpoint.optimizer, path)
        self.epoch = checkpoint.epoch
        self.best_epoch = checkpoint.best_epoch
        self.best_model = checkpoint.best_model
        self.history = [with_phase(row) for row in checkpoint.history]
        if self.processes.is_first:
            write_csv(self.folder / CSV_NAME, self.history)


def check_finite(scores: Scores, epoch: int) -> None:
    """TrainingFailed if the loss or the penalty of an epoch's training is not finite."""
    if not math.isfinite(scores.loss + scores.penalty):
        raise TrainingFailed(
            f"the loss must stay finite, got {scores.loss} with a penalty of {scores.penalty} "
            f"in epoch {epoch}: lower lr, sigma_u or the bounds' strength"
        )


def build_network(config: TrainConfig, task: Task) -> Sequential:
    """The preset's network for the data of a task."""
    return build(
        config.preset,
        recurrent=config.recurrent,
        skip=config.skip,
        rescale_surrogate=config.rescale_surrogate,
        n_inputs=task.features,
        n_classes=task.n_classes,
        duration=task.duration,
        dt=config.dt,
        backend=config.backend,
    )
