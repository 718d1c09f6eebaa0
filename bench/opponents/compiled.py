"""torch.compile of the plain loop's step.

The step of a layer is compiled, not the loop: a compiled loop is unrolled, and what the compiler
takes for it grows with every step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bench.opponents.loop import (
    LoopNetwork,
    StepState,
    lif_step,
    readout_step,
    step_constants,
)
from fastlif import LIReadout, Sequential
from fastlif.ops import LayerPlan

MOST_VARIANTS = 64  # compiled forms of one step: layers, batch sizes, dtypes


def missing_compiler() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if torch.cuda.is_available():
        return None
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        return "torch.compile needs a C++ compiler on a CPU, and there is no g++ or clang++"
    return None


class CompiledLoop(LoopNetwork):
    """As `LoopNetwork`, every layer's step compiled when it is first run."""

    def __init__(self, model: Sequential) -> None:
        super().__init__(model)
        import torch._dynamo.config
        import torch._inductor.config

        torch._dynamo.config.recompile_limit = MOST_VARIANTS
        # Compile time is to be measured, not the reading of what an earlier run compiled.
        torch._inductor.config.force_disable_caches = True
        self._steps: dict[int, Callable[..., Any]] = {}

    def spikes_of(
        self, index: int, plan: LayerPlan, layer: nn.Module, currents: Iterable[Tensor]
    ) -> Tensor:
        """Spikes of a layer, (time, batch, *features)."""
        if index not in self._steps:
            self._steps[index] = _compiled_step(plan, layer)
        step = self._steps[index]
        state: StepState | None = None
        emitted = []
        weights = (layer.recurrent_weight, layer.inhibitory_weight)
        for injected in currents:
            if state is None:
                state = (_start(injected), _start(injected), _start(injected))
            spikes, state = step(state, injected, *weights)
            emitted.append(spikes)
        return torch.stack(emitted)

    def membranes_of(
        self, index: int, plan: LayerPlan, layer: LIReadout, currents: Iterable[Tensor]
    ) -> Tensor:
        """Membranes of a readout, (time, batch, classes)."""
        if index not in self._steps:
            self._steps[index] = _compiled_readout_step(plan)
        step = self._steps[index]
        state: tuple[Tensor, Tensor] | None = None
        membranes = []
        for injected in currents:
            if state is None:
                state = (_start(injected, layer.initial_membrane), _start(injected))
            membranes.append(state[0])
            state = step(state, injected)
        return torch.stack(membranes)


def _start(like: Tensor, value: float = 0.0) -> Tensor:
    """A state that requires a gradient as all later ones do: one compiled form for all steps."""
    return torch.full_like(like, value, requires_grad=torch.is_grad_enabled())


def _compiled_step(plan: LayerPlan, layer: nn.Module) -> Callable[..., Any]:
    constants = step_constants(plan, layer.weight)

    def step(
        state: StepState, injected: Tensor, recurrent: Any, inhibitory: Any
    ) -> tuple[Tensor, StepState]:
        return lif_step(constants, state, injected, recurrent, inhibitory)

    return torch.compile(step, fullgraph=True, dynamic=False)


def _compiled_readout_step(plan: LayerPlan) -> Callable[..., Any]:
    decay_mem, decay_syn = plan.decay_mem, plan.decay_syn

    def step(state: tuple[Tensor, Tensor], injected: Tensor) -> tuple[Tensor, Tensor]:
        return readout_step(state, injected, decay_mem, decay_syn)

    return torch.compile(step, fullgraph=True, dynamic=False)
