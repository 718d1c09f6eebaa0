"""One point of a growth series: a network of some size, checked, then its training steps measured.

Everything here runs in a process that measures nothing else: `bench.growth` starts one for every
point and side.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.cases import DT, INPUT_RATE, TARGET_RATE
from bench.check import (
    GRADIENT_TOLERANCE,
    LOOP_TOLERANCE,
    OUTPUT_TOLERANCE,
    CheckFailed,
    network_plans,
    network_tensors,
)
from bench.measure import (
    StepSpread,
    StepTime,
    Trainer,
    fused_forward,
    peak_rss,
    release_freed_memory,
    resident_bytes,
)
from bench.opponents.loop import LoopNetwork
from fastlif import LIFConv1d, LIFLinear, LIReadout, PackedSpikes, Sequential
from fastlif.models import ConvSize, Regularization
from fastlif.ops.reference import stack
from fastlif.spikes import WORD_STEPS
from tests.cases import Stack
from tests.compare import relative, replay

SIDES = ("fastlif", "loop")
N_CLASSES = 20
BOUNDS = Regularization(upper_strength=0.01, v_upper=7.0)
CHECK_STEPS, CHECK_SAMPLES = 40, 2
STEPS_PER_LAYER = 15  # more to check, as spikes reach a layer that much later
TUNING_STEPS, TUNING_SAMPLES, TUNING_ROUNDS = 200, 8, 12
WEIGHT_FACTORS = (0.1, 40.0)  # of the layers' own default, between which a density is looked for
DENSITY_TOLERANCE = 0.5  # relative, of the density in the tuned layers
# Without a mean input few neurons fire more often than this however large the weights are; above,
# the feed-forward weights get a mean of half their deviation.
MOST_FLUCTUATING = 0.1


@dataclass(frozen=True)
class Network:
    """A stack of recurrent layers before a readout, and the input of one training step."""

    input_features: tuple[int, ...]  # (N,) or (C, L)
    hidden: tuple[int | ConvSize, ...]  # an int is a dense layer of that many neurons
    batch: int
    n_steps: int
    input_density: float = INPUT_RATE * DT  # spikes per neuron and step
    density: float = TARGET_RATE * DT  # the same, of every layer

    def build(self) -> Sequential:
        """The network, weights drawn by the layers' own default, the same ones every time."""
        layers: list[nn.Module] = []
        features = self.input_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for size in self.hidden:
                layer = _hidden(features, size)
                layers.append(layer)
                features = layer.plan(features, 1).emitted_features
            n_inputs = int(torch.Size(features).numel())
            layers.append(LIReadout(n_inputs, N_CLASSES, bias=False, tau_mem=0.7, dt=DT))
        return Sequential(*layers)

    def with_input(self, batch: int, n_steps: int) -> Network:
        """The same network for other samples."""
        return dataclasses.replace(self, batch=batch, n_steps=n_steps)


def _hidden(features: tuple[int, ...], size: int | ConvSize) -> LIFLinear | LIFConv1d:
    if isinstance(size, ConvSize):
        sizes = (features[0], size.channels, size.kernel, size.stride, size.padding)
        return LIFConv1d(*sizes, bias=False, recurrent=True, dt=DT)
    n_inputs = int(torch.Size(features).numel())
    return LIFLinear(n_inputs, size, bias=False, recurrent=True, dt=DT)


def random_input(network: Network, seed: int = 1) -> PackedSpikes:
    """Independent spikes, packed a word at a time so that little memory is touched."""
    generator = torch.Generator().manual_seed(seed)
    words = []
    for start in range(0, network.n_steps, WORD_STEPS):
        n_steps = min(WORD_STEPS, network.n_steps - start)
        shape = (n_steps, network.batch, *network.input_features)
        spikes = torch.rand(shape, generator=generator) < network.input_density
        words.append(PackedSpikes.pack(spikes.float()).words)
    return PackedSpikes(torch.cat(words), network.n_steps, network.input_features)


def tuned_network(network: Network) -> Sequential:
    """The network with every layer's weights scaled until it fires at `network.density`.

    From the first layer to the last, by bisection: a layer's density rises with its weights and
    does not depend on the layers behind it. ValueError where no factor comes close.
    """
    model = network.build()
    signal: Tensor | PackedSpikes = random_input(
        network.with_input(TUNING_SAMPLES, TUNING_STEPS), seed=3
    )
    with torch.no_grad():
        for layer in model[:-1]:
            signal = _tune(layer, signal, network.density)
    return model


def _tune(layer: nn.Module, signal: Tensor | PackedSpikes, density: float) -> Tensor:
    """Scale a layer's weights; returns its spikes."""
    drawn = [parameter.detach().clone() for parameter in layer.parameters()]
    if density > MOST_FLUCTUATING:
        drawn[0] += drawn[0].std() / 2
    low, high = WEIGHT_FACTORS
    for _ in range(TUNING_ROUNDS):
        factor = (low * high) ** 0.5
        for parameter, start in zip(layer.parameters(), drawn, strict=True):
            parameter.copy_(factor * start)
        spikes = layer(signal)
        found = float(spikes.mean())
        low, high = (factor, high) if found < density else (low, factor)
    if abs(found - density) > DENSITY_TOLERANCE * density:
        raise ValueError(f"every layer must fire at {density:.4f} a step, one does at {found:.4f}")
    return spikes


