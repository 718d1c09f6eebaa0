"""What is timed on a GPU, with the goals that were set before anything was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bench.cases import CASES, DT, INPUT_RATE, TARGET_RATE, Case
from bench.gpu.model import (
    Estimate,
    paired_products,
    predict_step,
    scan_backward,
    scan_forward,
)
from fastlif.layers.base import decay_per_step
from fastlif.ops import LayerPlan, LayerTensors
from fastlif.ops.plan import surrogate_scale
from tests.cases import Stack


@dataclass(frozen=True)
class StepCase:
    """A whole training step: loss, bounds, backward, SMORMS3."""

    case: Case
    goal: float | None  # seconds
    tuning_samples: int = 32  # of the batch, to find weights that fire at the wanted rate
    check_steps: int = 100

    @property
    def name(self) -> str:
        """As in the table."""
        return self.case.name

    @property
    def is_predicted(self) -> bool:
        """The model is of stacks in one launch, a block per sample; others run layer by layer."""
        return self.case.recurrent

    def plans(self) -> tuple[LayerPlan, ...]:
        """What each layer computes."""
        plans: list[LayerPlan] = []
        features = self.case.input_features
        for layer in self.case.build():
            plans.append(layer.plan(features, self.case.n_steps))
            features = plans[-1].emitted_features
        return tuple(plans)

    def quick(self) -> StepCase:
        """The same network on a batch small enough for a test."""
        small = self.case.quick()
        # Deep layers stay silent for many steps.
        small = replace(small, n_steps=max(small.n_steps, self.check_steps))
        return replace(self, case=small, goal=None)


@dataclass(frozen=True)
class LayerCase:
    """Forward and backward of one spiking layer whose current is given.

    The goal is a share of the copy bandwidth for a layer without recurrence, seconds per step of
    forward and backward together for a recurrent one.
    """

    name: str
    neurons: int
    recurrent: bool
    batch: int
    n_steps: int
    goal: float | None

    def quick(self) -> LayerCase:
        """The same layer, small enough for a test."""
        return replace(self, neurons=48, batch=3, n_steps=40, goal=None)

    def plan(self) -> LayerPlan:
        """Time constants and threshold are the layers' defaults."""
        return LayerPlan(
            "lif",
            (self.neurons,),
            recurrent_kernel=(1, 1) if self.recurrent else None,
            decay_mem=decay_per_step("tau_mem", 20e-3, DT),
            decay_syn=decay_per_step("tau_syn", 10e-3, DT),
            surrogate_scale=surrogate_scale(1.0, 20.0, rescale=False),
        )

    def stack(self, *, batch: int, n_steps: int) -> Stack:
        """Random currents and weights with which the neurons fire at about 2 % of the steps.

        A current of mean m and standard deviation s per step gives the free membrane the mean
        m / (1 - decay_syn): 0.4 of the threshold here; the rest are fluctuations.
        """
        generator = torch.Generator().manual_seed(4)
        shape = (n_steps, batch, self.neurons)
        plan = self.plan()
        current = torch.randn(shape, generator=generator)
        current = (1.0 - plan.decay_syn) * (0.4 + 3.8 * current)
        weight = None
        if self.recurrent:
            weight = torch.randn(self.neurons, self.neurons, generator=generator)
            weight *= 0.5 / self.neurons**0.5
        return Stack((plan,), (LayerTensors(recurrent_weight=weight),), current)

    def predictions(self, density: float, backend: str, tf32: bool) -> dict[str, list[Estimate]]:
        """Kernels of both directions; `density` is the spikes per neuron and step."""
        work = self.batch * self.n_steps * self.neurons
        if not self.recurrent:
            return {"forward": [scan_forward(work)], "backward": [scan_backward(work)]}
        kernels = predict_step([self.plan()], [0.0, density], self.batch, self.n_steps, tf32=tf32)
        by_name = {estimate.kernel: estimate for estimate in kernels}
        if backend == "triton":
            size = (self.neurons, self.batch, self.n_steps)
            return {
                # Forward, spikes are exact in any precision, but weights are not.
                "forward": [paired_products("pairs, forward", *size, tf32=tf32)],
                "backward": [
                    paired_products("pairs, backward", *size, tf32=tf32),
                    by_name["weight_gradient"],
                ],
            }
        return {
            "forward": [by_name["stack_forward"]],
            "backward": [by_name["stack_backward"], by_name["weight_gradient"]],
        }


@dataclass(frozen=True)
class PackCase:
    """A training step of several networks of one shape on the same samples, beside one of them."""

    step: StepCase
    networks: int
    goal_ratio: float | None  # of its step to that of one

    @property
    def name(self) -> str:
        """As in the table."""
        return f"{self.step.name}-pack"

    def quick(self) -> PackCase:
        """Fewer networks on a small batch."""
        return replace(self, step=self.step.quick(), networks=3, goal_ratio=None)


GpuCase = StepCase | LayerCase | PackCase

GPU_CASES: dict[str, GpuCase] = {
    case.name: case
    for case in (
        StepCase(replace(CASES["shd-conv3"], loop_steps=350), goal=2.5e-3),
        StepCase(CASES["dense-recurrent"], goal=0.5e-3),
        LayerCase("scan", 1088, False, 400, 350, goal=0.9),
        LayerCase("recurrent-1024", 1024, True, 128, 350, goal=2.5e-6),
        StepCase(
            replace(CASES["cifar-conv4"], loop_steps=20),
            None,
            tuning_samples=4,
            check_steps=40,
        ),
        StepCase(
            Case("dvs-conv8", "dvs-conv8", False, 8, 500, 100, None),
            None,
            tuning_samples=2,
            check_steps=150,
        ),
        PackCase(StepCase(CASES["randman"], None), networks=16, goal_ratio=1.3),
        PackCase(
            StepCase(replace(CASES["randman"], name="randman-32", batch=32), None),
            networks=16,
            goal_ratio=1.3,
        ),
    )
}
DENSITIES = (INPUT_RATE * DT, TARGET_RATE * DT)  # spikes per step of an input, of a neuron
KEPT_GOAL = 2.2  # bytes that autograd keeps per neuron and step, in every step case


def firing(spikes: Tensor) -> float:
    """Spikes per neuron and step."""
    return float(spikes.detach().float().mean())
