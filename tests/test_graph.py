"""GraphStep: the same numbers as an ordinary loop, recorded or not.

Without a GPU a recorder takes the place of CUDA's: it keeps the list of the operations that ran on
tensors and runs them again, on the same memory, without Python.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastlif import LIFLinear, LIReadout, PackedSpikes, Sequential, graph
from fastlif.graph import GraphStep
from fastlif.losses import max_over_time_cross_entropy, upper_bound
from fastlif.optim import SMORMS3

STEPS, INPUTS, CLASSES = 40, 20, 4
Batch = tuple[PackedSpikes, Tensor]

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Tape(TorchDispatchMode):
    """Keeps what runs; like a capture, leaves no trace in tensors that were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.born: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in given if isinstance(given, (list, tuple)) else (given,):
                    memory = tensor.untyped_storage()
                    if memory.data_ptr() not in self.born:
                        self.before.setdefault(tensor.data_ptr(), (tensor, tensor.clone()))
        results = func(*args, **kwargs)
        fresh: list[Tensor] = []
        if all(value.alias_info is None for value in func._schema.returns):
            many = isinstance(results, (list, tuple))
            fresh = [r for r in (results if many else (results,)) if isinstance(r, Tensor)]
            self.born |= {tensor.untyped_storage().data_ptr() for tensor in fresh}
        self.calls.append((func, args, kwargs, fresh))
        return results

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, numbers in self.before.values():
                tensor.copy_(numbers)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, fresh in self.calls:
                results = func(*args, **kwargs)
                many = isinstance(results, (list, tuple))
                for own, new in zip(fresh, results if many else (results,), strict=False):
                    own.copy_(new)


class TapeRecorder:
    """In place of `fastlif.graph._Recorder`, for tensors on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.recorded = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def run(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        tape = Tape()
        with tape:
            outputs = function()
        tape.undo()
        self.recorded += 1
        return tape.replay, outputs


@pytest.fixture(params=["tape", pytest.param("cuda", marks=on_gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the steps are recorded, by the tape or in a CUDA graph."""
    if request.param == "cuda":
        return "cuda"
    monkeypatch.setattr(graph, "_Recorder", TapeRecorder)
    return "cpu"


def batches(number: int, sizes: tuple[int, ...] = (6,), device: str = "cpu") -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(number):
        size = sizes[index % len(sizes)]
        dense = (torch.rand(STEPS, size, INPUTS, generator=generator) < 0.2).float()
        labels = torch.randint(CLASSES, (size,), generator=generator)
        found.append((PackedSpikes.pack(dense).to(device), labels.to(device)))
    return found


def network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(3)
    return Sequential(
        LIFLinear(INPUTS, 16, recurrent=True), LIReadout(16, CLASSES, tau_mem=20e-3)
    ).to(device)


