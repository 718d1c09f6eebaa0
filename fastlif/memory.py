"""Memory that a process may take, and what it looks like when it gets no more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["NO_MEMORY", "check_device", "is_out_of_memory", "memory_limit"]

# What PyTorch's allocator, oneDNN, the start of a thread, the loader of libraries and a kernel's
# thread say when they get no memory.
NO_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "Resource temporarily unavailable",
    "can't start new thread",
    "failed to map segment",
    "bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was no memory left, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, (RuntimeError, ImportError, OSError)) and any(
        text in str(error) for text in NO_MEMORY
    )


def check_device(name: str) -> None:
    """ValueError where "cuda" is asked for and torch cannot use a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device 'cuda' needs a GPU that torch {torch.__version__} can use")


@contextmanager
def memory_limit(n_bytes: int | None, device: str) -> Iterator[None]:
    """Let this process take so many bytes at most while the context lasts.

    On the CPU that is its data segment (RLIMIT_DATA of Linux): PyTorch, data and parameters
    included. On a GPU it is what PyTorch allocates there.

    Args:
        n_bytes: the limit; None: there is none.
        device: "cpu" or "cuda".

    Raises:
        ValueError: there is a limit, and no GPU for it.
    """
    if n_bytes is None:
        yield
    elif device == "cuda":
        check_device(device)
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, n_bytes / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        import resource  # of POSIX alone

        before = resource.getrlimit(resource.RLIMIT_DATA)
        hard = before[1]
        most = n_bytes if hard == resource.RLIM_INFINITY else min(n_bytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, before)
