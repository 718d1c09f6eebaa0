"""YAML files as plain values, with the line of everything in them.

Scalars mean what YAML 1.2 says (its core schema): `1e-3` is a number, `on` a word. PyYAML's own
rules are those of YAML 1.1, where it is the other way round; it reads, the rules are set here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from yaml.composer import Composer
from yaml.error import MarkedYAMLError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from fastlif.sweep.problems import Place, Problems

__all__ = ["read_document"]

_TAG = "tag:yaml.org,2002:"
_NULL, _BOOL, _INT, _FLOAT, _STR = (_TAG + name for name in ("null", "bool", "int", "float", "str"))


class _Resolver(BaseResolver):
    """The tags of plain scalars: YAML 1.2.2, section 10.3.2."""


_NUMBER_START = list("-+.0123456789")
for _tag, _pattern, _start in (
    (_NULL, r"null|Null|NULL|~|", [*"nN~", ""]),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _NUMBER_START),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        _NUMBER_START,
    ),
):
    _Resolver.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _start)


class _Loader(Reader, Scanner, Parser, Composer, _Resolver):
    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        _Resolver.__init__(self)


def read_document(path: Path, problems: Problems) -> Any:
    """The values of a file: dictionaries, lists, str, int, float, bool, None.

    Fills in `problems.lines`, and notes what is no YAML, keys given twice or that are no words, and
    values with a tag of their own. Of a key given twice the first value stays.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problems.unread((), f"must be UTF-8 text, got byte {content[error.start]:#04x}", line=line)
        return None
    try:
        root = _Loader(text).get_single_node()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(filter(None, (error.context, error.problem)))
        problems.unread((), f"is no YAML: {reason}", line=1 if mark is None else mark.line + 1)
        return None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problems.unread((), f"is no YAML: character {error.character:#x} is not allowed", line=line)
        return None
    return None if root is None else _value(root, (), problems, ())


def _value(node: Node, place: Place, problems: Problems, parents: tuple[Node, ...]) -> Any:
    """The value of a node, whose line stands under its place already if it has a key."""
    problems.lines.setdefault(place, node.start_mark.line + 1)
    if any(node is parent for parent in parents):
        problems.unread(place, "must not contain itself")
        return None
    parents = (*parents, node)
    if isinstance(node, ScalarNode):
        return _scalar(node, place, problems)
    if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
        return [
            _value(item, (*place, index), problems, parents)
            for index, item in enumerate(node.value)
        ]
    if not (isinstance(node, MappingNode) and node.tag == _TAG + "map"):
        problems.unread(place, f"must have no tag, got {node.tag}")
        return None
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not (isinstance(key_node, ScalarNode) and key_node.tag == _STR):
            what = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
            problems.add(place, f"keys must be words, got {what}", line=line)
            continue
        key = str(key_node.value)
        where = (*place, key)
        if key in values:
            first = problems.line(where)
            problems.add(where, f"must be given once, is also in line {first}", line=line)
            continue
        problems.lines[where] = line
        values[key] = _value(value_node, where, problems, parents)
    return values


def _scalar(node: ScalarNode, place: Place, problems: Problems) -> Any:
    text, tag = str(node.value), node.tag
    try:
        if tag == _STR:
            return text
        if tag == _NULL:
            return None
        if tag == _BOOL:
            return {"true": True, "false": False}[text.lower()]
        if tag == _INT:
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if tag == _FLOAT:
            return float(text.replace(".", "", 1) if text[-3:].isalpha() else text)
    except (KeyError, ValueError):
        problems.unread(place, f"must be a {tag.removeprefix(_TAG)}, as its tag says, got {text!r}")
        return None
    problems.unread(place, f"must have no tag, got {tag}")
    return None
