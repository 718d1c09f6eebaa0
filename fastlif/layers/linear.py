"""Densely connected LIF neurons."""

from __future__ import annotations

import math

import torch

from fastlif.layers.neuron import SynapticLIF, check_counts
from fastlif.ops.connection import dense_connection
from fastlif.ops.plan import LayerPlan


class LIFLinear(SynapticLIF):
    """`nn.Linear` followed by LIF neurons, with dense recurrence on request.

    Input: spikes or any numbers, (time, batch, *features); features whose product is in_features
    are flattened. Output: spikes (time, batch, out_features).
    Parameters: weight (out_features, in_features), recurrent_weight (out_features, out_features)
    with one row per target, bias (out_features,).

    recurrent: the layer's own spikes of a step are part of its input in the same step.
    The other keyword arguments are those of `LIF`, device and dtype those of `nn.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        tau_mem: float = 20e-3,
        tau_syn: float = 10e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
        recurrent: bool = False,
        batch_first: bool = False,
        exact_membrane: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            tau_mem=tau_mem,
            tau_syn=tau_syn,
            dt=dt,
            threshold=threshold,
            surrogate_slope=surrogate_slope,
            rescale_surrogate=rescale_surrogate,
            detach_reset=detach_reset,
            delay=delay,
            batch_first=batch_first,
            exact_membrane=exact_membrane,
            backend=backend,
        )
        check_counts(in_features=in_features, out_features=out_features)
        self.in_features = self.fan_in = in_features
        self.out_features = out_features
        self.recurrent_fan_in = out_features if recurrent else 0
        self.make_parameters(
            (out_features, in_features),
            (out_features, out_features) if recurrent else None,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for inputs of shape (n_steps, batch, *input_features)."""
        check_in_features(input_features, self.in_features)
        link = dense_connection(input_features, self.out_features)
        return self.neuron_plan((self.out_features,), link, (1, 1) if self.recurrent else None)

    def extra_repr(self) -> str:
        """Arguments as in nn.Linear, then those of the neurons."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {super().extra_repr()}"
        )


def check_in_features(input_features: tuple[int, ...], in_features: int) -> None:
    """ValueError unless the input of a dense layer has the features it was built for."""
    if math.prod(input_features) != in_features:
        raise ValueError(
            f"input must have features whose product is in_features={in_features}, "
            f"got features {input_features}"
        )
