"""What is timed: networks, and layers alone."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastlif import LIFConv1d, LIFConv2d, LIFLinear, LIReadout, Sequential
from fastlif.layers.base import StackLayer
from fastlif.models import Preset, Regularization, build, preset

DT = 2e-3  # seconds per step
INPUT_RATE = 12.0  # Hz
TARGET_RATE = 10.0  # Hz, of every spiking layer
RATE_RANGE = (8.0, 12.0)  # Hz, in which the measured rates must lie where TARGET_RATE is wanted
TUNING_SAMPLES = 32
CHECK_STEPS = 100
KEY_REPEATS, REPEATS = 5, 3  # turns of every side


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
    and backward times are scaled by n_steps / loop_steps. Their memory is measured over
    `memory_steps`.
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
    memory_steps: int | None = None  # None: loop_steps
    is_key: bool = False  # timed beside all opponents, not the plain loop alone, and in more turns

    @property
    def repeats(self) -> int:
        """Turns of every side that are timed unless a number is given."""
        return KEY_REPEATS if self.is_key else REPEATS

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
        return replace(
            self,
            batch=8,
            n_steps=n_steps,
            loop_steps=n_steps // 2,
            memory_steps=None if self.memory_steps is None else n_steps,
            design_floor=None,
        )

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
    return Case(name, "shd-dense", True, 400, 350, 50, design_floor=None, neurons=neurons)


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
    case = _alone(f"linear-lif-{neurons}", layer, 16, 500)
    return replace(case, is_key=True) if neurons == 512 else replace(case, loop_steps=50)


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("dense-recurrent", "shd-dense", True, 400, 350, 350, design_floor=0.08, is_key=True),
        Case(
            "shd-conv3",
            "shd-conv3",
            True,
            400,
            350,
            50,
            design_floor=1.1,
            memory_steps=350,
            is_key=True,
        ),
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
# Weights, their gradients and the optimizer's states take 5 GB.
LARGE = ("linear-lif-16384",)
# Run only when they are named; over the density of spikes `bench growth` has a series too.
NAMED = (*LARGE, "linear-lif-4096", *(name for name in CASES if name.startswith("density-")))
DEFAULT_CASES = tuple(name for name in CASES if name not in NAMED)
KEY_CASES = tuple(name for name in CASES if CASES[name].is_key)
# What `--quick` runs unless cases are named: every kind of layer.
QUICK_CASES = ("dense-recurrent", "shd-conv3", "dalian-dense", "layer-conv2d")
