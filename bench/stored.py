"""Results read back from the JSON that `python -m bench run` and `growth` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

OWN = ("fastlif", "fastlif-packed", "fastlif-float")  # names of sides; the first one there counts
YARDSTICKS = ("lstm",)  # compared with, but no opponent: another network
TITLES = {
    "loop": "plain loop",
    "loop-compiled": "compiled loop",
    "snntorch": "snnTorch",
    "spikingjelly": "SpikingJelly",
    "spikingjelly-lif": "SpikingJelly LIFNode",
    "norse": "Norse",
    "lstm": "LSTM",
}

Content = dict[str, Any]


class BadResults(Exception):
    """Results or a README that no report can be made of."""


def read_results(folder: Path) -> dict[str, Content]:
    """Contents of all JSON files of a folder by name without ending, in order of their names."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        cases = content.get("cases")
        new = "series" in content if cases is None else all("sides" in case for case in cases)
        if not new:
            raise BadResults(
                f"{path} has another form than `python -m bench run` and `growth` write: "
                "run its command again"
            )
        found[path.stem] = content
    if not found:
        raise BadResults(f"{folder} has no results: python -m bench run --json FILE")
    return found


def own_side(sides: Content) -> Content:
    """fastlif's numbers, with packed input where both were measured."""
    for name in OWN:
        if name in sides:
            return sides[name]
    raise BadResults(f"no side is fastlif's: {', '.join(sides)}")


def opponents(case: Content) -> dict[str, Content]:
    """The other sides of a case."""
    return {name: side for name, side in case["sides"].items() if name not in OWN}


def median(side: Content, part: str = "step") -> float:
    """Seconds."""
    return side["times"][part]["median"]


def ratio(own: Content, side: Content) -> float:
    """How many times longer a side takes: of its turns beside fastlif's, where it took turns."""
    paired = side.get("ratio")
    return paired["median"] if paired is not None else median(side) / median(own)


def step_bytes(side: Content) -> int | None:
    """Memory that a step takes beside what the process held before it; None where unknown."""
    if side["peak_rss"] is None or side.get("resident_before") is None:
        return None
    return side["peak_rss"] - side["resident_before"]


def title(side: str) -> str:
    """A side as tables and plots name it."""
    return TITLES.get(side, side)
