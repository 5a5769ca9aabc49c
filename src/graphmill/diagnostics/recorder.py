"""Records what runs do: `profile` for a block of code, or an engine's own for all of its runs.

Knows logs and records. Must not know how pictures are drawn: they are loaded when one is asked for.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from types import TracebackType
from typing import Self

from graphmill.diagnostics.log import RunLog
from graphmill.diagnostics.records import (
    DeathRecord,
    MemoryRecord,
    Recording,
    Records,
    SpillRecord,
    Summary,
    TaskRecord,
    record_runs,
)
from graphmill.diagnostics.sampler import Ticker, thinned
from graphmill.diagnostics.watch import Glance, Watched, unwatch, watch
from graphmill.errors import NotRecorded

#: Seconds from one look at an engine's memory to the next, and the part of the time that looks may take.
INTERVAL = 0.05
SHARE = 0.01
#: An engine's own recorder forgets its oldest runs beyond so many tasks.
MOST_TASKS = 1_000_000


class Watching:
    """What one recorder has of one engine."""

    def __init__(self, engine: Watched) -> None:
        self.engine: Watched | None = engine
        self.workers = engine.num_workers
        self.logs: list[RunLog] = []
        self.glances: list[Glance] = []

    def look(self) -> None:
        """Take a sample, if the engine is running."""
        engine = self.engine
        glance = None if engine is None else engine.glance()
        if glance is not None:
            self.glances.append(glance)


class Recorder:
    """Watches runs and keeps what they leave.

    Parameters
    ----------
    most_tasks
        The oldest runs are forgotten beyond so many tasks; None to keep all.

    Notes
    -----
    Any number of threads may run graphs meanwhile.
    """

    #: See `Watcher`.
    wants_entries = True

    def __init__(self, most_tasks: int | None = None) -> None:
        self._most_tasks = most_tasks
        self._origin = time.perf_counter()
        self._lock = threading.Lock()
        self._watched: dict[int, Watching] = {}
        self._ticker = Ticker(self._tick, INTERVAL, SHARE)

    def on_run(self, engine: Watched, log: RunLog) -> None:
        """Take in that a run begins; see `Watcher`."""
        with self._lock:
            watching = self._watched.get(id(engine))
            if watching is None:
                watching = self._watched[id(engine)] = Watching(engine)  # it keeps the engine's id its own
                watching.look()
                engine.recorder = weakref.ref(self)
            watching.logs.append(log)
            if self._most_tasks is not None:
                _forget_oldest(watching.logs, self._most_tasks)
        self._ticker.start()

    def _tick(self) -> None:
        with self._lock:
            watched = list(self._watched.values())
            for watching in watched:
                watching.look()
            if any(list(map(thinned, [watching.glances for watching in watched]))):
                self._ticker.interval *= 2

    def close(self) -> None:
        """Stop looking at memory, and let go of engines; may be called again."""
        self._ticker.stop()
        with self._lock:
            for watching in self._watched.values():
                watching.look()
                watching.engine = None

    def recordings(self, engine: Watched | None = None) -> list[Recording]:
        """Make records of all that has happened so far, for each engine or for one."""
        with self._lock:
            watched = [each for key, each in self._watched.items() if engine is None or key == id(engine)]
            return [
                record_runs(watching.workers, watching.logs, list(watching.glances), self._origin)
                for watching in watched
            ]

    def report(self, path: str | os.PathLike[str], engine: Watched | None = None) -> None:
        """Write a page with pictures of what happened, on all engines or on one."""
        from graphmill.diagnostics.report import write_report  # noqa: PLC0415 - large, and seldom used

        write_report(self.recorded(engine), path)

    def recorded(self, engine: Watched | None = None) -> list[Recording]:
        """Make records of what happened; `NotRecorded` if there is nothing."""
        found = self.recordings(engine)
        if not any(recording.tasks for recording in found):
            raise NotRecorded(
                "No task was recorded: call compute(scheduler=graphmill.get) within "
                "`with graphmill.profile() as p:`, and then p.report(path)"
            )
        return found


def _forget_oldest(logs: list[RunLog], most_tasks: int) -> None:
    count = sum(len(log.all_entries()) for log in logs)
    while count > most_tasks and logs[0].ended is not None:
        count -= len(logs.pop(0).all_entries())


class profile:  # noqa: N801 - read as the function that it is used as
    """Record what all runs within a block of code do.

    Examples
    --------
    >>> import graphmill
    >>> with graphmill.profile() as p:  # doctest: +SKIP
    ...     x.mean().compute(scheduler=graphmill.get)
    >>> p.report("report.html")  # doctest: +SKIP
    >>> pandas.DataFrame(p.tasks.to_records()).groupby("kind")["seconds"].sum()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._recorder = Recorder()

    def __enter__(self) -> Self:
        watch(self._recorder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unwatch(self._recorder)
        self._recorder.close()

    @property
    def recordings(self) -> list[Recording]:
        """All that was recorded, for each engine that ran graphs."""
        return self._recorder.recordings()

    @property
    def tasks(self) -> Records[TaskRecord]:
        """Each go at each task, on all engines."""
        return Records(task for recording in self.recordings for task in recording.tasks)

    @property
    def memory(self) -> Records[MemoryRecord]:
        """What memory was used for, some twenty times a second."""
        return Records(sample for recording in self.recordings for sample in recording.memory)

    @property
    def spills(self) -> Records[SpillRecord]:
        """Results that were moved to disk."""
        return Records(spill for recording in self.recordings for spill in recording.spills)

    @property
    def deaths(self) -> Records[DeathRecord]:
        """Workers that died while they ran a task."""
        return Records(death for recording in self.recordings for death in recording.deaths)

    @property
    def summaries(self) -> list[Summary]:
        """The figures that matter most, for each engine."""
        return [recording.summary for recording in self.recordings]

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a page with pictures of what happened: one HTML file that needs nothing else.

        Parameters
        ----------
        path
            Where to write it; a file that is there is replaced.

        Raises
        ------
        NotRecorded
            If no task was run.
        MissingExtra
            If bokeh is not installed.
        """
        self._recorder.report(path)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write what happened as a trace, for https://ui.perfetto.dev or chrome://tracing.

        Parameters
        ----------
        path
            Where to write it, as JSON; a file that is there is replaced.

        Raises
        ------
        NotRecorded
            If no task was run.
        """
        from graphmill.diagnostics.trace import write_trace  # noqa: PLC0415 - seldom used

        write_trace(self._recorder.recorded(), path)
