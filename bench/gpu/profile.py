"""The kernels of one training step, for the worst case of a run: `python -m bench.gpu.profile`.

With --bare it runs the steps and nothing else, so that a profiler of one's own can look at them:

    ncu --set basic -k "regex:stack|scan|weight" python -m bench.gpu.profile --case NAME --bare
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.cases import CASES
from bench.gpu.cases import GPU_CASES, StepCase
from bench.gpu.measure import kernel_times
from bench.gpu.run import backend_of, build_trainer, precision_of, prepare

ROWS = 25


def worst_case(timings: Path) -> tuple[str, str]:
    """Case and variant whose step is farthest from its goal (or else its floor), of a run's JSON.

    The first case on the CUDA kernels when there is no run or nothing in it.
    """
    worst, found = 0.0, (next(iter(GPU_CASES)), "cuda")
    try:
        results = json.loads(timings.read_text())["results"]
    except (OSError, ValueError, KeyError):
        return found
    for result in results:
        if not isinstance(GPU_CASES.get(result["case"]), StepCase) or result["variant"] == "loop":
            continue
        for quantity in ("graph step", "step"):
            target = result["goals"].get(quantity, result["floors"].get(quantity))
            if target and result["times"][quantity]["median"] / target > worst:
                worst = result["times"][quantity]["median"] / target
                found = (result["case"], result["variant"])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile a few steps of a case."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.profile", description=__doc__)
    parser.add_argument("--timings", type=Path, help="JSON of bench.gpu, to choose the worst of")
    parser.add_argument("--case", choices=[n for n, c in GPU_CASES.items() if _is_step(c)])
    parser.add_argument("--variant", default="cuda")
    parser.add_argument("--bare", action="store_true", help="no table: two steps, nothing else")
    parser.add_argument("--device", default="cuda", help="cpu rehearses")
    parser.add_argument("--quick", action="store_true", help="a tiny batch")
    options = parser.parse_args(arguments)
    name, variant = options.case or next(iter(CASES)), options.variant
    if options.timings is not None and options.case is None:
        name, variant = worst_case(options.timings)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch finds no CUDA device", file=sys.stderr)
        return 1
    case = GPU_CASES[name]
    assert isinstance(case, StepCase)
    prepared = prepare(case.quick() if options.quick else case)
    with precision_of(variant):
        trainer, input = build_trainer(prepared, backend_of(variant, device), device)
        if options.bare:
            for _ in range(2):
                trainer.whole_step(input)
                trainer.reset()
            return 0
        times = kernel_times(lambda: trainer.whole_step(input), device)
    total = sum(time.seconds for time in times)
    print(f"{name}, {variant}: {1e3 * total:.3f} ms in {sum(t.calls for t in times)} kernels")
    for time in times[:ROWS]:
        share = time.seconds / total
        print(f"{1e3 * time.seconds:10.4f} ms {share:6.1%} {time.calls:5d} x {time.name}")
    return 0


def _is_step(case: object) -> bool:
    return isinstance(case, StepCase)


if __name__ == "__main__":
    sys.exit(main())
