"""Progress, and an engine, as notebooks show them: HTML that takes its colours from the page around it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from html import escape
from typing import Any

from graphmill.diagnostics.amounts import COLOURS, OTHER, of_bytes, of_count
from graphmill.diagnostics.lines import counts, last_line, percent, use
from graphmill.diagnostics.tracker import KindState, Picture
from graphmill.diagnostics.watch import Glance

#: How many kinds have a line of their own.
ROWS = 8
_BOX = (
    "font:13px/1.6 system-ui,sans-serif;max-width:760px;padding:8px 12px;border-radius:8px;"
    "border:1px solid rgba(128,136,150,.35);color:inherit;background:transparent"
)
_LABEL = "display:inline-block;width:150px;overflow:hidden;text-overflow:ellipsis;vertical-align:bottom"
_FAINT = "opacity:.65"


class NotebookDisplay:
    """Shows pictures below the cell that runs."""

    def __init__(self) -> None:
        self._display: Any = importlib.import_module("IPython.display")
        self._handle: Any = None

    def show(self, picture: Picture) -> None:
        """Replace what is shown."""
        self._put(progress_html(picture))

    def hide(self) -> None:
        """Leave it as it is: nothing else is written to its place."""

    def end(self, picture: Picture, *, failed: bool) -> None:
        """Leave one line."""
        self._put(box(f"<b>{'✗' if failed else '✓'}</b> {escape(last_line(picture, failed=failed))}"))

    def _put(self, html: str) -> None:
        shown = self._display.HTML(html)
        if self._handle is None:
            self._handle = self._display.display(shown, display_id=True)
        else:
            self._handle.update(shown)


def progress_html(picture: Picture) -> str:
    """Draw how far runs have come."""
    rows = [
        row(f"{percent(picture)}%", picture.done / max(1, picture.total), COLOURS[0], counts(picture)),
        row("memory", picture.memory / max(1, picture.limit), COLOURS[2], use(picture)),
    ]
    open_kinds = [(at, state) for at, state in enumerate(picture.kinds) if state.done < state.total]
    rows += [_kind_row(at, state) for at, state in open_kinds[:ROWS]]
    ended = len(picture.kinds) - len(open_kinds)
    more = [f"{of_count(ended, 'kind')} done"] if ended else []
    more += [of_count(len(open_kinds) - ROWS, "more kind")] if len(open_kinds) > ROWS else []
    return box("".join([*rows, *(f"<div style='{_FAINT}'>{text}</div>" for text in more)]))


def _kind_row(rank: int, state: KindState) -> str:
    text = f"{state.done:,}/{state.total:,}" + (f" · {state.running:,} running" if state.running else "")
    colour = COLOURS[rank] if rank < len(COLOURS) else OTHER
    return row(state.kind, state.done / state.total, colour, text)


def row(label: str, part: float, colour: str, text: str) -> str:
    """Draw a bar with what it means on both sides."""
    width = f"{min(1.0, part):.1%}"
    bar = (
        "<span style='display:inline-block;width:180px;height:8px;border-radius:4px;overflow:hidden;"
        "vertical-align:middle;margin-right:10px;background:rgba(128,136,150,.25)'>"
        f"<span style='display:block;height:100%;width:{width};background:{colour}'></span></span>"
    )
    name = f"<span style='{_LABEL}'>{escape(label)}</span>"
    return f"<div style='white-space:nowrap'>{name}{bar}{escape(text)}</div>"


def box(html: str) -> str:
    """Put it in a frame."""
    return f"<div style='{_BOX}'>{html}</div>"


def engine_html(title: str, facts: Iterable[str], glance: Glance | None) -> str:
    """Draw an engine.

    Parameters
    ----------
    title
        What it is.
    facts
        What is to be said of it in words.
    glance
        What it does now; None if it is not running.
    """
    head = f"<b>{escape(title)}</b> <span style='{_FAINT}'>{escape(' · '.join(facts))}</span>"
    if glance is None:
        return box(head)
    limit = max(1, glance.limit)
    shown = glance.live - glance.on_disk
    rows = [
        row("memory", glance.total / limit, COLOURS[2], f"{of_bytes(glance.total)} of {of_bytes(limit)}"),
        row("private", glance.private / limit, OTHER, of_bytes(glance.private)),
        row("results", shown / limit, COLOURS[0], of_bytes(shown)),
        row("warm", glance.warm / limit, COLOURS[6], of_bytes(glance.warm)),
    ]
    if glance.spilled:
        text = f"{of_bytes(glance.on_disk)} now, {of_bytes(glance.spilled)} in all"
        rows.append(row("on disk", glance.on_disk / limit, COLOURS[4], text))
    return box(head + "".join(rows))
