"""A sequence of modules in which neighbouring fastlif layers run as one fused stack."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlif.layers.base import StackLayer, StackMember, run_layers
from fastlif.layers.dalian import LIFDalianLinear
from fastlif.layers.linear import LIFLinear
from fastlif.layers.neuron import LIF
from fastlif.layers.pooling import MaxPool1d
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
    device; results are those of `nn.Sequential`. Part of the stack are also `MaxPool1d` and
    `MaxPool2d` behind a spiking layer, `nn.Flatten(2)` before a dense layer or a readout, and the
    layers of a nested Sequential. Any other module runs normally on the dense tensor it is given.
    A layer with hooks or with a `forward` of its own is called by itself, so that these take part.

    skip_to_readout: the last module, an `LIReadout`, hears every hidden layer, not the last one
        alone: its inputs are the (flattened) signal before it and then the spikes of the other
        hidden layers, unpooled, first to last. An `ImageEncoder` is no hidden layer. A nested
        Sequential that has skip connections itself is called by itself, and then states and spike
        counts cannot be had. A slice has skip connections if it ends with the same readout.
    """

    skip_to_readout = False

    def __init__(self, *modules: Any, skip_to_readout: bool = False) -> None:
        super().__init__(*modules)
        self.skip_to_readout = skip_to_readout

    def forward(
        self,
        input: Tensor | PackedSpikes,
        states: Sequence[LIFState | None] | None = None,
        *,
        return_states: bool = False,
        return_spike_counts: bool = False,
        shared_input: bool = False,
    ) -> Tensor | StackOutput:
        """Run all modules; states are one per fastlif layer, in order, None for a fresh start.

        Spike counts are one per spiking layer. Returns the output alone, or a StackOutput when a
        flag asks for more.

        shared_input: of several networks, see `side_by_side`, each runs on all samples of the
            input; without it, they are those of one network behind those of the other.

        Raises ValueError for states and counts, and for given states, where layers are in a nested
        Sequential that is called by itself: they would be missing.
        """
        modules = list(_flattened(self))
        if states is not None or return_states or return_spike_counts:
            _check_reached(modules)
        parts = list(_parts(modules))
        skips_inside = False  # whether one stack has all skip connections within it
        if self.skip_to_readout:
            _check_readout(modules)
            skips_inside = _hidden(parts[-1]) == _hidden(modules)
            if not skips_inside:  # each hidden layer has to hand out its spikes
                parts = list(_separate(parts))
        n_layers = len(_layers(parts))
        if states is None:
            states = [None] * n_layers
        elif len(states) != n_layers:
            raise ValueError(
                f"states must hold one entry per fastlif layer, {n_layers}, got {len(states)}"
            )
        remaining = iter(states)
        final_states: list[LIFState] = []
        spike_counts: list[Tensor] = []
        heard: list[Tensor] = []  # spikes of hidden layers, for skip connections between stacks
        signal: Tensor | PackedSpikes = input
        for part in parts:
            if isinstance(part, nn.Module):
                if isinstance(signal, PackedSpikes):
                    raise TypeError(
                        f"{type(part).__name__} needs a dense input: give input.unpack(), "
                        "not PackedSpikes"
                    )
                members = [one for one in part.modules() if isinstance(one, StackMember)]
                if shared_input and any(member.networks > 1 for member in members):
                    raise ValueError(
                        "shared_input must reach the first layer: it lies in a "
                        f"{type(part).__name__} that is called as a module, because of its hooks, "
                        "skip connections or own forward; give the samples of all networks"
                    )
                signal = part(signal)
                continue
            layer, is_layer = part[0], [isinstance(member, StackLayer) for member in part]
            given = [next(remaining) if one else None for one in is_layer]
            if len(part) == 1:
                assert isinstance(layer, StackLayer)
                if heard and layer is modules[-1] and isinstance(signal, Tensor):
                    signal = _joined(layer, (signal, *heard[:-1]))
                flags = {"shared_input": True} if shared_input else {}
                asked = return_states, return_spike_counts
                outputs = _call(layer, signal, given[0], *asked, **flags)
                if self.skip_to_readout and layer.hidden:
                    heard.append(outputs[0])
            else:
                skips = skips_inside and part is parts[-1]
                result = run_layers(
                    part, signal, given, skip_to_readout=skips, shared_input=shared_input
                )
                own = [s for s, one in zip(result.states, is_layer, strict=True) if one]
                outputs = result.output, own, result.spike_counts
            signal, shared_input = outputs[0], False
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

    def __getitem__(self, idx: int | slice) -> Any:
        """A module, or a Sequential of some that keeps the skip connections to its readout."""
        found = super().__getitem__(idx)
        if isinstance(found, Sequential) and isinstance(idx, slice) and len(found):
            found.skip_to_readout = self.skip_to_readout and found[-1] is self[-1]
        return found

    def extra_repr(self) -> str:
        """Whether there are skip connections."""
        return "skip_to_readout=True" if self.skip_to_readout else ""


