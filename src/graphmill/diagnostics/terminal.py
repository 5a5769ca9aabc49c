"""Progress in a terminal, drawn with rich.

Text is laid out by hand: it is cheaper than tables, and comes out the same at each width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from graphmill.diagnostics.amounts import COLOURS, OTHER, of_count
from graphmill.diagnostics.lines import counts, last_line, percent, use
from graphmill.diagnostics.tracker import KindState, Picture

#: How many kinds have a line of their own.
ROWS = 6
#: The widest that it gets, and the widest that names of kinds get, in characters.
WIDEST = 120
WIDEST_NAME = 28
_FULL, _HALF, _EMPTY = "━", "╸", "─"
#: From these parts of the limit on, memory is shown as getting short, and as short.
_SOME, _SHORT = 0.75, 0.9


class TerminalDisplay:
    """Shows pictures in place, below whatever else is printed.

    Parameters
    ----------
    file
        A terminal.
    width
        How wide it is; by default as it says.
    """

    def __init__(self, file: TextIO, width: int | None = None) -> None:
        self._console = Console(file=file, width=width, highlight=False)
        self._live: Live | None = None
        self._rows = 0

    def show(self, picture: Picture) -> None:
        """Replace what is shown."""
        drawn = self._drawn(picture)
        if self._live is None:
            # What a program prints goes around what is shown; into a file, it goes as it does without.
            apart = sys.stdout.isatty()
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=apart
            )
            self._live.start()
        self._live.update(drawn, refresh=True)

    def _drawn(self, picture: Picture) -> Group:
        width = min(WIDEST, self._console.width)
        rows = kind_rows(picture, width)
        # It grows and does not shrink: what jumps cannot be read.
        self._rows = max(self._rows, len(rows))
        rows += [Text("")] * (self._rows - len(rows))
        return Group(*head_rows(picture, width), *rows)

    def hide(self) -> None:
        """Leave nothing of it, until there is something to show again."""
        live, self._live = self._live, None
        self._rows = 0
        if live is not None:
            live.stop()

    def end(self, picture: Picture, *, failed: bool) -> None:
        """Leave one line."""
        self.hide()
        mark, style = ("✗", "red") if failed else ("✓", "green")
        text = Text.assemble((f"{mark} ", style), last_line(picture, failed=failed))
        self._console.print(text, soft_wrap=True)


def head_rows(picture: Picture, width: int) -> list[Text]:
    """Draw how far it has come, and what it uses."""
    done, used = counts(picture), use(picture)
    # Both bars end in one place, and leave room for the longer text.
    room = max(8, min(40, width - 11 - max(len(done), len(used))))
    part = picture.done / picture.total if picture.total else 0.0
    first = Text(f"  {percent(picture):3d}%   ", style="bold", no_wrap=True, overflow="ellipsis")
    first.append_text(bar(part, room, "bold cyan"))
    first.append(f"  {done}", style="default not bold")
    filled = min(1.0, picture.memory / picture.limit) if picture.limit else 0.0
    colour = "green" if filled < _SOME else "yellow" if filled < _SHORT else "red"
    second = Text("  memory ", style="dim", no_wrap=True, overflow="ellipsis")
    second.append_text(bar(filled, room, f"not dim {colour}"))
    second.append(f"  {used}", style="default not dim")
    return [first, second]


def kind_rows(picture: Picture, width: int) -> list[Text]:
    """Draw how far each kind has come: those under way, then those that wait; the others are counted."""
    known = {state.kind: at for at, state in enumerate(picture.kinds)}
    open_kinds = [state for state in picture.kinds if state.done < state.total]
    shown = sorted(open_kinds, key=lambda state: (not state.running, not state.done, known[state.kind]))[
        :ROWS
    ]
    shown.sort(key=lambda state: known[state.kind])
    name = min(WIDEST_NAME, max([len(state.kind) for state in shown], default=0))
    count = max([len(_count(state)) for state in shown], default=0)
    room = max(6, min(30, width - name - count - 32))
    rows = [_kind_row(state, name, count, room, known[state.kind]) for state in shown]
    said = _others(picture.kinds, open_kinds, shown)
    if said:
        rows.append(Text(f"  {said}", style="dim", no_wrap=True, overflow="ellipsis"))
    return rows


def _kind_row(state: KindState, name: int, count: int, room: int, rank: int) -> Text:
    label = state.kind if len(state.kind) <= name else state.kind[: name - 1] + "…"
    colour = COLOURS[rank] if rank < len(COLOURS) else OTHER
    row = Text(f"  {label:<{name}}  ", no_wrap=True, overflow="ellipsis")
    row.append_text(bar(state.done / state.total, room, colour))
    row.append(f"  {_count(state):>{count}}")
    if state.running:
        row.append(f"  {state.running:,} running", style="bold")
    if state.waiting:
        row.append(f"{', ' if state.running else '  '}{state.waiting:,} waiting", style="dim")
    return row


def _count(state: KindState) -> str:
    return f"{state.done:,}/{state.total:,}"


def _others(kinds: Sequence[KindState], open_kinds: Sequence[Any], shown: Sequence[Any]) -> str:
    parts = []
    ended = len(kinds) - len(open_kinds)
    if ended:
        parts.append(f"✓ {of_count(ended, 'kind')} done")
    if len(open_kinds) > len(shown):
        names = {state.kind for state in shown}
        left = sum(state.total - state.done for state in open_kinds if state.kind not in names)
        parts.append(f"{of_count(len(open_kinds) - len(shown), 'more kind')} with {of_count(left, 'task')}")
    return " · ".join(parts)


def bar(part: float, width: int, style: str) -> Text:
    """Draw how much of a whole there is, in halves of a character."""
    halves = min(2 * width, int(2 * width * part))
    full, half = divmod(halves, 2)
    text = Text(_FULL * full + _HALF * half, style=style)
    text.append(_EMPTY * (width - full - half), style="bright_black")
    return text
