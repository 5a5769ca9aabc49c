"""What a run leaves in writing while it goes on, for whoever watches.

The engine writes; nobody is called. Watchers read at their own pace, from other threads too: lists only grow,
and single numbers are read as they are. Where nobody watches there is no log, and nothing is written.

Knows what workers report. Must not know the engine, nor who reads.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from graphmill.graph import Graph
from graphmill.scheduler.estimates import batch_of, name_of
from graphmill.types import Key
from graphmill.workers.work import Report

#: The worker that stands for the caller's own process.
CALLER = -1


class Outcome(Enum):
    """How one go at a task ended."""

    #: It gave its result.
    DONE = "done"
    #: It raised an exception.
    FAILED = "failed"
    #: It asked for more memory than it was given, and is run again with more.
    REFUSED = "refused"
    #: It cannot be run by a worker, and is run in the caller's process.
    STAYED = "stayed"


#: Looked up for each task: the attribute of an enumeration takes longer.
_DONE = Outcome.DONE


class Entry(NamedTuple):
    """One go at a task.

    A named tuple, since there is one for each task: it is made in a third of the time of a dataclass.
    """

    key: Key
    #: Where it ran: the number of a worker, or `CALLER`.
    worker: int
    #: When it began, in seconds of `time.perf_counter`, which all processes share.
    began: float
    #: How long it took, in seconds.
    seconds: float
    #: The size of its result, in bytes.
    nbytes: int
    #: The most bytes that it took besides its inputs, with its result.
    taken: int
    #: Bytes of its result that had to be copied; the others were born in place, or belong to an input.
    copied: int
    outcome: Outcome


class Series(NamedTuple):
    """Small tasks that a worker has done one after the other, most with nothing but their results to tell."""

    keys: list[Key]
    worker: int
    #: When the first of them began, as for an entry, and how long each took.
    began: float
    seconds: tuple[float, ...]
    #: The size of each result, in bytes; None for a task that has an entry of its own, with more to tell.
    nbytes: list[int | None]

    def entries(self) -> Iterator[Entry]:
        """Make the entries."""
        began = self.began
        for key, seconds, nbytes in zip(self.keys, self.seconds, self.nbytes, strict=True):
            if nbytes is not None:
                entry = key, self.worker, began, seconds, nbytes, 0, 0, _DONE
                # The same as Entry(*entry), in half the time.
                yield tuple.__new__(Entry, entry)
            began += seconds


@dataclass(frozen=True, slots=True)
class Move:
    """A value that was moved to disk."""

    key: Key
    #: When that began, in seconds of `time.perf_counter`.
    time: float
    #: How long it took, in seconds.
    seconds: float
    #: How much has moved, in bytes.
    nbytes: int


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that died while it ran a task."""

    #: The task, which is run again a few times.
    key: Key
    #: When it was noticed, in seconds of `time.perf_counter`.
    time: float
    #: The number of the worker.
    worker: int
    #: How it ended, in words.
    cause: str


@dataclass(slots=True)
class Tally:
    """What the tasks of one layer took so far."""

    #: How many have ended well.
    count: int = 0
    #: How long they took together, in seconds.
    seconds: float = 0.0


