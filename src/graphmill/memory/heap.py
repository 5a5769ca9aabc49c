"""A process's own allocator in its arenas, and how memory that it gave out becomes a block.

Whoever makes a result does not know yet that it will be one. So there are no reference counts: the codec
*claims* the memory that a result's buffers lie in and lets go of the result. If the memory was freed by then,
nobody in this process can see it any more, and it is published as it lies. If not, somebody kept it (a
global, a buffer that the function uses again), and its bytes are copied.

::

    allocate ─► live ──claim─► live, claimed ──release─► released, claimed ──settle─► published
                 │                    │                          │                        │
                 └─release─► free     └─settle: a copy is        └─abandon─► free         └─give_back─► free
                                        published; it stays live

Published memory is never touched here again until it is given back.

Any call to this module may be interrupted by another one: arrays are freed on whatever thread, and a
collection that starts in the middle of an allocation frees arrays too. So releasing only notes the address,
and whoever has the lock then, or gets it at once, does the work. What NumPy frees is noted by C, without a
call to this module, and taken in whenever the heap is used: see `Heap.add_source`. And `allocate` never
waits: where the heap is busy, it says so, and the memory has to come from elsewhere.

A task may fork. The copy of the heap in the child gives out nothing any more, because the same memory would
be given out twice, and what is live there becomes the child's own: see `after_fork`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pickle import PickleBuffer
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from graphmill.errors import AllowanceSpent, ArenaFull
from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import BlockId, Extent
from graphmill.memory.commons import Commons
from graphmill.memory.mapping import HUGE_PAGE, make_private
from graphmill.memory.ranges import Range, Zones
from graphmill.memory.recent import RecentMost

#: Whatever has the buffer protocol.
Buffer: TypeAlias = Any


#: Free pages in excess of what was in use at once matter if they are more than one in so many of that.
_NEGLIGIBLE = 64

#: All heaps of this process, for `after_fork`.
HEAPS: weakref.WeakSet[Heap] = weakref.WeakSet()


class HeapUsage(NamedTuple):
    """What a heap's memory is used for, in bytes of whole pages."""

    #: Arrays in use by this process, claimed ones among them.
    live: int
    #: Blocks in the own arenas that were published and not given back.
    published: int
    #: Free in the own arenas, with pages in place.
    warm: int


class Part:
    """One arena of a heap."""

    __slots__ = ("address", "arena", "end", "is_common", "memory", "ranges")

    def __init__(self, arena: Arena, commons: Commons | None = None) -> None:
        self.arena = arena
        #: Whether other heaps take from it too.
        self.is_common = commons is not None
        self.ranges: Zones | Commons = commons or Zones(arena.size, PAGE, HUGE_PAGE)
        #: All of its memory; it stays mapped for as long as this lives, whatever becomes of the arena.
        self.memory = arena.shared
        #: Where it starts in this process.
        self.address = arena.address
        #: Where it ends.
        self.end = self.address + arena.size

    @property
    def in_use(self) -> int:
        """Bytes that are not free."""
        return self.arena.size - self.ranges.cold_bytes - self.ranges.warm_bytes

    def take(self, nbytes: int) -> Range:
        """Take a range whose pages are all there.

        Where the system has none left, the own warm pages are given up for it: those at hand, none of
        which was long enough.

        Raises
        ------
        ArenaFull
            There is no room, in the segment or behind it.
        """
        found = self.ranges.allocate(nbytes)
        if found.warm or self.reserve(found):
            return found
        # What was warm in it has gone back to the system by now, and more may follow.
        if self.trim(found.length) or not found.clean:
            found = self.ranges.allocate(nbytes)
            if found.warm or self.reserve(found):
                return found
        where = self.arena.handle.folder or "shared memory"
        raise ArenaFull(
            f"no room for {nbytes} bytes in arena {self.arena.number}: {where} is full; smaller chunks or "
            "fewer workers need less, and Engine(folder=...) takes a folder with more room"
        )

    def reserve(self, taken: Range) -> bool:
        """Have all pages of a range put in place; if there is no room, free it and answer False.

        Where pages cannot be given back, nobody knows which of them are there now. Such a range is
        not used again: better less room than a write to a page that does not exist.
        """
        try:
            for offset, length in taken.cold:
                self.arena.reserve(offset, length)
        except ArenaFull:
            if self.arena.punch(taken.offset, taken.length):
                self.ranges.free(taken.offset, taken.length, warm=False)
            return False
        return True

    def become_copy(self) -> None:
        """Keep what this forked process and the one before it write from each other."""
        if isinstance(self.ranges, Commons):
            self.ranges.become_copy()
        try:
            descriptor = self.arena.descriptor
        except ValueError:
            return  # closed; what is live stays shared
        make_private(self.memory, descriptor)

    def trim(self, nbytes: int) -> int:
        """Give free pages back to the system; return how many bytes went."""
        given = 0
        for each in self.ranges.trim(nbytes):
            punched = self.arena.punch(each.offset, each.length)
            self.ranges.free(each.offset, each.length, warm=not punched)
            given += each.length if punched else 0
        return given


