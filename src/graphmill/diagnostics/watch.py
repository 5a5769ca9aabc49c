"""Who watches runs: of all engines of this process, or of one.

Knows logs. Must not know what watchers do with them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import ref

from graphmill.diagnostics.log import RunLog


@dataclass(frozen=True, slots=True)
class Glance:
    """What an engine has and does at one moment; amounts are bytes."""

    #: When it was, in seconds of `time.perf_counter`.
    time: float
    #: The most that all memory may take.
    limit: int
    #: The private memory of all processes.
    private: int
    #: What arenas take: results, what tasks work with, pages kept for the next ones.
    arenas: int
    #: Results that are needed, in memory and on disk.
    live: int
    #: Pages of arenas that nobody needs now.
    warm: int
    #: Results that are on disk now.
    on_disk: int
    #: Results that were ever moved to disk.
    spilled: int
    #: What tasks have read of those.
    read_back: int
    #: How many workers have something to do.
    busy: int
    #: The most that all memory took since the engine started, as far as it was looked at.
    peak: int

    @property
    def total(self) -> int:
        """All memory that counts against the limit."""
        return self.private + self.arenas


class Watched(Protocol):
    """An engine, as watchers see it."""

    num_workers: int
    #: Who has recorded it last.
    recorder: ref[Any] | None

    @property
    def closed(self) -> bool:
        """Whether it has ended."""

    def glance(self) -> Glance | None:
        """Look at it from any thread; None if it is not running. It is disturbed as little as possible."""


class Watcher(Protocol):
    """Somebody who reads logs."""

    #: Whether it wants an entry for each task; else tasks are only counted.
    wants_entries: bool

    def on_run(self, engine: Watched, log: RunLog) -> None:
        """Take in that a run begins; called by the thread whose run it is, which waits."""


_lock = threading.Lock()
_watchers: list[Watcher] = []


def watch(watcher: Watcher) -> None:
    """Tell somebody of all runs that begin from now on, on whatever engine of this process."""
    with _lock:
        _watchers.append(watcher)


def unwatch(watcher: Watcher) -> None:
    """Tell somebody no more; may be called again."""
    with _lock:
        _watchers[:] = [each for each in _watchers if each is not watcher]


def begin_log(engine: Watched, own: Iterable[Watcher] = ()) -> RunLog | None:
    """Make a log for a run that begins, and tell those who watch.

    Parameters
    ----------
    engine
        Where it runs.
    own
        Those who watch this engine only.

    Returns
    -------
    RunLog or None
        None if nobody watches.
    """
    with _lock:
        told = [*own, *_watchers]
    if not told:
        return None
    log = RunLog([] if any(watcher.wants_entries for watcher in told) else None)
    for watcher in told:
        watcher.on_run(engine, log)
    return log
