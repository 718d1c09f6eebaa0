"""A sweep file from its text to trials; needs the packages of the extra `sweep`."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path

from fastlif.data import check_folder, fingerprint
from fastlif.models import preset
from fastlif.sweep.axes import RANDOM, Choice, Draw, Grid, read_axis
from fastlif.sweep.combinations import Combination, combined, note_refused
from fastlif.sweep.document import read_document
from fastlif.sweep.feasible import Feasibility
from fastlif.sweep.problems import Place, Problems, key_list, shown
from fastlif.sweep.schema import MOST_TRIALS
from fastlif.sweep.spec import Asha, Resources, SweepSpec, Trial
from fastlif.sweep.validation import OPTIONS, checked_file, checked_option, unknown_key
from fastlif.train import TrainConfig, configured, sample_duration

__all__ = ["read"]

_GENERATED = "randman"  # the kind of data that no folder holds


def read(path: Path, data: Path | None, default_data: Path | None) -> SweepSpec:
    """As `fastlif.sweep.read_spec`."""
    return _Reader(path, data, default_data).spec()


class _Reader:
    """One file while it is read; all mistakes gather in `problems`."""

    def __init__(self, path: Path, data: Path | None, default_data: Path | None) -> None:
        self.path = path
        self.problems = Problems(str(path))
        tree = read_document(path, self.problems)
        if not isinstance(tree, dict):
            wanted = "must be a mapping with keys such as preset and search"
            self.problems.add((), f"{wanted}, got {shown(tree)}")
            self.problems.stop()
        self.file = checked_file(tree, self.problems)
        own = None if self.file.data is None else path.parent / Path(self.file.data).expanduser()
        self.given_data = data or own or default_data
        self.fixed: dict[str, Choice] = {}
        self.axes: dict[str, Grid | Draw] = {}
        self.damaged: set[str] = set()  # options that the file has, with values that do not fit

    def spec(self) -> SweepSpec:
        """The sweep; SpecError if there is any mistake."""
        file = self.file
        self._read_options()
        self._check_numbers()
        combinations = self._combinations()
        kind = self._data_kind(combinations)
        configs = _Configs(self.given_data, "cuda" if file.resources.gpus else "cpu")
        with_preset = [one for one in combinations if "preset" in one]
        note_refused(with_preset, lambda one: self._complaint(configs, one), self.problems)
        self._check_grace(configs, with_preset)
        self.problems.stop()
        folder = self.given_data if kind != _GENERATED else None
        return SweepSpec(
            name=file.name or self.path.stem,
            data=folder,
            trials=tuple(self._trials(combinations, configs, folder)),
            varied=tuple(self.axes),
            resources=Resources(**file.resources.model_dump()),
            asha=None if file.scheduler is None else Asha(**file.scheduler.asha.model_dump()),
            retries=file.retries,
            report=file.report.model_dump(),
        )

    def _combinations(self) -> list[Combination]:
        """All of them, none if they are too many, which is noted."""
        samples = self.file.samples or 1
        lengths = [len(axis.choices) for axis in self.axes.values() if isinstance(axis, Grid)]
        n_trials = math.prod(lengths) * len(self.file.seeds)
        if len(lengths) < len(self.axes):
            n_trials *= samples
        if n_trials > MOST_TRIALS:
            self.problems.add(
                ("search",),
                f"must give at most {MOST_TRIALS} trials, seeds included, got {n_trials}",
            )
            return []
        search_seed = self.file.search_seed or 0
        return list(combined(self.fixed, self.axes, samples=samples, search_seed=search_seed))

    def _read_options(self) -> None:
        """What the file fixes and varies."""
        known = [name for name in OPTIONS if name != "preset"]
        for name, value in self.file.settings.items():
            if name in known:
                self._fix(name, value, ("settings", name))
            else:
                unknown_key(("settings", name), known, self.problems)
        if isinstance(self.file.preset, list):
            self._vary("preset", self.file.preset, ("preset",))
        elif self.file.preset is not None:
            self._fix("preset", self.file.preset, ("preset",))
        for name, value in self.file.search.items():
            place = ("search", name)
            if name not in OPTIONS:
                unknown_key(place, [*OPTIONS], self.problems)
            elif name in self.file.settings or (name == "preset" and self.file.preset is not None):
                other = ("preset",) if name == "preset" else ("settings", name)
                line = self.problems.line(other)
                self.problems.add(place, f"must be fixed or varied, is fixed in line {line}")
            else:
                self._vary(name, value, place)
        if "preset" not in {*self.fixed, *self.axes, *self.damaged}:
            self.problems.add(("preset",), "must be given")

    def _fix(self, name: str, value: object, place: Place) -> None:
        own, fits = checked_option(name, value, place, self.problems)
        if fits:
            self.fixed[name] = Choice(name, own, place)
        else:
            self.damaged.add(name)

    def _vary(self, name: str, value: object, place: Place) -> None:
        axis = read_axis(name, value, place, self.problems)
        if axis is None:
            self.damaged.add(name)
        else:
            self.axes[name] = axis

    def _check_numbers(self) -> None:
        """Seeds given twice; a number of samples without anything to draw, or the reverse."""
        file, problems = self.file, self.problems
        first_places: dict[int, int] = {}
        for index, seed in enumerate(file.seeds):
            first = first_places.setdefault(seed, index)
            if first < index:
                line = problems.line(("seeds", first))
                problems.add(
                    ("seeds", index), f"must be given once, is also in line {line}, got {seed}"
                )
        drawn = [name for name, axis in self.axes.items() if isinstance(axis, Draw)]
        if drawn and file.samples is None and ("samples",) not in problems.lines:
            problems.add(
                ("search", drawn[0]), "is drawn at random: samples must say how often, got none"
            )
        if not drawn and not self.damaged:
            for key in ("samples", "search_seed"):
                if getattr(file, key) is not None:
                    problems.add(
                        (key,),
                        f"is for options that are drawn ({key_list(RANDOM, last='or')}), got "
                        f"{getattr(file, key)} where search has none",
                    )

    def _data_kind(self, combinations: list[Combination]) -> str:
        """The kind of data that the sweep needs; that there is some of it is checked."""
        needed: dict[str, Choice] = {}  # the first preset of each kind
        for combination in combinations:
            if "preset" in combination:
                choice = combination["preset"]
                needed.setdefault(preset(choice.value).data, choice)
        needed.pop(_GENERATED, None)
        for kind, choice in needed.items():
            first = next(iter(needed.values()))
            if choice is not first:
                self.problems.add(
                    choice.place,
                    f"must take the same data as {first.value!r}, as a sweep has one data folder, "
                    f"got {choice.value!r}",
                )
            elif self.given_data is None:
                self.problems.add(
                    choice.place,
                    f"{choice.value!r} needs data: give the key data, --data or FASTLIF_DATA",
                )
            else:
                try:
                    check_folder(kind, self.given_data)
                except (ValueError, OSError) as error:
                    self.problems.add(("data",), f"must hold the data of the preset: {error}")
        return next(iter(needed), _GENERATED)

    def _complaint(self, configs: _Configs, combination: Combination) -> str | None:
        message = configs.complaint(combination)
        # Whether an option that could not be read would have made it right is not known.
        if message is not None and self.damaged.intersection(re.findall(r"\w+", message)):
            return None
        return message

    def _check_grace(self, configs: _Configs, combinations: list[Combination]) -> None:
        """ASHA must have something to stop."""
        if self.file.scheduler is None:
            return
        grace = self.file.scheduler.asha.grace_epochs
        lengths = [
            configs.config(one).all_epochs for one in combinations if not configs.complaint(one)
        ]
        if lengths and grace >= max(lengths):
            self.problems.add(
                ("scheduler", "asha", "grace_epochs"),
                f"must be less than the epochs of the longest trial, {max(lengths)}, got {grace}",
            )

    def _trials(
        self, combinations: list[Combination], configs: _Configs, data: Path | None
    ) -> Iterator[Trial]:
        digests = {_GENERATED: _GENERATED}  # of data by its kind
        number = 0
        for combination in combinations:
            config = configs.config(combination)
            kind = preset(config.preset).data
            if kind not in digests:
                assert data is not None  # as was checked
                digests[kind] = fingerprint(kind, data)
            for seed in self.file.seeds:
                own = dataclasses.replace(config, seed=seed)
                yield Trial(
                    number=number,
                    name=f"{number:04d}-{own.digest(digests[kind])}",
                    config=own,
                    options={name: combination[name].value for name in self.axes},
                )
                number += 1


class _Configs:
    """The settings of combinations, and what is wrong with those that have none."""

    def __init__(self, data: Path | None, device: str) -> None:
        self._data = data
        self._device = device
        self._feasibility = Feasibility()
        self._durations: dict[str, float] = {}  # seconds of a sample, by preset

    def config(self, combination: Combination) -> TrainConfig:
        """The settings of a combination; ValueError if they are refused."""
        values = {option: choice.value for option, choice in combination.items()}
        name = values.pop("preset")
        return configured(name, {"device": self._device, **values}, duration=self._duration(name))

    def complaint(self, combination: Combination) -> str | None:
        """What is wrong with a combination, None if nothing is."""
        try:
            config = self.config(combination)
        except ValueError as error:
            return str(error)
        return self._feasibility.reason(config, self._duration(config.preset))

    def _duration(self, name: str) -> float:
        if name not in self._durations:
            self._durations[name] = sample_duration(name, self._data)
        return self._durations[name]
