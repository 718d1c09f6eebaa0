"""What the CUDA module is made of and how nvcc compiles it.

Read by setup.py, by the tests that compile the same sources for the CPU, and by the check of
registers in bench/kernels.py.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "csrc" / "cuda"
ARCHITECTURES = ("80", "90", "120")

# Sources whose results are bitwise those of the CPU kernels: no multiplication and addition in one.
EXACT = ("pack", "stack_forward", "dale_forward", "scan", "smorms3")


def kernel_sources() -> list[Path]:
    """The files of kernels and their launchers."""
    return sorted(FOLDER.glob("*.cu"))


def host_sources() -> list[Path]:
    """What else is linked into the module; the first is the only one that knows Python."""
    return [FOLDER / "bindings.cpp", ROOT / "csrc" / "plan.cpp"]


def is_exact(source: Path) -> bool:
    """True for a source that is compiled without contraction."""
    return source.stem.startswith(EXACT)


def nvcc_flags(source: Path) -> str:
    """Options for one source, apart from architectures and include folders.

    Subnormal numbers are flushed to zero where the CPU kernels do that: not in the optimizer.
    """
    contraction = " -fmad=false" if is_exact(source) else ""
    flush = "false" if source.stem == "smorms3" else "true"
    return f"-std=c++17 -O3 -ftz={flush}{contraction}"


def find_nvcc() -> str | None:
    """The nvcc of $CUDA_HOME, else the one in PATH; None when there is none."""
    home = os.environ.get("CUDA_HOME")
    return (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def architectures(nvcc: str) -> list[str]:
    """$FASTLIF_CUDA_ARCHS ("80;90"), else the default ones that this nvcc knows."""
    chosen = os.environ.get("FASTLIF_CUDA_ARCHS")
    if chosen:
        return [name for name in chosen.replace(",", ";").replace(" ", ";").split(";") if name]
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return [name for name in ARCHITECTURES if f"sm_{name}" in known.stdout.split()]


def architecture_flags(names: list[str]) -> str:
    """Machine code for each architecture, and its PTX for the GPUs between and after them."""
    return " ".join(f"-gencode arch=compute_{n},code=[compute_{n},sm_{n}]" for n in names)


def ninja_path(path: Path) -> str:
    """A path as ninja wants it in a build line."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def run_ninja(folder: Path, name: str, text: str) -> None:
    """Write folder/name.ninja and build all of it; one process at a time in a folder.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    import ninja

    folder.mkdir(parents=True, exist_ok=True)
    program = os.path.join(ninja.BIN_DIR, "ninja")
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f"{name}.ninja").write_text(text)
        command = [program, "-C", str(folder), "-f", f"{name}.ninja"]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{name} does not compile:\n{result.stdout}{result.stderr}")


def pybind11_include() -> str:
    """The headers of pybind11, or the copy of them that torch carries."""
    if importlib.util.find_spec("pybind11"):
        import pybind11

        return pybind11.get_include()
    torch = importlib.util.find_spec("torch")
    for folder in torch.submodule_search_locations or [] if torch else []:
        if (Path(folder) / "include" / "pybind11").is_dir():
            return str(Path(folder) / "include")
    raise SystemExit("fastlif needs pybind11 to build its kernels: pip install pybind11")
