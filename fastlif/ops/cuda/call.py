"""One call of the CUDA kernels: the module, the problem, the device and its stream."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlif.ops.layout import StackShapes
from fastlif.spikes import n_words

EMULATED_SHARED_BYTES = 227 * 1024  # of a block of the emulated device, as on an H100
# Orders in which kernels read weights, by dimensions of (out, in, kernel height, kernel width).
FORWARD_ORDER = (2, 3, 1, 0)
BACKWARD_ORDER = (2, 3, 0, 1)


@lru_cache(maxsize=64)
def misfit(
    kernels: ModuleType,
    ints: tuple[int, ...],
    floats: tuple[float, ...],
    dtype: torch.dtype,
    shared_bytes: int,
) -> str:
    """Why recurrent layers of a stack do not fit a device; "" when all do."""
    plan = kernel_plan(kernels, ints, floats)
    precision = precision_code(dtype, True)
    try:
        kernels.forward_segments(plan, precision, shared_bytes)
        kernels.backward_segments(plan, precision, shared_bytes)
    except ValueError as error:
        return f"cannot hold it: {error}"
    return ""


@lru_cache(maxsize=64)
def kernel_plan(kernels: ModuleType, ints: tuple[int, ...], floats: tuple[float, ...]) -> Any:
    """The kernels' own tables for this stack."""
    return kernels.Plan(ints, floats)


@lru_cache(maxsize=16)
def device_shared_bytes(index: int) -> int:
    """Shared memory that a block may have on a GPU."""
    properties: Any = torch.cuda.get_device_properties(index)
    return int(properties.shared_memory_per_block_optin)


def precision_code(dtype: torch.dtype, exact: bool) -> int:
    """The Precision of csrc/cuda/launch.h."""
    return 2 if dtype == torch.float64 else int(exact)


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies; 0 for one that is absent."""
    return tensor.data_ptr() if tensor is not None and tensor.numel() else 0


@dataclass(frozen=True)
class Call:
    """One run of a stack: the kernels, the problem's shape, and where it is queued."""

    kernels: ModuleType
    shapes: StackShapes
    exact: bool
    device: torch.device

    @property
    def plan(self) -> Any:
        """The kernels' own tables for this stack."""
        return kernel_plan(self.kernels, self.shapes.ints, self.shapes.floats)

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a block may have."""
        if self.device.type == "cpu":
            return EMULATED_SHARED_BYTES
        return device_shared_bytes(self.device.index or 0)

    @property
    def is_double(self) -> bool:
        """Whether numbers are float64."""
        return self.shapes.dtype == torch.float64

    @property
    def stream(self) -> int:
        """The current stream, which all launches go to."""
        if self.device.type == "cpu":
            return 0
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def common(self) -> dict[str, int]:
        """Arguments that all kernels over the steps share."""
        return {
            "n_steps": self.shapes.n_steps,
            "batch": self.shapes.batch,
            "precision": precision_code(self.shapes.dtype, self.exact),
            "stream": self.stream,
        }

    @property
    def samples(self) -> int:
        """Of each network."""
        return self.shapes.batch // self.shapes.networks

    def network_arguments(self, layer: int) -> dict[str, int]:
        """Arguments of kernels that read what drives a layer."""
        return {
            "networks": self.shapes.networks,
            "shared_input": layer == 0 and self.shapes.shares_input,
        }

    def samples_of_each(self, tensor: Tensor, *, shared: bool = False) -> list[Tensor]:
        """(time, samples, ...) of every network, for products of torch's own libraries.

        `shared`: the tensor is the same for all of them.
        """
        networks = self.shapes.networks
        if networks == 1 or shared:
            return [tensor] * networks
        return [_apart(part) for part in tensor.chunk(networks, 1)]

    def weights_of_each(self, weight: Tensor) -> list[Tensor]:
        """A parameter of every network, likewise; empty where it is absent."""
        networks = self.shapes.networks
        if networks == 1 or not weight.numel():
            return [weight] * networks
        return [_apart(own) for own in weight]

    def empty(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """Memory on the device, by default for numbers of the parameters' dtype."""
        return torch.empty(tuple(shape), dtype=dtype or self.shapes.dtype, device=self.device)

    def segments(self, direction: str) -> list[tuple[int, int]]:
        """Ranges of layers that share a launch, "forward" or "backward"."""
        find = getattr(self.kernels, f"{direction}_segments")
        precision = precision_code(self.shapes.dtype, self.exact)
        return find(self.plan, precision, self.shared_bytes)

    def masks(self, words: Tensor, masks: Tensor | None = None) -> Tensor:
        """Words (words, batch, N) as masks (time, batch, ceil(N / 32)) of neighbouring neurons.

        They are written into `masks` where it is given, which may have room for further steps.
        """
        _, batch, neurons = words.shape
        steps = self.shapes.n_steps
        if masks is None:
            masks = self.empty((steps, batch, n_words(neurons)), torch.int32)
        self.kernels.words_to_masks(
            words.data_ptr(), n_steps=steps, batch=batch, neurons=neurons,
            masks=masks.data_ptr(), stream=self.stream,
        )  # fmt: skip
        return masks


def on_device(device: torch.device) -> Any:
    """The device of a tensor as the current one, which launches go to."""
    return nullcontext() if device.type == "cpu" else torch.cuda.device(device)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """The samples of every network, (time, samples, ...), as one tensor."""
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _apart(part: Tensor) -> Tensor:
    """A copy of a part of a tensor: libraries choose their kernels by where a tensor begins."""
    return part.clone(memory_format=torch.contiguous_format)


def packed(weight: Tensor, view: tuple[int, int, int, int], order: tuple[int, ...]) -> Tensor:
    """A weight in the order in which a kernel reads it; empty where there is none.

    One network's behind the other's where there are several.
    """
    if not weight.numel():
        return weight
    return weight.reshape(-1, *view).permute(0, *(1 + dim for dim in order)).contiguous()
