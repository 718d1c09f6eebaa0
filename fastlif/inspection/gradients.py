"""Size of the gradients that reach each layer's output and weights, and of one optimizer step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastlif.inspection.batches import ReachedLayer, n_samples_of, samples_of, slices
from fastlif.layers import LIFOutput
from fastlif.optim import SMORMS3
from fastlif.spikes import PackedSpikes

Loss = Callable[[Any, Tensor], Tensor]  # of the module's output and targets; a mean over samples
# Of the spike counts (batch, *features) of every spiking layer; a mean over samples, None for 0.
Regularizer = Callable[[Sequence[Tensor]], Tensor | None]


@dataclass(frozen=True)
class Magnitude:
    """Size of a tensor or of several: as a whole, and per element, which any two can compare."""

    norm: float  # root of the sum of squares
    mean: float  # mean absolute value
    n: int  # elements


@dataclass(frozen=True)
class ParameterChange:
    """Gradient of one parameter and what one optimizer step does to it."""

    value: Magnitude
    gradient: Magnitude
    update: Magnitude


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of one layer."""

    output: Magnitude | None  # dL/dS of all that the layer emits; None if nothing depends on it
    parameters: dict[str, ParameterChange]  # by the name in the layer, such as "weight"

    def total(self, part: str) -> Magnitude | None:
        """The "value", "gradient" or "update" of all parameters together; None without any."""
        return _combined([getattr(change, part) for change in self.parameters.values()])


@dataclass(frozen=True)
class BatchGradients:
    """A backward pass over a batch and one optimizer step after it."""

    layers: dict[str, LayerGradients]
    loss: float
    penalty: float  # of the regularizer, not part of the loss
    accuracy: float | None  # 0..1; None unless the output is scores (batch, classes)


def batch_gradients(
    module: nn.Module,
    inputs: Tensor | PackedSpikes,
    targets: Tensor,  # (batch, ...)
    reached: dict[str, ReachedLayer],
    *,
    loss: Loss,
    regularizer: Regularizer | None,
    optimizer: Optimizer | None,
    lr: float,
) -> BatchGradients:
    """Gradients at the output and the parameters of every layer, and one step of the optimizer.

    All of it happens on copies: module and optimizer stay as they are. `optimizer` None is SMORMS3
    with `lr` at its first step. Hooks of the optimizer do not run; weights that have to stay
    non-negative do so.
    """
    # Copied together, so that the optimizer's copy updates the module's copy.
    copied, stepper = copy.deepcopy((module, optimizer))
    if stepper is None:
        stepper = SMORMS3(copied.parameters(), lr=lr)
    copied.zero_grad(set_to_none=True)
    layers = {name: copied.get_submodule(_path(module, one.layer)) for name, one in reached.items()}
    n_samples, n_right = n_samples_of(module, inputs), 0
    total_loss = total_penalty = 0.0
    output_sums = {name: _Sums() for name in layers}
    n_numbers = sum(one.numbers_per_sample for one in reached.values())
    # Outputs of all layers, their gradients, and what the operations keep for the backward pass.
    for start, stop in slices(n_samples, 3 * n_numbers):
        with torch.enable_grad(), _kept_outputs(layers) as outputs:
            samples = samples_of(copied, inputs, start, stop)
            result, counts = _output_and_counts(
                copied, samples, with_counts=regularizer is not None
            )
            added = None if regularizer is None else regularizer(counts)
            value = loss(result, targets[start:stop])
            share = (stop - start) / n_samples
            ((value if added is None else value + added) * share).backward()
        total_loss += float(value.detach()) * share
        total_penalty += 0.0 if added is None else float(added.detach()) * share
        n_right += _n_right(result, targets[start:stop])
        spiking = [name for name, one in reached.items() if not one.is_readout]
        if counts and len(counts) != len(spiking):
            raise ValueError(
                f"regularizer needs the spike counts of {len(spiking)} layers, the module gives "
                f"{len(counts)}: a layer must not stand in it twice"
            )
        by_counts = dict(zip(spiking, counts, strict=True)) if counts else {}
        for name, output in outputs.items():
            gradient = _emitted_gradient(output, by_counts.get(name), reached[name])
            if gradient is not None:
                output_sums[name].add(gradient)
    changes = _step(layers, stepper)
    return BatchGradients(
        {name: LayerGradients(output_sums[name].magnitude(), changes[name]) for name in layers},
        loss=total_loss,
        penalty=total_penalty,
        accuracy=n_right / n_samples if _is_scores(result, targets[start:stop]) else None,
    )


