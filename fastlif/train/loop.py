"""The training loop: epochs, checkpoints, logs and the test score of the best epoch."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from fastlif.data import PackedDataset, shift_features
from fastlif.graph import GraphStep
from fastlif.init import Prediction, fluctuation_driven_, readout_
from fastlif.losses import lower_bound, max_over_time_cross_entropy, upper_bound
from fastlif.models import Regularization, build, preset
from fastlif.optim import SMORMS3
from fastlif.spikes import PackedSpikes
from fastlif.train.checkpoint import (
    Checkpoint,
    check_same_run,
    load_checkpoint,
    optimizer_tensors,
    restore_model,
    restore_optimizer,
    save_checkpoint,
    write_atomically,
)
from fastlif.train.config import TrainConfig
from fastlif.train.logs import EpochRecord, Scores, TensorBoardLog, write_csv
from fastlif.train.task import Task

__all__ = ["Reporter", "TrainResult", "initialize", "train"]

CHECKPOINT_NAME = "checkpoint.safetensors"
CSV_NAME = "epochs.csv"
RESULT_NAME = "result.json"


class Reporter(Protocol):
    """Told of the progress of a run; the command line shows it."""

    def started(self, *, epochs_done: int, epochs: int, batches_per_epoch: int) -> None:
        """Training begins or goes on after `epochs_done` epochs."""

    def batch_done(self) -> None:
        """One optimizer step was made."""

    def epoch_done(self, record: EpochRecord, *, is_best: bool) -> None:
        """An epoch was validated, logged and saved."""


@dataclass(frozen=True)
class TrainResult:
    """Outcome of a finished run; the test scores are those of the best epoch's weights."""

    best_epoch: int
    validation_accuracy: float  # of the best epoch
    test: Scores
    epochs: int
    n_parameters: int
    seconds_per_epoch: float  # median


