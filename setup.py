"""Builds fastlif._C and, where nvcc is found, fastlif._cuda with ninja: both free of torch.

FASTLIF_CUDA=0 leaves _cuda out, FASTLIF_CUDA=1 makes a missing nvcc an error, FASTLIF_CUDA_ARCHS
names the architectures ("80;90").
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402

PLAIN = {
    "plan.cpp": "",
    "pack.cpp": "",
    "memory_pool.cpp": "",
    # Without the two options that forbid vectors here, for the sake of flags that nobody reads.
    "smorms3.cpp": "-ffp-contract=off -fno-math-errno -fno-trapping-math",
    "dispatch.cpp": "",
}
KERNELS = {"forward.cpp": "-ffp-contract=off", "backward.cpp": "-ffp-contract=fast"}
X86 = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512",
}
OPENMP = "" if sys.platform == "darwin" else "-fopenmp"
MAC = "-undefined dynamic_lookup" if sys.platform == "darwin" else ""


def compiler() -> str:
    """The C++ compiler: $CXX if set, else g++."""
    chosen = os.environ.get("CXX") or "g++"
    if shutil.which(shlex.split(chosen)[0]):
        return chosen
    raise SystemExit(
        f"fastlif needs a C++17 compiler to build its kernels and did not find {chosen!r}: install "
        "g++ (Debian, Ubuntu: apt-get install g++), or set CXX to a compiler that is there"
    )


def chosen_nvcc() -> str | None:
    """The nvcc to use, None to build for the CPU alone."""
    wish = os.environ.get("FASTLIF_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"FASTLIF_CUDA must be 0 or 1, got {wish!r}")
    nvcc = None if wish == "0" else cuda_build.find_nvcc()
    if wish == "1" and not nvcc:
        raise SystemExit("FASTLIF_CUDA=1, but there is no nvcc in $CUDA_HOME/bin or in PATH")
    return nvcc


class NinjaFile:
    """The lines of build.ninja, and the objects they make."""

    def __init__(self, nvcc: str | None) -> None:
        warnings = "-Wall -Wextra -Wno-maybe-uninitialized -Wno-psabi"
        x86 = "-DFASTLIF_X86_KERNELS" if is_x86() else ""
        self.lines = [
            f"flags = -std=c++17 -O3 -fPIC -fvisibility=hidden {warnings} {OPENMP} {x86}",
            "rule cxx",
            f"  command = {compiler()} -MMD -MF $out.d $flags $extra -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {compiler()} -shared $in -o $out {OPENMP} {MAC}",
        ]
        if nvcc:
            chosen = cuda_build.architecture_flags(cuda_build.architectures(nvcc))
            program = shlex.quote(nvcc)
            self.lines += [
                f"architectures = {chosen}",
                "host = -Xcompiler -fPIC,-fvisibility=hidden,-Wall",
                "rule cuda",
                f"  command = {program} -MMD -MF $out.d $host $extra -c $in -o $out",
                "  depfile = $out.d",
                "  deps = gcc",
                # The static runtime: the module can be imported where there is no driver.
                "rule cuda_link",
                f"  command = {program} -shared -cudart static $architectures $in -o $out",
            ]

    def compile(self, rule: str, source: Path, name: str, extra: str) -> str:
        """Compile a source; returns the object."""
        self.lines += [
            f"build {name}.o: {rule} {cuda_build.ninja_path(source)}",
            f"  extra = {extra}",
        ]
        return f"{name}.o"

    def link(self, rule: str, target: Path, objects: list[str]) -> None:
        """Link objects into a module."""
        self.lines.append(f"build {cuda_build.ninja_path(target)}: {rule} {' '.join(objects)}")


def is_x86() -> bool:
    """Whether the kernels are compiled for the x86 instruction sets."""
    return platform.machine().lower() in ("x86_64", "amd64")


def python_include() -> str:
    """For the bindings alone: these folders differ from one isolated build to the next."""
    folders = (sysconfig.get_paths()["include"], cuda_build.pybind11_include())
    return " ".join(shlex.quote(f"-I{folder}") for folder in folders)


def add_cpu_module(file: NinjaFile, target: Path) -> None:
    """Every source to an object, the kernels once per instruction set.

    Order matters in the link: of the inline functions that several objects define, the linker keeps
    the first, which must be one that every processor can run.
    """
    objects, folder = [], ROOT / "csrc"
    for isa, options in (X86 if is_x86() else {"baseline": ""}).items():
        for source, contraction in KERNELS.items():
            name, extra = f"{Path(source).stem}_{isa}", f"-DFASTLIF_ISA={isa} {options}"
            objects.append(file.compile("cxx", folder / source, name, f"{extra} {contraction}"))
    for source, extra in PLAIN.items():
        objects.append(file.compile("cxx", folder / source, Path(source).stem, extra))
    objects.append(file.compile("cxx", folder / "bindings.cpp", "bindings", python_include()))
    file.link("link", target, objects)


def add_cuda_module(file: NinjaFile, target: Path) -> None:
    """The kernels for all architectures, the bindings, and the plans of the CPU module."""
    objects = ["plan.o"]
    for source in cuda_build.kernel_sources():
        extra = f"{cuda_build.nvcc_flags(source)} $architectures"
        objects.append(file.compile("cuda", source, f"cuda_{source.stem}", extra))
    bindings, _ = cuda_build.host_sources()
    extra = f"-std=c++17 -O2 {python_include()}"  # nvcc knows where the CUDA headers are
    objects.append(file.compile("cuda", bindings, "cuda_bindings", extra))
    file.link("cuda_link", target, objects)


class NinjaBuild(build_ext):
    """One ninja run in a fixed folder, so that a second build compiles only what changed."""

    def build_extensions(self) -> None:
        """Write build.ninja and run it."""
        import ninja

        nvcc = chosen_nvcc() if len(self.extensions) > 1 else None
        file = NinjaFile(nvcc)
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            add = add_cuda_module if extension.name == "fastlif._cuda" else add_cpu_module
            add(file, target)
        folder = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}-{platform.machine()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "build.ninja").write_text("\n".join([*file.lines, ""]))
        if not nvcc:
            print("fastlif: no nvcc (or FASTLIF_CUDA=0): only the CPU module", file=sys.stderr)
        program = os.path.join(ninja.BIN_DIR, "ninja")
        status = subprocess.call([program, "--quiet", "-C", str(folder)])
        if status:
            hint = "; FASTLIF_CUDA=0 leaves out the CUDA module" if nvcc else ""
            raise SystemExit(f"fastlif: its kernels did not compile{hint}")


names = ["fastlif._C"] + ["fastlif._cuda"] * bool(chosen_nvcc())
setup(
    ext_modules=[Extension(name, sources=[]) for name in names],
    cmdclass={"build_ext": NinjaBuild},
)