def training(
    device: str, optimizer: Callable[..., Any] = SMORMS3, **options: Any
) -> tuple[nn.Module, Any, Callable[[PackedSpikes, Tensor], tuple[Tensor, Tensor]]]:
    model = network(device)

    def objective(spikes: PackedSpikes, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores, _, counts = model(spikes, return_spike_counts=True)
        loss = max_over_time_cross_entropy(scores, labels) + upper_bound(counts, 2.0, 0.01)
        return loss, torch.stack([c.mean() for c in counts]).mean()

    return model, optimizer(model.parameters(), **options), objective


def assert_same_parameters(first: nn.Module, second: nn.Module, start: nn.Module) -> None:
    for one, two, old in zip(
        first.parameters(), second.parameters(), start.parameters(), strict=True
    ):
        # The same operations on the same numbers: equal to the bit.
        assert torch.equal(one, two)
        assert not torch.equal(one, old.to(one.device))


@pytest.mark.parametrize("sizes", [(6,), (6, 6, 5)])
def test_every_call_is_one_step_of_an_ordinary_loop(device: str, sizes: tuple[int, ...]) -> None:
    data = batches(15, sizes, device)
    plain_model, plain_optimizer, plain = training(device)
    expected = []
    for spikes, labels in data:
        plain_optimizer.zero_grad()
        loss, rate = plain(spikes, labels)
        loss.backward()
        plain_optimizer.step()
        expected.append((loss.item(), rate.item()))
    assert min(rate for _, rate in expected) > 0.3  # spikes per neuron

    model, optimizer, objective = training(device)
    calls = 0

    def counted(*batch: Any) -> Any:
        nonlocal calls
        calls += 1
        return objective(*batch)

    step = GraphStep(counted, optimizer, capture=True, warmup=2)
    found, captured = [], []
    for spikes, labels in data:
        loss, rate = step(spikes, labels)
        assert not loss.requires_grad
        found.append((loss.item(), rate.item()))
        captured.append(step.captured)
    assert found == expected
    assert_same_parameters(model, plain_model, network())
    assert captured.count(False) == 2 * len(set(sizes)) and captured[-1]
    assert calls == 3 * len(set(sizes))  # warm-up and recording; a replay has no Python
    assert all(p.grad is None for p in model.parameters())


def test_without_capture_the_same_steps_are_made() -> None:
    data = batches(4)
    model, optimizer, objective = training("cpu")
    step = GraphStep(objective, optimizer)
    other, other_optimizer, other_objective = training("cpu")
    for spikes, labels in data:
        loss, _ = step(spikes, labels)
        assert not step.captured
        other_optimizer.zero_grad()
        expected, _ = other_objective(spikes, labels)
        expected.backward()
        other_optimizer.step()
        assert loss.item() == expected.item()
    assert_same_parameters(model, other, network())


@pytest.mark.parametrize("way", ["number", "tensor", "scheduler"])
def test_learning_rates_change_between_replays(device: str, way: str) -> None:
    def run(capture: bool) -> nn.Module:
        lr = torch.tensor(5e-3, device=device) if way == "tensor" else 5e-3
        model, optimizer, objective = training(device, lr=lr)
        step = GraphStep(objective, optimizer, capture=capture, warmup=1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for index, batch in enumerate(batches(8, device=device)):
            if way == "scheduler" and index:
                scheduler.step()
            elif way == "number":
                optimizer.param_groups[0]["lr"] = 5e-3 / (1 + index)
            elif way == "tensor":
                lr.fill_(5e-3 / (1 + index))
            step(*batch)
            assert step.captured == (capture and index > 0)
        return model

    assert_same_parameters(run(True), run(False), network())


def test_other_changes_start_over(device: str) -> None:
    model, optimizer, objective = training(device)
    step = GraphStep(objective, optimizer, capture=True, warmup=1)
    data = batches(9, device=device)
    step(*data[0])
    saved = copy.deepcopy(optimizer.state_dict())
    weights = [p.detach().clone() for p in model.parameters()]
    step(*data[1])
    step(*data[2])
    assert step.captured
    end = [p.detach().clone() for p in model.parameters()]

    optimizer.load_state_dict(saved)
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
    step(*data[1])
    assert not step.captured
    step(*data[2])
    assert step.captured
    assert all(torch.equal(p, e) for p, e in zip(model.parameters(), end, strict=True))

    optimizer.param_groups[0]["minimum"] = 0.0
    step(*data[3])
    assert not step.captured
    assert all(float(p.detach().min()) >= 0.0 for p in model.parameters())
    model[0].bias.requires_grad_(False)
    step(*data[4])
    assert not step.captured


def test_optimizers_whose_numbers_are_fixed_when_recorded(device: str) -> None:
    if device != "cpu":
        pytest.skip("torch does not let SGD be recorded")
    model, optimizer, objective = training(device, torch.optim.SGD, lr=0.1, momentum=0.5)
    step = GraphStep(objective, optimizer, capture=True, warmup=1)
    data = batches(6)
    for index, captured in enumerate((False, True, False, True, False, True)):
        if index == 2:
            optimizer.load_state_dict(optimizer.state_dict())
        if index == 4:
            optimizer.param_groups[0]["lr"] = 0.0
            before = [p.detach().clone() for p in model.parameters()]
        step(*data[index])
        assert step.captured == captured
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_results_are_static_and_sums_go_on(device: str) -> None:
    _, optimizer, objective = training(device)
    total = torch.zeros((), device=device)

    def summing(spikes: PackedSpikes, labels: Tensor) -> Tensor:
        loss, _ = objective(spikes, labels)
        total.add_(loss.detach())
        return loss

    step = GraphStep(summing, optimizer, capture=True, warmup=1)
    losses, results = [], []
    for batch in batches(5, device=device):
        results.append(step(*batch))
        losses.append(results[-1].item())
    assert results[1] is results[2] is results[4]
    assert total.item() == pytest.approx(sum(losses), rel=1e-5)
    assert len(set(losses)) == 5


def test_events_in_buffers_of_one_size(device: str) -> None:
    capacity = 500
    steps, models = [], []
    data = batches(6, device="cpu")
    for capture in (True, False):
        model, optimizer, objective = training(device)

        def from_events(
            step: Tensor, unit: Tensor, offsets: Tensor, labels: Tensor, objective: Any = objective
        ) -> Tensor:
            spikes = PackedSpikes.from_events(
                step, unit, offsets, n_steps=STEPS, features=(INPUTS,), validate=False
            )
            return objective(spikes, labels)[0]

        steps.append(GraphStep(from_events if capture else objective, optimizer, capture=capture))
        models.append(model)
    for spikes, labels in data:
        sample, time, unit = spikes.unpack().transpose(0, 1).nonzero().unbind(1)
        offsets = torch.searchsorted(sample, torch.arange(len(labels) + 1))
        chosen = slice(0, capacity)
        assert len(sample) > capacity  # so the buffers are full; the rest of the events is left out
        kept = PackedSpikes.from_events(
            time[chosen], unit[chosen], offsets.clamp(max=capacity), n_steps=STEPS,
            features=(INPUTS,),
        )  # fmt: skip
        events = [time[chosen], unit[chosen], offsets.clamp(max=capacity), labels]
        loss = steps[0](*(part.to(device) for part in events))
        expected, _ = steps[1](kept.to(device), labels.to(device))
        assert loss.item() == expected.item()
    assert steps[0].captured
    assert_same_parameters(models[0], models[1], network())


def record_a_step_that_waits(device: str, message: str) -> None:
    """Some torch versions leave a process in which nothing more can be recorded."""
    _, optimizer, objective = training(device)

    def waiting(spikes: PackedSpikes, labels: Tensor) -> Tensor:
        loss, rate = objective(spikes, labels)
        return loss * rate.item()

    step = GraphStep(waiting, optimizer, capture=True, warmup=1)
    (batch,) = batches(1, device=device)
    step(*batch)
    with pytest.raises(RuntimeError, match=message):
        step(*batch)


def test_a_step_that_waits_cannot_be_recorded(device: str) -> None:
    if device == "cpu":
        record_a_step_that_waits(device, "not permitted")
        return
    message = "cannot be recorded as a CUDA graph"
    code = f"""if True:
        from {__name__} import record_a_step_that_waits
        record_a_step_that_waits({device!r}, {message!r})
        print("as expected", flush=True)
    """
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "as expected" in result.stdout, result.stderr


def test_misuse_is_named() -> None:
    model, optimizer, objective = training("cpu")
    with pytest.raises(ValueError, match="capture=True needs parameters on a GPU"):
        GraphStep(objective, optimizer, capture=True)
    with pytest.raises(ValueError, match="warmup must be at least 1, got 0"):
        GraphStep(objective, optimizer, warmup=0)
    split = [torch.zeros(1), torch.zeros(1, device="meta")]
    with pytest.raises(ValueError, match="parameters on one device, got cpu, meta"):
        GraphStep(objective, SMORMS3([p.requires_grad_() for p in split]))
    (batch,) = batches(1)
    with pytest.raises(TypeError, match="must hold Tensors and PackedSpikes, got list"):
        GraphStep(objective, optimizer)(batch[0], batch[1].tolist())
    with pytest.raises(TypeError, match=r"a tuple of tensors, got \(Tensor, float\)"):
        GraphStep(lambda *b: (objective(*b)[0], 1.0), optimizer)(*batch)
    with pytest.raises(TypeError, match=r"scalar loss first, got shape \(6, 4\)"):
        GraphStep(lambda spikes, labels: model(spikes), optimizer)(*batch)


@on_gpu
def test_calls_from_several_streams_follow_each_other() -> None:
    data = batches(12, device="cuda")
    models = []
    for capture in (True, False):
        model, optimizer, objective = training("cuda")
        step = GraphStep(objective, optimizer, capture=capture)
        streams = [torch.cuda.Stream(), torch.cuda.Stream()] if capture else [None]
        torch.cuda.synchronize()
        for index, batch in enumerate(data):
            with torch.cuda.stream(streams[index % len(streams)]):
                step(*batch)
        torch.cuda.synchronize()
        models.append(model)
    assert_same_parameters(*models, network())
