"""Which backends can run here, and why another cannot."""

from __future__ import annotations

from dataclasses import dataclass

from fastlif import extension


@dataclass(frozen=True)
class Backend:
    """A way to run the operations, whether it can be used here, and details or the reason."""

    name: str
    available: bool
    detail: str


def backends() -> list[Backend]:
    """All backends of this version, the preferred first."""
    if extension.is_available():
        kernels = extension.load()
        others = ", ".join(name for name in kernels.isa_names() if name != kernels.isa())
        cpu = Backend("cpu", True, f"fused C++ kernels for {kernels.isa()} (also built: {others})")
    else:
        cpu = Backend("cpu", False, extension.reason())
    return [cpu, Backend("reference", True, "plain PyTorch, any device; slow, the specification")]


def release_memory() -> None:
    """Give back to the system what the kernels hold for the next training step.

    The largest amount that training needed at one time stays reserved between steps; call this
    after training when the memory is wanted elsewhere. Does nothing without the kernels.
    """
    if extension.is_available():
        extension.load().release_pool()
