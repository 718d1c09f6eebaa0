"""What all layers share: they describe themselves as a plan and tensors, and run as a stack."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastlif import ops
from fastlif.ops import LayerPlan, LayerTensors, LIFState, StackResult
from fastlif.ops.networks import of_networks
from fastlif.spikes import PackedSpikes


class LIFOutput(NamedTuple):
    """Output of a layer with what was asked for besides; the rest is None."""

    output: Tensor  # spikes, membrane trace or scores
    state: LIFState | None  # after the last step; start the next chunk of the sequence from it
    spike_counts: Tensor | None  # (batch, *features) per sample and neuron, differentiable


class StackMember(nn.Module):
    """What can be part of a fused stack: layers, and pooling behind them."""

    networks = 1  # of which it holds the parameters; `side_by_side` makes more of one

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this module computes for inputs of shape (n_steps, batch, *input_features)."""
        raise NotImplementedError


class StackLayer(StackMember):
    """One layer of a stack. Subclasses give `plan`, `tensors` and the attributes below."""

    hidden = False  # whether skip connections to a readout begin here
    shares_input = True  # whether several networks can read the same input
    has_synapses = True  # whether spikes of another layer can be its input
    dt: float  # seconds
    batch_first: bool
    backend: str | None
    exact_membrane: bool | None = None  # None: of no concern to this layer
    weight: nn.Parameter | None
    recurrent_weight: nn.Parameter | None
    bias: nn.Parameter | None
    inhibitory_weight: nn.Parameter | None

    def skip_plan(
        self,
        input_features: tuple[int, ...],
        n_steps: int,
        skipped: Mapping[int, int],
    ) -> LayerPlan:
        """As `plan`, with skip connections from layers of the stack: {index: its neurons}."""
        raise ValueError(f"skip connections end at an LIReadout, got {type(self).__name__}")

    def initial_state(self, batch_size: int) -> LIFState | None:
        """State a run starts from when none is given; None stands for zeros."""
        return None

    def tensors(self, state: LIFState | None = None) -> LayerTensors:
        """Parameters of this layer and the state that a run starts from."""
        return LayerTensors(
            self.weight, self.bias, self.recurrent_weight, state, self.inhibitory_weight
        )

    def time_first(
        self, input: Tensor | PackedSpikes, shared_input: bool = False
    ) -> Tensor | PackedSpikes:
        """The input as operations take it: (time, batch, *features).

        shared_input: it is that of several networks; without `shares_input` they get copies of it.
        TypeError or ValueError if it is none.
        """
        if not isinstance(input, (Tensor, PackedSpikes)):
            raise TypeError(f"input must be a Tensor or PackedSpikes, got {type(input).__name__}")
        if len(input.shape) < 3:
            order = "(batch, time, *features)" if self.batch_first else "(time, batch, *features)"
            raise ValueError(f"input must have shape {order}, got {tuple(input.shape)}")
        if self.batch_first and isinstance(input, Tensor):
            return input.transpose(0, 1)
        return input

    def forward(
        self,
        input: Tensor | PackedSpikes,
        state: LIFState | None = None,
        *,
        return_state: bool = False,
        return_spike_counts: bool = False,
        shared_input: bool = False,
    ) -> Tensor | LIFOutput:
        """Run over all steps of the input, (time, batch, *features) or batch first if so built.

        Packed spikes are time first always. Returns the output alone, or a LIFOutput when a flag
        asks for more. shared_input: a layer of several networks runs each of them on all samples.
        """
        result = run_layers((self,), input, (state,), shared_input=shared_input)
        if not (return_state or return_spike_counts):
            return result.output
        counts = result.spike_counts[0] if return_spike_counts and result.spike_counts else None
        return LIFOutput(result.output, result.states[0] if return_state else None, counts)

    def extra_repr(self) -> str:
        """Time constants, and every other keyword argument that is not at its default."""
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY or not hasattr(self, name):
                continue
            value = getattr(self, name)
            sizes = set(value) if isinstance(value, tuple) else {value}  # (5, 5) stands for 5
            if name in ("tau_mem", "tau_syn", "dt") or sizes != {parameter.default}:
                shown.append(f"{name}={value!r}")
        if self.networks > 1:
            shown.append(f"networks={self.networks}")
        return ", ".join(shown)


def run_layers(
    members: Sequence[StackMember],
    input: Tensor | PackedSpikes,
    states: Sequence[LIFState | None],
    *,
    skip_to_readout: bool = False,
    shared_input: bool = False,
) -> StackResult:
    """Run neighbouring modules as one fused stack, input and output in their order of dimensions.

    The first is a layer, and all layers agree in networks, batch_first, backend and (where it
    concerns them) exact_membrane. The entry of `states` for a member that is no layer is None.
    skip_to_readout: the last one, a readout, hears all hidden layers: the signal before it, then
        the spikes of the other hidden layers, first to last.
    shared_input: every network of layers of several networks gets all samples.
    """
    first = members[0]
    assert isinstance(first, StackLayer)
    networks = first.networks
    shared_input = shared_input and networks > 1
    signal = first.time_first(input, shared_input)
    shared_input = shared_input and first.shares_input
    n_steps, batch_size, *rest = signal.shape
    if shared_input:
        batch_size *= networks
    features = tuple(rest)
    plans: list[LayerPlan] = []
    tensors: list[LayerTensors] = []
    sources: list[int] = []  # indices of hidden layers
    exact_membrane = False
    for index, (member, state) in enumerate(zip(members, states, strict=True)):
        if skip_to_readout and member is members[-1]:
            assert isinstance(member, StackLayer)
            skipped = {source: math.prod(plans[source].emitted_features) for source in sources[:-1]}
            plan = member.skip_plan(features, n_steps, skipped)
        else:
            plan = member.plan(features, n_steps)
        if not isinstance(member, StackLayer):
            tensors.append(LayerTensors())
        else:
            state = member.initial_state(batch_size) if state is None else state
            tensors.append(member.tensors(state))
            exact_membrane |= bool(member.exact_membrane)
            if member.hidden:
                sources.append(index)
        features = plan.emitted_features
        if networks > 1:
            plan = of_networks(plan, networks, shared_input and not plans)
        plans.append(plan)
    result = ops.stack(signal, plans, tensors, exact_membrane=exact_membrane, backend=first.backend)
    if first.batch_first and plans[-1].kind != "readout_max":
        result = result._replace(output=result.output.transpose(0, 1))
    return result


def decay_per_step(name: str, tau: float, dt: float) -> float:
    """exp(-dt / tau), both in seconds.

    ValueError unless both are finite and > 0 and the decay can be told from 1.
    """
    for label, value in ((name, tau), ("dt", dt)):
        if not 0.0 < value < math.inf:  # also refuses NaN
            raise ValueError(f"{label} must be finite and > 0 seconds, got {value}")
    decay = math.exp(-dt / tau)
    if decay == 1.0:
        raise ValueError(f"{name} must not be so long that a step of dt={dt} s is lost, got {tau}")
    return decay
