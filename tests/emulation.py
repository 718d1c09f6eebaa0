"""The CUDA kernels on the CPU: the sources of fastlif._cuda, compiled by g++ with the emulation.

Every thread of a kernel is a fiber; csrc/cuda/emulation.h says what it finds and what it cannot.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shlex
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from cuda_build import (
    FOLDER,
    ROOT,
    host_sources,
    is_exact,
    kernel_sources,
    ninja_path,
    pybind11_include,
    run_ninja,
)

BUILD = ROOT / "build" / "emulation"
FLAGS = "-x c++ -std=c++17 -O2 -fPIC -fvisibility=hidden -Wall -Wextra -DFASTLIF_EMULATED"


def ninja_text(name: str, kernels: Sequence[Path], host: Sequence[Path], find_races: bool) -> str:
    """The build of one module from files of kernels and, the bindings first, other sources."""
    folders = (sysconfig.get_paths()["include"], pybind11_include(), str(FOLDER))
    include = " ".join(shlex.quote(f"-I{folder}") for folder in folders)
    flags = f"{FLAGS} -DFASTLIF_CUDA_MODULE={name} {include}"
    if find_races:
        flags += " -DFASTLIF_RACE_CHECK"
        host = [*host, FOLDER / "race_check.cpp"]
    compiler = os.environ.get("CXX") or "g++"
    lines = [
        "rule cxx",
        f"  command = {compiler} -MMD -MF $out.d {flags} $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} -shared $in -o $out",
    ]
    objects = []
    for source in [*kernels, *host]:
        extra = "-ffp-contract=off" if is_exact(source) else ""
        if find_races and source in kernels:
            extra += " -fsanitize=thread"  # only its calls: race_check.cpp answers them
        rule = f"build {name}-{source.stem}.o: cxx {ninja_path(source)}"
        lines += [rule, f"  extra = {extra}"]
        objects.append(f"{name}-{source.stem}.o")
    lines.append(f"build {name}{suffix()}: link {' '.join(objects)}")
    return "\n".join([*lines, ""])


def suffix() -> str:
    """How the file name of an extension module ends here."""
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def build(name: str, kernels: Sequence[Path], host: Sequence[Path], find_races: bool) -> Path:
    """Compile what has changed; returns the shared library.

    Raises:
        RuntimeError: with the compiler's messages, when something does not compile.
    """
    run_ninja(BUILD, name, ninja_text(name, kernels, host, find_races))
    return BUILD / f"{name}{suffix()}"


@functools.cache
def emulated_cuda(find_races: bool = False) -> ModuleType:
    """The module fastlif._cuda on CPU memory; streams are ignored.

    Args:
        find_races: a slower build of the same, in which a load or a store that no barrier orders
            after another thread's is an error, and so is reading shared memory that was not
            written.
    """
    name = "_cuda_emulated_races" if find_races else "_cuda_emulated"
    library = build(name, kernel_sources(), host_sources(), find_races)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


@contextmanager
def order_of_threads(library: ModuleType | ctypes.CDLL, seed: int) -> Iterator[None]:
    """Let an emulated module run threads and blocks in another order; seed 0 is the ascending."""
    loaded = ctypes.CDLL(library.__file__) if isinstance(library, ModuleType) else library
    seed_order = loaded.fastlif_seed_order
    seed_order.argtypes, seed_order.restype = [ctypes.c_uint64], None
    seed_order(seed)
    try:
        yield
    finally:
        seed_order(0)
