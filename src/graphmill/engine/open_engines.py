"""The engines of this process: closed when the program ends, and left alone by processes forked from it.

Knows that engines can be closed. Must not know how.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from typing import Protocol
from weakref import WeakSet

from graphmill.workers.signals import InterruptHold


class Closable(Protocol):
    """An engine, as far as its end matters."""

    @property
    def peak(self) -> tuple[int, int]:
        """The most memory that it took, and its limit, in bytes."""

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def close_at_exit(self) -> None:
        """Close it; nobody is left to look at what it keeps."""

    def abandon(self) -> None:
        """In a process forked from its own: touch nothing of it any more."""


#: Those that have started and were not collected.
_engines: WeakSet[Closable] = WeakSet()
#: The most memory that any closed engine took, and its limit.
_peaks: list[tuple[int, int]] = []
_hooked = False


def opened(engine: Closable) -> None:
    """See that an engine is closed at the end of the program, and left alone by forked processes."""
    global _hooked  # noqa: PLW0603 - once in a process, for there is no way to take a fork hook back
    if not _hooked:
        _hooked = True
        os.register_at_fork(after_in_child=_abandon_all)
    if not _engines:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _engines.add(engine)


def closed(engine: Closable) -> None:
    """Take note of what an engine took that is closed."""
    _peaks.append(engine.peak)
    _peaks[:] = [max(_peaks)]


def peak_memory() -> tuple[int, int] | None:
    """Tell the most memory that any engine of this process has taken, and the limit of that engine.

    Returns
    -------
    tuple of int or None
        Both in bytes; None if no engine was started.
    """
    alive = [engine.peak for engine in list(_engines) if not engine.closed]
    return max([*_peaks, *alive], default=None)


def _abandon_all() -> None:
    for engine in list(_engines):
        engine.abandon()
    _engines.clear()


def _close_all() -> None:
    # The program ends as it is: another Ctrl-C has nothing left to stop.
    with contextlib.suppress(KeyboardInterrupt), InterruptHold():
        for engine in list(_engines):
            engine.close_at_exit()
