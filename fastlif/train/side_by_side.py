"""The passes over data of several runs, whose networks stand side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlif.data import PackedDataset, SampleSource, Subset
from fastlif.graph import GraphStep
from fastlif.layers import give_gradients, side_by_side
from fastlif.losses import max_over_time_cross_entropy
from fastlif.spikes import PackedSpikes
from fastlif.train.batches import Batch, epoch_batches, epoch_generator, training_batches
from fastlif.train.checkpoint import restore_model
from fastlif.train.logs import Phase, Scores
from fastlif.train.objective import JointBounds, Meter, Objective
from fastlif.train.optimizers import make_joint_optimizer
from fastlif.train.run import Reporter, Run

__all__ = ["RunsSideBySide"]


class RunsSideBySide:
    """Runs of networks of one shape that do their epochs together.

    Each keeps its network and its optimizer's state, as views and parts of common ones, so that it
    is saved as ever. The runs are at the same epoch, and none of them is in use elsewhere.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = list(runs)
        first = runs[0]
        self._config, self._device = first.config, first.device
        self._networks = [run.network for run in runs]
        self._model = side_by_side(self._networks)
        self._meter = Meter(first.duration, first.device, len(runs))
        alike = len({run.config.seed for run in runs}) == 1
        self._shared_batches = alike and _are_one([run.train_set for run in runs])
        self._objective = Objective(
            self._model,
            first.populations,
            JointBounds.of(
                [run.config.regularization for run in runs], next(self._model.parameters())
            ),
            self._meter,
            shared_input=self._shared_batches,
        )
        self._phase: Phase | None = None  # for which the step was made
        self._step: GraphStep | None = None

    def train_epoch(self, epoch: int, reporters: Sequence[Reporter]) -> list[Scores]:
        """One pass over the training samples of every run."""
        step = self._step_for(epoch)
        self._meter.reset()
        for inputs, targets in self._batches(epoch):
            step(inputs, targets)
            for reporter in reporters:
                reporter.batch_done()
        return self._meter.scores_of_networks()

    def validate(self) -> list[Scores]:
        """One pass over the validation samples with the weights as they are."""
        return self._evaluate([run.validation_set for run in self._runs])

    def test_best(self) -> list[Scores]:
        """Scores of the test samples; leaves the networks with their best epochs' weights."""
        for run in self._runs:
            restore_model(run.network, run.best_model, run.checkpoint_path)
        return self._evaluate([run.test_set for run in self._runs])

    def _step_for(self, epoch: int) -> GraphStep:
        """The training step of an epoch's phase, as `Run` has it for one network."""
        phase = self._runs[0].phase(epoch)
        if self._step is None or phase != self._phase:
            anew = epoch > 1 and epoch == self._config.priming_epochs + 1
            self._phase = phase
            objective = self._objective
            self._step = GraphStep(
                objective.supervised if phase == "supervised" else objective.priming,
                self._join_optimizers(anew),
                capture=None if self._config.graph else False,
            )
        return self._step

    def _join_optimizers(self, anew: bool) -> torch.optim.Optimizer:
        """One optimizer for all runs with the state of theirs, or without any."""
        configs = [run.config for run in self._runs]
        joint = make_joint_optimizer(self._networks, configs, self._device)
        for run in self._runs:
            for parameter in () if anew else run.network.parameters():
                if parameter in run.optimizer.state:
                    joint.state[parameter] = run.optimizer.state[parameter]
            run.optimizer = joint

        def give(*_: Any) -> None:
            give_gradients(self._model, self._networks)

        joint.register_step_pre_hook(give)
        return joint

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of all runs, one run behind the other; or of one, where all have the same."""
        sources = [run.train_set for run in self._runs]
        generators = [epoch_generator(run.config.seed, epoch) for run in self._runs]
        n_batches = self._runs[0].n_batches
        shift = self._config.channel_shift
        if _are_one(sources) and _is_packed(sources[0]) and not shift and not self._shared_batches:
            orders = [epoch_batches(len(sources[0]), n_batches, one) for one in generators]
            for own in zip(*orders, strict=True):
                indices = torch.cat(own).to(sources[0].targets.device)
                yield sources[0].select(indices, self._device)
            return
        n = 1 if self._shared_batches else len(self._runs)
        each = [
            training_batches(source, n_batches, generator, self._device, channel_shift=shift)
            for source, generator in zip(sources[:n], generators[:n], strict=True)
        ]
        for batches in zip(*each, strict=True):
            yield _joined(batches)

    @torch.no_grad()
    def _evaluate(self, sources: Sequence[SampleSource]) -> list[Scores]:
        """One pass over samples, not augmented; shared by the networks if they are the same."""
        shared = _are_one(sources)
        n = len(self._runs)
        meter = Meter(self._runs[0].duration, self._device, n)
        samples = torch.arange(len(sources[0]), device=sources[0].targets.device)
        for indices in samples.split(self._config.batch_size):
            own = sources[:1] if shared else sources
            inputs, targets = _joined([source.select(indices, self._device) for source in own])
            output, counts = self._objective.forward(inputs, shared_input=shared)
            targets = targets.repeat(n) if shared else targets
            losses = max_over_time_cross_entropy(output, targets, n)
            meter.add(output, targets, counts, losses, None)
        return meter.scores_of_networks()


def _are_one(sources: Sequence[SampleSource]) -> bool:
    """Whether all are the same samples, not merely equal ones."""
    return all(_identity(source) == _identity(sources[0]) for source in sources)


def _identity(source: SampleSource) -> tuple[Any, ...]:
    """What only sources of the same samples have in common: the tensors, and all else by value."""
    parts: list[Any] = [type(source)]
    for name, part in vars(source).items():
        if isinstance(part, PackedSpikes):
            part = id(part.words)
        elif isinstance(part, Tensor):
            part = id(part)
        elif name == "source":
            part = _identity(part)
        parts.append(part)
    return tuple(parts)


def _is_packed(source: SampleSource) -> bool:
    """Whether samples are never augmented: nothing is drawn when they are selected."""
    return isinstance(source.source if isinstance(source, Subset) else source, PackedDataset)


def _joined(batches: Sequence[Batch]) -> Batch:
    """Batches one behind the other."""
    inputs = [one for one, _ in batches]
    targets = torch.cat([one for _, one in batches])
    first = inputs[0]
    if isinstance(first, PackedSpikes):
        words = [one.words for one in inputs if isinstance(one, PackedSpikes)]
        return PackedSpikes(torch.cat(words, 1), first.n_steps, first.features), targets
    # Images have no time: (batch, C, H, W).
    return torch.cat([one for one in inputs if isinstance(one, Tensor)]), targets
