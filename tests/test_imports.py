"""Who may import whom: every import of the package is read, and the directions are enforced."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fastlif"

# Lowest first. A module imports its own unit and those of lower rows, nothing beside or above it.
ORDER = (
    ("extension", "files", "memory", "rows", "versions"),
    ("spikes", "backends", "optim_triton", "optim_kernels"),
    ("ops",),
    ("init",),
    ("layers",),
    ("data", "models", "losses", "optim", "graph"),
    ("inspection",),
    ("plots",),
    ("train",),
    ("sweep",),
    ("reproduce",),
    ("cli",),
    ("__main__",),
)
RANK = {unit: row for row, units in enumerate(ORDER) for unit in units}
# init draws the weights of layers it is given, layers draw theirs by init when they are built: the
# lookup of their classes waits until init is called.
DEFERRED = {("init", "layers")}
CORE = {
    "extension", "spikes", "backends", "ops", "init", "layers", "models", "losses", "optim",
    "optim_kernels", "optim_triton", "graph", "inspection", "versions",
}  # fmt: skip
CORE_PACKAGES = {"torch", "numpy"}
# Loaded where a kernel of theirs is first needed: torch brings triton along with its GPU builds.
WITH_TRITON = ("fastlif.optim_triton", "fastlif.ops.triton")
TOP_LEVEL = CORE - {"models", "optim_triton", "inspection"}  # what `import fastlif` loads
NOT_IN_CORE = {
    "typer",
    "rich",
    "h5py",
    "PIL",
    "safetensors",
    "tensorboard",
    "lightning_fabric",
    "matplotlib",
    "yaml",
    "pydantic",
    "ray",
    "pyarrow",
    "fastlif.optim_triton",
    "fastlif.train",
    "fastlif.data",
    "fastlif.inspection",
    "fastlif.plots",
    "fastlif.sweep",
    "fastlif.reproduce",
    "fastlif.cli",
}


@dataclass(frozen=True)
class Import:
    """`source` imports `target`, both dotted; deferred: in a function or for type checks only."""

    source: str
    target: str
    deferred: bool


def unit_of(module: str) -> str:
    """fastlif.ops.plan -> ops; the package itself is ''."""
    return (module.split(".") + [""])[1]


def imports_of(module: str, tree: ast.AST, deferred: bool = False) -> Iterator[Import]:
    """All imports of a module, with `from fastlif import ops` as one of fastlif.ops."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which this test cannot follow"
            for alias in node.names:
                named = f"{node.module}.{alias.name}"
                is_module = ROOT.joinpath(*named.split(".")).with_suffix(".py").exists() or (
                    ROOT.joinpath(*named.split(".")).is_dir()
                )
                yield Import(module, named if is_module else str(node.module), deferred)
        else:
            later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
                isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            )
            yield from imports_of(module, node, deferred or later)


def package_imports() -> list[Import]:
    """Every import of every file of the package."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        found += imports_of(module, ast.parse(path.read_text()))
    return found


def violations(imports: list[Import]) -> list[str]:
    """Imports that go against the order or bring a package into the core that it may not need."""
    wrong = []
    for one in imports:
        source, target = unit_of(one.source), unit_of(one.target)
        line = f"{one.source} imports {one.target}"
        if one.target.split(".")[0] != PACKAGE:
            allowed = CORE_PACKAGES | set(sys.stdlib_module_names)
            allowed |= {"triton"} if one.source.startswith(WITH_TRITON) else set()
            if source in CORE | {""} and one.target.split(".")[0] not in allowed:
                wrong.append(f"{line}: the core needs torch and numpy only")
        elif source == "":
            if target not in TOP_LEVEL:
                wrong.append(f"{line}: importing fastlif must not load it")
        elif target not in RANK or source not in RANK:
            wrong.append(f"{line}: no place in the order")
        elif source != target and RANK[target] >= RANK[source]:
            if not (one.deferred and (source, target) in DEFERRED):
                wrong.append(f"{line}: against the order")
    return wrong


def test_imports_follow_the_order():
    imports = package_imports()
    assert len({one.source for one in imports}) > 30  # all files were read
    assert violations(imports) == []


def test_every_unit_has_a_place_in_the_order():
    names = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    names |= {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert names - {"__init__"} == set(RANK)


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("fastlif.ops.plan", "from fastlif.layers import LIF", "against the order"),
        ("fastlif.ops.plan", "def f():\n    import fastlif.train", "against the order"),
        ("fastlif.losses", "from fastlif import optim", "against the order"),
        ("fastlif.init.weights", "from fastlif.layers import LIF", "against the order"),
        ("fastlif.train.loop", "from fastlif import cli", "against the order"),
        ("fastlif.sweep.spec", "import fastlif.reproduce", "against the order"),
        ("fastlif.layers.base", "from fastlif import LIF", "no place"),
        ("fastlif.layers.base", "import h5py", "torch and numpy only"),
        ("fastlif.optim", "import triton", "torch and numpy only"),
        ("fastlif", "from fastlif import train", "must not load"),
    ],
)
def test_a_wrong_import_is_found(module, line, complaint):
    (found,) = violations(list(imports_of(module, ast.parse(line))))
    assert complaint in found


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("fastlif.init.weights", "def f():\n    from fastlif.layers import LIF"),
        ("fastlif.train.loop", "import lightning_fabric"),
        ("fastlif.layers.base", "from fastlif import ops"),
        ("fastlif.layers.base", "from fastlif.layers.neuron import LIF"),
    ],
)
def test_a_right_import_is_not(module, line):
    assert violations(list(imports_of(module, ast.parse(line)))) == []


def test_the_reference_reaches_no_backend():
    graph: dict[str, set[str]] = {}
    for one in package_imports():
        if one.target.startswith(f"{PACKAGE}."):
            graph.setdefault(one.source, set()).add(one.target)
    reached, frontier = set(), {"fastlif.ops.reference"}
    while frontier:
        reached |= frontier
        frontier = set().union(*(graph.get(module, set()) for module in frontier)) - reached
    assert "fastlif.ops.plan" in reached
    backends = {"fastlif.ops.cpu", "fastlif.ops.registration", "fastlif.ops"}
    assert reached & backends == set()


def test_importing_fastlif_loads_no_more_than_the_core():
    code = f"import sys, fastlif; print([n for n in {sorted(NOT_IN_CORE)} if n in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_the_kernels_know_neither_torch_nor_python_outside_the_bindings():
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h")]
    assert len(sources) > 5
    for path in sources:
        included = [line for line in path.read_text().splitlines() if line.startswith("#include")]
        assert not any("torch" in line or "ATen" in line for line in included), path
        if path.name != "bindings.cpp":
            assert not any("pybind11" in line or "Python.h" in line for line in included), path