class _Run:
    """A run in progress: network, optimizer, data on their device, and what happened so far."""

    def __init__(self, config: TrainConfig, task: Task, folder: Path, *, resume: bool) -> None:
        self.config = config
        self.folder = folder
        self.duration = task.duration
        self.settings = config.as_dict()
        self.data = task.summary(config.dt)
        self.network = build(
            config.preset,
            recurrent=config.recurrent,
            n_inputs=task.n_inputs,
            n_classes=task.n_classes,
            dt=config.dt,
            backend=config.backend,
        )
        initialize(self.network, config, input_rate=self.data["input_rate"])
        self.epoch = 0  # epochs done
        self.best_epoch = 0
        self.best_model: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        _check_device(config.device)
        fabric = Fabric(accelerator=config.device, devices=1)
        self.device = fabric.device
        self.model = fabric.setup_module(self.network)
        # After the move: the optimizer's state is made, and restored, where the parameters are.
        self.optimizer = SMORMS3(self.network.parameters(), lr=config.lr)
        if resume:
            self._restore()
        self.step = GraphStep(
            self._objective, self.optimizer, capture=None if config.graph else False
        )
        self.meter = _Meter(self.duration, self.device)
        parts = (task.train, task.validation, task.test)
        home = self.device if _fit(parts, self.device) else torch.device("cpu")
        self.train_set, self.validation_set, self.test_set = (part.to(home) for part in parts)
        self.n_batches = math.ceil(len(self.train_set) / config.batch_size)

    @property
    def checkpoint_path(self) -> Path:
        return self.folder / CHECKPOINT_NAME

    def train_epoch(self, epoch: int, reporter: Reporter | None) -> Scores:
        """One pass over the training samples; the weights change with every batch."""
        self.meter.reset()
        for spikes, targets in self._batches(epoch):
            self.step(spikes, targets)
            if reporter is not None:
                reporter.batch_done()
        scores = self.meter.scores()
        if not math.isfinite(scores.loss + scores.penalty):
            raise ValueError(
                f"the loss must stay finite, got {scores.loss} with a penalty of {scores.penalty} "
                f"in epoch {epoch}: lower lr, sigma_u or the bounds' strength"
            )
        return scores

    def _batches(self, epoch: int) -> Iterator[tuple[PackedSpikes, Tensor]]:
        """Batches of an epoch on the device, which is waited for before the first one only."""
        generator = epoch_generator(self.config.seed, epoch)
        batches = epoch_batches(len(self.train_set), self.n_batches, generator)
        reach = self.config.channel_shift
        shifts = [
            torch.randint(-reach, reach + 1, batch.shape, generator=generator)
            for batch in (batches if reach else ())
        ]
        order = torch.cat(batches).to(self.train_set.spikes.device)
        moves = torch.cat(shifts).to(self.device).tensor_split(self.n_batches) if reach else None
        for number, indices in enumerate(order.tensor_split(self.n_batches)):
            spikes, targets = self.train_set.select(indices, self.device)
            yield spikes if moves is None else shift_features(spikes, moves[number]), targets

    def _objective(self, spikes: PackedSpikes, targets: Tensor) -> Tensor:
        """What training lowers; adds the batch to the epoch's sums, which stay on the device."""
        output, _, counts = self.model(spikes, return_spike_counts=True)
        loss = max_over_time_cross_entropy(output, targets)
        penalty = _penalty(counts, self.config.regularization)
        self.meter.add(output, targets, counts, loss, penalty)
        return loss if penalty is None else loss + penalty

    @torch.no_grad()
    def evaluate(self, dataset: PackedDataset) -> Scores:
        """One pass over samples with the weights as they are."""
        meter = _Meter(self.duration, self.device)
        samples = torch.arange(len(dataset), device=dataset.spikes.device)
        for indices in samples.split(self.config.batch_size):
            spikes, targets = dataset.select(indices, self.device)
            output, _, counts = self.model(spikes, return_spike_counts=True)
            meter.add(output, targets, counts, max_over_time_cross_entropy(output, targets), None)
        return meter.scores()

    def finish_epoch(self, record: EpochRecord) -> bool:
        """Take over an epoch's record, save the run, and tell whether it is the best so far."""
        best = self.history[self.best_epoch - 1] if self.best_epoch else None
        is_best = best is None or (
            # Small validation sets tie often; the loss then decides.
            (record.validation.accuracy, -record.validation.loss)
            > (best["validation_accuracy"], -best["validation_loss"])
        )
        self.epoch = record.epoch
        self.history.append(record.row())
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        if is_best:
            self.best_epoch = record.epoch
            self.best_model = {name: tensor.clone() for name, tensor in parameters.items()}
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
        return is_best

    def test_best(self) -> Scores:
        """Scores of the test samples; leaves the network with the best epoch's weights."""
        restore_model(self.network, self.best_model, self.checkpoint_path)
        return self.evaluate(self.test_set)

    def _restore(self) -> None:
        path = self.checkpoint_path
        checkpoint = load_checkpoint(path)
        check_same_run(checkpoint, self.settings, self.data, path)
        restore_model(self.network, checkpoint.model, path)
        restore_optimizer(self.optimizer, self.network, checkpoint.optimizer, path)
        self.epoch = checkpoint.epoch
        self.best_epoch = checkpoint.best_epoch
        self.best_model = checkpoint.best_model
        self.history = checkpoint.history
        write_csv(self.folder / CSV_NAME, self.history)


def initialize(model: nn.Module, config: TrainConfig, *, input_rate: float) -> list[Prediction]:
    """Draw the weights of a preset's network as the paper's authors did, from `config.seed`.

    Hidden layers fluctuation-driven for `config.sigma_u` at the rate (Hz) of the input data, the
    readout by the preset's own rule. Returns what the formulas predict for each layer.
    """
    network = preset(config.preset)
    generator = torch.Generator().manual_seed(config.seed)
    predictions = fluctuation_driven_(
        model, rate=input_rate, sigma_u=config.sigma_u, generator=generator
    )
    readout = readout_(
        model.get_submodule("readout"),
        method=network.readout_init,
        rate=input_rate,
        generator=generator,
    )
    return [*predictions[:-1], dataclasses.replace(readout, name="readout")]


