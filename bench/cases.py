"""What is timed: networks and layers on Poisson spikes, every layer firing near a wanted rate."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlif import (
    LIFConv1d,
    LIFConv2d,
    LIFLinear,
    LIReadout,
    PackedSpikes,
    Sequential,
    extension,
)
from fastlif.init import fluctuation_driven_
from fastlif.layers.base import StackLayer
from fastlif.models import Preset, Regularization, build, preset
from fastlif.spikes import WORD_STEPS, n_words, spatial_shape

DT = 2e-3  # seconds per step
INPUT_RATE = 12.0  # Hz
TARGET_RATE = 10.0  # Hz, of every spiking layer
RATE_RANGE = (8.0, 12.0)  # Hz, in which the measured rates must lie where TARGET_RATE is wanted
TUNING_SAMPLES = 32
SIGMA_U_RANGE = (0.2, 4.0)
TUNING_ROUNDS = 12
CHECK_STEPS = 100


@dataclass(frozen=True)
class Layer:
    """A spiking layer alone: dense, or convolutional where it has a kernel."""

    features: tuple[int, ...]  # of its input: (N,), (C, L) or (C, H, W)
    channels: int
    kernel: int | None = None
    stride: int = 1
    padding: int = 0
    bias: bool = False

    def build(self, recurrent: bool, **options: Any) -> StackLayer:
        """The layer, its weights drawn by its own default."""
        options = {"bias": self.bias, "recurrent": recurrent, "dt": DT} | options
        if self.kernel is None:
            return LIFLinear(self.features[0], self.channels, **options)
        kind = LIFConv1d if len(self.features) == 2 else LIFConv2d
        sizes = (self.kernel, self.stride, self.padding)
        return kind(self.features[0], self.channels, *sizes, **options)

    def describe(self) -> str:
        """Sizes in a few words."""
        shape = " x ".join(str(size) for size in self.features)
        if self.kernel is None:
            return f"layer {shape} -> {self.channels}"
        return f"layer {shape} -> {self.channels} channels, kernel {self.kernel}"


@dataclass(frozen=True)
class Case:
    """A training step of one network: that of a preset, or one layer alone.

    `loop_steps` is the number of steps that opponents are given; their time per step does not
    depend on it (each step runs the same operations on tensors of the same size), so their forward
    and backward times are scaled by n_steps / loop_steps.
    """

    name: str
    preset: str  # "" where there is a layer in its place
    recurrent: bool
    batch: int
    n_steps: int
    loop_steps: int
    # Seconds that the kernels were designed to approach on 2 AVX-512 cores; None if not estimated.
    design_floor: float | None
    neurons: int | None = None  # of the hidden layer of a dense preset, in place of its own
    layer: Layer | None = None  # alone, with the mean of its spikes for a loss
    input_gradient: bool = False  # the input is a float tensor and gets a gradient
    input_rate: float = INPUT_RATE  # Hz
    target_rate: float = TARGET_RATE  # Hz, of every spiking layer
    tuning_samples: int = TUNING_SAMPLES  # of the batch, to find weights that fire as wanted
    check_steps: int = CHECK_STEPS  # more where deep layers stay silent for many steps

    @property
    def network(self) -> Preset:
        """The preset's sizes and regularizers."""
        return preset(self.preset)

    @property
    def n_spiking(self) -> int:
        """Number of spiking layers."""
        return 1 if self.layer is not None else len(self.network.hidden)

    @property
    def input_features(self) -> tuple[int, ...]:
        """Features of one step of spikes: of images, what their encoder emits."""
        if self.layer is not None:
            return self.layer.features
        features = self.network.input_features()
        return ((self.network.encoder_fan_out or 1) * features[0], *features[1:])

    @property
    def bounds(self) -> Regularization | None:
        """Bounds on spike counts; None where the loss is the mean of the output."""
        return None if self.layer is not None else self.network.regularization

    def targets(self) -> Tensor | None:
        """Class numbers (batch,); None for a layer alone."""
        if self.layer is not None:
            return None
        generator = torch.Generator().manual_seed(2)
        return torch.randint(self.network.n_classes, (self.batch,), generator=generator)

    def build(
        self, *, backend: str | None = None, device: torch.device | str | None = None
    ) -> Sequential:
        """The network behind its encoder, if any; weights drawn by the layers' own default."""
        options: dict[str, Any] = {"backend": backend, "device": device}
        if self.layer is not None:
            return Sequential(self.layer.build(self.recurrent, **options))
        if self.neurons is not None:
            network = self.network
            hidden = Layer(network.features, self.neurons).build(self.recurrent, **options)
            readout = LIReadout(
                self.neurons,
                network.n_classes,
                bias=False,
                tau_mem=network.duration,
                initial_membrane=network.initial_membrane,
                dt=DT,
                **options,
            )
            return Sequential(OrderedDict(hidden1=hidden, readout=readout))
        model = build(self.preset, recurrent=self.recurrent, dt=DT, **options)
        layers = [item for item in model.named_children() if item[0] != "encoder"]
        return Sequential(OrderedDict(layers))

    def quick(self) -> Case:
        """The same network on a batch small enough for a test."""
        n_steps = 60 if self.check_steps == CHECK_STEPS else self.check_steps
        return replace(self, batch=8, n_steps=n_steps, loop_steps=n_steps // 2, design_floor=None)

    def describe(self) -> str:
        """Sizes in one line."""
        kind = "recurrent" if self.recurrent else "feed-forward"
        if self.layer is not None:
            network = self.layer.describe()
        else:
            network = self.preset if self.neurons is None else f"{self.preset} of {self.neurons}"
        text = f"{network} {kind}, batch {self.batch}, {self.n_steps} steps"
        if (self.input_rate, self.target_rate) != (INPUT_RATE, TARGET_RATE):
            text += f", spikes in {self.target_rate * DT:.1%} of the steps"
        return text + (", with input gradient" if self.input_gradient else "")


def _wide(neurons: int) -> Case:
    name = f"dense-recurrent-{neurons}"
    return Case(name, "shd-dense", True, 400, 350, 350, design_floor=None, neurons=neurons)


def _dense_at(percent: float) -> Case:
    """The dense recurrent network, input and neurons spiking in so many per cent of the steps."""
    rate = percent / 100 / DT
    return Case(
        f"density-{percent:g}", "shd-dense", True, 400, 350, 350, design_floor=None,
        input_rate=rate, target_rate=rate,
    )  # fmt: skip


def _alone(name: str, layer: Layer, batch: int, n_steps: int, *, recurrent: bool = False) -> Case:
    return Case(
        name, "", recurrent, batch, n_steps, n_steps, design_floor=None, layer=layer,
        input_gradient=True,
    )  # fmt: skip


def _linear_lif(neurons: int) -> Case:
    """Lenz et al.'s comparison of libraries at open-neuromorphic.org (2023): nn.Linear and LIF.

    Batch 16, 500 steps, as many inputs as neurons; theirs has normally distributed input without
    a gradient, and clocks that do not wait for the device. Here the input is spikes.
    """
    layer = Layer((neurons,), neurons, bias=True)
    return _alone(f"linear-lif-{neurons}", layer, 16, 500)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("dense-recurrent", "shd-dense", True, 400, 350, 350, design_floor=0.08),
        Case("shd-conv3", "shd-conv3", True, 400, 350, 50, design_floor=1.1),
        Case("dense-recurrent-160", "shd-dense160", True, 400, 350, 350, design_floor=None),
        *(_wide(neurons) for neurons in (256, 512, 1024)),
        Case("dalian-dense", "shd-dalian", True, 400, 350, 350, design_floor=None),
        Case("shd-conv7", "shd-conv7", True, 100, 350, 50, design_floor=None),
        Case("cifar-conv4", "cifar-conv4", False, 128, 50, 5, design_floor=None, tuning_samples=4),
        Case(
            "dvs-conv8",
            "dvs-conv8",
            False,
            8,
            500,
            50,
            design_floor=None,
            tuning_samples=2,
            check_steps=150,
        ),
        Case("randman", "randman", False, 400, 100, 100, design_floor=None),
        *(_linear_lif(neurons) for neurons in (512, 4096, 16384)),
        _alone("layer-dense", Layer((700,), 128), 100, 350),
        _alone("layer-recurrent", Layer((128,), 128), 100, 350, recurrent=True),
        _alone("layer-conv1d", Layer((16, 68), 32, 7, 3), 100, 350),
        replace(
            _alone("layer-conv2d", Layer((32, 32, 32), 32, 3, 1, 1), 32, 50),
            loop_steps=25,
        ),
        *(_dense_at(percent) for percent in (0.5, 1, 2, 5, 10, 20)),
    )
}
# Weights, their gradients and the optimizer's states take 5 GB: run only when it is named.
LARGE = ("linear-lif-16384",)
DEFAULT_CASES = tuple(name for name in CASES if name not in LARGE)
# What `--quick` runs unless cases are named: every kind of layer.
QUICK_CASES = ("dense-recurrent", "shd-conv3", "dalian-dense", "layer-conv2d")


