"""Training steps with the fastlif of a given tree: `compare_worker.py TREE THREADS`.

Run by `bench.compare`, once a tree, also of older commits: it imports nothing of the benchmark and
of fastlif only what every commit has. Questions and answers are lines of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

TREE = Path(sys.argv[1]).resolve()
# In place of this file's own folder: the tree's fastlif, whichever is installed.
sys.path[0] = str(TREE)


def prepare(path: str) -> Callable[[], float]:
    """A function that takes one step of a case and returns its seconds."""
    import torch

    from fastlif import PackedSpikes, Sequential
    from fastlif.losses import max_over_time_cross_entropy, upper_bound
    from fastlif.models import build
    from fastlif.optim import SMORMS3

    case = torch.load(path)
    network = build(case["preset"], recurrent=case["recurrent"], dt=case["dt"])
    layers = [item for item in network.named_children() if item[0] != "encoder"]
    model = Sequential(OrderedDict(layers))
    model.load_state_dict(case["weights"])
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters]
    input = PackedSpikes(case["words"], case["n_steps"], tuple(case["features"]))
    optimizer = SMORMS3(parameters, lr=5e-3)

    def step() -> float:
        begin = time.perf_counter()
        output, _, counts = model(input, return_spike_counts=True)
        loss = max_over_time_cross_entropy(output, case["targets"])
        loss = loss + upper_bound(counts, *case["upper_bound"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - begin
        with torch.no_grad():  # the same firing rates at every step
            for parameter, weight in zip(parameters, start, strict=True):
                parameter.copy_(weight)
        return seconds

    step()
    return step


def main() -> None:
    """Answer questions until there are no more."""
    # Whatever else prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        import torch

        import fastlif

        torch.set_num_threads(int(sys.argv[2]))
        origin = Path(fastlif.__file__).resolve()
        if TREE not in origin.parents:
            raise ImportError(f"fastlif was imported from {origin}")
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        return
    answer({"value": None})
    step = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if question == "step":
                answer({"value": step()})  # type: ignore[misc]
            else:
                step = None  # frees the case before
                step = prepare(question["prepare"])
                answer({"value": None})
        except Exception as error:
            answer({"error": f"{type(error).__name__}: {error}"})


main()
