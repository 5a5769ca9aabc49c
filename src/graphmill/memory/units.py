"""Who has which unit of a common arena: a look at its map, and what can be found there.

Pure: bytes and numbers, no memory. A map has up to a million units and is looked through for each large
array, so NumPy does that, and in memory that is used again: new memory would cost more than the search.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

# What a byte of the map says. All other numbers are processes: who allocates there now.
#: No page is there, and nobody has it.
COLD: Final = 0
#: All pages are there, and nobody has it.
WARM: Final = 1
#: It is part of a block.
BLOCK: Final = 255
#: The process that made the arena.
MAKER: Final = 254
#: The first worker.
FIRST_WORKER: Final = 2


class Run(NamedTuple):
    """Units in a row, of one kind."""

    #: The first of them.
    start: int
    #: How many.
    length: int


class Units:
    """A look at a map.

    Parameters
    ----------
    size : int
        How many units there are.
    huge : int
        How many of them a huge page has.

    Notes
    -----
    For one thread at a time. It sees what was there when it last looked.
    """

    __slots__ = ("_copy", "_edges", "_flags", "_huge", "_size", "seen")

    def __init__(self, size: int, huge: int) -> None:
        self._size = size
        self._huge = huge
        self._copy = np.zeros(size, np.uint8)
        self._flags = np.zeros(size, np.bool_)
        self._edges = np.zeros(size, np.bool_)
        #: What was seen: as many units as had ever been in use.
        self.seen: NDArray[np.uint8] = self._copy[:0]

    def look(self, units: NDArray[np.uint8]) -> None:
        """Look at a map, as far as it was ever in use."""
        self.seen = self._copy[: len(units)]
        np.copyto(self.seen, units)

    def count(self) -> tuple[int, int]:
        """Count the units in use, and those that are idle."""
        flags = self._flags[: len(self.seen)]
        idle = int(np.count_nonzero(np.equal(self.seen, WARM, out=flags)))
        return int(np.count_nonzero(np.greater(self.seen, WARM, out=flags))), idle

    def runs_of(self, number: int) -> list[Run]:
        """List the runs of units that somebody has, or of those that are warm, or cold."""
        edges = self._edges_of(np.equal(self.seen, number, out=self._flags[: len(self.seen)]))
        ends = edges[1::2] if len(edges) % 2 == 0 else np.append(edges[1::2], len(self.seen))
        starts = edges[::2]
        return [Run(*run) for run in zip(starts.tolist(), (ends - starts).tolist(), strict=True)]

    def choose(self, length: int) -> tuple[int, list[Run]] | None:
        """Find a free stretch for so many units: the smallest run of idle ones that is long enough.

        Where there is none, half of it at least from idle ones, or else all of it new, from the start of a
        huge page on if it is as long as one.

        Returns
        -------
        (int, list of Run) or None
            Where it starts, and its parts without pages; None if there is none.
        """
        fitting = [(run.length, run.start) for run in self.runs_of(WARM) if run.length >= length]
        if fitting:
            return min(fitting)[1], []
        free = self._free_runs(length)
        if not free:
            return None
        mixed = max(
            ((self._idle(at, length), -at) for run in free for at in self._ends(run, length)), default=(0, 0)
        )
        if 2 * mixed[0] >= length:
            start = -mixed[1]
        else:
            step = self._huge if length >= self._huge else 1
            places = (self._without_pages(run, length, step) for run in free)
            start = next((at for at in places if at is not None), free[0].start)
        return start, self._cold_parts(start, length)

    def _edges_of(self, where: NDArray[np.bool_]) -> NDArray[np.intp]:
        """List where runs start and end, in turns; the last may be open."""
        if not len(where):
            return np.zeros(0, np.intp)
        changes = np.not_equal(where[1:], where[:-1], out=self._edges[: len(where) - 1])
        edges = np.flatnonzero(changes) + 1
        return np.concatenate(([0], edges)) if where[0] else edges

    def _free_runs(self, length: int) -> list[Run]:
        """List the runs of free units that are long enough."""
        edges = self._edges_of(np.less_equal(self.seen, WARM, out=self._flags[: len(self.seen)]))
        if len(edges) % 2 == 0:
            edges = np.append(edges, len(self.seen))
        # The last one goes on in the part that was never in use, to the end.
        starts, ends = edges[::2], np.append(edges[1::2], self._size)
        fits = ends - starts >= length
        return [Run(*run) for run in zip(starts[fits].tolist(), (ends - starts)[fits].tolist(), strict=True)]

    def _idle(self, start: int, length: int) -> int:
        return int(np.count_nonzero(self.seen[start : start + length] == WARM))

    def _ends(self, run: Run, length: int) -> Iterator[int]:
        """Give where a stretch could start in a free run so as to have many idle units: at their ends."""
        idle = np.flatnonzero(self.seen[run.start : run.start + run.length] == WARM)
        if len(idle):
            yield run.start + min(int(idle[0]), run.length - length)
            yield run.start + max(0, int(idle[-1]) + 1 - length)

    def _without_pages(self, run: Run, length: int, step: int) -> int | None:
        """Find where in a free run a stretch without pages could start, at a multiple of so many units."""
        at, end = run.start, run.start + run.length
        while (at := -(-at // step) * step) + length <= end:
            idle = np.flatnonzero(self.seen[at : at + length] == WARM)
            if not len(idle):
                return at
            at += int(idle[-1]) + 1
        return None

    def _cold_parts(self, start: int, length: int) -> list[Run]:
        """List the parts of a free stretch without pages."""
        seen = np.zeros(length + 2, np.bool_)
        seen[1:-1] = True
        known = self.seen[start : start + length]
        seen[1 : 1 + len(known)] = known == COLD
        edges = np.flatnonzero(seen[1:] != seen[:-1])
        starts = edges[::2]
        return [
            Run(start + at, n) for at, n in zip(starts.tolist(), (edges[1::2] - starts).tolist(), strict=True)
        ]
