"""Text on a terminal, or in a pipe: colours only where they are seen, and columns that fit."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from enum import Enum
from typing import Final

#: What stands between two columns.
_GAP: Final = "  "
#: The last column is not made narrower than this: it then stands on a line of its own, indented by so much.
_NARROWEST: Final = 24
_DEEPER: Final = 4
#: Lines are not set wider than this.
_WIDEST: Final = 120


class Style(Enum):
    """How text looks on a terminal."""

    BOLD = "1"
    FAINT = "2"


def styled(text: str, style: Style) -> str:
    """Make text look so, if stdout is a terminal that can show it."""
    return f"\x1b[{style.value}m{text}\x1b[0m" if _shows_styles() and text else text


def _shows_styles() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def title(text: str) -> None:
    """Print a title."""
    print(styled(text, Style.BOLD))


def table(rows: Sequence[Sequence[str]], *, indent: int = 2) -> None:
    """Print rows in columns; the last one goes on below itself where a terminal is too narrow."""
    if not rows:
        return
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]) - 1)]
    start = indent + sum(width + len(_GAP) for width in widths)
    left = _width() - start
    for *cells, last in rows:
        padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
        row = " " * indent + _GAP.join(padded)
        # In a pipe, each row is one line.
        if len(last) <= left or not sys.stdout.isatty():
            print(f"{row}{_GAP}{last}".rstrip())
        elif left < _NARROWEST:
            print(f"{row.rstrip()}\n{' ' * (indent + _DEEPER)}{last}")
        else:
            first, *others = textwrap.wrap(last, left, break_long_words=False)
            print(f"{row}{_GAP}{first}")
            for line in others:
                print(" " * start + line)


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST)


def complain(message: str) -> None:
    """Say something on stderr, after all that was printed; nobody may be listening any more."""
    with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: the program has closed it
        sys.stdout.flush()
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(f"graphmill: {message}", file=sys.stderr, flush=True)