@dataclass(slots=True)
class RunLog:
    """The log of one run.

    Parameters
    ----------
    entries
        An empty list, if there is to be an entry for each task; without, tasks are only counted.
    """

    #: Each go at a task, about in the order in which their ends were heard of; `all_entries` has all.
    entries: list[Entry] | None = None
    #: Small tasks that ended together, of which there are no entries yet.
    series: deque[Series] = field(default_factory=deque)
    #: When the run began and ended, in seconds of `time.perf_counter`.
    began: float = field(default_factory=time.perf_counter)
    ended: float | None = None
    #: What tasks have taken, by what `batch_of` makes of their keys; `count` brings it up to date.
    tallies: dict[Any, Tally] = field(default_factory=dict)
    #: How many entries are counted in it.
    counted: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)
    moves: list[Move] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    #: The tasks that the scheduler has handed out and not heard of yet; the run changes it.
    under_way: Mapping[Key, Any] = field(default_factory=dict)
    #: All tasks, once the graph has been read; None before.
    keys: list[Key] | None = None
    #: What each key needs, for logs with entries.
    dependencies: Mapping[Key, AbstractSet[Key]] = field(default_factory=dict)
    #: For logs with entries: keys that stand for another key's value.
    aliases: Mapping[Key, Key] = field(default_factory=dict)

    # ---- the engine writes

    def plan(self, graph: Graph) -> None:
        """Take note of what is to be run."""
        if self.entries is not None:
            self.dependencies, self.aliases = graph.dependencies, graph.sources()
        aliases = graph.aliases
        self.keys = [key for key in graph.tasks if key not in aliases] if aliases else list(graph.tasks)

    def report(self, key: Key, report: Report, worker: int) -> None:
        """Take in what a worker says of a task."""
        if self.entries is None:
            if report.result is not None:
                self._count(key, report.seconds)
            return
        nbytes = 0
        if report.result is not None:
            outcome = _DONE
            payload, extents = report.result
            nbytes = len(payload)
            if extents:
                nbytes += sum({extent.id: extent.length for extent in extents}.values())
        elif report.error is None:
            return  # stopped, or never begun: nobody wants the result any more
        elif report.refused:
            outcome = Outcome.REFUSED
        else:
            outcome = Outcome.STAYED if report.stays else Outcome.FAILED
        entry = key, worker, report.began, report.seconds, nbytes, report.taken, report.copied, outcome
        # The same as Entry(*entry), in half the time.
        self.entries.append(tuple.__new__(Entry, entry))

    def report_series(self, series: Series) -> None:
        """Take in what a worker says of small tasks."""
        if self.entries is not None:
            self.series.append(series)
            return
        layers = [key[0] if type(key) is tuple and key else batch_of(key) for key in series.keys]
        if None in series.nbytes or layers.count(layers[0]) < len(layers):
            for key, seconds, nbytes in zip(series.keys, series.seconds, series.nbytes, strict=True):
                if nbytes is not None:
                    self._count(key, seconds)
        else:
            self._count(series.keys[0], sum(series.seconds), len(layers))

    def here(self, key: Key, began: float, outcome: Outcome) -> None:
        """Take in that a task has run in the caller's process until now."""
        seconds = time.perf_counter() - began
        if self.entries is not None:
            self.entries.append(Entry(key, CALLER, began, seconds, 0, 0, 0, outcome))
        elif outcome is _DONE:
            self._count(key, seconds)

    def moved(self, key: Key, began: float, nbytes: int) -> None:
        """Take in that a value was moved to disk, from then until now."""
        self.moves.append(Move(key, began, time.perf_counter() - began, nbytes))

    def lost(self, key: Key, worker: int, cause: str) -> None:
        """Take in that a worker has died while it ran a task."""
        self.losses.append(Loss(key, time.perf_counter(), worker, cause))

    def end(self) -> None:
        """Take note that the run is over."""
        self.ended = time.perf_counter()
        self.under_way = {}

    def _count(self, key: Key, seconds: float, tasks: int = 1) -> None:
        # What `batch_of` gives for most keys, without the call.
        batch = key[0] if type(key) is tuple and key else batch_of(key)
        tally = self.tallies.get(batch)
        if tally is None:
            tally = self.tallies[batch] = Tally()
        tally.count += tasks
        tally.seconds += seconds

    # ---- watchers read

    def all_entries(self) -> list[Entry]:
        """Get the entries of all goes at tasks so far, those of small tasks too; none without entries."""
        if self.entries is None:
            return []
        with self.lock:
            while self.series:
                self.entries.extend(self.series.popleft().entries())
        return self.entries

    def count(self) -> dict[Any, Tally]:
        """Count what tasks have taken, by what `batch_of` makes of their keys.

        Where there are entries, this is where they are counted: whoever runs tasks has no time for it.
        """
        if self.entries is not None:
            entries = self.all_entries()
            with self.lock:
                for entry in entries[self.counted :]:
                    self.counted += 1
                    if entry.outcome is _DONE:
                        self._count(entry.key, entry.seconds)
        return self.tallies

    def totals(self) -> Counter[Any]:
        """Count all tasks there are, by what `batch_of` makes of their keys.

        Graphs are read from their results on, so that the last kinds are those that begin.
        """
        keys = reversed(self.keys or ())
        return Counter([key[0] if type(key) is tuple and key else batch_of(key) for key in keys])

    def running(self) -> Counter[str]:
        """Count the tasks that are handed out now, by their kind."""
        # `list` of a dictionary cannot be disturbed by the thread that changes it.
        return Counter(kind_of(batch_of(key)) for key in list(self.under_way))


def kind_of(batch: Any) -> str:
    """Get what people call a kind of task: the name of its layer.

    Examples
    --------
    >>> kind_of("sum-aggregate-1f3a"), kind_of(("load",)), kind_of(int)
    ('sum-aggregate', 'load', 'int')
    """
    name = name_of(batch)
    if type(name) is tuple and len(name) == 1:
        (name,) = name
    return name.__name__ if isinstance(name, type) else str(name)
