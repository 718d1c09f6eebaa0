"""Command line: `python -m bench list`, `run [CASE ...]` or `kernels [ENGINE ...]`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.cases import CASES, Case
from bench.check import CheckFailed
from bench.floors import Peak, measure_peak
from bench.kernels import ENGINES, report_kernels
from bench.machine import describe_machine
from bench.report import case_text, machine_text, result_text, write_json
from bench.run import Result, run_case


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the cases")
    run = commands.add_parser("run", help="check and time training steps")
    run.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; default all")
    run.add_argument("--threads", type=int, help="CPU threads (default: 2; 1 with --quick)")
    run.add_argument("--repeats", type=int, help="timed steps of each kind (default: 7)")
    run.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    run.add_argument(
        "--quick", action="store_true", help="tiny batches: a check that times nothing useful"
    )
    kernels = commands.add_parser("kernels", help="registers and spills of the GPU kernels")
    engines = f"of {', '.join(ENGINES)}; default all"
    kernels.add_argument("engines", nargs="*", metavar="ENGINE", help=engines)
    return top


def run_alone(case: Case, repeats: int, peak: Peak) -> Result:
    """Run a case in a process of its own: memory that another case left would count as its own."""
    with ProcessPoolExecutor(
        1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
    ) as process:
        return process.submit(run_case, case, repeats, peak).result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 when a case fails its check."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    if options.command == "list":
        print("\n".join(case_text(case) for case in CASES.values()))
        return 0
    if options.command == "kernels":
        unknown = [name for name in options.engines if name not in ENGINES]
        if unknown:
            parser().error(f"unknown engine {unknown[0]!r}: choose from {', '.join(ENGINES)}")
        return report_kernels(options.engines or list(ENGINES))
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser().error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    defaults = (2, 1) if options.quick else (7, 2)
    repeats, threads = (
        default if value is None else value
        for value, default in zip((options.repeats, options.threads), defaults, strict=True)
    )
    if repeats < 1 or threads < 1:
        parser().error("--repeats and --threads must be at least 1")
    torch.set_num_threads(threads)
    machine, peak = describe_machine(), measure_peak(quick=options.quick)
    print(machine_text(machine, peak), flush=True)
    results = []
    for name in options.cases or CASES:
        case = CASES[name].quick() if options.quick else CASES[name]
        try:
            results.append(run_alone(case, repeats, peak))
        except CheckFailed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        print(result_text(results[-1]), flush=True)
    if options.json is not None:
        command = f"python -m bench {shlex.join(given)}"
        write_json(options.json, command, machine, peak, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