def check_network(network: Network, model: Sequential, side: str) -> None:
    """Compare a side with the float64 reference, gradients included, on few samples and steps.

    Raises CheckFailed when it is off.
    """
    n_steps = CHECK_STEPS + STEPS_PER_LAYER * (len(network.hidden) - 1)
    spikes = random_input(network.with_input(CHECK_SAMPLES, n_steps), seed=4)
    plans, wide = network_plans(model, spikes), spikes.unpack(torch.float64)
    if side == "fastlif":
        found = replay(Stack(plans, network_tensors(model), wide), torch.float32, state=False)
        error, name = found.worst
        right = found.wrong_spikes == 0 and found.output_error < OUTPUT_TOLERANCE
        if not right or not error < GRADIENT_TOLERANCE or not min(found.firing) > 0.0:
            raise CheckFailed(
                f"{network} is not timed: {found.wrong_spikes} wrong spikes, output error "
                f"{found.output_error:.1e}, gradient error {error:.1e} ({name}), lowest firing "
                f"{min(found.firing):.4f}"
            )
        return
    error = _loop_error(model, wide)
    if not error < LOOP_TOLERANCE:
        raise CheckFailed(f"{network} is not timed: the loop's error is {error:.1e}")


def _loop_error(model: Sequential, spikes: Tensor) -> float:
    """Largest relative error of the loop's scores and weight gradients, in float64."""
    ours, theirs = (copy.deepcopy(model).double() for _ in range(2))
    plans = tuple(network_plans(theirs, PackedSpikes.pack(spikes)))
    expected = stack(spikes, plans, network_tensors(theirs, spikes.shape[1]))
    scores, counts = LoopNetwork(ours)(spikes)
    pairs = [(scores, expected.output)]
    gradients = []
    for side, output, own in (
        (ours, scores, counts),
        (theirs, expected.output, expected.spike_counts),
    ):
        loss = output.square().sum() + sum(count.square().mean() for count in own)
        gradients.append(torch.autograd.grad(loss, list(side.parameters())))
    pairs += zip(*gradients, strict=True)
    return max(relative(a.detach(), b.detach()) for a, b in pairs)


def trainer_and_input(
    network: Network, model: Sequential, side: str
) -> tuple[Trainer, Tensor | PackedSpikes]:
    """What takes the steps of a side, and what they are taken on."""
    input = random_input(network)
    targets = torch.randint(N_CLASSES, (network.batch,), generator=torch.Generator().manual_seed(2))
    if side == "loop":
        return Trainer(LoopNetwork(model), model, BOUNDS, targets), input.unpack()
    return Trainer(fused_forward(model), model, BOUNDS, targets), input


@dataclass(frozen=True)
class Footprint:
    """Memory of training steps, in bytes, and how long the first one took, in seconds."""

    first_step: float
    kept_bytes: int
    peak_rss: int | None  # of the process, during one step
    resident_before: int | None  # of the process, before that step: PyTorch, data and parameters


@dataclass(frozen=True)
class Measured:
    """Training steps of one side; times in seconds, memory in bytes."""

    times: StepSpread
    repeats: int  # turns
    kept_bytes: int
    peak_rss: int | None  # of the process, during one step
    resident_before: int | None  # of the process, before that step: PyTorch, data and parameters
    densities: list[float]  # spikes per neuron and step of every layer


class Point:
    """Training steps of one side on one network, whose results have been checked.

    Raises CheckFailed instead of giving times of wrong results.
    """

    def __init__(self, network: Network, side: str) -> None:
        if side not in SIDES:
            raise ValueError(f"side must be one of {', '.join(SIDES)}; got {side!r}")
        self._n_steps = network.n_steps
        model = tuned_network(network)
        check_network(network, model, side)
        self._trainer, self._input = trainer_and_input(network, model, side)

    def footprint(self) -> Footprint:
        """Of the first step, and what a step keeps."""
        release_freed_memory()
        before, begin = resident_bytes(), time.perf_counter()
        peak = peak_rss(lambda: self._trainer.step(self._input))
        first = time.perf_counter() - begin
        return Footprint(first, self._trainer.kept_bytes(self._input), peak, before)

    def turn(self, seconds: float) -> StepTime:
        """The median of steps one after the other, as many as begin within some seconds."""
        return self._trainer.turn(self._input, seconds)

    def densities(self) -> list[float]:
        """Spikes per neuron and step of every layer."""
        return layer_densities(self._trainer.forward, self._input, self._n_steps)

    def processor_seconds(self) -> float:
        """Processor time that this process has taken."""
        return time.process_time()


def measured(footprint: Footprint, turns: list[StepTime], densities: list[float]) -> Measured:
    """What is known of a point at the end."""
    return Measured(
        times=StepSpread.of(turns),
        repeats=len(turns),
        kept_bytes=footprint.kept_bytes,
        peak_rss=footprint.peak_rss,
        resident_before=footprint.resident_before,
        densities=densities,
    )


def layer_densities(
    forward: Callable[[Tensor | PackedSpikes], tuple[Tensor, list[Tensor]]],
    input: Tensor | PackedSpikes,
    n_steps: int,
) -> list[float]:
    """Spikes per neuron and step of every layer."""
    with torch.no_grad():
        _, counts = forward(input)
    return [float(count.mean()) / n_steps for count in counts]
