"""From the paper's networks and conditions to the runs of a reproduction of a given size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastlif.models import preset
from fastlif.reproduce.options import PAPER_SEEDS, Options
from fastlif.reproduce.runs import Run
from fastlif.reproduce.sources import DATA_SETS, Sources
from fastlif.sweep.paper import paper_sweep
from fastlif.train import TrainConfig, configured, sample_duration

__all__ = ["KAIMING", "PLAIN", "Plan"]

PLAIN = "fluctuation-driven"
KAIMING = "Kaiming"

CURVES = "4a"  # the paper's sweep whose targets other curves have, too

# Epochs of these take several times those of the others: below full size they get fewer.
SHORTENED = {"shd-conv7": 0.5, "shd-conv10": 0.5}


class Plan:
    """Collects the runs of an experiment and what of the paper's size they leave out."""

    def __init__(self, options: Options, sources: Sources | None = None) -> None:
        self.options = options
        self._sources = Sources() if sources is None else sources
        self._runs: dict[tuple[Any, ...], Run] = {}
        self._names: set[str] = set()  # that `only` can take: panels' letters and networks
        self._notes: dict[str, None] = {}  # in order, each once
        self._left_out: dict[float, list[str]] = {}  # by the scale from which on they are in
        if options.scale < 1.0:
            self._note(f"scale {options.scale:g}")

    @property
    def runs(self) -> list[Run]:
        """All runs in the order in which they were added, each once."""
        return list(self._runs.values())

    def add(
        self,
        panels: str,
        network: str,
        preset_name: str,
        condition: str = PLAIN,
        *,
        targets: Sequence[float] | None = (1.0,),
        records: tuple[str, ...] = (),
        from_scale: float = 0.0,
        n_seeds: int = PAPER_SEEDS,
        **changes: Any,
    ) -> None:
        """Runs of a network under a condition, one for every target and seed.

        panels, network, condition, records: as in `Run`.
        targets: of sigma_U, as they are; `targets()` shrinks a list of them. None for an
            initialization without a target.
        from_scale: left out of reproductions that are smaller.
        n_seeds: of the paper.
        changes: of the paper's settings; `priming_epochs` is the paper's number.
        """
        options = self.options
        if not self._wanted(panels, network):
            return
        if options.scale < from_scale:
            what = network if condition == PLAIN else f"{network} {condition}"
            self._left_out.setdefault(from_scale, []).append(what)
            return
        full = preset(preset_name).epochs
        self._note_size(self._epochs(preset_name), full, "epoch")
        self._add(
            Run(panels, network, condition, self._config(preset_name, changes), True, records),
            targets,
            n_seeds,
        )

    def look(self, panels: str, network: str, preset_name: str, targets: Sequence[float]) -> None:
        """Networks that are looked at as they start, without training."""
        if self._wanted(panels, network):
            config = self._config(preset_name, {})
            run = Run(panels, network, PLAIN, config, False, ("initial",))
            self._add(run, targets, PAPER_SEEDS)

    def unknown(self) -> list[str]:
        """What `only` names and no run that was added or left out has."""
        return [name for name in self.options.only if name not in self._names]

    def seeds(self, n_seeds: int = PAPER_SEEDS) -> range:
        """Seeds of what is measured without a run."""
        chosen = self.options.seeds_of(n_seeds)
        self._note_size(len(chosen), n_seeds, "seed")
        return chosen

    def targets(self, by_importance: Sequence[float] | None = None) -> tuple[float, ...]:
        """Targets of sigma_U for a curve at this scale; None takes those of figure 4a."""
        if by_importance is None:
            by_importance = paper_sweep(CURVES).axes["sigma_u"]
        chosen = self.options.targets_of(by_importance)
        self._note_size(len(chosen), len(by_importance), "target")
        return chosen

    def grid(self, values: Sequence[float], symbol: str) -> tuple[float, ...]:
        """Values of one axis of a grid at this scale, the middle one among them."""
        chosen = self.options.grid_of(values, values[len(values) // 2])
        self._note_size(len(chosen), len(values), f"value of {symbol}", f"values of {symbol}")
        return chosen

    def shrunk(self) -> str:
        """In words, what is smaller than in the paper or else; empty if nothing is."""
        left_out = [
            f"below scale {scale:g} without {', '.join(dict.fromkeys(what))}"
            for scale, what in self._left_out.items()
        ]
        return "; ".join([*self._notes, *left_out])

    def _wanted(self, panels: str, network: str) -> bool:
        self._names |= {*panels, network}
        if not self.options.wants(panels, network):
            self._note(f"only {', '.join(self.options.only)}")
            return False
        return True

    def _add(self, run: Run, targets: Sequence[float] | None, n_seeds: int) -> None:
        """The run with every target and seed."""
        for target in (None,) if targets is None else targets:
            for seed in self.seeds(n_seeds):
                config = dataclasses.replace(run.config, seed=seed)
                if target is not None:
                    config = dataclasses.replace(config, sigma_u=target)
                self._merge(dataclasses.replace(run, config=config))

    def _merge(self, run: Run) -> None:
        """Add a run, or what it serves and records to the same run of other panels."""
        key = (run.network, run.condition, run.config)
        known = self._runs.get(key)
        if known is not None:
            run = dataclasses.replace(
                known,
                panels="".join(sorted({*known.panels, *run.panels})),
                trained=known.trained or run.trained,
                records=tuple(dict.fromkeys((*known.records, *run.records))),
            )
        self._runs[key] = run

    def _epochs(self, name: str) -> int:
        share = SHORTENED.get(name, 1.0) if self.options.scale < 1.0 else 1.0
        return self.options.epochs_of(preset(name).epochs, share)

    def _config(self, name: str, changes: dict[str, Any]) -> TrainConfig:
        """The paper's settings with changes, its sizes those of this scale."""
        options, network = self.options, preset(name)
        data = DATA_SETS[network.data]
        epochs = self._epochs(name)
        sized = {"epochs": epochs, "device": options.device, "backend": options.backend, **changes}
        if "priming_epochs" in changes:
            full = int(changes["priming_epochs"])
            sized["priming_epochs"] = options.priming_of(full, epochs)
            self._note_size(sized["priming_epochs"], full, "priming epoch")
        n_samples = options.samples_of(data.n_train)
        if n_samples is not None:
            sized["n_samples"] = n_samples
            self._note(f"{n_samples} samples of {data.name}")
        if options.batch_size is not None and options.batch_size < network.batch_size:
            sized["batch_size"] = options.batch_size
            self._note(f"batches of {options.batch_size}")
        if options.channel_shift and network.data == "events":
            sized["channel_shift"] = options.channel_shift
            self._note(f"inputs moved by up to {options.channel_shift} channels")
        duration = sample_duration(name, self._sources.folder(network.data))
        return configured(name, sized, duration=duration)

    def _note(self, text: str) -> None:
        self._notes[text] = None

    def _note_size(self, now: int, full: int, noun: str, plural: str | None = None) -> None:
        if now != full:
            self._note(f"{now} of {full} {plural or noun + 's'}")
