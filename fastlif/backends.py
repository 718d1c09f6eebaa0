"""Which backends can run here, and why another cannot."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch

from fastlif import extension


@dataclass(frozen=True)
class Backend:
    """A way to run the operations, whether it can be used here, and details or the reason."""

    name: str
    available: bool
    detail: str


def backends() -> list[Backend]:
    """All backends of this version; those for a GPU first, the preferred before the other."""
    if extension.is_available():
        kernels = extension.load()
        others = ", ".join(name for name in kernels.isa_names() if name != kernels.isa())
        cpu = Backend("cpu", True, f"fused C++ kernels for {kernels.isa()} (also built: {others})")
    else:
        cpu = Backend("cpu", False, extension.reason())
    reference = Backend("reference", True, "plain PyTorch, any device; slow, the specification")
    return [_cuda(), _triton(), cpu, reference]


def _cuda() -> Backend:
    if not extension.is_available(extension.CUDA):
        return Backend("cuda", False, extension.reason(extension.CUDA))
    return _on_gpu("cuda", "fused CUDA kernels")


def _triton() -> Backend:
    if importlib.util.find_spec("triton") is None:
        return Backend("triton", False, "the package triton is not installed")
    return _on_gpu("triton", "Triton kernels, compiled when they first run")


def _on_gpu(name: str, detail: str) -> Backend:
    if not torch.cuda.is_available():
        return Backend(name, False, "needs a GPU, and torch sees none")
    return Backend(name, True, f"{detail}, on {torch.cuda.get_device_name()}")


def release_memory() -> None:
    """Give back to the system what the kernels hold for the next training step.

    The largest amount that training needed at one time stays reserved between steps; call this
    after training when the memory is wanted elsewhere. Does nothing without the kernels.
    """
    if extension.is_available():
        extension.load().release_pool()
