"""What is timed: networks of the presets on Poisson spikes, every layer firing near 10 Hz."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import torch

from fastlif import PackedSpikes, Sequential, extension
from fastlif.init import fluctuation_driven_
from fastlif.models import Preset, build, preset
from fastlif.spikes import WORD_STEPS, n_words, spatial_shape

DT = 2e-3  # seconds per step
INPUT_RATE = 12.0  # Hz
TARGET_RATE = 10.0  # Hz, of every spiking layer
RATE_RANGE = (8.0, 12.0)  # Hz, in which the measured rates must lie
TUNING_SAMPLES = 32
SIGMA_U_RANGE = (0.2, 4.0)
TUNING_ROUNDS = 12


@dataclass(frozen=True)
class Case:
    """A training step of one network.

    `loop_steps` is the number of steps that the plain loop is given; its time per step does not
    depend on it (each step runs the same operations on tensors of the same size), so its forward
    and backward times are scaled by n_steps / loop_steps.
    """

    name: str
    preset: str
    recurrent: bool
    batch: int
    n_steps: int
    loop_steps: int
    # Seconds that the kernels were designed to approach on 2 AVX-512 cores; None if not estimated.
    design_floor: float | None

    @property
    def network(self) -> Preset:
        """The network's sizes and regularizers."""
        return preset(self.preset)

    @property
    def input_features(self) -> tuple[int, ...]:
        """Features of one step of spikes: of images, what their encoder emits."""
        features = self.network.input_features()
        return ((self.network.encoder_fan_out or 1) * features[0], *features[1:])

    def build(
        self, *, backend: str | None = None, device: torch.device | str | None = None
    ) -> Sequential:
        """The network behind its encoder, if any; weights drawn by the layers' own default."""
        model = build(self.preset, recurrent=self.recurrent, dt=DT, backend=backend, device=device)
        layers = [item for item in model.named_children() if item[0] != "encoder"]
        return Sequential(OrderedDict(layers))

    def quick(self) -> Case:
        """The same network on a batch small enough for a test."""
        return replace(self, batch=8, n_steps=60, loop_steps=30, design_floor=None)

    def describe(self) -> str:
        """Sizes in one line."""
        kind = "recurrent" if self.recurrent else "feed-forward"
        return f"{self.preset} {kind}, batch {self.batch}, {self.n_steps} steps"


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        Case("dense-recurrent", "shd-dense", True, 400, 350, 350, design_floor=0.08),
        Case("shd-conv3", "shd-conv3", True, 400, 350, 50, design_floor=1.1),
        Case("dense-recurrent-160", "shd-dense160", True, 400, 350, 350, design_floor=None),
        Case("dalian-dense", "shd-dalian", True, 400, 350, 350, design_floor=None),
        Case("shd-conv7", "shd-conv7", True, 100, 350, 50, design_floor=None),
        Case("cifar-conv4", "cifar-conv4", False, 128, 50, 5, design_floor=None),
        Case("randman", "randman", False, 400, 100, 100, design_floor=None),
    )
}


def poisson_input(case: Case) -> PackedSpikes:
    """Independent spikes at `INPUT_RATE`, at most one per step and input."""
    generator = torch.Generator().manual_seed(1)
    shape = (case.n_steps, case.batch, *case.input_features)
    spikes = torch.rand(shape, generator=generator) < INPUT_RATE * DT
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
    case: Case, input: PackedSpikes, tuning_samples: int = TUNING_SAMPLES
) -> tuple[Sequential, list[float]]:
    """A network whose layers fire near `TARGET_RATE`, and the sigma_u of each that does it.

    The weights are fluctuation-driven at the measured rate of each layer's input. Every sigma_u is
    found by bisection, from the first layer to the last: a layer's rate rises with its sigma_u and
    does not depend on the layers behind it.
    """
    model = case.build(backend=None if extension.is_available() else "reference")
    sample = input[:tuning_samples]
    n_layers = len(case.network.hidden)
    sigma_u = [1.0] * n_layers

    def draw_and_run() -> list[float]:
        # The same random numbers every time: only their scale changes with sigma_u.
        fluctuation_driven_(
            model, data=sample, sigma_u=sigma_u, generator=torch.Generator().manual_seed(0)
        )
        return firing_rates(model, sample)

    for layer in range(n_layers):
        low, high = SIGMA_U_RANGE
        for _ in range(TUNING_ROUNDS):
            if draw_and_run()[layer] < TARGET_RATE:
                low = sigma_u[layer]
            else:
                high = sigma_u[layer]
            sigma_u[layer] = (low * high) ** 0.5
    draw_and_run()
    rates = firing_rates(model, input)
    if not all(RATE_RANGE[0] <= rate <= RATE_RANGE[1] for rate in rates):
        raise ValueError(
            f"every layer of case {case.name!r} must fire at {RATE_RANGE[0]:g} to "
            f"{RATE_RANGE[1]:g} Hz, got {rates}"
        )
    return model, sigma_u


def firing_rates(model: Sequential, input: PackedSpikes) -> list[float]:
    """Mean rate of every spiking layer, in Hz."""
    with torch.no_grad():
        counts = model(input, return_spike_counts=True).spike_counts
    return [float(count.mean()) / (input.n_steps * DT) for count in counts]