def _output_and_counts(
    module: nn.Module, samples: Tensor | PackedSpikes, *, with_counts: bool
) -> tuple[Any, Sequence[Tensor]]:
    """What the module gives for samples; the spike counts of its layers will keep gradients."""
    if not with_counts:
        return module(samples), ()
    result = module(samples, return_spike_counts=True)
    for counts in result.spike_counts:
        if counts.requires_grad:
            counts.retain_grad()
    return result.output, result.spike_counts


def _emitted_gradient(
    output: Tensor, counts: Tensor | None, reached: ReachedLayer
) -> Tensor | None:
    """dL/dS of what a layer emits: by what hears it, and by its spike counts (batch, *features)."""
    if counts is None or counts.grad is None:
        return output.grad
    own = counts.grad[:, : reached.plan.emitted_features[0]]  # what excites the next layer
    through_counts = own.unsqueeze(1 if reached.layer.batch_first else 0)
    if output.grad is None:
        return through_counts.expand_as(output)
    return output.grad + through_counts


class _Sums:
    """Sums over the elements of tensors."""

    def __init__(self) -> None:
        self._squares = self._absolutes = 0.0
        self._n = 0

    def add(self, tensor: Tensor) -> None:
        self._n += tensor.numel()
        largest = float(torch.linalg.vector_norm(tensor, math.inf))
        if largest != 0.0:
            scaled = tensor / largest  # the squares of gradients that vanish would be 0 in float32
            self._absolutes += largest * float(scaled.abs().sum())
            self._squares += largest**2 * float(scaled.square_().sum())

    def magnitude(self) -> Magnitude | None:
        if self._n == 0:
            return None
        return Magnitude(math.sqrt(self._squares), self._absolutes / self._n, self._n)


def _combined(parts: Iterable[Magnitude]) -> Magnitude | None:
    parts = list(parts)
    n = sum(part.n for part in parts)
    if n == 0:
        return None
    norm = math.sqrt(sum(part.norm**2 for part in parts))
    return Magnitude(norm, sum(part.mean * part.n for part in parts) / n, n)


@contextmanager
def _kept_outputs(layers: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers at their first run, which will keep their gradients."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after_layer(layer: nn.Module, args: Any, output: Tensor | LIFOutput) -> None:
            emitted = output.output if isinstance(output, LIFOutput) else output
            if name not in outputs and emitted.requires_grad:
                emitted.retain_grad()
                outputs[name] = emitted

        return after_layer

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _step(
    layers: dict[str, nn.Module], optimizer: Optimizer
) -> dict[str, dict[str, ParameterChange]]:
    """Make one optimizer step and tell what it did to each layer's parameters."""
    parameters = {
        name: dict(layer.named_parameters(recurse=False)) for name, layer in layers.items()
    }
    before = {
        name: {key: p.detach().clone() for key, p in own.items()}
        for name, own in parameters.items()
    }
    optimizer.step()
    changes: dict[str, dict[str, ParameterChange]] = {}
    for name, own in parameters.items():
        non_negative: Iterable[Tensor] = getattr(layers[name], "non_negative_parameters", tuple)()
        kept_above_zero = {id(parameter) for parameter in non_negative}
        changes[name] = {}
        for key, parameter in own.items():
            after, old = parameter.detach(), before[name][key]
            if id(parameter) in kept_above_zero:
                after = after.clamp_min(0.0)
            gradient = torch.zeros_like(old) if parameter.grad is None else parameter.grad
            changes[name][key] = ParameterChange(
                *(_magnitude(part) for part in (old, gradient, after - old))
            )
    return changes


def _magnitude(tensor: Tensor) -> Magnitude:
    sums = _Sums()
    sums.add(tensor)
    magnitude = sums.magnitude()
    assert magnitude is not None  # parameters are not empty
    return magnitude


def _path(module: nn.Module, layer: nn.Module) -> str:
    """The name under which a module finds a layer; "" if it is the layer itself."""
    return next(name for name, one in module.named_modules() if one is layer)


def _is_scores(output: Any, targets: Tensor) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and targets.shape == output.shape[:1]


def _n_right(output: Any, targets: Tensor) -> int:
    """Samples whose class has the largest score; 0 if the output is something else."""
    if not _is_scores(output, targets):
        return 0
    return int((output.argmax(dim=1) == targets).sum())