def train(
    config: TrainConfig,
    task: Task,
    folder: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> TrainResult:
    """Train a preset, saving every epoch in `folder`, and test the best epoch's weights.

    The folder gets `checkpoint.safetensors`, `epochs.csv`, `tensorboard/` and at the end
    `result.json`. An interrupted run is continued with `resume=True` and then ends bit for bit
    as it would have without the interruption.

    Raises:
        ValueError: the folder already holds a run and `resume` is False, its checkpoint is
            damaged or of another run, or the loss is no longer finite.
        FileNotFoundError: `resume` is True and there is no checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CHECKPOINT_NAME).exists() and not resume:
        raise ValueError(
            f"{folder} already holds a run: resume it, or choose another output folder"
        )
    run = _Run(config, task, folder, resume=resume)
    if reporter is not None:
        reporter.started(
            epochs_done=run.epoch, epochs=config.epochs, batches_per_epoch=run.n_batches
        )
    log = TensorBoardLog(folder / "tensorboard", epochs_done=run.epoch)
    try:
        for epoch in range(run.epoch + 1, config.epochs + 1):
            start = time.perf_counter()
            scores = run.train_epoch(epoch, reporter)
            validation = run.evaluate(run.validation_set)
            record = EpochRecord(epoch, scores, validation, time.perf_counter() - start)
            log.epoch(record.row())
            is_best = run.finish_epoch(record)
            if reporter is not None:
                reporter.epoch_done(record, is_best=is_best)
        test = run.test_best()
        log.test(test, run.best_epoch)
    finally:
        log.close()
    return _write_result(run, test)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Source of an epoch's random numbers: the order of its samples and how each is moved.

    It depends on (seed, epoch) alone, so an epoch after a resume sees what it would have seen
    without the interruption.
    """
    mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def epoch_batches(
    n_samples: int, n_batches: int, generator: torch.Generator
) -> tuple[Tensor, ...]:  # of (batch,) int64
    """Sample numbers of an epoch in random order, in batches that differ by one at most."""
    return torch.randperm(n_samples, generator=generator).tensor_split(n_batches)


class _Meter:
    """Sums over the batches of one pass, on the device: nothing waits until the end of it.

    The sums are changed in place, so that adding to them can be part of a CUDA graph.
    """

    def __init__(self, duration: float, device: torch.device) -> None:
        self._duration = duration
        # Of loss, penalty, correct answers and samples.
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._rates: Tensor | None = None  # (layers,) mean spike count, summed over samples

    def reset(self) -> None:
        """Begin another pass."""
        self._sums.zero_()
        if self._rates is not None:
            self._rates.zero_()

    def add(
        self,
        scores: Tensor,  # (batch, classes)
        targets: Tensor,  # (batch,)
        spike_counts: list[Tensor],
        loss: Tensor,
        penalty: Tensor | None,
    ) -> None:
        """Add one batch."""
        with torch.no_grad():
            n = len(targets)
            correct = (scores.argmax(dim=1) == targets).sum()
            penalty = torch.zeros_like(loss) if penalty is None else penalty
            self._sums += torch.stack((loss * n, penalty * n, correct, torch.full_like(correct, n)))
            rates = torch.stack([counts.mean() for counts in spike_counts]) * n
            if self._rates is None:
                self._rates = torch.zeros_like(rates)
            self._rates += rates

    def scores(self) -> Scores:
        """Means over all samples added."""
        loss, penalty, correct, n_samples = self._sums.tolist()
        assert self._rates is not None  # a pass has at least one batch
        rates = [count / n_samples for count in self._rates.tolist()]
        return Scores(
            loss=loss / n_samples,
            accuracy=correct / n_samples,
            penalty=penalty / n_samples,
            firing_rates=tuple(rate / self._duration for rate in rates),
        )


def _check_device(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device 'cuda' needs a GPU that torch {torch.__version__} can use")


def _fit(parts: Sequence[PackedDataset], device: torch.device) -> bool:
    """Whether all samples can stay on the device: on a GPU they may take half of what is free."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return sum(part.n_bytes for part in parts) <= free // 2


def _penalty(spike_counts: list[Tensor], bounds: Regularization) -> Tensor | None:
    """Sum of the bounds with a strength above 0, None if there are none."""
    penalty = None
    if bounds.upper_strength > 0:
        penalty = upper_bound(spike_counts, bounds.v_upper, bounds.upper_strength, bounds.upper_per)
    if bounds.lower_strength > 0:
        lower = lower_bound(spike_counts, bounds.v_lower, bounds.lower_strength)
        penalty = lower if penalty is None else penalty + lower
    return penalty


def _write_result(run: _Run, test: Scores) -> TrainResult:
    best = run.history[run.best_epoch - 1]
    result = TrainResult(
        best_epoch=run.best_epoch,
        validation_accuracy=best["validation_accuracy"],
        test=test,
        epochs=run.epoch,
        n_parameters=sum(p.numel() for p in run.network.parameters()),
        seconds_per_epoch=float(np.median([row["seconds"] for row in run.history])),
    )
    content = {
        "settings": run.settings,
        "data": run.data,
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "validation_accuracy": result.validation_accuracy,
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_firing_rates_hz": list(test.firing_rates),
        "n_parameters": result.n_parameters,
        "seconds_per_epoch": result.seconds_per_epoch,
    }
    write_atomically(run.folder / RESULT_NAME, (json.dumps(content, indent=2) + "\n").encode())
    return result
