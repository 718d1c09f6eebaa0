"""Values of a file checked against their types, every misfit noted with its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from fastlif.models import PRESETS, Regularization
from fastlif.sweep.problems import Place, Problems, key_list, nearest, shown
from fastlif.sweep.schema import Section, SweepFile, own_error
from fastlif.train import TrainConfig

__all__ = ["OPTIONS", "checked_file", "checked_option", "checked_section", "unknown_key"]


def _preset(value: Any) -> Any:
    if isinstance(value, str) and value not in PRESETS:
        raise own_error(f"must be one of {', '.join(PRESETS)}")
    return value


def _option_types() -> Iterator[tuple[str, Any]]:
    """Options of training by name, with the types that TrainConfig and Regularization give them."""
    yield "preset", Annotated[str, BeforeValidator(_preset)]
    for owner in (TrainConfig, Regularization):
        hints = get_type_hints(owner)
        for setting in dataclasses.fields(owner):
            if setting.name not in ("preset", "regularization", "seed", "device"):
                yield setting.name, hints[setting.name]


OPTIONS: dict[str, TypeAdapter[Any]] = {
    name: TypeAdapter(hint, config=ConfigDict(strict=True)) for name, hint in _option_types()
}

# Where else things are set that `fastlif train` takes as options.
_ELSEWHERE = {
    "seed": "seeds, a key of the whole file, numbers the trials of every combination",
    "device": "trials with more than 0 gpus, a key below resources, train on a GPU",
    "threads": "cpus, a key below resources, are the threads too",
    "out": "the command's --out is the folder",
}

_Model = TypeVar("_Model", bound=BaseModel)


def checked_file(tree: dict[str, Any], problems: Problems) -> SweepFile:
    """The file's sections; those that do not fit are noted, and at their defaults."""
    rest = dict(tree)
    while True:
        try:
            return SweepFile.model_validate(rest)
        except ValidationError as error:
            _note_all(error, (), SweepFile, problems)
            for one in error.errors():
                rest.pop(str(one["loc"][0]), None)


def checked_section(
    model: type[_Model], value: Any, place: Place, problems: Problems
) -> _Model | None:
    """A mapping of the file as a model, None if something in it does not fit, which is noted."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        _note_all(error, place, model, problems)
        return None


def checked_option(name: str, value: Any, place: Place, problems: Problems) -> tuple[Any, bool]:
    """The value of an option in its own type, and whether it fits; a misfit is noted."""
    try:
        return OPTIONS[name].validate_python(value), True
    except ValidationError as error:
        _note_all(error, place, None, problems)
        return None, False


def unknown_key(place: Place, known: list[str], problems: Problems) -> None:
    """Note a key that its section does not have, with what may have been meant."""
    key = str(place[-1])
    top, below_resources = list(SweepFile.model_fields), ["cpus", "gpus", "memory", "hours"]
    if key in _ELSEWHERE:
        hint = f": {_ELSEWHERE[key]}"
    elif key in known:
        hint = ""
    elif key in top:
        hint = ": it is a key of the whole file"
    elif key in OPTIONS:
        hint = ": options of training stand below settings, or below search to be varied"
    elif key in below_resources:
        hint = ": it stands below resources"
    else:
        hint = nearest(key, known)
        if not hint and set(known) & {*top, *OPTIONS}:
            hint = nearest(key, [*top, *OPTIONS, *below_resources])
        hint = hint or f": known are {key_list(known)}"
    problems.add(place, f"is not known{' here' if hint.startswith(':') else ''}{hint}")


def _note_all(
    error: ValidationError, place: Place, model: type[BaseModel] | None, problems: Problems
) -> None:
    unknown = [one["loc"] for one in error.errors() if one["type"] == "extra_forbidden"]
    for one in error.errors():
        section, where = one["loc"][:-1], (*place, *one["loc"])
        if one["type"] == "extra_forbidden":
            unknown_key(where, _fields(model, section), problems)
        elif one["type"] != "missing":
            problems.add(where, f"{_expected(one)}, got {shown(one['input'])}")
        # Not of a key that is there misspelled.
        elif not any(
            key[:-1] == section and nearest(str(key[-1]), [str(where[-1])]) for key in unknown
        ):
            problems.add(where, "must be given")


def _fields(model: type[BaseModel] | None, path: Place) -> list[str]:
    """Keys of the section at a path within a model."""
    for key in path:
        assert model is not None
        annotation = model.model_fields[str(key)].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        (model,) = (one for one in options if isinstance(one, type) and issubclass(one, Section))
    assert model is not None
    return list(model.model_fields)


_EXPECTED = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than_equal": "must be at most {le:g}",
    "finite_number": "must be finite",
    "too_short": "must not be empty",
}


def _expected(error: ErrorDetails) -> str:
    words = _EXPECTED.get(error["type"])
    return error["msg"] if words is None else words.format(**error.get("ctx", {}))
