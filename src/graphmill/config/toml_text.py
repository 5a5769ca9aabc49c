"""Where in a TOML file something stands, and how to change it there and leave all else as it is.

The standard library reads TOML, but tells no line numbers and does not write it. A *statement* here is a
line, or a run of them, that can be read by itself: a table's header, or a key with its value.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

#: The keys that lead to a table or value.
Path: TypeAlias = tuple[str, ...]

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Statement:
    """A header, or a key with its value."""

    #: Its first line, counted from 0, and the line behind its last.
    start: int
    end: int
    #: The table that the header opens, or that the key is in.
    table: Path
    #: Whether it is a header.
    is_header: bool
    #: What it would be as a file of its own.
    data: Mapping[str, Any]

    def paths(self) -> Iterator[Path]:
        """Tell which tables and values it makes."""
        if self.is_header:
            yield from (self.table[: length + 1] for length in range(len(self.table)))
        else:
            yield from (self.table + path for path in _paths(self.data))


def _paths(data: Mapping[str, Any]) -> Iterator[Path]:
    for key, value in data.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *path) for path in _paths(value))


def statements(text: str) -> Iterator[Statement]:
    """Take a file apart that is valid TOML; comments and empty lines are left out."""
    lines = text.split("\n")
    table: Path = ()
    start = 0
    while start < len(lines):
        end, data = _read_one(lines, start)
        is_header = lines[start].lstrip().startswith("[")
        if is_header:
            table = _table_of(data)
        if data:
            yield Statement(start, end, table, is_header, data)
        start = end


def _read_one(lines: list[str], start: int) -> tuple[int, dict[str, Any]]:
    """Read as few lines as make sense by themselves: a value goes on until they do."""
    for end in range(start + 1, len(lines) + 1):
        try:
            return end, tomllib.loads("\n".join(lines[start:end]))
        except tomllib.TOMLDecodeError:
            continue
    return len(lines), {}


def _table_of(data: Any) -> Path:
    path: list[str] = []
    while data:
        if isinstance(data, list):  # [[name]]
            data = data[0]
        else:
            key, data = next(iter(data.items()))
            path.append(key)
    return tuple(path)


def line_of(text: str, path: Path) -> int | None:
    """Tell the line, counted from 1, where a table or value is made; None if it is not.

    Examples
    --------
    >>> text = "a = 1" + chr(10) + '[b."c-*"]' + chr(10) + "d = [" + chr(10) + "]" + chr(10) + "e = 2"
    >>> line_of(text, ("b", "c-*", "e"))
    5
    """
    for statement in statements(text):
        if path in statement.paths():
            return statement.start + 1
    return None


# ---- changes


def with_value(text: str, path: Path, value: bool | float | str) -> str:
    """Set a value: where it is, or else at the end of its table, which is made where there is none."""
    *table, name = path
    line = f"{_key(name)} = {_value(value)}"
    lines = text.split("\n")
    found = list(statements(text))
    for each in found:
        if not each.is_header and path in each.paths():
            lines[each.start : each.end] = [line + _comment(lines, each)]
            return "\n".join(lines)
    ends = [each.end for each in found if each.table == tuple(table)]
    if ends:
        lines.insert(max(ends), line)
        return "\n".join(lines)
    if not table:
        # What stands before the first header belongs to no table; comments at the top stay there.
        first = min((each.start for each in found), default=len(lines) - 1)
        lines[first:first] = [line, ""] if found else [line]
        return "\n".join(lines)
    above = text.rstrip("\n")
    header = f"[{'.'.join(map(_key, table))}]"
    return "\n".join([above, "", header, line, ""] if above else [header, line, ""])


def without(text: str, path: Path) -> str:
    """Remove a value, if it is there; an empty table stays."""
    lines = text.split("\n")
    for each in statements(text):
        if not each.is_header and path in each.paths():
            del lines[each.start : each.end]
            break
    return "\n".join(lines)


def _comment(lines: list[str], statement: Statement) -> str:
    """Find the comment behind a value on one line, with the space before it."""
    if statement.end - statement.start > 1:
        return ""
    line = lines[statement.start].rstrip("\r")
    for place, character in enumerate(line):
        if character == "#":
            try:
                alone = tomllib.loads(line[:place])
            except tomllib.TOMLDecodeError:
                continue  # within a text
            if alone == statement.data:
                return "  " + line[place:]
    return ""


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _text(name)


def _value(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else repr(value)


def _text(text: str) -> str:
    # What JSON escapes, TOML escapes alike; only DEL, which JSON lets stand, must not.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
