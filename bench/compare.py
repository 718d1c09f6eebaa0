"""`python -m bench compare REF`: whether this tree is slower than another commit, beyond noise.

REF is checked out into a temporary worktree and its extension built there. One worker process a
tree takes training steps of the same network on the same spikes, in turn, one at a time, and the
ratio of each pair of steps is taken. Their median has an interval that holds for any distribution:
between two of the sorted ratios, chosen by the binomial distribution. A case is a regression when
the whole interval lies above 1 + threshold.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cases import CASES, DT, Case
from bench.machine import ROOT
from bench.networks import build_network, poisson_input
from bench.trees import CannotCompare, build_extension, worktree

KEY_CASES = ("dense-recurrent", "shd-conv3", "dalian-dense", "randman")
CONFIDENCE = 0.95
LEAST_REPEATS = 6  # fewer pairs have no interval of this confidence
WORKER = Path(__file__).with_name("compare_worker.py")


@dataclass(frozen=True)
class Ratio:
    """Time of this tree over that of the other, of pairs of steps taken one after the other."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """The median of the ratios, and an interval that has it with `CONFIDENCE`."""
        ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        outside = interval_rank(len(ratios))
        return Ratio(statistics.median(ratios), ratios[outside], ratios[-1 - outside])

    def is_regression(self, threshold: float) -> bool:
        """Whether all of the interval is above 1 + threshold."""
        return self.low > 1.0 + threshold


def interval_rank(n: int, confidence: float = CONFIDENCE) -> int:
    """How many of n sorted values lie outside, at either end, of the interval of the median.

    The k-th smallest is above the median when fewer than k values are below it, whose number is
    binomial with probability 1/2. ValueError where n is too small for the confidence.
    """
    outside, tail = -1, 0.0
    while True:
        tail += math.comb(n, outside + 1) / 2**n
        if 2 * tail > 1 - confidence:
            break
        outside += 1
    if outside < 0:
        raise ValueError(f"{n} pairs give no interval of {confidence:.0%} confidence")
    return outside


class Worker:
    """A process that takes training steps with the fastlif of one tree."""

    def __init__(self, tree: Path, threads: int) -> None:
        self.tree = tree
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), str(tree), str(threads)],
            cwd=tree,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._ask(None)

    def prepare(self, case: Path) -> None:
        """Load a case that `write_case` wrote, and take a step that is not timed."""
        self._ask({"prepare": str(case)})

    def step(self) -> float:
        """Seconds of one training step."""
        return float(self._ask("step"))

    def _ask(self, question: Any) -> Any:
        """An answer; the worker sends one by itself when it has started, for question None."""
        assert self._process.stdin is not None and self._process.stdout is not None
        if question is not None:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise CannotCompare(f"the worker of {self.tree} ended: {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise CannotCompare(f"{self.tree}: {answer['error']}")
        return answer["value"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def write_case(case: Case, path: Path) -> None:
    """Spikes, targets and weights of a case, for workers."""
    input = poisson_input(case)
    model, _ = build_network(case, input)
    generator = torch.Generator().manual_seed(2)
    bounds = case.network.regularization
    content = {
        "preset": case.preset,
        "recurrent": case.recurrent,
        "dt": DT,
        "weights": model.state_dict(),
        "words": input.words,
        "n_steps": input.n_steps,
        "features": list(input.features),
        "targets": torch.randint(case.network.n_classes, (case.batch,), generator=generator),
        "upper_bound": [bounds.v_upper, bounds.upper_strength, bounds.upper_per],
    }
    torch.save(content, path)


def time_in_turn(
    ours: Callable[[], float], theirs: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of steps in pairs; who is first changes from pair to pair."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        for which in order:
            times[which].append((ours, theirs)[which]())
    return times


def compare(
    root: Path, ref: str, cases: Sequence[Case], *, repeats: int, threads: int, threshold: float
) -> list[str]:
    """Compare `root` with a commit of it; prints a line a case and returns those that are slower.

    Raises CannotCompare where one of the trees does not build or run.
    """
    slower = []
    with ExitStack() as stack:
        tree = stack.enter_context(worktree(root, ref))
        build_extension(root, tree)
        workers = []
        for folder in (root, tree):
            workers.append(Worker(folder, threads))
            stack.callback(workers[-1].close)
        for case in cases:
            path = tree.parent / f"{case.name}.pt"
            write_case(case, path)
            for worker in workers:
                worker.prepare(path)
            path.unlink()
            times = time_in_turn(workers[0].step, workers[1].step, repeats)
            ratio = Ratio.of(*times)
            verdict = "SLOWER" if ratio.is_regression(threshold) else "no regression"
            if ratio.is_regression(threshold):
                slower.append(case.name)
            print(
                f"{case.name:<20} {statistics.median(times[0]):.4f} s, {ref} "
                f"{statistics.median(times[1]):.4f} s: ratio {ratio.median:.3f} "
                f"[{ratio.low:.3f} - {ratio.high:.3f}], {verdict}",
                flush=True,
            )
    return slower


def add_parser(commands: Any) -> None:
    """The subcommand `compare`."""
    command = commands.add_parser("compare", help="this tree against another commit")
    command.add_argument("ref", metavar="REF", help="a commit, branch or tag")
    command.add_argument(
        "cases", nargs="*", metavar="CASE", help=f"default: {', '.join(KEY_CASES)}"
    )
    command.add_argument("--repeats", type=int, default=15, help="pairs of steps (default: 15)")
    command.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    command.add_argument(
        "--threshold", type=float, default=0.02, help="slow-down that is let pass (default: 0.02)"
    )
    command.add_argument("--quick", action="store_true", help="tiny batches: times nothing useful")
    command.set_defaults(main=main, error=command.error)


def main(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Exit status 0, 1 when a case is slower beyond noise, 2 when the trees cannot be compared."""
    names = options.cases or list(KEY_CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        options.error(f"unknown case {unknown[0]!r}: choose from {', '.join(CASES)}")
    if options.repeats < LEAST_REPEATS:
        options.error(f"--repeats must be at least {LEAST_REPEATS}, got {options.repeats}")
    if options.threads < 1 or options.threshold < 0:
        options.error("--threads must be at least 1 and --threshold at least 0")
    cases = [CASES[name].quick() if options.quick else CASES[name] for name in names]
    torch.set_num_threads(options.threads)
    try:
        slower = compare(
            ROOT,
            options.ref,
            cases,
            repeats=options.repeats,
            threads=options.threads,
            threshold=options.threshold,
        )
    except CannotCompare as problem:
        print(f"compare: {problem}", file=sys.stderr)
        return 2
    if slower:
        print(f"slower than {options.ref} beyond noise: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0
