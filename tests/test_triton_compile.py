"""Every Triton kernel compiles for the GPUs it is meant for, without spills and within budget."""

from __future__ import annotations

import ast
import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from . import triton_signatures

PACKAGE = Path(__file__).resolve().parent.parent / "fastlif" / "ops" / "triton"
# Registers of a thread. Scans live from many warps on a multiprocessor; what multiplies matrices
# holds a tile of the result, and the resident recurrences their weights too.
BUDGET = {"pack": 40, "unpack": 40, "count": 40, "pair": 40, "lif_forward": 48, "lif_backward": 80,
          "readout_forward": 48, "readout_backward": 48, "synapse_forward": 144,
          "weight_gradient": 255, "recurrent_forward": 255, "recurrent_backward": 255,
          "pool_backward": 40}  # fmt: skip
# A number in double precision is two registers, and inhibition doubles the numbers of a neuron.
DOUBLE_BUDGET = {"pair": 48, "lif_backward": 96}


@pytest.fixture(scope="module")
def rows():
    return triton_signatures.rows()


def test_no_kernel_spills_or_is_over_its_budget(rows):
    table = "\n".join(
        f"sm_{r.arch} {r.registers:4} {r.shared:6} {r.name} {r.variant}" for r in rows
    )
    print(f"registers, shared memory\n{table}")
    wrong = [
        f"{r.name} for sm_{r.arch} {r.over_budget} ({r.variant})" for r in rows if r.over_budget
    ]
    for row in rows:
        name = row.name.removesuffix("_kernel")
        budget = BUDGET | (DOUBLE_BUDGET if "fp64" in row.variant else {})
        if row.registers > budget[name]:
            wrong.append(f"{row.name} for sm_{row.arch} takes {row.registers} registers")
    assert wrong == []


def test_every_kernel_is_among_them(rows):
    defined = {
        node.name
        for path in PACKAGE.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    }
    assert len(defined) == len(BUDGET)
    assert {(row.name, row.arch) for row in rows} == {(n, a) for n in defined for a in (80, 90)}


def test_a_spill_is_found(rows):
    assert "spills 8 bytes" in replace(rows[0], stack=8).over_budget
    assert "shared memory" in replace(rows[0], shared=228 << 10).over_budget
    assert "registers" in replace(rows[0], registers=255, warps=16).over_budget
