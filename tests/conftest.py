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


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
