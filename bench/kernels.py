"""Registers, shared memory, stack and spills of every GPU kernel, compiled ahead of time.

Needs a compiler, no GPU: `python -m bench kernels`. A kernel that spills, keeps arrays in local
memory or uses more registers than its budget is a failure, and so is one that has no budget.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cuda_build import ROOT, find_nvcc, kernel_sources, ninja_path, nvcc_flags, run_ninja

ARCHITECTURES = ("80", "90")
BUILD = ROOT / "build" / "kernels"

# Registers a thread, for float and double, by the kernel's name in the source. 64 fit 1024 threads
# on a multiprocessor, 128 fit 512, 255 is the most that a thread can have.
BUDGETS: dict[str, tuple[int, int]] = {
    "pack_words_kernel": (64, 64),
    "unpack_words_kernel": (64, 64),
    "words_to_masks_kernel": (64, 64),
    "scan_forward_kernel": (64, 128),
    "scan_backward_kernel": (80, 128),
    "stack_forward_kernel": (64, 128),
    "stack_backward_kernel": (128, 128),
    "dale_forward_kernel": (64, 128),
    "dale_backward_kernel": (128, 128),
    "pool_words_kernel": (64, 64),
    "pool_gradient_kernel": (64, 80),
    "weight_gradient_kernel": (128, 255),
    "sum_splits_kernel": (64, 64),
    "row_means_kernel": (64, 64),
    "smorms3_kernel": (64, 64),
}
STATIC_SHARED_BYTES = 1024  # of a kernel; what the launcher asks for comes on top


@dataclass(frozen=True)
class Kernel:
    """One kernel for one architecture."""

    engine: str  # "cuda" or "triton"
    name: str  # with template arguments, without namespaces
    architecture: str  # "sm_90"
    registers: int  # a thread
    budget: int | None  # registers; None if the kernel has no budget
    shared_bytes: int  # static (cuda) or all of it (triton)
    shared_budget: int  # bytes
    stack_bytes: int  # local memory a thread
    spill_bytes: int  # stored and loaded, a thread

    def complaints(self) -> list[str]:
        """What is wrong with it."""
        found = []
        if self.spill_bytes:
            found.append(f"spills {self.spill_bytes} bytes")
        if self.stack_bytes:
            found.append(f"keeps {self.stack_bytes} bytes in local memory")
        if self.budget is None:
            found.append("has no budget of registers in bench/kernels.py")
        elif self.registers > self.budget:
            found.append(f"uses {self.registers} registers, its budget is {self.budget}")
        if self.shared_bytes > self.shared_budget:
            found.append(
                f"uses {self.shared_bytes} bytes of shared memory, its budget is "
                f"{self.shared_budget}"
            )
        return [f"{self.engine} {self.architecture} {self.name}: {what}" for what in found]


def ninja_text(nvcc: str) -> str:
    """Every source to a cubin for every architecture, ptxas's report beside it."""
    lines = [
        "rule cubin",
        f"  command = {shlex.quote(nvcc)} -cubin -arch=sm_$architecture $flags -Xptxas -v "
        "-MMD -MF $out.d $in -o $out >$out.log 2>&1 || { cat $out.log; exit 1; }",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    for source in kernel_sources():
        for architecture in ARCHITECTURES:
            lines += [
                f"build {source.stem}.sm_{architecture}.cubin: cubin {ninja_path(source)}",
                f"  architecture = {architecture}",
                f"  flags = {nvcc_flags(source)}",
            ]
    return "\n".join([*lines, ""])


def readable_names(symbols: Sequence[str]) -> list[str]:
    """Symbols as C++ names without namespaces, return type and parameters."""
    result = subprocess.run(
        ["c++filt", *symbols], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    names = []
    for name in result:
        short = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name)
        short = re.sub(r"\((int|bool|unsigned int)\)", "", short)
        names.append(short.split("(")[0].removeprefix("void ").strip())
    return names


def parse_report(report: str) -> list[Kernel]:
    """The kernels in what `ptxas -v` printed."""
    pattern = re.compile(
        r"Compiling entry function '(\w+)' for '(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers([^\n]*)",
        re.S,
    )
    found = pattern.findall(report)
    names = readable_names([fields[0] for fields in found]) if found else []
    kernels = []
    for name, (_, architecture, stack, stores, loads, registers, rest) in zip(
        names, found, strict=True
    ):
        shared = re.search(r"(\d+) bytes smem", rest)
        single, double = BUDGETS.get(name.split("<")[0], (None, None))
        kernels.append(
            Kernel(
                engine="cuda",
                name=name,
                architecture=architecture,
                registers=int(registers),
                budget=double if "double" in name else single,
                shared_bytes=int(shared[1]) if shared else 0,
                shared_budget=STATIC_SHARED_BYTES,
                stack_bytes=int(stack),
                spill_bytes=int(stores) + int(loads),
            )
        )
    return kernels


def cuda_kernels() -> list[Kernel]:
    """Compile csrc/cuda, what has changed since the last time.

    Raises:
        RuntimeError: when a source does not compile, and where there is no nvcc.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("there is no nvcc in $CUDA_HOME/bin or in PATH")
    run_ninja(BUILD, "kernels", ninja_text(nvcc))
    return [
        kernel
        for source in kernel_sources()
        for architecture in ARCHITECTURES
        for kernel in parse_report(
            (BUILD / f"{source.stem}.sm_{architecture}.cubin.log").read_text()
        )
    ]


def triton_kernels() -> list[Kernel]:
    """Compile the Triton kernels as their launchers would, which takes a minute or two.

    Raises:
        RuntimeError: where there is no Triton, or where it interprets its kernels.
    """
    if importlib.util.find_spec("triton") is None:
        raise RuntimeError("triton is not installed")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("with TRITON_INTERPRET=1 Triton compiles nothing")
    from tests.triton_signatures import REGISTER_FILE, SHARED_LIMIT, rows

    return [
        Kernel(
            engine="triton",
            name=f"{row.name} {row.variant}".strip(),
            architecture=f"sm_{row.arch}",
            registers=row.registers,
            budget=min(255, REGISTER_FILE // (32 * row.warps)),
            shared_bytes=row.shared,
            shared_budget=SHARED_LIMIT[row.arch],
            stack_bytes=row.stack,
            spill_bytes=0,  # its tools count spills as stack
        )
        for row in rows()
    ]


ENGINES: dict[str, Callable[[], list[Kernel]]] = {"cuda": cuda_kernels, "triton": triton_kernels}


def table(kernels: Sequence[Kernel]) -> str:
    """One kernel a line."""
    lines = ["engine  arch   registers (budget)  shared  stack  spills  kernel"]
    for k in sorted(kernels, key=lambda k: (k.engine, k.name, k.architecture)):
        lines.append(
            f"{k.engine:7} {k.architecture:6} {k.registers:9} {f'({k.budget})':>8}  "
            f"{k.shared_bytes:6} {k.stack_bytes:6} {k.spill_bytes:7}  {k.name}"
        )
    return "\n".join(lines)


def report_kernels(engines: Sequence[str]) -> int:
    """Print the table of these engines; the exit status is 1 when a kernel fails."""
    try:
        kernels = [kernel for name in engines for kernel in ENGINES[name]()]
    except RuntimeError as error:
        print(f"FAILED: {error}")
        return 1
    print(table(kernels))
    complaints = [text for kernel in kernels for text in kernel.complaints()]
    for text in complaints:
        print(f"FAILED: {text}")
    return int(bool(complaints))
