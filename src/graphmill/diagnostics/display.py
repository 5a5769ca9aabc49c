"""`progress`: shows how far runs have come, in a terminal, in a notebook, or in plain lines.

Knows trackers. What draws is loaded when there is something to draw.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from graphmill.diagnostics.lines import last_line, line
from graphmill.diagnostics.log import RunLog
from graphmill.diagnostics.sampler import Ticker
from graphmill.diagnostics.tracker import Picture, Tracker
from graphmill.diagnostics.watch import Watched, unwatch, watch

#: Seconds from one picture to the next, at least, and the part of the time that drawing may take.
INTERVAL = 0.1
SHARE = 0.004
#: Seconds after which plain lines follow each other, at first and at most; each takes half as long again.
FIRST, LAST = 2.0, 60.0


class Display(Protocol):
    """Where pictures are shown."""

    def show(self, picture: Picture) -> None:
        """Show this one now."""

    def hide(self) -> None:
        """Show none, until there is something to show again."""

    def end(self, picture: Picture, *, failed: bool) -> None:
        """Say what it came to, and show nothing more."""


class LineDisplay:
    """Writes a line now and then; on a terminal, one that is written over.

    Parameters
    ----------
    file
        Where to.
    clock
        Gives seconds.
    """

    def __init__(self, file: TextIO, clock: Callable[[], float] = time.perf_counter) -> None:
        self._file = file
        self._clock = clock
        self._over = file.isatty()
        #: How long the line is that is shown, on a terminal.
        self._shown = 0
        self._pause = FIRST
        self._next = clock() + FIRST

    def show(self, picture: Picture) -> None:
        """Write it, if it is time."""
        if self._over:
            text = line(picture)[: _width(self._file) - 1]
            self._write("\r" + text.ljust(self._shown))
            self._shown = len(text)
        elif self._clock() >= self._next:
            self._write(line(picture) + "\n")
            self._pause = min(LAST, 1.5 * self._pause)
            self._next = self._clock() + self._pause

    def hide(self) -> None:
        """Take the line away, on a terminal."""
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def end(self, picture: Picture, *, failed: bool) -> None:
        """Write the last line."""
        self.hide()
        self._write(f"graphmill: {last_line(picture, failed=failed)}\n")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


def _width(file: TextIO) -> int:
    try:
        return os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 80


def display_for(file: TextIO) -> Display:
    """Choose how to show progress: by what there is, and by whether rich is installed."""
    if file is sys.stderr and in_notebook():
        from graphmill.diagnostics.notebook import NotebookDisplay  # noqa: PLC0415 - seldom used

        return NotebookDisplay()
    if file.isatty() and os.environ.get("TERM") != "dumb" and "utf" in (file.encoding or "").lower():
        with contextlib.suppress(ImportError):
            from graphmill.diagnostics.terminal import TerminalDisplay  # noqa: PLC0415 - needs an extra

            return TerminalDisplay(file)
    return LineDisplay(file)


def in_notebook() -> bool:
    """Tell whether what is displayed goes to a notebook."""
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class progress:  # noqa: N801 - read as the function that it is used as
    """Show how far all runs within a block of code have come.

    Parameters
    ----------
    file : text file, optional
        Where to; by default the standard error stream, or the notebook. On a terminal it is shown in place,
        with rich where that is installed; elsewhere a line is written now and then.
    display : Display, optional
        What shows it, instead.

    Attributes
    ----------
    picture : Picture
        How far they had come when that was last looked at.

    Examples
    --------
    >>> from graphmill.diagnostics import progress
    >>> with progress():  # doctest: +SKIP
    ...     x.mean().compute(scheduler=graphmill.get)
    """

    #: See `Watcher`.
    wants_entries = False

    def __init__(self, file: TextIO | None = None, *, display: Display | None = None) -> None:
        self._display = display_for(sys.stderr if file is None else file) if display is None else display
        self._tracker = Tracker()
        self._ticker = Ticker(self._tick, INTERVAL, SHARE)
        self._shows = False
        #: Whether what it is shown on is gone.
        self._lost = False
        self.picture = Picture()

    def on_run(self, engine: Watched, log: RunLog) -> None:
        """Take in that a run begins; see `Watcher`."""
        self._tracker.on_run(engine, log)
        self._ticker.start()

    def _tick(self) -> None:
        self.picture = picture = self._tracker.picture()
        if picture.active:
            self._shows = True
            self._draw(lambda: self._display.show(picture))
        elif self._shows:  # whatever the program does between runs, it has the terminal for itself
            self._shows = False
            self._draw(self._display.hide)

    def _draw(self, function: Callable[[], None]) -> None:
        """Draw, as long as there is somebody to see it: a run does not fail because a pipe was closed."""
        if self._lost:
            return
        try:
            function()
        except (OSError, ValueError):
            self._lost = True

    def __enter__(self) -> Self:
        watch(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unwatch(self)
        try:
            self._ticker.stop()
        finally:  # a second Ctrl-C may end the wait, but must not leave a terminal without its cursor
            self.picture = self._tracker.picture()
            self._tracker.let_go()
            if self.picture.elapsed:
                self._draw(lambda: self._display.end(self.picture, failed=kind is not None))
