"""Mistakes of a sweep file: where they are, and how they are worded."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from fastlif.sweep.spec import SpecError

__all__ = ["Place", "Problems", "key_list", "nearest", "shown"]

# Keys and positions in lists that lead to a value of the file: ("search", "lr", "range", 0).
Place = tuple[str | int, ...]


class Problems:
    """Collects all mistakes of one file.

    lines: number of the line, from 1, of every key and list entry of the file.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Place, int] = {}
        self._found: dict[tuple[int, str], None] = {}  # line and text, each once
        self._unread: set[Place] = set()

    def add(self, place: Place, message: str, *, line: int | None = None) -> None:
        """Note a mistake.

        place: of the value; one that the file does not have counts as its nearest parent.
        message: as the end of a sentence that begins with the key.
        line: where it is not that of the place.
        """
        if place in self._unread:
            return
        key = _dotted(place)
        line = self.line(place) if line is None else line
        self._found[line, f"{key}: {message}" if key else message] = None

    def unread(self, place: Place, message: str, *, line: int | None = None) -> None:
        """Note a value that cannot be read. What else is said of it is no news, and left out."""
        self.add(place, message, line=line)
        self._unread.add(place)

    def line(self, place: Place) -> int:
        """Number of the line, from 1, of a place or of the nearest parent that the file has."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def stop(self) -> None:
        """SpecError with all mistakes in the order of the file, if there are any."""
        if self._found:
            ordered = sorted(self._found, key=lambda one: one[0])
            lines = [f"{self.file}:{line}: {text}" for line, text in ordered]
            if len(lines) > 1:
                lines.insert(0, f"{self.file} has {len(lines)} mistakes")
            raise SpecError("\n".join(lines))


def _dotted(place: Place) -> str:
    """search.lr.range[0]."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def shown(value: Any) -> str:
    """A value of a file, as messages quote it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"keys {', '.join(map(str, value))}" if value else "an empty mapping"
    if isinstance(value, (list, tuple)):
        text = f"[{', '.join(map(shown, value))}]"
        return text if len(text) <= 60 else f"a list of {len(value)}"
    return repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'lr'?" if one of the known words is like this one, else nothing."""
    words = list(known)
    found = difflib.get_close_matches(word, words, n=1) or [
        one for one in words if len(word) > 2 and one.startswith(word)
    ]
    return f", did you mean {found[0]!r}?" if found else ""


def key_list(words: Iterable[str], *, last: str = "and") -> str:
    """a, b and c."""
    listed = list(words)
    return f" {last} ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))
