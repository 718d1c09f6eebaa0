"""The devices that the commands take by name."""

from __future__ import annotations

import torch


def chosen_device(name: str) -> str:
    """The device meant by `name`: cpu, cuda, or auto for a GPU if there is one.

    A checkpoint keeps what "auto" was when the run began.

    Raises:
        ValueError: there is no such device, or no GPU that torch can use.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise ValueError(f"device must be cpu, cuda or auto, got {name!r}")
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if has_gpu else "cpu"
    if name == "cuda" and not has_gpu:
        raise ValueError(f"device 'cuda' needs a GPU that torch {torch.__version__} can use")
    return name
