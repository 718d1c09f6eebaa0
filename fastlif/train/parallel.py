"""Several processes for one network: each takes its share of every batch.

They are those of torch's default process group, whoever started them; `fastlif train` does when
torchrun starts it. All hold the whole network and all samples and make the same random numbers. The
gradients are averaged before every step of the optimizer, so that the networks stay equal bit for
bit. Files, and what a person sees, are the business of the first process.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from fastlif.graph import GraphStep
from fastlif.spikes import PackedSpikes
from fastlif.train.config import TrainConfig
from fastlif.train.task import Task
from fastlif.versions import __version__

__all__ = ["Processes", "SharedStep", "Step", "check_together", "make_step"]

T = TypeVar("T")
Step = Callable[[PackedSpikes | Tensor, Tensor], object]  # given inputs and targets


@dataclass(frozen=True)
class Processes:
    """The processes that train one network, of which this is one; by default it is alone.

    Each of them calls what is below with "together", in the same order, as all wait for each other.
    A failure of another process to do so is a ConnectionError.
    """

    rank: int = 0  # of this one
    count: int = 1
    gpu: int = 0  # of this machine's, for this process, if it trains on a GPU

    @classmethod
    def of_group(cls, gpu: int = 0) -> Processes:
        """Those of torch's default process group, made by `torch.distributed.init_process_group`.

        gpu: number of this process's own GPU on its machine, the rank within it.
        """
        return cls(distributed.get_rank(), distributed.get_world_size(), gpu)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and reports."""
        return self.rank == 0

    @property
    def are_several(self) -> bool:
        """Whether there is another one."""
        return self.count > 1

    def share(self, n_samples: int) -> slice:
        """This process's part of so many samples: shares differ by one at most."""
        most, more = divmod(n_samples, self.count)
        start = self.rank * most + min(self.rank, more)
        return slice(start, start + most + (self.rank < more))

    def check_equal(self, values: Mapping[str, Any]) -> None:
        """Together: raise a ValueError in all processes if one has another value than the first."""
        found: list[dict[str, Any]] = [{} for _ in range(self.count)]
        self._wait_for_all(lambda: distributed.all_gather_object(found, values))
        differences = [
            f"{name} is {found[0].get(name)!r} in process 0 and {other.get(name)!r} in process {at}"
            for at, other in enumerate(found)
            for name in sorted(found[0].keys() | other.keys())
            if found[0].get(name) != other.get(name)
        ]
        if differences:
            raise ValueError(f"all processes must train the same network: {'; '.join(differences)}")

    def on_first(self, action: Callable[[], T]) -> T:
        """Together: what the first process alone does, and what it gives; it is sent to the others.

        Its error is one of all processes, a ValueError in the others.
        """
        if not self.are_several:
            return action()
        result, error = None, None
        if self.is_first:
            try:
                result = action()
            except Exception as problem:
                error = problem
        sent = [result, None if error is None else str(error)]
        self._wait_for_all(lambda: distributed.broadcast_object_list(sent, src=0))
        if error is not None:
            raise error
        if sent[1] is not None:
            raise ValueError(sent[1])
        return sent[0]  # type: ignore[return-value]

    @contextmanager
    def held_by_first(self, context: AbstractContextManager[None]) -> Iterator[None]:
        """Together: the first process alone enters a context; if it fails, they all do."""
        with ExitStack() as stack:
            self.on_first(lambda: stack.enter_context(context))
            yield

    def add(self, tensor: Tensor) -> None:
        """Together: replace a tensor by its sum over the processes, the same bits in each."""
        if self.are_several:
            self._wait_for_all(lambda: distributed.all_reduce(tensor))

    def _wait_for_all(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            reason = str(error).partition(". ")[0]
            raise ConnectionError(
                f"another of the {self.count} processes has ended or cannot be reached ({reason})"
            ) from error


class SharedStep:
    """A training step on this process's share of a batch, in place of a `GraphStep`.

    The gradients are those of the mean over the whole batch, whatever the shares. It is never a
    CUDA graph: the exchange with the other processes lies inside the step, and processes whose
    shares have different sizes would record theirs at different steps.

    Args:
        objective: called with the share, inputs and targets; returns the loss, a mean over samples.
        optimizer: of all that is trained.
        processes: all of which make the step.
    """

    # Not torch's DistributedDataParallel: it wants a gradient of every parameter, and in priming
    # the readout has none; and it takes means over processes, not over samples.

    def __init__(
        self,
        objective: Callable[[PackedSpikes | Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        processes: Processes,
    ) -> None:
        self._objective = objective
        self._optimizer = optimizer
        self._processes = processes

    def __call__(self, inputs: PackedSpikes | Tensor, targets: Tensor) -> None:
        """Together: make one step."""
        self._optimizer.zero_grad(set_to_none=True)
        self._objective(inputs, targets).backward()
        self._average(len(targets))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _average(self, n_samples: int) -> None:
        """Replace the gradients by their means over all samples, by one exchange."""
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients]).mul_(n_samples)
        both = torch.cat([flat, flat.new_full((1,), n_samples)])
        self._processes.add(both)
        means = (both[:-1] / both[-1]).split([gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))


def make_step(
    objective: Callable[[PackedSpikes | Tensor, Tensor], Tensor],
    optimizer: Optimizer,
    processes: Processes,
    *,
    graph: bool,
) -> Step:
    """The training step of a process; `graph` allows CUDA graphs to one that is alone."""
    if processes.are_several:
        return SharedStep(objective, optimizer, processes)
    return GraphStep(objective, optimizer, capture=None if graph else False)


def check_together(
    processes: Processes, config: TrainConfig, task: Task, network: nn.Module
) -> None:
    """Together: make sure that the processes can train one network, and that it is one.

    Raises:
        ValueError: there are more processes than samples in a batch or in a part of the data, or
            they differ in versions, settings, data or the weights that they start from.
    """
    if not processes.are_several:
        return
    n_batches = math.ceil(len(task.train) / config.batch_size)
    for name, n_samples in (
        ("batch_size", config.batch_size),
        ("the smallest batch of training", len(task.train) // n_batches),
        ("the validation samples", len(task.validation)),
        ("the test samples", len(task.test)),
    ):
        if n_samples < processes.count:
            raise ValueError(
                f"{name} must be at least as many as the processes, {processes.count}, so that "
                f"each has a share: got {n_samples}"
            )
    processes.check_equal(
        {
            "fastlif": __version__,
            "torch": torch.__version__,
            **config.as_dict(),
            **task.summary(config.dt),
            "labels": _digest((task.train.targets, task.validation.targets, task.test.targets)),
            "weights": _digest(network.parameters()),
        }
    )


def _digest(tensors: Iterable[Tensor]) -> str:
    """Sixteen characters by which tensors are told from others; waits for their device."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
