"""The compiled kernels, `fastlif._C` and `fastlif._cuda`, or the reason why they are not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU, CUDA = "fastlif._C", "fastlif._cuda"
_CURE = {
    CPU: "Install fastlif with a C++17 compiler present, or use backend='reference'",
    CUDA: "Install fastlif with CUDA's nvcc present, or use backend='triton'",
}


@cache
def _import(name: str) -> ModuleType | ImportError:
    import torch  # noqa: F401 - first, so that both use torch's OpenMP runtime

    try:
        return importlib.import_module(name)
    except ImportError as error:
        return error


def is_available(name: str = CPU) -> bool:
    """Whether the compiled kernels can be loaded."""
    return isinstance(_import(name), ModuleType)


@cache
def unusable(index: int) -> str:
    """Why the CUDA kernels, which are there, cannot run on a GPU, such as an old driver; or ""."""
    import torch

    with torch.cuda.device(index):
        return str(load(CUDA).unusable())


def serves(device: torch.device) -> bool:
    """Whether there are compiled kernels that can run on a device."""
    if device.type == "cuda":
        return is_available(CUDA) and not unusable(device.index or 0)
    return device.type == "cpu" and is_available()


@contextmanager
def queue(device: torch.device) -> Iterator[int]:
    """A GPU as the current one, which kernels go to, and its current stream for them."""
    import torch

    with torch.cuda.device(device):
        yield int(torch.cuda.current_stream(device).cuda_stream)


def reason(name: str = CPU) -> str:
    """Why the kernels are not available; empty when they are."""
    module = _import(name)
    return "" if isinstance(module, ModuleType) else f"{name} cannot be imported: {module}"


def load(name: str = CPU) -> ModuleType:
    """The module; RuntimeError with the reason when it is not available."""
    module = _import(name)
    if isinstance(module, ModuleType):
        return module
    raise RuntimeError(f"{reason(name)}. {_CURE[name]}")
