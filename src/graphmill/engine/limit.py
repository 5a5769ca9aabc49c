"""One limit for all memory of an engine: what takes it, and what is left for tasks.

Memory is what lies in arenas, in use or kept for use, and what the parent, the template and the workers have
for themselves. What jobs under way were given is set aside for them, whether they have taken it yet or not.
Blocks on disk do not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graphmill.diagnostics.watch import Glance
from graphmill.engine.blocks import Blocks
from graphmill.engine.crew import Crew
from graphmill.footprint import PrivateMemory

#: Seconds from one look at the private memory of all processes to the next, at least.
INTERVAL = 0.02
#: What a process that has not started yet is taken to have for itself, at most; at most half of what the
#: caller has, too, whose libraries it will load.
_TO_COME = 48 << 20
#: Memory is short while less than one part in so many of the limit is unused, and not any more when twice as
#: much is.
_SHORT = 4


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What an engine's memory is used for, in bytes."""

    #: The most that all of it may take.
    limit: int
    #: What all of it takes: private memory and arenas.
    total: int
    #: The private memory of the parent, the template and the workers; pages that they share count once.
    private: int
    #: What arenas take: results, what tasks work with, and pages kept for the next ones.
    arenas: int
    #: Results that are needed, in memory and on disk.
    live: int
    #: Pages of arenas that nobody needs now.
    warm: int
    #: Results that are on disk.
    on_disk: int
    #: The most that all memory took since the engine started, as far as it was looked at.
    peak: int
    #: The most that results took, in memory and on disk.
    peak_live: int
    #: Bytes of results that were moved to disk since the engine started.
    spilled: int
    #: Bytes of such results that tasks have read.
    read_back: int
    #: Bytes of arguments of calls that were copied into shared memory, and those that lay there already.
    copied: int = 0
    passed_on: int = 0


class Limit:
    """The memory of one engine.

    Parameters
    ----------
    nbytes
        The most that it may take.
    pids
        Gives its processes.
    blocks
        What lies in its arenas.
    crew
        The workers, which keep idle pages.
    """

    def __init__(self, nbytes: int, pids: Callable[[], Iterable[int]], blocks: Blocks, crew: Crew) -> None:
        self.nbytes = nbytes
        self._processes = PrivateMemory(pids)
        self._blocks = blocks
        self._crew = crew
        #: How many idle pages may be kept while memory is not short: for blocks, and in each worker.
        self._warm_limits = blocks.warm_limit, crew.warm_limit
        self._looked = 0.0
        #: Private memory of all processes when it was last looked at.
        self.private = 0
        #: What of it workers have for the jobs that they are at, and give back when those are done.
        self._for_jobs = 0
        #: What those will have that are yet to start, beside those that have.
        self._to_come = 0
        #: What jobs under way may take.
        self.given = 0
        #: Whether memory is short, so that nothing is to be kept for later.
        self._is_short = False
        #: The most that was seen of all memory.
        self.peak = 0
        #: Bytes that jobs have read from disk.
        self.read_back = 0

    def look(self, *, again: bool = False) -> None:
        """See how much memory processes have, if it is some time since that was last done, or in any case."""
        now = time.monotonic()
        if now - self._looked < INTERVAL and not again:
            return
        self._looked = now
        self._blocks.look()
        self.private = self._processes.sample()
        last = self._processes.last
        self._for_jobs = sum(
            max(0, last.get(pid, 0) - self._processes.as_last(pid, before))
            for pid, before in self._crew.at_work()
        )
        # The caller's, the template, and workers: what runs first would else have what they need.
        missing = self._crew.size + 2 - len(last)
        own = last.get(os.getpid(), 0)
        self._to_come = max(0, missing) * min(_TO_COME, own // 2)
        self.peak = max(self.peak, self.private + self._blocks.occupied())

    def memory_of(self, pid: int) -> int | None:
        """Tell how much private memory a process had when it was last looked at; None if it never was."""
        return self._processes.last.get(pid) or None

    @property
    def capacity(self) -> int:
        """Bytes that a task could have if it were alone, and all results on disk."""
        return max(0, self.nbytes - self.at_rest - self._to_come)

    @property
    def at_rest(self) -> int:
        """Bytes of private memory that processes have beside what jobs under way take."""
        return self.private - self._for_jobs

    @property
    def free(self) -> int:
        """Bytes that are left for tasks that start now; negative if there are too few already."""
        # What jobs have for themselves is part of what they were given: counted twice, others would wait.
        return self._beside_jobs - max(self.given, self._for_jobs)

    @property
    def _beside_jobs(self) -> int:
        """Bytes that there are for jobs, those that are under way among them."""
        return self.nbytes - self.at_rest - self._to_come - self._blocks.resident - self.warm

    @property
    def warm(self) -> int:
        """Bytes of pages that are kept for use; those that a worker was not told of yet count once."""
        return max(self._blocks.warm, self._crew.warm) + self._blocks.common_warm

    def keep_warm_or_not(self) -> None:
        """Have idle pages given back while memory is short."""
        # What jobs may take is mostly more than they do.
        unused = self._beside_jobs - self._for_jobs
        short = unused * _SHORT < self.nbytes * (2 if self._is_short else 1)
        if short != self._is_short:
            self._is_short = short
            limits = (0, 0) if short else self._warm_limits
            self._blocks.warm_limit, self._crew.warm_limit = limits

    def glance(self) -> Glance:
        """Tell what there is now, for those who watch."""
        blocks = self._blocks
        self.look()
        return Glance(
            time=time.perf_counter(),
            limit=self.nbytes,
            private=self.private,
            arenas=blocks.occupied(),
            live=blocks.live,
            warm=self.warm,
            on_disk=blocks.on_disk,
            spilled=blocks.spilled,
            read_back=self.read_back,
            busy=self._crew.busy,
            peak=self.peak,
        )

    def use(self) -> MemoryUse:
        """Tell what the memory is used for now."""
        blocks = self._blocks
        self.look(again=True)
        arenas = blocks.occupied()
        return MemoryUse(
            limit=self.nbytes,
            total=self.private + arenas,
            private=self.private,
            arenas=arenas,
            live=blocks.live,
            warm=self.warm,
            on_disk=blocks.on_disk,
            peak=self.peak,
            peak_live=blocks.peak,
            spilled=blocks.spilled,
            read_back=self.read_back,
        )
