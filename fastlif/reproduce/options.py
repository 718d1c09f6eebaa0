"""How large a reproduction is: the paper's size times a scale, and what was set by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Options", "PAPER_SEEDS"]

PAPER_SEEDS = 5  # runs of every network in the paper, with a seed of its own each
FEWEST_EPOCHS = 2
FEWEST_TARGETS = 2
FEWEST_GRID_VALUES = 3
# Training sets beyond this many samples shrink with the scale too, down to no less than it.
LARGE_DATA_SET = 10_000


@dataclass(frozen=True)
class Options:
    """Size of a reproduction. A number that is given wins over what `scale` would make of it.

    scale: share of the paper's seeds, epochs and targets, each for itself; a run is never shorter
        than two epochs and a curve never has fewer than two targets.
    seeds: how many; they are numbered from 0.
    targets: of sigma_U.
    samples: training samples at most.
    only: panels (their letters) or networks (as the figure names them); empty for all.
    threads, device, backend: of the machine; results do not depend on them beyond rounding.

    Raises:
        ValueError: a number out of its range.
    """

    scale: float = 1.0
    seeds: int | None = None
    epochs: int | None = None
    targets: tuple[float, ...] | None = None
    samples: int | None = None
    batch_size: int | None = None
    channel_shift: int = 0
    only: tuple[str, ...] = ()
    device: str = "cpu"
    backend: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.scale <= 1.0:
            raise ValueError(f"scale must lie in (0, 1], got {self.scale}")
        for name in ("seeds", "epochs", "samples", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.channel_shift < 0:
            raise ValueError(f"channel_shift must be at least 0, got {self.channel_shift}")
        if self.targets is not None:
            if not self.targets:
                raise ValueError("targets must name at least one value of sigma_U, got none")
            for target in self.targets:
                if not (math.isfinite(target) and target > 0):
                    raise ValueError(f"targets must be finite and > 0, got {target}")

    def suffix(self) -> str:
        """What a file name gets that holds less or else than the full experiment.

        "-scale0.05-only-conv-7" for instance, empty for the full size. In whatever order targets
        and selections were given, the same ones give the same name.
        """
        parts = [] if self.scale == 1.0 else [f"scale{self.scale:.12g}"]
        for name in ("seeds", "epochs", "samples"):
            if getattr(self, name) is not None:
                parts.append(f"{name}{getattr(self, name)}")
        if self.targets is not None:
            parts.append("targets" + "_".join(f"{t:.12g}" for t in self.targets_of(())))
        if self.batch_size is not None:
            parts.append(f"batch{self.batch_size}")
        if self.channel_shift:
            parts.append(f"shift{self.channel_shift}")
        if self.only:
            names = (re.sub(r"[^\w.+-]", "_", name) for name in sorted(set(self.only)))
            parts.append("only-" + "-".join(names))
        return "".join(f"-{part}" for part in parts)

    def seeds_of(self, full: int = PAPER_SEEDS) -> range:
        """Seeds to run where the paper has `full` of them."""
        return range(self.seeds or max(1, round(self.scale * full)))

    def epochs_of(self, full: int, share: float = 1.0) -> int:
        """Epochs of a network that the paper trained for `full`, of the scale's times `share`."""
        return self.epochs or min(full, max(FEWEST_EPOCHS, round(share * self.scale * full)))

    def priming_of(self, full: int, epochs: int) -> int:
        """Epochs of priming before `epochs` of training: at most half as many as those."""
        return min(full, max(1, epochs // 2))

    def targets_of(self, by_importance: Sequence[float]) -> tuple[float, ...]:
        """Targets of sigma_U in ascending order, the most important first to stay."""
        if self.targets is not None:
            return tuple(sorted(set(self.targets)))
        n_targets = max(FEWEST_TARGETS, round(self.scale * len(by_importance)))
        return tuple(sorted(by_importance[:n_targets]))

    def grid_of(self, values: Sequence[float], keep: float) -> tuple[float, ...]:
        """Evenly chosen values of one axis of a grid, `keep` always among them.

        A grid has two axes, so each shrinks with the root of the scale.
        """
        n_values = max(FEWEST_GRID_VALUES, round(math.sqrt(self.scale) * len(values)))
        n_values = min(n_values, len(values))
        last = len(values) - 1
        chosen = {values[round(i * last / (n_values - 1))] for i in range(n_values)}
        if keep not in chosen:
            chosen.discard(min(chosen, key=lambda value: abs(values.index(value) - last // 2)))
            chosen.add(keep)
        return tuple(sorted(chosen))

    def samples_of(self, full: int) -> int | None:
        """Training samples to use of the `full` ones of the paper; None is all that there are."""
        if self.samples is not None or full <= LARGE_DATA_SET or self.scale == 1.0:
            return self.samples
        return max(LARGE_DATA_SET, round(self.scale * full))

    def wants(self, panels: str, network: str) -> bool:
        """Whether a run that serves these panels and shows this network is asked for."""
        return not self.only or any(
            name == network or (len(name) == 1 and name in panels) for name in self.only
        )
