"""The compiled kernels, `fastlif._C`, or the reason why they are not there."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType


@cache
def _import() -> ModuleType | ImportError:
    import torch  # noqa: F401 - first, so that both use torch's OpenMP runtime

    try:
        return importlib.import_module("fastlif._C")
    except ImportError as error:
        return error


def is_available() -> bool:
    """Whether the compiled kernels can be loaded."""
    return isinstance(_import(), ModuleType)


def reason() -> str:
    """Why the kernels are not available; empty when they are."""
    module = _import()
    return "" if isinstance(module, ModuleType) else f"fastlif._C cannot be imported: {module}"


def load() -> ModuleType:
    """The module; RuntimeError with the reason when it is not available."""
    module = _import()
    if isinstance(module, ModuleType):
        return module
    raise RuntimeError(
        f"{reason()}. Install fastlif with a C++17 compiler present, or use backend='reference'"
    )
