"""Layers of excitatory and inhibitory neurons that obey Dale's law."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlif.layers.base import decay_per_step
from fastlif.layers.conv import Convolution, kernel_pair
from fastlif.layers.linear import check_in_features
from fastlif.layers.neuron import SynapticLIF, check_counts
from fastlif.ops.connection import as_sizes, dense_connection
from fastlif.ops.plan import Inhibition, LayerPlan

NON_NEGATIVE = ("weight", "recurrent_weight", "inhibitory_weight")


class TimeConstants(NamedTuple):
    """Time constants of one population of a layer, in seconds."""

    tau_mem: float
    tau_syn: float  # of its excitatory currents
    tau_inhibitory: float  # of its inhibitory currents


class DalianLIF(SynapticLIF):
    """What the Dalian layers share: two populations, three weights that are never negative.

    The layer's neurons are `n_excitatory` excitatory channels (in a dense layer: neurons) and
    behind them `n_inhibitory` inhibitory ones. tau_mem, tau_syn and tau_inhibitory are those of
    the excitatory neurons, `inhibitory_taus` those of the inhibitory ones.
    """

    recurrent = True
    recurrent_weight: nn.Parameter | None
    inhibitory_weight: nn.Parameter
    n_excitatory: int
    n_inhibitory: int
    inhibitory_fan_in: int  # number of synapses of one neuron from the layer's inhibitory neurons

    def __init__(
        self,
        *,
        tau_mem: float | Sequence[float],
        tau_syn: float | Sequence[float],
        tau_inhibitory: float | Sequence[float],
        **options: Any,  # of LIF
    ) -> None:
        pairs = [
            _of_both(name, value)
            for name, value in (
                ("tau_mem", tau_mem),
                ("tau_syn", tau_syn),
                ("tau_inhibitory", tau_inhibitory),
            )
        ]
        super().__init__(tau_mem=pairs[0][0], tau_syn=pairs[1][0], **options)
        self.tau_inhibitory = pairs[2][0]
        self.inhibitory_taus = TimeConstants(*(pair[1] for pair in pairs))
        self._inhibition((1, 1), 1)  # refuses bad time constants here

    @property
    def excitatory_taus(self) -> TimeConstants:
        """Time constants of the excitatory neurons."""
        return TimeConstants(self.tau_mem, self.tau_syn, self.tau_inhibitory)

    def non_negative_parameters(self) -> list[nn.Parameter]:
        """The weights that an optimizer has to keep from falling below 0: all of them."""
        weights = (self.weight, self.recurrent_weight, self.inhibitory_weight)
        return [weight for weight in weights if weight is not None]

    def blocks(self) -> dict[str, Tensor]:
        """The sets of weights as the paper names them (eqs 12 to 19), views of the parameters.

        W_FE and W_FI: from the input onto excitatory and inhibitory neurons; V_EE, V_EI, V_IE and
        V_II: from and onto the layer's own neurons, sources named first. V_EE and V_EI are missing
        without excitatory recurrence. Rows are targets.
        """
        if self.networks > 1:
            raise ValueError(f"blocks are those of one network, got a layer of {self.networks}")
        n = self.n_excitatory
        blocks = {"W_FE": self.weight[:n], "W_FI": self.weight[n:]}
        if self.recurrent_weight is not None:
            blocks |= {"V_EE": self.recurrent_weight[:n], "V_EI": self.recurrent_weight[n:]}
        return blocks | {"V_IE": self.inhibitory_weight[:n], "V_II": self.inhibitory_weight[n:]}

    def _inhibition(self, kernel: tuple[int, int], channels: int) -> Inhibition:
        own = self.inhibitory_taus
        of_inhibitory = "{} of the inhibitory neurons".format
        return Inhibition(
            channels,
            kernel,
            decay_syn=decay_per_step("tau_inhibitory", self.tau_inhibitory, self.dt),
            neuron_decay_mem=decay_per_step(of_inhibitory("tau_mem"), own.tau_mem, self.dt),
            neuron_decay_syn=decay_per_step(of_inhibitory("tau_syn"), own.tau_syn, self.dt),
            neuron_decay_inhibitory=decay_per_step(
                of_inhibitory("tau_inhibitory"), own.tau_inhibitory, self.dt
            ),
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Load as every module does, but refuse negative weights and NaN and then load none."""
        error_messages: list[str] = args[-1]
        problems = []
        for name in NON_NEGATIVE:
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and not value.is_meta and not bool((value >= 0.0).all()):
                problems.append(
                    f"{prefix}{name} of a Dalian layer must not be negative or NaN, "
                    f"got values down to {float(value.min()):.4g}"
                )
        if problems:
            error_messages += problems
            return
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """As for the other layers, and the inhibitory neurons' time constants if they differ."""
        shown = super().extra_repr()
        if self.inhibitory_taus != self.excitatory_taus:
            shown += f", inhibitory_taus={tuple(self.inhibitory_taus)}"
        return shown


