"""A sequence of modules in which neighbouring fastlif layers run as one fused stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fastlif.layers.base import StackLayer, run_layers
from fastlif.layers.linear import LIFLinear
from fastlif.layers.neuron import LIF
from fastlif.layers.readout import LIReadout
from fastlif.ops import LIFState
from fastlif.spikes import PackedSpikes


class StackOutput(NamedTuple):
    """Output of a Sequential with what was asked for besides; the rest is None."""

    output: Tensor
    states: list[LIFState] | None  # one per fastlif layer, readouts included
    spike_counts: list[Tensor] | None  # one (batch, *features) per spiking layer, differentiable


class Sequential(nn.Sequential):
    """`nn.Sequential` that moves spikes between neighbouring fastlif layers as bits.

    Layers run fused as long as they agree in dt, batch_first, backend, exact_membrane, dtype and
    device; results are those of `nn.Sequential`. `nn.Flatten(2)` before a dense layer or a readout
    is part of the stack, and so are the layers of a nested Sequential. Any other module runs
    normally on the dense tensor it is given. A layer with hooks or with a `forward` of its own is
    called by itself, so that these take part.
    """

    def forward(
        self,
        input: Tensor | PackedSpikes,
        states: Sequence[LIFState | None] | None = None,
        *,
        return_states: bool = False,
        return_spike_counts: bool = False,
    ) -> Tensor | StackOutput:
        """Run all modules; states are one per fastlif layer, in order, None for a fresh start.

        Returns the output alone, or a StackOutput when a flag asks for more.
        """
        parts = list(_parts(list(_flattened(self))))
        n_layers = sum(len(part) for part in parts if isinstance(part, list))
        if states is None:
            states = [None] * n_layers
        elif len(states) != n_layers:
            raise ValueError(
                f"states must hold one entry per fastlif layer, {n_layers}, got {len(states)}"
            )
        remaining = iter(states)
        final_states: list[LIFState] = []
        spike_counts: list[Tensor] = []
        signal: Tensor | PackedSpikes = input
        for part in parts:
            if isinstance(part, nn.Module):
                if isinstance(signal, PackedSpikes):
                    raise TypeError(
                        f"{type(part).__name__} needs a dense input: give input.unpack(), "
                        "not PackedSpikes"
                    )
                signal = part(signal)
                continue
            given = [next(remaining) for _ in part]
            if len(part) == 1:
                outputs = _call(part[0], signal, given[0], return_states, return_spike_counts)
            else:
                result = run_layers(part, signal, given)
                outputs = result.output, result.states, result.spike_counts
            signal = outputs[0]
            final_states += outputs[1]
            spike_counts += outputs[2]
        if isinstance(signal, PackedSpikes):  # no module at all
            raise TypeError("an empty Sequential needs a dense input, got PackedSpikes")
        if not (return_states or return_spike_counts):
            return signal
        return StackOutput(
            signal,
            final_states if return_states else None,
            spike_counts if return_spike_counts else None,
        )


def _call(
    layer: StackLayer,
    input: Tensor | PackedSpikes,
    state: LIFState | None,
    return_state: bool,
    return_spike_counts: bool,
) -> tuple[Tensor, Sequence[LIFState], Sequence[Tensor]]:
    """Call a layer as a module, asking for no more than needed: its hooks see the same."""
    if not (return_state or return_spike_counts):
        return layer(input, state), (), ()
    output, final_state, counts = layer(
        input, state, return_state=return_state, return_spike_counts=return_spike_counts
    )
    states = () if final_state is None else (final_state,)
    return output, states, () if counts is None else (counts,)


def _flattened(modules: nn.Sequential) -> Iterator[nn.Module]:
    """All modules in order, those of plain nested Sequentials in place of these."""
    plain = (nn.Sequential.forward, Sequential.forward)
    for module in modules:
        if (
            isinstance(module, nn.Sequential)
            and type(module).forward in plain
            and not _has_hooks(module)
        ):
            yield from _flattened(module)
        else:
            yield module


def _parts(modules: Sequence[nn.Module]) -> Iterator[list[StackLayer] | nn.Module]:
    """Lists of fastlif layers to run as one stack, and other modules, in order."""
    group: list[StackLayer] = []
    for index, module in enumerate(modules):
        if _is_absorbed(module, modules[index + 1 : index + 2]):
            continue
        if group and not (isinstance(module, StackLayer) and _can_follow(group, module)):
            yield group
            group = []
        if isinstance(module, StackLayer):
            group.append(module)
        else:
            yield module
    if group:
        yield group


def _is_absorbed(module: nn.Module, following: Sequence[nn.Module]) -> bool:
    """Whether a module is a Flatten(2) that the dense layer behind it does by itself."""
    if not isinstance(module, nn.Flatten) or (module.start_dim, module.end_dim) != (2, -1):
        return False
    return (
        not _has_hooks(module)
        and len(following) == 1
        and isinstance(following[0], (LIFLinear, LIReadout))
        and type(following[0]).forward is StackLayer.forward
    )


def _can_follow(group: Sequence[StackLayer], layer: StackLayer) -> bool:
    last = group[-1]
    if not isinstance(last, LIF) or layer.weight is None:
        return False  # a stack ends with a readout, and only its first layer takes a current
    if _runs_alone(last) or _runs_alone(layer):
        return False
    return all(_agree(other, layer) for other in group)


def _agree(first: StackLayer, second: StackLayer) -> bool:
    exact = {first.exact_membrane, second.exact_membrane} - {None}
    weights = [weight for weight in (first.weight, second.weight) if weight is not None]
    return (
        first.dt == second.dt
        and first.batch_first == second.batch_first
        and first.backend == second.backend
        and len(exact) <= 1
        and len({(weight.dtype, weight.device) for weight in weights}) <= 1
    )


def _runs_alone(layer: StackLayer) -> bool:
    return _has_hooks(layer) or type(layer).forward is not StackLayer.forward


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )
