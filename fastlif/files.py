"""Files that survive a crash, and folders that one process at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FolderInUse", "held_by_this_process", "write_atomically"]

LOCK_NAME = ".lock"


class FolderInUse(ValueError):
    """Another process writes to the folder."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that its name leads to all of the old or all of the new content.

    What is written goes to disk before the new file takes the name, and the folder's entry after.
    One process at a time may do so in a folder, see `held_by_this_process`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def held_by_this_process(folder: Path) -> Iterator[None]:
    """Make a folder and hold it until the context ends.

    Where the file system has locks, this one goes with a process that dies.

    Raises:
        FolderInUse: another process holds the folder; it is a ValueError too.
        ValueError: the folder cannot be locked.
    """
    from filelock import FileLock, Timeout  # an import of the training command alone

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by another process (it holds {folder / LOCK_NAME}): wait for it, "
            "or choose another output folder"
        ) from None
    except NotImplementedError as error:
        raise ValueError(f"{folder} is on a file system without locks ({error})") from error
    try:
        yield
    finally:
        lock.release()