class LIFDalianLinear(DalianLIF):
    """Dense layer of excitatory and inhibitory LIF neurons (Rossbroich et al. 2022, eqs 12 to 19).

    Input: spikes or any numbers, (time, batch, *features); features whose product is in_features
    are flattened. Output: spikes of the excitatory neurons, (time, batch, out_features); the
    inhibitory ones are heard within the layer only. Spike counts and states cover both, excitatory
    neurons first.
    Parameters, N = out_features + inhibitory_features, excitatory targets in the first rows:
    weight (N, in_features), recurrent_weight (N, out_features) from the layer's own excitatory
    neurons, inhibitory_weight (N, inhibitory_features) from its inhibitory ones, whose currents
    are subtracted. None of them may be negative: `fastlif.optim` has optimizers keep it so. There
    is no bias. `blocks` gives the six sets of weights by name.

    inhibitory_features: None takes out_features // 4.
    recurrent_excitation: False leaves recurrent_weight None.
    tau_mem, tau_syn, tau_inhibitory: time constants of membranes, excitatory and inhibitory
        currents in seconds: one number, or (of excitatory neurons, of inhibitory neurons).
    The other keyword arguments are those of `LIF`, device and dtype those of `nn.Linear`.

    Raises ValueError for sizes below 1 (so for out_features below 4 without inhibitory_features)
    and for what `LIF` refuses.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        inhibitory_features: int | None = None,
        *,
        recurrent_excitation: bool = True,
        tau_mem: float | Sequence[float] = 20e-3,
        tau_syn: float | Sequence[float] = 10e-3,
        tau_inhibitory: float | Sequence[float] = 20e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
        batch_first: bool = False,
        exact_membrane: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            tau_mem=tau_mem,
            tau_syn=tau_syn,
            tau_inhibitory=tau_inhibitory,
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
        inhibitory_features = _quarter(
            "inhibitory_features", inhibitory_features, "out_features", out_features
        )
        self.in_features = self.fan_in = in_features
        self.out_features = self.n_excitatory = out_features
        self.inhibitory_features = self.n_inhibitory = inhibitory_features
        self.recurrent_excitation = recurrent_excitation
        self.recurrent_fan_in = out_features if recurrent_excitation else 0
        self.inhibitory_fan_in = inhibitory_features
        n_neurons = out_features + inhibitory_features
        self.register_weights(
            {
                "weight": (n_neurons, in_features),
                "recurrent_weight": (n_neurons, out_features) if recurrent_excitation else None,
                "inhibitory_weight": (n_neurons, inhibitory_features),
            },
            device=device,
            dtype=dtype,
        )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for inputs of shape (n_steps, batch, *input_features)."""
        check_in_features(input_features, self.in_features)
        n_neurons = self.n_excitatory + self.n_inhibitory
        return self.neuron_plan(
            (n_neurons,),
            dense_connection(input_features, n_neurons),
            (1, 1) if self.recurrent_excitation else None,
            self._inhibition((1, 1), self.n_inhibitory),
        )

    def extra_repr(self) -> str:
        """Sizes, then what the neurons show."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"inhibitory_features={self.inhibitory_features}, {super().extra_repr()}"
        )


class LIFDalianConv1d(DalianLIF, Convolution):
    """Convolutional layer of excitatory and inhibitory LIF neurons (eqs 12 to 19).

    Input: spikes or any numbers, (time, batch, in_channels, length). Output: spikes of the
    excitatory channels, (time, batch, out_channels, out_length).
    Parameters, C = out_channels + inhibitory_channels, excitatory targets in the first rows:
    weight (C, in_channels, kernel_size), recurrent_weight (C, out_channels, recurrent_kernel_size),
    inhibitory_weight (C, inhibitory_channels, inhibitory_kernel_size), none of them ever negative.

    kernel_size, stride, padding, dilation: of the feed-forward synapses, as for `LIFConv1d`. The
        synapses within the layer have odd kernels, stride 1 and "same" padding.
    inhibitory_channels: None takes out_channels // 4.
    For the rest see `LIFDalianLinear`.
    """

    n_spatial = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        inhibitory_channels: int | None = None,
        *,
        recurrent_excitation: bool = True,
        recurrent_kernel_size: int | Sequence[int] = 5,
        inhibitory_kernel_size: int | Sequence[int] = 3,
        tau_mem: float | Sequence[float] = 20e-3,
        tau_syn: float | Sequence[float] = 10e-3,
        tau_inhibitory: float | Sequence[float] = 20e-3,
        dt: float = 2e-3,
        threshold: float = 1.0,
        surrogate_slope: float = 20.0,
        rescale_surrogate: bool = False,
        detach_reset: bool = True,
        delay: int = 0,
        batch_first: bool = False,
        exact_membrane: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            tau_mem=tau_mem,
            tau_syn=tau_syn,
            tau_inhibitory=tau_inhibitory,
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
        self.set_geometry(in_channels, out_channels, kernel_size, stride, padding, dilation)
        inhibitory_channels = _quarter(
            "inhibitory_channels", inhibitory_channels, "out_channels", out_channels
        )
        self.n_excitatory = out_channels
        self.inhibitory_channels = self.n_inhibitory = inhibitory_channels
        self.recurrent_excitation = recurrent_excitation
        self.recurrent_kernel_size = as_sizes("recurrent_kernel_size", recurrent_kernel_size, 1)
        if recurrent_excitation:
            self.own_kernel("recurrent_kernel_size", recurrent_kernel_size)
        self.inhibitory_kernel_size = self.own_kernel(
            "inhibitory_kernel_size", inhibitory_kernel_size
        )
        sources = (out_channels, *self.recurrent_kernel_size)
        inhibitory_sources = (inhibitory_channels, *self.inhibitory_kernel_size)
        self.recurrent_fan_in = math.prod(sources) if recurrent_excitation else 0
        self.inhibitory_fan_in = math.prod(inhibitory_sources)
        n_channels = out_channels + inhibitory_channels
        self.register_weights(
            {
                "weight": (n_channels, in_channels, *self.kernel_size),
                "recurrent_weight": (n_channels, *sources) if recurrent_excitation else None,
                "inhibitory_weight": (n_channels, *inhibitory_sources),
            },
            device=device,
            dtype=dtype,
        )

    def plan(self, input_features: tuple[int, ...], n_steps: int) -> LayerPlan:
        """What this layer computes for inputs of shape (n_steps, batch, *input_features)."""
        link, features = self.connection(input_features, self.n_excitatory + self.n_inhibitory)
        return self.neuron_plan(
            features,
            link,
            kernel_pair(self.recurrent_kernel_size) if self.recurrent_excitation else None,
            self._inhibition(kernel_pair(self.inhibitory_kernel_size), self.n_inhibitory),
        )

    def extra_repr(self) -> str:
        """Sizes, then what the neurons show."""
        shown = f"{self.geometry()}, inhibitory_channels={self.inhibitory_channels}"
        return f"{shown}, {super().extra_repr()}"


def _of_both(name: str, value: float | Sequence[float]) -> tuple[float, float]:
    """A time constant of (excitatory, inhibitory) neurons from one number or two.

    Two may be any iterable, an array or a tensor too; ValueError for anything else.
    """
    is_scalar = getattr(value, "ndim", None) == 0  # an array or tensor that cannot be iterated
    pair: tuple[Any, ...] = (value, value)
    if isinstance(value, Iterable) and not is_scalar:
        pair = tuple(value)
    try:
        excitatory, inhibitory = (float(number) for number in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be one number or (of excitatory neurons, of inhibitory neurons), "
            f"got {value!r}"
        ) from error
    return (excitatory, inhibitory)


def _quarter(name: str, given: int | None, of: str, n_excitatory: int) -> int:
    """The number of inhibitory neurons: as given, or a quarter of the excitatory ones."""
    number = n_excitatory // 4 if given is None else given
    if given is None and number == 0:
        raise ValueError(
            f"{name} must be given where a quarter of {of} is less than 1, got {of}={n_excitatory}"
        )
    check_counts(**{name: number})
    return number
