"""What fastlif is compared with: other ways to run the same network, one module each.

An opponent gets copies of the network's parameters, scaled where its neuron has the scale of the
current elsewhere, and float spikes. Where its equations can be fastlif's they are: delays between
its steps and fastlif's are made up for at the ends of each layer. Where they cannot, `difference`
says what it computes instead, and `rule` is the same in a form that can be checked.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from bench.opponents.rule import Rule
from fastlif import Sequential
from fastlif.ops import LayerPlan


class Network(Protocol):
    """What an opponent's module has besides being one."""

    def __call__(self, spikes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and spike counts, as `bench.opponents.loop.LoopNetwork.forward`."""

    def emitted(self, spikes: Tensor) -> list[Tensor]:
        """The spikes of every spiking layer (time, batch, *features), then scores if any."""


@dataclass(frozen=True)
class Opponent:
    """One way to run the networks. Its module has a class `NAME` that takes fastlif's model."""

    name: str
    title: str
    module: str  # in this package
    network: str  # class in that module
    difference: str = ""  # "" if it computes exactly what fastlif computes
    rule: Rule | None = Rule()  # equations of its neurons; None if they are no neurons
    packages: tuple[str, ...] = ()  # that have to be installed
    imports: str | None = None  # what of them is imported
    compiles: bool = False  # whether the first step compiles
    convolutions: bool = True
    inhibition: bool = False

    def missing(self) -> str | None:
        """Why it cannot run here, None if it can."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)}"
        if self.compiles:
            from bench.opponents.compiled import missing_compiler

            return missing_compiler()
        return None

    def refuses(self, plans: Sequence[LayerPlan]) -> str | None:
        """Why it cannot express these layers, None if it can."""
        if not self.inhibition and any(plan.inhibition is not None for plan in plans):
            return "has no neurons with an inhibitory current of its own"
        if not self.convolutions and any(len(plan.features) > 1 for plan in plans):
            return "has no convolutions"
        return None

    def build(self, model: Sequential) -> nn.Module:
        """The network on copies of the model's parameters, a `Network`."""
        found = importlib.import_module(f"bench.opponents.{self.module}")
        return cast(nn.Module, getattr(found, self.network)(copy.deepcopy(model)))


OPPONENTS: dict[str, Opponent] = {
    opponent.name: opponent
    for opponent in (
        Opponent("loop", "plain PyTorch loop", "loop", "LoopNetwork", inhibition=True),
        Opponent(
            "loop-compiled",
            "torch.compile of the loop's step",
            "compiled",
            "CompiledLoop",
            compiles=True,
            inhibition=True,
        ),
        Opponent(
            "snntorch",
            "snnTorch: Synaptic",
            "snntorch",
            "SnnTorchNetwork",
            packages=("snntorch",),
            imports="snntorch",
        ),
        Opponent(
            "spikingjelly",
            "SpikingJelly: CUBALIFNode",
            "spikingjelly",
            "CurrentNetwork",
            difference="after a spike the membrane integrates again one step earlier; same work",
            rule=Rule(reset_first=True),
            packages=("spikingjelly", "loguru", "scipy"),
            imports="spikingjelly.activation_based.neuron",
        ),
        Opponent(
            "spikingjelly-lif",
            "SpikingJelly: LIFNode",
            "spikingjelly",
            "LeakyNetwork",
            difference="no synaptic current, the membrane integrates again one step earlier after "
            "a spike, surrogate gradient 10 times as large; less work",
            rule=Rule(reset_first=True, synaptic_current=False, surrogate_scale=10.0),
            packages=("spikingjelly", "loguru", "scipy"),
            imports="spikingjelly.activation_based.neuron",
        ),
        Opponent(
            "norse",
            "Norse: LIFCell, LIFRecurrentCell",
            "norse",
            "NorseNetwork",
            difference="after a spike the membrane integrates again one step earlier, surrogate "
            "slope 1 in place of 20, and the reset is differentiated except in dense recurrent "
            "layers (no choice there); same work or slightly more",
            rule=Rule(reset_first=True, surrogate_slope=1.0, detach_reset=None),
            packages=("norse", "nir", "nirtorch"),
            imports="norse.torch",
        ),
        Opponent(
            "lstm",
            "torch.nn.LSTM of the same width",
            "lstm",
            "LSTMNetwork",
            difference="no spiking neurons: gated units, 4 products in place of one; more work",
            rule=None,
            convolutions=False,
        ),
    )
}