def _call(
    layer: StackLayer,
    input: Tensor | PackedSpikes,
    state: LIFState | None,
    return_state: bool,
    return_spike_counts: bool,
    **flags: bool,
) -> tuple[Tensor, Sequence[LIFState], Sequence[Tensor]]:
    """Call a layer as a module, asking for no more than needed: its hooks see the same."""
    if not (return_state or return_spike_counts):
        return layer(input, state, **flags), (), ()
    output, final_state, counts = layer(
        input, state, return_state=return_state, return_spike_counts=return_spike_counts, **flags
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
            and not getattr(module, "skip_to_readout", False)
            and not _has_hooks(module)
        ):
            yield from _flattened(module)
        else:
            yield module


Part = list[StackMember] | nn.Module  # a stack, which begins with a layer, or another module


def _parts(modules: Sequence[nn.Module]) -> Iterator[Part]:
    """What to run, in order: lists of modules to run as one stack, and other modules."""
    group: list[StackMember] = []
    for index, module in enumerate(modules):
        if _is_absorbed(module, modules[index + 1 : index + 2]):
            continue
        if group and not (isinstance(module, StackMember) and _can_follow(group, module)):
            yield group
            group = []
        if isinstance(module, StackLayer) or (group and isinstance(module, StackMember)):
            group.append(module)
        else:
            yield module
    if group:
        yield group


def _separate(parts: Sequence[Part]) -> Iterator[Part]:
    """The same, every module by itself."""
    for part in parts:
        for member in [part] if isinstance(part, nn.Module) else part:
            yield [member] if isinstance(member, StackLayer) else member


def _layers(parts: Sequence[Part]) -> list[StackLayer]:
    """The fastlif layers among some parts."""
    members = [m for part in parts for m in ([part] if isinstance(part, nn.Module) else part)]
    return [member for member in members if isinstance(member, StackLayer)]


def _hidden(modules: Part | Sequence[nn.Module]) -> list[StackLayer]:
    """The hidden layers among some modules."""
    members = [modules] if isinstance(modules, nn.Module) else modules
    return [member for member in members if isinstance(member, StackLayer) and member.hidden]


def _check_readout(modules: Sequence[nn.Module]) -> None:
    if not modules or not isinstance(modules[-1], LIReadout):
        last = type(modules[-1]).__name__ if modules else "none"
        raise ValueError(f"skip_to_readout needs an LIReadout as the last module, got {last}")


def _check_reached(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, nn.Sequential) and any(
            isinstance(inner, StackLayer) for inner in module.modules()
        ):
            raise ValueError(
                "states and spike counts need layers that the Sequential runs itself, got a nested "
                f"{type(module).__name__} with skip connections, hooks or a forward of its own"
            )


def _joined(readout: StackLayer, signals: Sequence[Tensor]) -> Tensor:
    """The signals, (time, batch, *features) each, as one input of a readout."""
    if len(signals) > 1:
        assert isinstance(readout, LIReadout)
        readout.check_sources(tuple(math.prod(signal.shape[2:]) for signal in signals))
    return torch.cat([signal.flatten(2) for signal in signals], dim=2)


def _is_absorbed(module: nn.Module, following: Sequence[nn.Module]) -> bool:
    """Whether a module is a Flatten(2) that the dense layer behind it does by itself."""
    if not isinstance(module, nn.Flatten) or (module.start_dim, module.end_dim) != (2, -1):
        return False
    return (
        not _has_hooks(module)
        and len(following) == 1
        and isinstance(following[0], (LIFLinear, LIFDalianLinear, LIReadout))
        and type(following[0]).forward is StackLayer.forward
    )


def _can_follow(group: Sequence[StackMember], member: StackMember) -> bool:
    last = group[-1]
    if isinstance(last, StackLayer) and not isinstance(last, LIF):
        return False  # a stack ends with a readout
    if _runs_alone(last) or _runs_alone(member):
        return False
    if not isinstance(member, StackLayer):
        return True
    layers = [other for other in group if isinstance(other, StackLayer)]
    # Only the first layer of a stack takes a current.
    return member.has_synapses and all(_agree(other, member) for other in layers)


def _agree(first: StackLayer, second: StackLayer) -> bool:
    exact = {first.exact_membrane, second.exact_membrane} - {None}
    weights = [weight for weight in (first.weight, second.weight) if weight is not None]
    return (
        first.dt == second.dt
        and first.networks == second.networks
        and first.batch_first == second.batch_first
        and first.backend == second.backend
        and len(exact) <= 1
        and len({(weight.dtype, weight.device) for weight in weights}) <= 1
    )


def _runs_alone(member: StackMember) -> bool:
    plain = (StackLayer.forward, MaxPool1d.forward)
    return _has_hooks(member) or type(member).forward not in plain


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )
