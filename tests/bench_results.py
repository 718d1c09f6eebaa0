"""Made-up results of the benchmark, in the form that `bench run` and `bench growth` write."""

from __future__ import annotations

from typing import Any


def spread(seconds: float) -> dict[str, float]:
    """Of times around a median."""
    return {"median": seconds, "smallest": 0.9 * seconds, "largest": 1.2 * seconds}


def side(seconds: float, **fields: Any) -> dict[str, Any]:
    """A side whose step takes so long."""
    parts = {"forward": 0.4, "backward": 0.5, "optimizer": 0.1, "step": 1.0}
    return {
        "times": {name: spread(share * seconds) for name, share in parts.items()},
        "kept_bytes": 38_000_000,
        "peak_rss": 400_000_000,
        "resident_before": 300_000_000,
        "steps": 350,
        "compile_seconds": None,
        "difference": "",
    } | fields


def run_content() -> dict[str, Any]:
    """Three cases; one opponent of the second is missing, one has other equations."""
    first = {
        "fastlif": side(0.1),
        "loop": side(0.7, peak_rss=2_500_000_000),
        "snntorch": side(1.5, peak_rss=420_000_000, difference="resets one step later"),
        "lstm": side(0.3),
    }
    second = {
        "fastlif": side(1.25),
        "loop": side(10.0, steps=50, memory_steps=50, peak_rss=3_000_000_000),
        "loop-compiled": side(8.0, compile_seconds=61.0, peak_rss=3_500_000_000),
    }
    third = {"fastlif": side(0.2), "loop": side(0.9, ratio=spread(4.0))}
    sizes = {"batch": 400, "n_steps": 350}
    return {
        **origin("python -m bench run --json results/cpu.json"),
        "cases": [
            {
                "case": {"name": "dense", **sizes},
                "floor": 0.025,
                "sides": first,
                "skipped": {},
                "others_share": 0.01,
            },
            {
                "case": {"name": "conv", **sizes},
                "floor": 0.25,
                "sides": second,
                "skipped": {"snntorch": "not installed"},
                "others_share": 0.2,
            },
            {
                "case": {"name": "wide", **sizes},
                "floor": 0.05,
                "sides": third,
                "skipped": {},
                "others_share": 0.0,
            },
        ],
    }


def growth_content() -> dict[str, Any]:
    """Two series and the search for depth; the loop has not every point."""
    own = {"time": (32, 320, 3200), "depth": (1, 2, 4)}
    series = []
    for name, values in own.items():
        points = []
        for value in values:
            sides = {"fastlif": side(1e-3 * value)}
            if value < 3200:
                sides["loop"] = side(7e-3 * value, peak_rss=None)
            points.append({"value": value, "sides": sides})
        slopes = {"fastlif": 1.0, "loop": 1.0}
        series.append({"name": name, "variable": name, "points": points, "slope": slopes})
    found = {"fastlif": (48, True), "loop": (7, False)}
    depths = {name: {"n_layers": n, "is_largest": last} for name, (n, last) in found.items()}
    return {
        **origin("python -m bench growth --json results/cpu-growth.json"),
        "series": series,
        "layers": {"search": {"limit": 20 << 30, "batch": 100, "n_steps": 350}, "sides": depths},
    }


def origin(command: str) -> dict[str, Any]:
    """What heads every file of results."""
    machine = {
        "cpu": "a processor",
        "threads": 2,
        "isa": "avx512",
        "torch": "2.13",
        "commit": "abc",
    }
    return {"command": command, "machine": machine, "peak": {"multiply_adds": 1e11, "bytes": 2e10}}
