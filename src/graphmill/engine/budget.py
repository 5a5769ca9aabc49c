"""How many bytes the tasks of a run may hold live: what its order needs, by the sizes known so far."""

from __future__ import annotations

import time
from collections.abc import Collection

from graphmill.engine.staying import stays
from graphmill.graph import Graph
from graphmill.order import measure_order
from graphmill.scheduler.estimates import Estimates
from graphmill.types import Key

#: A budget is never below so many bytes for each worker: to save less is not worth waiting for.
LEAST = 16 << 20
#: A run measures its order anew at most so many times, once for each share of its tasks, and a few times at
#: the start.
_TIMES = 32
#: And only while that takes less than this share of the run's time so far, by what it takes for each task in
#: seconds; but for the first time, if so many times the least budget is live.
_SHARE, _COST, _URGENT = 0.05, 9e-6, 4
#: Where workers have nothing to do for more than this share of the time, though tasks are held back, the
#: budget grows by the largest block that is read; seconds that this is watched for; and how often it grows at
#: most, for each worker.
_IDLE, _WATCHED, _GROWS = 0.1, 0.2, 2


class Budget:
    """The budget of one run, measured again as the sizes of outputs become known.

    Parameters
    ----------
    graph
        What is run.
    priorities
        In which order: a number for each key.
    results
        The keys asked for.
    estimates
        What is known of sizes.
    workers
        How many tasks run at once.
    """

    def __init__(
        self,
        graph: Graph,
        priorities: dict[Key, int],
        results: Collection[Key],
        estimates: Estimates,
        workers: int,
    ) -> None:
        self._graph = graph
        self._priorities = priorities
        self._results = results
        self._estimates = estimates
        self._workers = workers
        #: The estimates' count of changes when it was measured, and how many tasks have ended since.
        self._seen = 0
        self._ended = 0
        #: When the run began, and how many seconds went into measuring, the last time and in all.
        self.began = time.monotonic()
        self._last = self._spent = 0.0
        #: After how many tasks it may be measured again.
        self._interval = 1.0
        #: What the order needs, in bytes, and the largest block that it reads, once that is known.
        self._needed: int | None = None
        self._block = 0
        #: How often the budget has grown by one.
        self._grown = 0
        #: Since when idle workers are watched, and how many seconds they had nothing to do, all together.
        self._since = time.monotonic()
        self._idle = 0.0
        #: The sizes that were known when it was measured.
        self._sizes: dict[Key, int] = {}
        #: The most bytes that are live at once in this order on one worker, with guesses where sizes are not
        #: known, and without; None until somebody asks for it.
        self.peak = 0
        self._least_peak: int | None = None
        #: Bytes of results that are put together in this process, as far as they are known.
        self.result = 0

    def look(self, ended: int, live: int) -> int | None:
        """Take note that so many more tasks have ended; give the budget in bytes, if it is a new one.

        Parameters
        ----------
        ended
            Tasks.
        live
            How many bytes of results are held. While they are few, nothing has to be held back.
        """
        self._ended += ended
        measured, grown = self._is_due(live), self._grow()
        if measured:
            begin = time.monotonic()
            measured = self._measure()
            self._last = time.monotonic() - begin
            self._spent += self._last
        if self._needed is None or not (measured or grown):
            return None
        return max(self._needed, LEAST * self._workers) + self._grown * self._block

    def must_exceed(self, nbytes: int) -> bool:
        """Tell whether more bytes than that are live at some time, whatever the sizes not known yet are."""
        if self.peak <= nbytes:
            return False
        if self._least_peak is None:
            order = measure_order(self._graph, self._priorities, self._sizes, self._results, guess=False)
            self._least_peak = order.peak
        return self._least_peak > nbytes

    def idle(self, seconds: float) -> None:
        """Take note that workers had nothing to do for so many seconds, though tasks were held back."""
        self._idle += seconds

    def _grow(self) -> bool:
        """Let the budget grow if workers are idle for too long; say whether it has."""
        watched = time.monotonic() - self._since
        if watched < _WATCHED:
            return False
        is_idle = self._idle > _IDLE * watched * self._workers
        self._since, self._idle = time.monotonic(), 0.0
        if not is_idle or self._needed is None or self._grown >= _GROWS * self._workers:
            return False
        self._grown += 1
        return True

    def _is_due(self, live: int) -> bool:
        """Say whether the order is to be measured anew."""
        if self._estimates.changes == self._seen or self._ended < self._interval:
            return False
        if live < LEAST * self._workers:
            return False
        spent = self._spent + max(self._last, _COST * len(self._graph.tasks))
        if spent <= _SHARE * (time.monotonic() - self.began):
            return True
        return self._needed is None and live >= _URGENT * LEAST * self._workers

    def _measure(self) -> bool:
        """Measure the order anew; say whether anything is known to measure it by."""
        self._seen = self._estimates.changes
        self._ended = 0
        self._interval = min(1.5 * self._interval, 1 + len(self._graph.tasks) / _TIMES)
        estimates = self._estimates
        sizes: dict[Key, int] = {}
        for key in self._graph.tasks:
            nbytes = estimates.nbytes(key)
            if nbytes is not None:
                sizes[key] = nbytes
        if not sizes:
            return False
        measured = measure_order(self._graph, self._priorities, sizes, self._results)
        self._needed, self._block = measured.budget(self._workers), measured.largest_root
        self.peak, self._least_peak, self._sizes = measured.peak, None, sizes
        self.result = sum(
            sizes.get(dep, 0)
            for key in self._results
            if key in self._graph.tasks and stays(key, self._graph.tasks[key], self._graph, self._results)
            for dep in self._graph.dependencies[key]
        )
        return True
