"""Training many runs as one: their networks side by side, each run with its own folder and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TypeAlias

from fastlif.train.config import TrainConfig
from fastlif.train.logs import TensorBoardLog
from fastlif.train.loop import TrainResult, end_epoch, epoch_record, held, write_result
from fastlif.train.run import CHECKPOINT_NAME, Reporter, Run, TrainingFailed, check_finite
from fastlif.train.side_by_side import RunsSideBySide
from fastlif.train.task import Task
from fastlif.versions import versions

__all__ = ["check_pack", "shape_of", "train_pack"]

# What the networks of a pack need not have in common, besides the numbers of the bounds: what is
# drawn at the start, the order of the samples, the samples themselves, the size of a step.
VARIED = (
    "seed", "data_seed", "lr", "sigma_u", "mu_w", "sigma_w", "initialization", "distribution",
    "upper_strength", "v_upper", "lower_strength", "v_lower",
)  # fmt: skip


def shape_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that runs of a pack must have in common, and their values."""
    return {name: value for name, value in config.as_dict().items() if name not in VARIED}


def check_pack(configs: Sequence[TrainConfig]) -> None:
    """ValueError with every setting in which runs differ that must agree to be trained as one."""
    if not configs:
        raise ValueError("configs must hold at least one run, got none")
    first = shape_of(configs[0])
    differences = [
        f"{name} is {first[name]!r} in run 0 and {value!r} in run {number}"
        for number, config in enumerate(configs)
        for name, value in shape_of(config).items()
        if value != first[name]
    ]
    if differences:
        raise ValueError(
            f"runs of a pack may differ in {', '.join(VARIED)} alone: {'; '.join(differences)}"
        )


def train_pack(
    configs: Sequence[TrainConfig],
    tasks: Task | Sequence[Task],
    folders: Sequence[Path],
    *,
    resume: bool = False,
    reporters: Sequence[Reporter | None] | None = None,
    on_failure: Callable[[int, TrainingFailed], object] | None = None,
) -> list[TrainResult | TrainingFailed]:
    """Train runs whose networks have one shape as one, each as `train` trains it alone.

    Every folder ends up as `train` leaves it, bit for bit but for the times (a run's seconds are
    its part of the pack's), so that a run of a pack can be resumed alone and one that was begun
    alone in a pack. When an interrupted pack is resumed, runs that are behind the others are
    brought up to them first.

    configs: of the runs; see `check_pack`.
    tasks: the samples of all runs, or of each; these are of equal number, shape and duration.
    folders: of the runs, all different.
    resume: go on with the runs that are in the folders. Those without a checkpoint, of which not
        all may be, begin.
    reporters: told of the progress of each run.
    on_failure: called with the place of a run and why it failed, when it does.

    Returns for each run its result, or why it failed: a run whose loss is no longer finite leaves
    the others as they are and its folder as it was after its last good epoch.

    Raises:
        ValueError: configs, tasks, folders or reporters do not fit together; or as `train`.
        FileNotFoundError: `resume` is True and there is no checkpoint.
    """
    check_pack(configs)
    tasks = [tasks] * len(configs) if isinstance(tasks, Task) else list(tasks)
    reporters = [None] * len(configs) if reporters is None else list(reporters)
    _check_numbers(configs, tasks, folders, reporters)
    with ExitStack() as open_until_the_end:
        for folder in folders:
            open_until_the_end.enter_context(held(folder, resume))
        code = versions()  # loaded now, whatever is checked out later
        begun = [resume and (folder / CHECKPOINT_NAME).exists() for folder in folders]
        if resume and not any(begun):
            raise FileNotFoundError(f"no checkpoint at {folders[0] / CHECKPOINT_NAME}")
        members: list[_Member] = []
        for config, task, folder, reporter, goes_on in zip(
            configs, tasks, folders, reporters, begun, strict=True
        ):
            run = Run(config, task, folder, resume=goes_on)
            for number, member in enumerate(members):
                if tasks[number] is task:  # on a GPU every run has copied the samples there
                    other = member.run
                    run.train_set, run.validation_set = other.train_set, other.validation_set
                    run.test_set = other.test_set
                    break
            log = TensorBoardLog(folder / "tensorboard", epochs_done=run.epoch)
            log = open_until_the_end.enter_context(closing(log))
            members.append(_Member(len(members), run, log, reporter))
        _train(members, on_failure)
        finished = [member for member in members if member.failure is None]
        if finished:
            runs = RunsSideBySide([member.run for member in finished])
            for member, test in zip(finished, runs.test_best(), strict=True):
                member.log.test(test, member.run.best_epoch)
                member.result = write_result(member.run, test, code)
    results = [member.failure or member.result for member in members]
    return [result for result in results if result is not None]


