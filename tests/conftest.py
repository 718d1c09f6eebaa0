"""Set-up shared by all tests."""

from __future__ import annotations

import os

import pytest
import torch

from .targets import target  # noqa: F401 - a fixture for all tests

# The references run thousands of tiny operations, which threads only slow down (20 times when the
# machine is busy). Tests of threading set their own number.
torch.set_num_threads(1)

# Ray gives its workers the lowest priority by default: beside another test process that fills all
# cores they would take minutes to start.
os.environ.setdefault("RAY_worker_niceness", "0")


# The files that take longest, to begin with: no process is left with one when the others are done.
LONGEST = ("test_sweep_faults.py", "test_stack.py", "test_triton.py")


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest-xdist hand out files in the order of collection, not of their number of tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order is otherwise as it was."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
