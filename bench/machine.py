"""Where and with what the numbers were made."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy
import torch

import fastlif
from fastlif import extension
from fastlif.versions import commit

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Machine:
    """The machine, the versions, and the commit of the code."""

    cpu: str
    cores: int
    load: float  # of the last minute before the run: timings on a busy machine mean little
    system: str
    isa: str  # instruction set the kernels run with
    threads: int
    python: str
    torch: str
    numpy: str
    fastlif: str
    commit: str | None  # with "-dirty" when files differ from it; None outside a git checkout


def describe_machine() -> Machine:
    """This machine, now."""
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 0,
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.machine()}",
        isa=extension.load().isa(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        numpy=numpy.__version__,
        fastlif=fastlif.__version__,
        commit=commit(),
    )


@dataclass(frozen=True)
class GpuMachine:
    """A GPU, the versions around it, and the commit of the code."""

    name: str
    capability: str
    memory: int  # bytes
    multiprocessors: int
    driver: str
    cuda: str  # that torch was built with
    clocks: str  # now and at most, as the driver tells
    system: str
    cpu: str
    python: str
    torch: str
    triton: str
    fastlif: str
    commit: str | None


def describe_gpu(device: torch.device) -> GpuMachine:
    """The GPU that `device` names; on "cpu" the fields of a GPU are empty."""
    name, capability, memory, multiprocessors = "no GPU", "", 0, 0
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
        capability = f"{properties.major}.{properties.minor}"
        multiprocessors = properties.multi_processor_count
    driver, clocks = gpu_query("driver_version"), gpu_query("clocks.sm,clocks.max.sm,clocks.mem")
    return GpuMachine(
        name=name,
        capability=capability,
        memory=memory,
        multiprocessors=multiprocessors,
        driver=driver or "unknown",
        cuda=torch.version.cuda or "none",
        clocks=clocks or "unknown",
        system=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_model(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        fastlif=fastlif.__version__,
        commit=commit(),
    )


def gpu_query(fields: str) -> str | None:
    """What nvidia-smi says of the first GPU; None where it is not there or fails."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", "--id=0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


class OtherPrograms:
    """Watches how much of the processor other programs use from its creation on.

    `own` gives the seconds of processor time that are not others'.
    """

    def __init__(self, own: Callable[[], float] = time.process_time) -> None:
        self._own = own
        self._start = self._now()

    def share(self) -> float | None:
        """Mean share of all cores; None where the system does not tell (outside Linux)."""
        end = self._now()
        if self._start is None or end is None:
            return None
        wall, busy, own = (after - before for before, after in zip(self._start, end, strict=True))
        return max(0.0, busy - own) / (wall * (os.cpu_count() or 1))

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds of wall time, of all busy cores together, and of our own."""
        try:
            first_line = Path("/proc/stat").read_text().splitlines()[0]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, steal = map(int, first_line.split()[1:9])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, self._own()


def _cpu_model() -> str:
    """The name, and what tells apart processors that hide theirs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = dict(
        (part.strip() for part in line.split(":", 1)) for line in reversed(lines) if ":" in line
    )
    name = fields.get("model name", "unknown")
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"