def poisson_input(case: Case) -> PackedSpikes:
    """Independent spikes at the case's rate, at most one per step and input."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.n_steps, case.batch, *case.input_features)
    spikes = torch.rand(shape, generator=generator) < case.input_rate * DT
    if extension.is_available():
        return PackedSpikes.pack(spikes.float())
    return pack_with_torch(spikes)


def pack_with_torch(spikes: torch.Tensor) -> PackedSpikes:
    """Pack a bool (time, batch, *features) tensor without fastlif's kernels, on any device."""
    n_steps, batch, *features = spikes.shape
    channels, height, width = spatial_shape(features)
    bits = spikes.reshape(n_steps, batch, channels, height * width).transpose(2, 3).flatten(2)
    padded = bits.new_zeros(WORD_STEPS * n_words(n_steps), batch, bits.shape[2])
    padded[:n_steps] = bits
    weights = 2 ** torch.arange(WORD_STEPS, device=spikes.device).view(1, -1, 1, 1)
    words = (padded.unflatten(0, (-1, WORD_STEPS)) * weights).sum(1)
    words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return PackedSpikes(words, n_steps, tuple(features))


def build_network(
    case: Case, input: PackedSpikes, tuning_samples: int | None = None
) -> tuple[Sequential, list[float]]:
    """A network whose layers fire near the case's rate, and the sigma_u of each that does it.

    The weights are fluctuation-driven at the measured rate of each layer's input. Every sigma_u is
    found by bisection, from the first layer to the last: a layer's rate rises with its sigma_u and
    does not depend on the layers behind it.
    """
    model = case.build(backend=None if extension.is_available() else "reference")
    signal: Tensor | PackedSpikes = input[: tuning_samples or case.tuning_samples]
    sigma_u = []
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, LIReadout):
                fluctuation_driven_(layer, data=signal, generator=torch.Generator().manual_seed(0))
            elif isinstance(layer, StackLayer):
                sigma_u.append(_tune(case, layer, signal, seed=len(sigma_u)))
            signal = layer(signal)
    rates = firing_rates(model, input)
    slowest, fastest = (rate * case.target_rate / TARGET_RATE for rate in RATE_RANGE)
    if not all(slowest <= rate <= fastest for rate in rates):
        raise ValueError(
            f"every layer of case {case.name!r} must fire at {slowest:g} to {fastest:g} Hz, "
            f"got {rates}"
        )
    return model, sigma_u