class _Member:
    """A run, and what goes with it to its end."""

    def __init__(
        self, place: int, run: Run, log: TensorBoardLog, reporter: Reporter | None
    ) -> None:
        self.place = place
        self.run = run
        self.log = log
        self.reporter = reporter
        self.failure: TrainingFailed | None = None
        self.result: TrainResult | None = None
        if reporter is not None:
            reporter.started(
                epochs_done=run.epoch,
                epochs=run.config.all_epochs,
                batches_per_epoch=run.n_batches,
            )


OnFailure: TypeAlias = Callable[[int, TrainingFailed], object] | None


def _train(members: list[_Member], on_failure: OnFailure) -> None:
    """All epochs of all runs: those that are behind until they have caught up, then together."""
    while True:
        active = [
            member
            for member in members
            if member.failure is None and member.run.epoch < member.run.config.all_epochs
        ]
        if not active:
            return
        done = {member.run.epoch for member in active}
        stops = sorted(done | {member.run.config.all_epochs for member in active})
        behind = [member for member in active if member.run.epoch == stops[0]]
        _train_until(stops[1], behind, on_failure)


def _train_until(last: int, members: list[_Member], on_failure: OnFailure) -> None:
    runs = RunsSideBySide([member.run for member in members])
    reporters = [member.reporter for member in members if member.reporter is not None]
    for epoch in range(members[0].run.epoch + 1, last + 1):
        start = time.perf_counter()
        trained = runs.train_epoch(epoch, reporters)
        validated = runs.validate()
        seconds = (time.perf_counter() - start) / len(members)
        for member, scores, validation in zip(members, trained, validated, strict=True):
            if member.failure is not None:
                continue  # still computed, as the networks are one; it does not count any more
            try:
                check_finite(scores, epoch)
            except TrainingFailed as failure:
                member.failure = failure
                if on_failure is not None:
                    on_failure(member.place, failure)
                continue
            record = epoch_record(member.run, epoch, scores, validation, seconds)
            end_epoch(member.run, record, member.log, member.reporter)
        if all(member.failure is not None for member in members):
            return


def _check_numbers(
    configs: Sequence[TrainConfig],
    tasks: Sequence[Task],
    folders: Sequence[Path],
    reporters: Sequence[Reporter | None],
) -> None:
    for name, items in (("tasks", tasks), ("folders", folders), ("reporters", reporters)):
        if len(items) != len(configs):
            raise ValueError(f"{name} must be as many as configs, {len(configs)}, got {len(items)}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("folders must all be different: two runs were given the same")
    shapes = [
        {
            "training samples": len(task.train),
            "validation samples": len(task.validation),
            "test samples": len(task.test),
            "features": task.features,
            "classes": task.n_classes,
            "duration": task.duration,
        }
        for task in tasks
    ]
    for number, shape in enumerate(shapes):
        for name, value in shape.items():
            if value != shapes[0][name]:
                raise ValueError(
                    f"tasks of a pack must agree in {name}: {shapes[0][name]} in run 0 and "
                    f"{value} in run {number}"
                )
