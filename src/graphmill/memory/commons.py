"""Free space of one arena that several processes allocate in: the common arena, for large arrays.

If each process kept what it once had in use, so as not to take new pages again, all together would keep far
more than is ever in use at once. Here what one frees, the next one takes, whoever it is.

Beside the arena there is a small file, the *map*: one byte for each *unit* of space, with who has it. There
is no other record, so whoever is killed leaves none half-written: its units are found by its own number, and
are free again (`bury`). Only who has a unit writes its byte, and free ones are taken with a lock that goes
with its process. So to free takes no lock, and nobody has to be told::

                      ┌────────────────────── free ◄──────────────────┐
                      ▼                                               │
    cold ──take─► somebody's ──free─► warm ──take─► somebody's ──publish─► a block
      ▲                                │
      └───────── trim, bury ───────────┘

Before the map stand a few numbers that all processes share, such as the most that was lately in use at once:
idle pages and those in use are no more than that together. Who takes new pages gives back old ones for it.

Without the lock, as when its owner was stopped in that moment, nothing is taken here for a while: a process
has an arena of its own besides.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

import numpy as np

from graphmill.errors import ArenaFull
from graphmill.memory.arena import Arena, create_file, reserve_pages
from graphmill.memory.block import BlockId
from graphmill.memory.mapping import HUGE_PAGE, map_shared
from graphmill.memory.ranges import Range
from graphmill.memory.units import BLOCK, COLD, MAKER, WARM, Run, Units

#: Length of a unit where the arena has at most so many of them, in bytes; else as long as it takes.
UNIT: Final = 64 << 10
MOST_UNITS: Final = 1 << 20
#: Stretches of fewer units are not worth a look at the map: some of the last one is not used.
_LEAST: Final = 16

# The numbers before the map.
#: How many units have ever been in use, from the first one on.
_TOP = 0
#: The most units that were in use at once, in this window of time and in the one before.
_MOST, _BEFORE = 1, 2
#: When this window ends, and when anything was last taken, in nanoseconds on the monotonic clock.
_UNTIL, _TAKEN = 3, 4
#: How many units may be idle or in use in any case; negative where none may be idle.
_FLOOR = 5
_NUMBERS = 8
_HEADER = _NUMBERS * 8

#: Seconds for which the most is remembered at least; at most twice as long.
WINDOW: Final = 1.0
#: Seconds without anything being taken after which idle pages go back, beyond those that are always kept.
REST: Final = 2.0
#: Seconds for which the lock is waited for, and then left alone. It is held for some 50 microseconds.
_PATIENCE = 0.02
_PAUSE = 1.0


class Commons:
    """The free space of a common arena, as one process sees it; what a `Part` of its heap takes from.

    Parameters
    ----------
    arena : Arena
        Whose space it is.
    path : Path
        The map; made by `create`.
    process : int
        This one's number, which no other has.

    Notes
    -----
    May be used from several threads.
    """

    __slots__ = (
        *("_gate", "_is_copy", "_left_out", "_lock", "_map", "_numbers"),
        *("_size", "_unit", "_units", "arena", "least", "path", "process"),
    )

    def __init__(self, arena: Arena, path: Path, process: int) -> None:
        self.arena = arena
        #: Where its map is.
        self.path = path
        #: This process's number.
        self.process = process
        self._unit = unit_of(arena.size)
        #: Stretches below so many bytes are to be taken from elsewhere.
        self.least = _LEAST * self._unit
        self._size = arena.size // self._unit
        self._units = Units(self._size, max(1, HUGE_PAGE // self._unit))
        #: Whether this is a forked copy of the process: then what it frees is its own.
        self._is_copy = False
        #: The map, which is locked by who takes something; -1 once this is closed.
        self._lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            seen = map_shared(self._lock, _HEADER + self._size)
        except OSError:
            os.close(self._lock)
            raise
        self._numbers = np.frombuffer(seen, np.int64, _NUMBERS)
        self._map = np.frombuffer(seen, np.uint8, self._size, _HEADER)
        #: The lock is the process's: this is for its threads.
        self._gate = threading.Lock()
        #: Until when nothing is taken, as nobody could have the lock; on the monotonic clock.
        self._left_out = 0.0

    @classmethod
    def create(cls, arena: Arena, path: Path) -> Self:
        """Make the map of an arena that nobody has used yet, for its maker. `keep` says what may be idle.

        Parameters
        ----------
        arena, path
            As for the class.

        Raises
        ------
        OSError
            The map cannot be made.
        """
        nbytes = _HEADER + arena.size // unit_of(arena.size)
        descriptor = create_file(path, nbytes)
        try:
            reserve_pages(descriptor, 0, nbytes, is_file=True)
        finally:
            os.close(descriptor)
        return cls(arena, path, MAKER)

    def close(self) -> None:
        """Take nothing more; may be called twice. What was taken may still be freed."""
        with self._gate:
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

    def become_copy(self) -> None:
        """Leave the map alone, in a forked copy of the process."""
        self._is_copy = True

    # ---- as a heap uses it

    def allocate(self, nbytes: int) -> Range:
        """Take a stretch of at least so many bytes, in whole units.

        Where all that is idle or in use then would be more than what was in use at once lately, idle pages
        go back to the system.

        Raises
        ------
        ArenaFull
            No free stretch is long enough, or the lock cannot be had.
        """
        unit = self._unit
        length = -(-nbytes // unit)
        with self._locked():
            self._look()
            found = self._units.choose(length)
            if found is None:
                raise ArenaFull(f"no {length * unit} bytes left in a segment of {self.arena.size}")
            start, cold = found
            self._numbers[_TOP] = max(self._numbers[_TOP], start + length)
            self._map[start : start + length] = self.process
            excess = self._note(length, cold)
            given = self._claim(excess) if excess > 0 else []
        self._give_back(given)
        return Range(start * unit, length * unit, tuple([(at * unit, n * unit) for at, n in cold]))

    def free(self, offset: int, length: int, warm: bool = True) -> None:
        """Let others take a stretch that this process has.

        Raises
        ------
        ValueError
            It has not.
        """
        self._free(offset, length, self.process, warm)

    def shrink(self, offset: int, length: int, nbytes: int) -> int:
        """Keep the first part of a stretch, as much as so many bytes need; return the length that is left.

        Raises
        ------
        ValueError
            This process has no such stretch, or it is not as long as that.
        """
        kept = max(1, -(-nbytes // self._unit)) * self._unit
        if kept > length:
            raise ValueError(f"{nbytes} bytes are more than the {length} taken at {offset}")
        if kept < length:
            self.free(offset + kept, length - kept)
        return kept

    def trim(self, nbytes: int) -> list[Range]:
        """Take out idle pages that are to go back to the system.

        Returns
        -------
        list of Range
            What was taken. Each is to be freed again: as cold when its pages are gone, else as warm.
        """
        try:
            with self._locked():
                claimed = self._claim(-(-nbytes // self._unit))
        except ArenaFull:
            return []  # somebody else is at it
        return [Range(start * self._unit, length * self._unit) for start, length in claimed]

    @property
    def warm_bytes(self) -> int:
        """Idle bytes whose pages are there."""
        return int(np.count_nonzero(self._map[: self._numbers[_TOP]] == WARM)) * self._unit

    @property
    def cold_bytes(self) -> int:
        """Free bytes without pages."""
        return self.arena.size - int(np.count_nonzero(self._map[: self._numbers[_TOP]])) * self._unit

    # ---- as who keeps the books uses it

    def publish(self, offset: int, length: int) -> None:
        """Note that a stretch that some process has is a block now: that process's end does not free it."""
        self._map[offset // self._unit : (offset + length) // self._unit] = BLOCK

    def free_block(self, block: BlockId, length: int, warm: bool) -> None:
        """Let others take what was a block.

        Raises
        ------
        ValueError
            It was none.
        """
        self._free(block.offset, length, BLOCK, warm)

    def bury(self, process: int) -> None:
        """Free what a process had that has ended, but for its blocks."""
        with self._gate:
            self._look()
            runs = self._units.runs_of(process)
        # Nobody knows which pages are there: where they cannot be given back, nobody may use them again.
        self._give_back(runs, otherwise=BLOCK)

    def keep(self, warm_limit: int) -> None:
        """Say how many bytes may be idle in any case, together with those in use; 0 keeps none at all."""
        self._numbers[_FLOOR] = warm_limit // self._unit or -1

    def trim_excess(self) -> int:
        """Give idle pages back that are too many; return how many bytes went."""
        with self._gate:
            self._look()
            excess = self._note(0, [])
        return 0 if excess <= 0 else self._trim_now(excess)

    def give_back_all(self) -> None:
        """Give all idle pages back."""
        self._trim_now(self._size)

    def keeps(self, nbytes: int, idle: int) -> bool:
        """Say whether what is freed now stays idle, beside so much that is: if anybody may soon take it."""
        floor = int(self._numbers[_FLOOR])
        return floor >= 0 and (self._rests_in() > 0 or idle + nbytes <= floor * self._unit)

    def rest(self, nbytes: int) -> float | None:
        """Give idle pages back if nobody has taken anything for `REST`, as if nothing had been in use.

        Parameters
        ----------
        nbytes
            How many bytes may go at a time.

        Returns
        -------
        float or None
            Seconds after which to ask again; None if there is nothing more to give back.
        """
        with self._gate:
            self._look()
            in_use, idle = self._units.count()
        floor = max(0, int(self._numbers[_FLOOR]))
        excess = min(idle, in_use + idle - floor)
        if excess <= 0:
            return None
        seconds = self._rests_in()
        if seconds > 0:
            return seconds
        self._numbers[_MOST], self._numbers[_BEFORE] = in_use, 0
        wanted = min(excess, -(-nbytes // self._unit))
        given = self._trim_now(wanted) // self._unit
        if given < wanted:
            return _PAUSE  # somebody else has the lock
        return 0.0 if given < excess else None

    def _rests_in(self) -> float:
        """Tell in how many seconds it will be long that anything was taken; 0 or less if it is."""
        return REST - (time.monotonic_ns() - int(self._numbers[_TAKEN])) / 1e9

    # ---- with the lock, or for what needs none

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be the only one who takes anything.

        Raises
        ------
        ArenaFull
            Somebody else is, for long.
        """
        if self._is_copy or time.monotonic() < self._left_out:
            raise ArenaFull("the common arena is in use")
        with self._gate:
            if self._lock < 0:
                raise ArenaFull("the common arena is closed")
            try:
                self._acquire(time.monotonic() + _PATIENCE)
                yield
            finally:
                fcntl.lockf(self._lock, fcntl.LOCK_UN)  # of use, too, where an interrupt has come in between

    def _acquire(self, end: float) -> None:
        pause = 20e-6
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                now = time.monotonic()
                if now >= end or not isinstance(error, BlockingIOError | PermissionError):
                    self._left_out = now + _PAUSE
                    raise ArenaFull("the common arena is in use") from error
            else:
                return
            time.sleep(pause)  # the system can wait for such a lock, but not for some time only
            pause *= 2

    def _look(self) -> None:
        self._units.look(self._map[: self._numbers[_TOP]])

    def _note(self, length: int, cold: list[Run]) -> int:
        """Take note of a stretch that is taken besides; return how many idle units are too many then."""
        in_use, idle = self._units.count()
        in_use += length
        idle -= length - sum(run.length for run in cold)
        numbers, now = self._numbers, time.monotonic_ns()
        if length:
            numbers[_TAKEN] = now
        if now >= numbers[_UNTIL]:
            numbers[_BEFORE] = numbers[_MOST] if now < numbers[_UNTIL] + int(WINDOW * 1e9) else 0
            numbers[_MOST], numbers[_UNTIL] = in_use, now + int(WINDOW * 1e9)
        numbers[_MOST] = max(numbers[_MOST], in_use)
        return min(idle, in_use + idle - self._allowed(in_use))

    def _allowed(self, in_use: int) -> int:
        """Tell how many units may be idle or in use."""
        numbers = self._numbers
        floor = int(numbers[_FLOOR])
        return in_use if floor < 0 else max(int(numbers[_MOST]), int(numbers[_BEFORE]), floor)

    def _claim(self, wanted: int) -> list[Run]:
        """Take idle units out, to give them back: the longest runs that go as a whole, then the shortest."""
        self._look()
        runs = sorted((run.length, run.start) for run in self._units.runs_of(WARM))
        claimed = []
        while runs and wanted > 0:
            whole = runs[-1][0] <= wanted
            length, start = runs.pop(-1 if whole else 0)
            # From its end, so that what is left starts where it did.
            kept = max(0, length - wanted)
            claimed.append(Run(start + kept, length - kept))
            wanted -= length - kept
        for start, length in claimed:
            self._map[start : start + length] = self.process
        return claimed

    def _trim_now(self, units: int) -> int:
        try:
            with self._locked():
                claimed = self._claim(units)
        except ArenaFull:
            return 0
        self._give_back(claimed)
        return sum(length for _, length in claimed) * self._unit

    def _give_back(self, claimed: list[Run], otherwise: int = WARM) -> None:
        """Give the pages of units to the system that this process has, or that a dead one had."""
        for start, length in claimed:
            gone = self.arena.punch(start * self._unit, length * self._unit)
            self._map[start : start + length] = COLD if gone else otherwise

    def _free(self, offset: int, length: int, whose: int, warm: bool) -> None:
        if self._is_copy:
            return
        unit = self._unit
        units = self._map[offset // unit : (offset + length) // unit]
        if length % unit or offset % unit or not length or (units != whose).any():
            raise ValueError(f"not taken: {length} bytes at {offset}")
        units[:] = WARM if warm else COLD


def unit_of(size: int) -> int:
    """Tell how long a unit of an arena of some size is, in bytes."""
    unit = UNIT
    while size > unit * MOST_UNITS:
        unit *= 2
    return unit
