"""Command line: `python -m bench list`, `run`, `growth`, `pack`, `compare`, `report`, `kernels`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import compare, growth, pack, readme
from bench.cases import CASES, DEFAULT_CASES, KEY_CASES, KEY_REPEATS, QUICK_CASES, REPEATS, Case
from bench.check import CheckFailed
from bench.floors import measure_peak
from bench.kernels import ENGINES, report_kernels
from bench.machine import describe_machine
from bench.opponents import OPPONENTS
from bench.run import run_case
from bench.text import case_text, machine_text, opponent_text, result_text, write_json


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    top = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="name the cases and the opponents")
    run = commands.add_parser("run", help="check and time training steps")
    run.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    names = ",".join(OPPONENTS)
    run.add_argument(
        "--opponents",
        metavar="A,B",
        help=f"of {names}, or all; default: all that are here for {', '.join(KEY_CASES)}, "
        "the plain loop for the others",
    )
    run.add_argument("--threads", type=int, help="CPU threads (default: 2; 1 with --quick)")
    run.add_argument(
        "--repeats",
        type=int,
        help=f"turns of each side (default: {KEY_REPEATS} where all opponents are the default, "
        f"else {REPEATS})",
    )
    run.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")
    run.add_argument(
        "--quick",
        action="store_true",
        help="tiny batches, few cases, nothing compiled unless named: a check that times nothing",
    )
    kernels = commands.add_parser("kernels", help="registers and spills of the GPU kernels")
    engines = f"of {', '.join(ENGINES)}; default all"
    kernels.add_argument("engines", nargs="*", metavar="ENGINE", help=engines)
    for module in (growth, pack, compare, readme):
        module.add_parser(commands)
    return top


def chosen_opponents(options: argparse.Namespace, case: Case) -> list[str]:
    """Opponents by name; exits with a message if one is unknown, or asked for and missing."""
    if options.opponents is None and not case.is_key:
        return ["loop"]
    if options.opponents in (None, "all"):
        left_out = [name for name in OPPONENTS if options.quick and OPPONENTS[name].compiles]
        return [name for name in OPPONENTS if name not in left_out]
    names = [name for name in options.opponents.split(",") if name]
    for name in names:
        if name not in OPPONENTS:
            parser().error(f"unknown opponent {name!r}: choose from {', '.join(OPPONENTS)}")
        reason = OPPONENTS[name].missing()
        if reason is not None:
            parser().error(f"opponent {name!r} cannot run here: {reason}")
    return names


def run_cases(options: argparse.Namespace, command: str) -> int:
    """`run`; the exit status is 1 when a case fails its check."""
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser().error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    names = options.cases or (QUICK_CASES if options.quick else DEFAULT_CASES)
    opponents = {name: chosen_opponents(options, CASES[name]) for name in names}
    threads = options.threads or (1 if options.quick else 2)
    for name in ("repeats", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser().error(f"--{name} must be at least 1, got {getattr(options, name)}")
    torch.set_num_threads(threads)
    machine, peak = describe_machine(), measure_peak(quick=options.quick)
    print(machine_text(machine, peak), flush=True)
    results = []
    for name in names:
        case = CASES[name].quick() if options.quick else CASES[name]
        repeats = options.repeats or (2 if options.quick else case.repeats)
        try:
            results.append(run_case(case, repeats, peak, opponents[name]))
        except CheckFailed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        print(result_text(results[-1]), flush=True)
    if options.json is not None:
        write_json(options.json, command, machine, peak, results)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 when a case fails its check."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(given)
    if hasattr(options, "main"):
        return options.main(options, given)
    if options.command == "list":
        print("\n".join(case_text(case) for case in CASES.values()))
        print("\nOpponents:")
        print("\n".join(opponent_text(name) for name in OPPONENTS))
        return 0
    if options.command == "kernels":
        unknown = [name for name in options.engines if name not in ENGINES]
        if unknown:
            parser().error(f"unknown engine {unknown[0]!r}: choose from {', '.join(ENGINES)}")
        return report_kernels(options.engines or list(ENGINES))
    return run_cases(options, f"python -m bench {shlex.join(given)}")


if __name__ == "__main__":
    sys.exit(main())
