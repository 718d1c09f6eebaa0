"""The sections of a sweep file as typed models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from fastlif.sweep.spec import Asha, Resources, SweepSpec

__all__ = ["MOST_TRIALS", "Section", "SweepFile", "own_error"]

MOST_TRIALS = 1_000_000  # more are a slip of the pen, and would take all memory


class Section(BaseModel):
    """Part of a file with keys of its own. An int serves as a float; nothing else is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def own_error(message: str) -> PydanticCustomError:
    """To be raised by a validator; the message ends without the value."""
    return PydanticCustomError("sweep", "{message}", {"message": message})


def _seeds(value: Any) -> Any:
    """3 is [0, 1, 2]."""
    if isinstance(value, list):
        if not value:
            raise own_error("must hold a seed at least")
        return value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise own_error("must be a number of seeds, at least 1, or a list of them")
    if value > MOST_TRIALS:
        raise own_error(f"must be at most {MOST_TRIALS}")
    return list(range(value))


_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{end}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("B", 1000), ("iB", 1024))
}
_BYTES = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?)\s*([A-Za-z]*)\s*\Z")


def _bytes(value: Any) -> Any:
    """ "4 GB" is 4000000000."""
    if not isinstance(value, str):
        return value
    match = _BYTES.match(value)
    units = {unit.upper(): factor for unit, factor in _UNITS.items()}
    if match is None or match[2].upper() not in units:
        raise own_error("must be a number of bytes, or one with a unit such as 4 GB or 512 MiB")
    return round(float(match[1]) * units[match[2].upper()])


def _scheduler(value: Any) -> Any:
    if value == "none":
        return None
    if value is not None and not isinstance(value, dict):
        raise own_error("must be none, or asha: with its settings below")
    return value


def _name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", value):
        raise own_error("must be of letters, digits and _ . + -, a letter, a digit or _ first")
    return value


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ResourcesSection(Section):
    """`Resources` as a file has them."""

    cpus: Positive = Resources.cpus
    gpus: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Resources.gpus
    memory: Annotated[Annotated[int, Field(gt=0)] | None, BeforeValidator(_bytes)] = (
        Resources.memory
    )
    hours: Positive | None = Resources.hours


class AshaSection(Section):
    """`Asha` as a file has it."""

    grace_epochs: Annotated[int, Field(ge=1)]
    reduction: Annotated[int, Field(ge=2)] = Asha.reduction
    metric: Literal["validation_accuracy", "train_accuracy"] = "validation_accuracy"


class SchedulerSection(Section):
    """Schedulers by name."""

    asha: AshaSection


Metric = Literal[
    "final_validation_accuracy", "test_accuracy", "validation_accuracy", "train_accuracy"
]


class ReportSection(Section):
    """What `fastlif sweep report` draws."""

    metrics: Annotated[list[Metric], Field(min_length=1)] = [
        "final_validation_accuracy",
        "test_accuracy",
    ]


class SweepFile(Section):
    """A whole file. What it varies and fixes are options of training, typed by `OPTIONS`."""

    name: Annotated[str | None, BeforeValidator(_name)] = None
    preset: Any = None  # an option like those of `settings` and `search`
    data: str | None = None
    settings: dict[str, Any] = {}
    search: dict[str, Any] = {}
    samples: Annotated[int, Field(ge=1, le=MOST_TRIALS)] | None = None
    search_seed: Annotated[int, Field(ge=0)] | None = None
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_seeds)] = [0]
    scheduler: Annotated[SchedulerSection | None, BeforeValidator(_scheduler)] = None
    resources: ResourcesSection = ResourcesSection()
    retries: Annotated[int, Field(ge=0)] = SweepSpec.retries
    report: ReportSection = ReportSection()