@dataclass(slots=True, eq=False)
class Allocation:
    """Memory that the heap gave out."""

    #: The arena that it lies in.
    part: Part
    #: Where in the arena it starts, in bytes.
    offset: int
    #: Its length, whole pages, in bytes.
    length: int
    #: What was asked for, in bytes.
    nbytes: int
    #: Claims on it that are not settled.
    claims: int = 0
    #: Nobody in this process sees it any more.
    released: bool = False
    #: It is a block now.
    published: bool = False

    @property
    def address(self) -> int:
        """Where it starts in this process."""
        return self.part.address + self.offset


@dataclass(slots=True, eq=False)
class Claim:
    """A buffer that is to be published: part or all of an allocation. It keeps nothing alive."""

    #: What the buffer lies in.
    allocation: Allocation
    #: Where in it the buffer starts, in bytes.
    offset: int
    #: Length of the buffer, in bytes.
    nbytes: int
    #: It was settled or abandoned.
    done: bool = field(default=False)


class Heap:
    """Memory in an arena, and in a second one when the first is full.

    Parameters
    ----------
    arena : Arena
        Where memory comes from. No other heap, in any process, may allocate in it.
    overflow : Arena, optional
        Where it comes from when the first is full, or the file system behind that.
    commons : Commons, optional
        Where large memory comes from, if there is room. What is published there does not come back.

    Raises
    ------
    OSError
        There is no address space left to map them.

    Notes
    -----
    May be used from several threads. The arenas stay the caller's to close.
    """

    def __init__(self, arena: Arena, overflow: Arena | None = None, commons: Commons | None = None) -> None:
        #: Its own arenas, and all.
        self._own = [Part(each) for each in (arena, overflow) if each is not None]
        self._parts = [*([] if commons is None else [Part(commons.arena, commons)]), *self._own]
        #: What is large, in bytes.
        self._large = 0 if commons is None else commons.least
        #: {address: what was given out there and not released}; for others to look at.
        self.live: dict[int, Allocation] = {}
        self._live_bytes = 0
        #: {block: its length}
        self._published: dict[BlockId, int] = {}
        self._published_bytes = 0
        #: Bytes that were published in the common arena since `begin`.
        self._given_away = 0
        #: How many bytes may be taken from now on, how many were at most, and how many more would have been.
        self._allowance: int | None = None
        self._most = 0
        self._refused = 0
        #: Bytes that were live or published when that began.
        self._before = 0
        #: The most bytes of its own arenas that were in use at once.
        self._high = RecentMost()
        #: Bytes that were copied in since `begin`.
        self.copied = 0
        self._lock = threading.Lock()
        #: Addresses that were released, to be dealt with by whoever has the lock.
        self._released: deque[int] = deque()
        #: Tell more such addresses.
        self._sources: list[Callable[[], int]] = []
        #: This is a copy in a forked process.
        self._is_copy = False
        HEAPS.add(self)
        watch_forks()

    @property
    def places(self) -> list[tuple[int, int]]:
        """Where its arenas start in this process, and their lengths; one to three."""
        return [(part.address, part.arena.size) for part in self._parts]

    def add_source(self, take: Callable[[], int]) -> None:
        """Have memory released that somebody else notes, where `release` cannot be called.

        It is asked when the heap is next used: before memory is given out, published or trimmed, and before
        it is told what is live.

        Parameters
        ----------
        take : callable
            Answers with an address at each call, and with 0 when there is none. It is called by one thread
            at a time, and must not use this heap.
        """
        with self._lock:
            self._sources.append(take)

    # ---- an allowance

    def begin(self, allowance: int | None) -> None:
        """Count anew what is taken from now on, and let it be so many bytes at most.

        Parameters
        ----------
        allowance : int, optional
            How many bytes may be given out or published beyond those that are now; by default any number.
        """
        with self._lock:
            self._take_in()
            self._before = self._live_bytes + self._published_bytes
            self._allowance = allowance
            self._most = self._refused = self._given_away = self.copied = 0

    def excess(self, nbytes: int) -> int:
        """Tell how many free bytes with pages, of its own arenas, exceed what was in use there lately.

        Parameters
        ----------
        nbytes : int
            Bytes that may be free in any case; with 0, all that are free are too many.
        """
        usage = self.usage()
        if not nbytes:
            return usage.warm
        high = self._high.most
        excess = usage.warm - max(nbytes, high - self._in_use())
        return excess if excess > high // _NEGLIGIBLE else 0

    def forget_most(self) -> None:
        """Let the most that was in use at once be what is in use now."""
        self.begin(None)
        self._high.start_with(self._in_use())

    def _in_use(self) -> int:
        """Count the bytes of its own arenas that are not free."""
        return sum([part.in_use for part in self._own])

    @property
    def taken(self) -> int:
        """The most bytes that were taken at once since `begin`."""
        return self._most

    @property
    def refused(self) -> int:
        """The most bytes that would have been taken at once if there had been an allowance for it, or 0."""
        return self._refused

    def _count(self, nbytes: int) -> None:
        """Count bytes that are about to be taken.

        Raises
        ------
        AllowanceSpent
            They are too many.
        """
        taken = self._live_bytes + self._published_bytes + self._given_away - self._before + nbytes
        if self._allowance is not None and taken > self._allowance:
            self._refused = max(self._refused, taken)
            raise AllowanceSpent(f"a task that may take {self._allowance} bytes asks for {taken}")
        self._most = max(self._most, taken)

    # ---- memory

    def allocate(self, nbytes: int, zeroed: bool = False) -> int:
        """Give out memory.

        Parameters
        ----------
        nbytes : int
            How much is needed.
        zeroed : bool
            It has to be all zeros; otherwise it may hold anything.

        Returns
        -------
        int
            Its address, at the start of a page; 0 if the heap is busy just now, or a forked copy.

        Raises
        ------
        ArenaFull
            No arena has room.
        AllowanceSpent
            More was taken than `begin` has allowed.
        """
        if self._is_copy or not self._lock.acquire(blocking=False):
            return 0
        try:
            self._take_in()
            self._count(nbytes)
            part, taken = self._take(nbytes)
            allocation = Allocation(part, taken.offset, taken.length, nbytes)
            address = part.address + taken.offset
            if zeroed and not taken.clean:
                ctypes.memset(address, 0, nbytes)
            self.live[address] = allocation
            self._live_bytes += taken.length
        finally:
            self._lock.release()
        if self._released:
            self._settle_releases()
        return address

    def resize(self, address: int, nbytes: int) -> int:
        """Make live memory longer or shorter, keeping what it holds; it may move.

        Returns
        -------
        int
            Its new address; 0 if the heap is busy just now, or a forked copy. The old one is then still good.

        Raises
        ------
        ArenaFull
            No arena has room for it; the old memory is still good.
        AllowanceSpent
            More was taken than `begin` has allowed; the old memory is still good.
        """
        if self._is_copy or not self._lock.acquire(blocking=False):
            return 0
        try:
            old = self.live[address]
            fits = nbytes <= old.length
            if fits and not old.claims:
                left = old.part.ranges.shrink(old.offset, old.length, nbytes)
                self._live_bytes -= old.length - left
                old.length, old.nbytes = left, nbytes
                return address
        finally:
            self._lock.release()
        moved = self.allocate(nbytes)
        if moved:
            ctypes.memmove(moved, address, min(old.nbytes, nbytes))
            self.release(address)
        return moved

    def release(self, address: int) -> None:
        """Take live memory back: nobody in this process sees it any more."""
        self._released.append(address)
        self._settle_releases()

    def trim(self, nbytes: int) -> int:
        """Give free pages of the own arenas back to the system.

        Returns
        -------
        int
            How many bytes went; at most `nbytes`, rounded up to whole pages.
        """
        self._check()
        with self._lock:
            self._take_in()
            given = 0
            for part in self._own:
                if given < nbytes:
                    given += part.trim(nbytes - given)
        self._settle_releases()
        return given

    def usage(self) -> HeapUsage:
        """Tell what the memory is used for."""
        self._settle_releases()
        return HeapUsage(
            self._live_bytes, self._published_bytes, sum(part.ranges.warm_bytes for part in self._own)
        )

    # ---- publishing

    def claim(self, address: int, nbytes: int) -> Claim | None:
        """Note that a buffer is to be published. The caller then drops all that refers to it, and settles.

        Parameters
        ----------
        address, nbytes : int
            Where the buffer lies in this process.

        Returns
        -------
        Claim or None
            None if it is not this heap's memory, or so small a part of it (less than half) that it is
            better copied. Every claim has to be settled or abandoned.
        """
        if self._is_copy:
            return None
        with self._lock:
            found = self._find(address, nbytes)
            if found is None or 2 * nbytes < found.nbytes:
                return None
            found.claims += 1
            return Claim(found, address - found.address, nbytes)

    def settle(self, claim: Claim) -> Extent:
        """Publish a claimed buffer: as it lies if it was released since, else a copy of it.

        Raises
        ------
        ArenaFull, AllowanceSpent
            There is no room for a copy. The claim is still good.
        """
        self._check()
        allocation = claim.allocation
        with self._lock:
            self._take_in()
            if claim.done:
                raise ValueError("settled twice")
            in_place = allocation.released
            if in_place and not allocation.published:
                allocation.published = True
                self._publish(allocation.part, allocation.offset, allocation.length)
            if in_place:
                self._end(claim)
        if in_place:
            return Extent(
                allocation.part.arena.number,
                allocation.offset,
                claim.offset,
                claim.nbytes,
                allocation.length,
            )
        start = allocation.offset + claim.offset
        extent = self.copy_in(allocation.part.memory[start : start + claim.nbytes])
        self.abandon(claim)
        return extent

    def abandon(self, claim: Claim) -> None:
        """Give up a claim; nothing happens if it was settled already."""
        with self._lock:
            if not claim.done:
                self._end(claim)
                if claim.allocation.released and not claim.allocation.claims:
                    self._free(claim.allocation)
        self._settle_releases()

    def copy_in(self, buffer: Buffer) -> Extent:
        """Publish a copy of memory from elsewhere.

        Parameters
        ----------
        buffer : object with the buffer protocol
            Contiguous, in C or Fortran order.

        Raises
        ------
        ArenaFull
            No arena has room.
        AllowanceSpent
            More was taken than `begin` has allowed.
        BufferError
            The buffer is not contiguous.
        """
        self._check()
        with PickleBuffer(buffer).raw() as raw:
            nbytes = raw.nbytes
            with self._lock:
                self._take_in()
                self._count(nbytes)
                part, taken = self._take(nbytes)
                self._publish(part, taken.offset, taken.length)
            if nbytes:
                place = np.frombuffer(part.memory, np.uint8, nbytes, taken.offset)
                np.copyto(place, np.frombuffer(raw, np.uint8))  # other threads can go on meanwhile
        self.copied += nbytes
        self._settle_releases()
        return Extent(part.arena.number, taken.offset, 0, nbytes, taken.length)

    def give_back(self, block: BlockId, length: int, warm: bool = True) -> None:
        """Take a published block back: nobody in any process needs it any more.

        Parameters
        ----------
        block : BlockId
            Which one.
        length : int
            Its length, in bytes.
        warm : bool
            Its pages are still there; False if they were given back to the system.

        Raises
        ------
        ValueError
            No such block was published here.
        """
        self._check()
        with self._lock:
            if self._published.get(block) != length:
                raise ValueError(f"not published here: {length} bytes at {block}")
            del self._published[block]
            self._published_bytes -= length
            self._part_of(block.arena).ranges.free(block.offset, length, warm)
        self._settle_releases()

    def take_back(self, extent: Extent) -> None:
        """Free a block that was published here, and nobody was told of: so it is still this process's."""
        part = self._part_of(extent.arena)
        if not part.is_common:
            self.give_back(extent.id, extent.length)
            return
        with self._lock:
            part.ranges.free(extent.block, extent.length)
            self._given_away -= extent.length

    def close(self) -> None:
        """Give out nothing more, and let go of its arenas, where it has none of its memory in use."""
        with self._lock:
            self._parts.clear()
            self._own.clear()

    # ---- after a fork

    def become_copy(self) -> None:
        """Stop giving out memory, and part with the process that this one was forked from."""
        self._is_copy = True
        self._lock = threading.Lock()  # a thread that does not exist here may have had the old one
        for part in self._parts:
            part.become_copy()

    def _part_of(self, arena: int) -> Part:
        return next(part for part in self._parts if part.arena.number == arena)

    def _check(self) -> None:
        if self._is_copy:
            raise ValueError("this heap belongs to the process that this one was forked from")

    # ---- with the lock held

    def _take(self, nbytes: int) -> tuple[Part, Range]:
        """Take a range from the first arena that has room."""
        reasons = [ArenaFull("the heap is closed")] if not self._parts else []
        for part in self._parts if nbytes >= self._large else self._own:
            try:
                found = part.take(nbytes)
            except ArenaFull as error:
                reasons.append(error)
                continue
            if not part.is_common:
                self._high.note(self._in_use())
            return part, found
        raise ArenaFull("; ".join(map(str, reasons))) from reasons[-1]

    def _find(self, address: int, nbytes: int) -> Allocation | None:
        """Find the live allocation that a buffer lies in."""
        if not any(part.address <= address < part.end for part in self._parts):
            return None
        found = self.live.get(address)
        if found is None:
            # A view into the middle. Such results are rare, and large arrays few.
            start = max((start for start in tuple(self.live) if start < address), default=None)
            found = None if start is None else self.live.get(start)
        if found is None or address + nbytes > found.address + found.nbytes:
            return None
        return found

    def _publish(self, part: Part, offset: int, length: int) -> None:
        if part.is_common:
            self._given_away += length
            return
        self._published[BlockId(part.arena.number, offset)] = length
        self._published_bytes += length

    def _end(self, claim: Claim) -> None:
        claim.done = True
        claim.allocation.claims -= 1

    def _free(self, allocation: Allocation) -> None:
        """Free the range of a released allocation, unless it has become a block."""
        if not allocation.published:
            allocation.part.ranges.free(allocation.offset, allocation.length)

    def _take_in(self) -> None:
        """Deal with what was released."""
        released = self._released
        for take in self._sources:
            while address := take():
                released.append(address)
        while released:
            allocation = self.live.pop(released.popleft())
            self._live_bytes -= allocation.length
            allocation.released = True
            if not allocation.claims:
                self._free(allocation)

    # ---- without it

    def _settle_releases(self) -> None:
        """Deal with what was released, unless somebody else has the lock, who does it then or soon."""
        more = True
        while more and self._lock.acquire(blocking=False):
            try:
                self._take_in()
            finally:
                self._lock.release()
            more = bool(self._released)


@functools.cache
def watch_forks() -> None:
    """Have all heaps told when this process is forked; once, since that cannot be taken back."""
    os.register_at_fork(after_in_child=after_fork)


def after_fork() -> None:
    """Make the heaps of a forked process copies, before anything else runs in it."""
    for heap in tuple(HEAPS):
        heap.become_copy()
