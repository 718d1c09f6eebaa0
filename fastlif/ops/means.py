"""Means of rows whose bits depend on nothing but the row, as networks side by side need them.

torch's own reductions on a GPU share the work out by the number of results too.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlif import extension

__all__ = ["row_means", "suits"]

_library = torch.library.Library("fastlif", "FRAGMENT")
_library.define("row_means(Tensor values) -> Tensor")


def suits(values: Tensor) -> bool:
    """Whether a kernel takes such values; not while torch.compile looks, which fuses better."""
    return (
        not torch.compiler.is_compiling()
        and values.device.type == "cuda"
        and values.dtype in (torch.float32, torch.float64)
        and extension.serves(values.device)
    )


def row_means(values: Tensor) -> Tensor:
    """(rows, columns) to the mean of each row, (rows,); differentiable any number of times."""
    result: Tensor = _RowMeans.apply(values)
    return result


def launch(kernels: ModuleType, values: Tensor, stream: int) -> Tensor:
    """Queue the kernel of a CUDA module."""
    values = values.contiguous()
    rows, columns = values.shape
    means = values.new_empty(rows)
    kernels.row_means(
        values.data_ptr(),
        rows=rows,
        columns=columns,
        is_double=values.dtype == torch.float64,
        means=means.data_ptr(),
        stream=stream,
    )
    return means


@torch.library.impl(_library, "row_means", "CUDA")
def _on_gpu(values: Tensor) -> Tensor:
    with extension.queue(values.device) as stream:
        return launch(extension.load(extension.CUDA), values, stream)


@torch.library.register_fake("fastlif::row_means", lib=_library)
def _fake(values: Tensor) -> Tensor:
    return values.new_empty(values.shape[0])


class _RowMeans(torch.autograd.Function):
    """fastlif::row_means, differentiable. A linear function: its derivative is itself."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return torch.ops.fastlif.row_means(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.columns = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return (grad / ctx.columns).unsqueeze(1).expand(-1, ctx.columns)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return row_means(tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], values: Tensor) -> tuple[Tensor, int]:
        values = values.movedim(in_dims[0], 0)
        return row_means(values.flatten(0, 1)).unflatten(0, values.shape[:2]), 0
