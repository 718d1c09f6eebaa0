"""A cache for what a training loop asks again at every step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


def remembered(function: _Function) -> _Function:
    """Cache results by arguments, which must be hashable: a training loop asks the same each step.

    torch.compile traces the function itself.
    """
    memory = lru_cache(maxsize=256)(function)

    @wraps(function)
    def ask(*args: Any, **kwargs: Any) -> Any:
        chosen = function if torch.compiler.is_compiling() else memory
        return chosen(*args, **kwargs)

    return cast(_Function, ask)
