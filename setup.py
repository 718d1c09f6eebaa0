"""Builds fastlif._C with ninja: torch-free C++, the kernels once per instruction set."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PLAIN = ["plan.cpp", "pack.cpp", "memory_pool.cpp", "dispatch.cpp", "bindings.cpp"]
KERNELS = {"forward.cpp": "-ffp-contract=off", "backward.cpp": "-ffp-contract=fast"}
X86 = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
}


def compiler() -> str:
    """The C++ compiler: $CXX if set, else g++."""
    chosen = os.environ.get("CXX") or "g++"
    if shutil.which(shlex.split(chosen)[0]):
        return chosen
    raise SystemExit(
        f"fastlif needs a C++17 compiler to build its kernels and did not find {chosen!r}: install "
        "g++ (Debian, Ubuntu: apt-get install g++), or set CXX to a compiler that is there"
    )


def escaped(path: Path) -> str:
    """A path as ninja wants it in a build line."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(target: Path) -> str:
    """The build: every source to an object, the kernels once per instruction set.

    Order matters in the link: of the inline functions that several objects define, the linker keeps
    the first, which must be one that every processor can run.
    """
    import pybind11

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    folders = (sysconfig.get_paths()["include"], pybind11.get_include())
    include = " ".join(shlex.quote(f"-I{folder}") for folder in folders)
    openmp = "" if sys.platform == "darwin" else "-fopenmp"
    mac = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""
    warnings = "-Wall -Wextra -Wno-maybe-uninitialized -Wno-psabi"
    flags = f"-std=c++17 -O3 -fPIC -fvisibility=hidden {warnings} {openmp} {include}"
    lines = [
        f"flags = {flags} {'-DFASTLIF_X86_KERNELS' if x86 else ''}",
        "rule cxx",
        f"  command = {compiler()} -MMD -MF $out.d $flags $extra -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler()} -shared $in -o $out {openmp} {mac}",
    ]
    objects = []

    def add(source: str, name: str, extra: str) -> None:
        objects.append(f"{name}.o")
        path = escaped(ROOT / "csrc" / source)
        lines.extend([f"build {name}.o: cxx {path}", f"  extra = {extra}"])

    for isa, options in (X86 if x86 else {"baseline": ""}).items():
        for source, contraction in KERNELS.items():
            add(
                source, f"{Path(source).stem}_{isa}", f"-DFASTLIF_ISA={isa} {options} {contraction}"
            )
    for source in PLAIN:
        add(source, Path(source).stem, "")
    return "\n".join([*lines, f"build {escaped(target)}: link {' '.join(objects)}", ""])


class NinjaBuild(build_ext):
    """One ninja run in a fixed folder, so that a second build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Write build.ninja and run it."""
        import ninja

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}-{platform.machine()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text(ninja_file(target))
        subprocess.check_call([os.path.join(ninja.BIN_DIR, "ninja"), "--quiet", "-C", str(folder)])


setup(
    ext_modules=[Extension("fastlif._C", sources=[])],
    cmdclass={"build_ext": NinjaBuild},
)
