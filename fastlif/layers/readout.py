"""Readout units: leaky integrators that do not spike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fastlif.init import readout_
from fastlif.layers.base import StackLayer, decay_per_step
from fastlif.layers.linear import check_in_features
from fastlif.layers.neuron import check_counts
from fastlif.ops import LayerPlan, LIFState
from fastlif.ops.connection import dense_connection
from fastlif.ops.plan import layer_plan, readout_kind


class LIReadout(StackLayer):
    """`nn.Linear` followed by leaky integrators (Rossbroich et al. 2022, eqs 20 and 21).

    Input: spikes or any numbers, (time, batch, *features); features whose product is in_features
    are flattened. Output: with reduction "max" the score of each class, the maximum of its membrane
    over time, (batch, out_features); with "none" the membranes, (time, batch, out_features).
    Parameters: weight (out_features, in_features), bias (out_features,).

    in_features: a number, or one per source if the readout is that of a
        `Sequential(skip_to_readout=True)`: the signal before it, then the other hidden layers,
        first to last. Their synapses lie side by side in weight, and each source is a connection
        of its own where weights are drawn. The attribute in_features is the sum,
        `source_features` the tuple.
    tau_mem: seconds; None takes the duration of the input, n_steps * dt. State a number to run a
        sequence in chunks.
    initial_membrane: membrane before the first step, if no state is given.
    The other keyword arguments are those of `LIF`, device and dtype those of `nn.Linear`.
    """

    recurrent = False
    weight: nn.Parameter

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int,
        bias: bool = True,
        *,
        tau_mem: float | None = None,
        tau_syn: float = 10e-3,
        dt: float = 2e-3,
        reduction: str = "max",
        initial_membrane: float = 0.0,
        delay: int = 0,
        batch_first: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sources = (in_features,) if isinstance(in_features, int) else tuple(in_features)
        for source in sources or (0,):
            check_counts(in_features=source, out_features=out_features)
        if not math.isfinite(initial_membrane):
            raise ValueError(f"initial_membrane must be finite, got {initial_membrane}")
        self.source_features = sources
        self.in_features = self.fan_in = sum(sources)
        self.out_features = out_features
        self.tau_mem = tau_mem
        self.tau_syn = tau_syn
        self.dt = dt
        self.reduction = reduction
        self.initial_membrane = initial_membrane
        self.delay = delay
        self.batch_first = batch_first
        self.backend = backend
        # Refuses bad options here rather than in the first run.
        self.skip_plan(sources[:1], 1, dict(enumerate(sources[1:])))
        self.weight = nn.Parameter(
            torch.empty(out_features, self.in_features, device=device, dtype=dtype)
        )
        self.register_parameter("recurrent_weight", None)
        self.register_parameter("inhibitory_weight", None)
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights from N(0, 1) / sqrt(n), n inputs of a source; the bias becomes 0."""
        readout_(self)

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for inputs of shape (n_steps, batch, *input_features)."""
        return self.skip_plan(input_features, n_steps, {})

    def skip_plan(
        self,
        input_features: tuple[int, ...],
        n_steps: int,
        skipped: Mapping[int, int],
    ) -> LayerPlan:
        """As `plan`, with skip connections from layers of the stack: {index: its neurons}."""
        sizes = (math.prod(input_features), *skipped.values())
        if not skipped:
            check_in_features(input_features, self.in_features)
        else:
            self.check_sources(sizes)
        tau_mem = n_steps * self.dt if self.tau_mem is None else self.tau_mem
        return layer_plan(
            readout_kind(self.reduction),
            (self.out_features,),
            dense_connection(input_features, self.out_features),
            decay_mem=decay_per_step("tau_mem", tau_mem, self.dt),
            decay_syn=decay_per_step("tau_syn", self.tau_syn, self.dt),
            delay=self.delay,
            skips=tuple(skipped),
        )

    def check_sources(self, sizes: tuple[int, ...]) -> None:
        """ValueError unless these, the signal before it and the skips, are its sources."""
        if self.source_features not in (sizes, (sum(sizes),)):
            raise ValueError(
                f"in_features must be {sizes}, the neurons before the readout and those of each "
                f"skip, or their sum {sum(sizes)}; got {self.source_features}"
            )

    def initial_state(self, batch_size: int) -> LIFState | None:
        """Membranes at `initial_membrane`."""
        if self.initial_membrane == 0.0:
            return None
        shape = (batch_size, self.out_features)
        return LIFState(membrane=self.weight.new_full(shape, self.initial_membrane))

    def extra_repr(self) -> str:
        """Arguments as in nn.Linear, then those of the units."""
        sources = self.source_features
        shown = sources[0] if len(sources) == 1 else sources
        return (
            f"in_features={shown}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {super().extra_repr()}"
        )
