"""Spiking neurons without synapses, and the base of the spiking layers that have some."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fastlif.init import fluctuation_driven_
from fastlif.layers.base import StackLayer, decay_per_step
from fastlif.ops.connection import Connection
from fastlif.ops.plan import Inhibition, LayerPlan, layer_plan, surrogate_scale


class LIF(StackLayer):
    """Current-based LIF neurons (Rossbroich et al. 2022, eqs 10 and 11) driven by a current.

    Input: current of every step, (time, batch, *features), features (N,), (C, L) or (C, H, W).
    Output: spikes of the same shape. Exact equations: `fastlif.ops.reference`.

    tau_mem, tau_syn, dt: time constants of membrane and synaptic current and the step, in seconds.
    threshold: a neuron spikes where its membrane is above it.
    surrogate_slope, rescale_surrogate: the derivative of a spike is 1 / (slope |U - threshold| +
        1)^2 (eq 28), rescaled to 1 at rest on request (eq 29).
    detach_reset: False lets the gradient flow through the reset as well.
    delay: additional steps, 0 or 1, of every synapse.
    batch_first: input and output are (batch, time, *features).
    exact_membrane: keep membranes for the backward pass in full precision, not float16.
    backend: None for the kernels of the input's device, "reference" for plain PyTorch.

    Raises ValueError for time constants, thresholds or slopes that are not finite and > 0.
    """

    recurrent = False
    hidden = True
    has_synapses = False

    def __init__(
        self,
        *,
        tau_mem: float = 20e-3,
        tau_syn: float = 10e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
        batch_first: bool = False,
        exact_membrane: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.tau_mem = tau_mem
        self.tau_syn = tau_syn
        self.dt = dt
        self.threshold = threshold
        self.surrogate_slope = surrogate_slope
        self.rescale_surrogate = rescale_surrogate
        self.detach_reset = detach_reset
        self.delay = delay
        self.batch_first = batch_first
        self.exact_membrane = exact_membrane
        self.backend = backend
        for name in ("weight", "recurrent_weight", "inhibitory_weight", "bias"):
            self.register_parameter(name, None)
        self.neuron_plan((1,))  # refuses bad options here rather than in the first run

    def neuron_plan(
        self,
        features: tuple[int, ...],
        feedforward: Connection | None = None,
        recurrent_kernel: tuple[int, int] | None = None,
        inhibition: Inhibition | None = None,
    ) -> LayerPlan:
        """Plan of these neurons with the given synapses."""
        return layer_plan(
            "lif",
            features,
            feedforward,
            recurrent_kernel,
            decay_mem=decay_per_step("tau_mem", self.tau_mem, self.dt),
            decay_syn=decay_per_step("tau_syn", self.tau_syn, self.dt),
            threshold=self.threshold,
            surrogate_slope=self.surrogate_slope,
            surrogate_scale=surrogate_scale(
                self.threshold, self.surrogate_slope, rescale=self.rescale_surrogate
            ),
            detach_reset=self.detach_reset,
            delay=self.delay,
            inhibition=inhibition,
        )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for a current of shape (n_steps, batch, *input_features)."""
        return self.neuron_plan(input_features)


class SynapticLIF(LIF):
    """LIF neurons with feed-forward and, if recurrent, lateral synapses."""

    has_synapses = True
    weight: nn.Parameter
    fan_in: int  # number of feed-forward synapses of one neuron
    recurrent_fan_in: int  # number of recurrent synapses of one neuron, 0 if not recurrent

    def reset_parameters(self) -> None:
        """Draw fluctuation-driven weights for input at 10 Hz and sigma_u = 1; biases become 0."""
        fluctuation_driven_(self, rate=10.0)

    def make_parameters(
        self,
        weight_shape: tuple[int, ...],
        recurrent_shape: tuple[int, ...] | None,
        *,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register weight, recurrent_weight and bias (None where absent) and draw them."""
        self.recurrent = recurrent_shape is not None
        self.register_weights(
            {
                "weight": weight_shape,
                "recurrent_weight": recurrent_shape,
                "bias": weight_shape[:1] if bias else None,
            },
            device=device,
            dtype=dtype,
        )

    def register_weights(
        self,
        shapes: Mapping[str, tuple[int, ...] | None],  # None: the layer has no such weight
        *,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Register parameters of these shapes and draw them."""
        for name, shape in shapes.items():
            if shape is not None:
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(name, parameter)
        self.reset_parameters()


def check_counts(**counts: int) -> None:
    """ValueError unless all the named numbers of features or channels are integers >= 1."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
