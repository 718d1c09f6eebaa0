"""Timings on a GPU beside their floors, predictions and goals: `python -m bench.gpu`.

`--device cpu --quick` rehearses the same code on the CPU kernels; its times mean nothing.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench.floors import Peak
from bench.gpu.cases import GPU_CASES, GpuCase, LayerCase, PackCase
from bench.gpu.measure import measure_device_peak
from bench.gpu.packs import run_pack
from bench.gpu.report import (
    Entry,
    Skipped,
    as_json,
    kernel_table,
    machine_text,
    predictions,
    table,
    write_json,
)
from bench.gpu.run import LOOP, GpuResult, Prepared, prepare, run_layer, run_step
from bench.machine import describe_gpu

VARIANTS = ("cuda", "cuda-tf32", "triton", "triton-tf32", LOOP)
DEFAULT_VARIANTS = ("cuda", "cuda-tf32", "triton", LOOP)
LONGEST = 90.0  # seconds that one case on one backend may take


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    top = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    top.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(GPU_CASES)}")
    top.add_argument("--variants", help=f"of {', '.join((*VARIANTS, 'cpu'))}, joined by commas")
    top.add_argument("--repeats", type=int, default=30, help="timed runs of each kind")
    top.add_argument("--budget", type=float, default=300.0, help="seconds to start cases within")
    top.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    top.add_argument("--device", default="cuda", help="cpu rehearses")
    top.add_argument("--predict", action="store_true", help="print what an H100 should take, stop")
    top.add_argument("--quick", action="store_true", help="tiny sizes: times nothing useful")
    return top


class Worker:
    """A process that cases run in; a new one after a failure, which may have left a broken GPU."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, function: Callable[..., GpuResult], *arguments: Any, limit: float) -> GpuResult:
        """The result; RuntimeError with the reason when there is none."""
        if self._pool is None:
            threads = (torch.get_num_threads(),)
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(1, context, torch.set_num_threads, threads)
        try:
            return self._pool.submit(function, *arguments).result(timeout=limit)
        except TimeoutError:
            reason = f"took longer than {limit:.0f} s"
        except BrokenProcessPool:
            reason = "its process died"
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        self.close()
        raise RuntimeError(reason)

    def close(self) -> None:
        """End the process, finished or not."""
        if self._pool is None:
            return
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None


def run_all(
    cases: Sequence[GpuCase],
    variants: Sequence[str],
    *,
    device: str,
    repeats: int,
    budget: float,
    peak: Peak,
    report: Callable[[list[Entry]], None],
) -> list[Entry]:
    """Every case on every variant; `report` is called with all entries after each."""
    entries: list[Entry] = []
    deadline = time.monotonic() + budget
    worker = Worker()
    for case in cases:
        prepared: Prepared | None = None
        failed = None
        for variant in variants:
            left = deadline - time.monotonic()
            if not _is_variant_of(case, variant):
                continue
            if left <= 0:
                entries.append(Skipped(case.name, variant, "no time left", False))
                continue
            try:
                if not isinstance(case, LayerCase) and prepared is None and failed is None:
                    try:
                        prepared = prepare(case.step if isinstance(case, PackCase) else case)
                    except (ValueError, RuntimeError) as error:
                        failed = RuntimeError(f"the network cannot be prepared: {error}")
                if failed is not None:
                    raise failed
                limit = min(LONGEST, left + 10.0)
                where = (variant, device, repeats)
                work: tuple[Any, ...] = (run_step, prepared, *where, peak)
                if isinstance(case, LayerCase):
                    work = (run_layer, case, *where, peak)
                elif isinstance(case, PackCase):
                    work = (run_pack, case, prepared, *where)
                entries.append(worker.run(*work, limit=limit))
            except RuntimeError as error:
                entries.append(Skipped(case.name, variant, str(error), True))
            report(entries)
    worker.close()
    return entries


def _is_variant_of(case: GpuCase, variant: str) -> bool:
    if isinstance(case, LayerCase):
        return variant != LOOP and (case.recurrent or not variant.endswith("-tf32"))
    return not isinstance(case, PackCase) or variant != LOOP


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status is 1 when a case fails on a variant that was asked for."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    unknown = [name for name in options.cases if name not in GPU_CASES]
    if unknown:
        parser().error(f"unknown case {unknown[0]!r}: choose from {', '.join(GPU_CASES)}")
    if options.repeats < 1:
        parser().error("--repeats must be at least 1")
    if options.predict:
        print(predictions([GPU_CASES[name] for name in options.cases or GPU_CASES]))
        return 0
    device = torch.device(options.device)
    rehearsal = device.type == "cpu"
    if not rehearsal and not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device; --device cpu --quick rehearses", file=sys.stderr)
        return 1
    default = ("cpu", LOOP) if rehearsal else DEFAULT_VARIANTS
    variants = options.variants.split(",") if options.variants else default
    wrong = [name for name in variants if name not in (*VARIANTS, "cpu")]
    if wrong:
        parser().error(f"unknown variant {wrong[0]!r}: choose from {', '.join(VARIANTS)}, cpu")
    cases = [GPU_CASES[name] for name in options.cases or GPU_CASES]
    if options.quick:
        cases = [case.quick() for case in cases]

    machine, peak = describe_gpu(device), measure_device_peak(device, quick=options.quick)
    print(machine_text(machine, peak), flush=True)
    command = f"python -m bench.gpu {shlex.join(given)}"

    def report(entries: list[Entry]) -> None:
        last = entries[-1]
        state = last.reason if isinstance(last, Skipped) else "checked and timed"
        print(f"{last.case} {last.variant}: {state}", flush=True)
        if options.json is not None:
            content = as_json(command, machine, peak, entries, rehearsal=rehearsal)
            write_json(options.json, content)

    entries = run_all(
        cases, variants, device=options.device, repeats=options.repeats, budget=options.budget,
        peak=peak, report=report,
    )  # fmt: skip
    for entry in entries:
        if isinstance(entry, GpuResult) and entry.kernels:
            print(kernel_table(entry))
    if rehearsal:
        print("rehearsal on the CPU: these times mean nothing")
    print(table(entries))
    return int(any(isinstance(entry, Skipped) and entry.failed for entry in entries))


if __name__ == "__main__":
    sys.exit(main())
