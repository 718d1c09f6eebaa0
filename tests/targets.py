"""What the tests of operations run on: every backend, on the device it needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import pytest
import torch

from fastlif import extension
from fastlif.ops import cuda, means
from fastlif.ops.engines import ENGINES, Engine

from .emulation import emulated_cuda


@dataclass(frozen=True)
class Target:
    """A backend by name, and the device of its tensors."""

    name: str
    device: str

    @property
    def missing(self) -> str:
        """Why it cannot be tested here; "" when it can."""
        if self.name == "triton-interpreted":
            return "" if os.environ.get("TRITON_INTERPRET") == "1" else "needs TRITON_INTERPRET=1"
        if self.device == "cuda" and not torch.cuda.is_available():
            return "needs a GPU"
        if self.name == "cuda" and not extension.is_available(extension.CUDA):
            return extension.reason(extension.CUDA)
        return ""

    @property
    def backend(self) -> str:
        """The name to ask for."""
        return self.name.removesuffix("-interpreted")


TARGETS = [
    Target("cpu", "cpu"),
    Target("emulated", "cpu"),  # the CUDA kernels, run thread by thread on the CPU
    Target("triton-interpreted", "cpu"),
    Target("cuda", "cuda"),
    Target("triton", "cuda"),
]
BY_NAME = {target.name: target for target in TARGETS}


@contextmanager
def emulated_means(kernels: ModuleType) -> Iterator[None]:
    """Let the losses of tensors on the CPU take their means by an emulated module."""

    def suits(values: torch.Tensor) -> bool:
        return values.dtype in (torch.float32, torch.float64)

    def on_cpu(values: torch.Tensor) -> torch.Tensor:
        return means.launch(kernels, values, stream=0)

    with torch.library._scoped_library("fastlif", "IMPL") as library:
        library.impl("row_means", on_cpu, "CPU")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(means, "suits", suits)
            yield


@contextmanager
def emulated(kernels: ModuleType) -> Iterator[None]:
    """Put the CUDA kernels of an emulated module into the table of engines."""
    ENGINES["emulated"] = Engine(
        partial(cuda.forward, kernels=kernels),
        partial(cuda.backward, kernels=kernels),
        lambda device, plans, dtype: "" if device.type == "cpu" else "runs on the CPU",
        networks_at_once=ENGINES["cuda"].networks_at_once,
    )
    try:
        yield
    finally:
        del ENGINES["emulated"]


@contextmanager
def ready(target: Target) -> Iterator[Target]:
    """The target, with the emulated engine in the table of engines while it is in use."""
    if target.missing:
        pytest.skip(target.missing)
    if target.name == "emulated":
        with emulated(emulated_cuda()):
            yield target
    else:
        yield target


HERE = [target for target in TARGETS if not target.missing]


@pytest.fixture(params=HERE, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Every backend that can be tested here, in turn."""
    with ready(request.param) as prepared:
        yield prepared