def _tune(case: Case, layer: StackLayer, signal: Tensor | PackedSpikes, seed: int) -> float:
    """Draw the layer's weights with the sigma_u, which is returned, that gives the case's rate."""
    if isinstance(signal, Tensor):
        density = float(signal.mean())
    else:
        density = signal.count() / math.prod(signal.shape)
    low, high = SIGMA_U_RANGE
    high *= max(1.0, case.target_rate / TARGET_RATE) ** 0.5
    sigma_u = 1.0
    for tuning_round in range(TUNING_ROUNDS + 1):
        # The same random numbers every time: only their scale changes with sigma_u.
        fluctuation_driven_(
            layer,
            rate=density / DT,
            sigma_u=sigma_u,
            generator=torch.Generator().manual_seed(seed),
        )
        if tuning_round == TUNING_ROUNDS:
            break
        counts = layer(signal, return_spike_counts=True).spike_counts
        if float(counts.mean()) / (signal.shape[0] * DT) < case.target_rate:
            low = sigma_u
        else:
            high = sigma_u
        sigma_u = (low * high) ** 0.5
    return sigma_u


def firing_rates(model: Sequential, input: PackedSpikes) -> list[float]:
    """Mean rate of every spiking layer, in Hz."""
    with torch.no_grad():
        counts = model(input, return_spike_counts=True).spike_counts
    return [float(count.mean()) / (input.n_steps * DT) for count in counts]
