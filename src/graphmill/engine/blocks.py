"""Who still needs which block of shared memory, and where a block goes that nobody needs.

A block is needed by the values that the parent keeps and that lie in it, by whoever else holds it, such as a
job that reads it, and by processes that still look at it. When nobody does any more, its range goes back to
where it came from: to the common arena, to the allocator of the parent, of a living worker, or, where the
worker is dead, to the system.

A block that only kept values need can move to the spill file. They are told where it is then; all others have
taken down where it was, so it stays there for them.

Knows arenas and blocks. Must not know tasks, runs, or how messages travel, nor which block should move.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId, Encoded, Extent
from graphmill.memory.commons import Commons
from graphmill.memory.recent import RecentMost
from graphmill.memory.spill import SpillFile

#: The process whose pins are the user's: this one.
PARENT = -1


@dataclass(slots=True)
class _Record:
    """One block."""

    #: Its length, in bytes.
    length: int
    #: How many others need it where it is.
    holds: int = 0
    #: The values that the parent keeps and that lie in it, by identity.
    values: dict[int, Encoded] = field(default_factory=dict)
    #: The processes that look at it: numbers of workers, or `PARENT`.
    pins: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Home:
    """An arena, and the allocator that its ranges go back to."""

    arena: Arena
    #: Takes ranges back: block, length, and whether its pages are still there. None once its worker is dead.
    give_back: Callable[[BlockId, int, bool], None] | None
    #: How many of its blocks are in use.
    blocks: int = 0
    #: Bytes of pages that are there, in ranges given back and not known to be used again.
    warm: int = 0


class Blocks:
    """The blocks of one engine.

    Parameters
    ----------
    warm_limit
        How many bytes of ranges that nobody needs keep their pages, so that they are quickly used again.
    on_gone
        Called with the number of an arena whose worker is dead, once nothing lies in it any more.
    open_spill
        Makes the spill file when the first block is to move there, or raises `SpillError`.

    Notes
    -----
    For one thread at a time.
    """

    def __init__(
        self, warm_limit: int, on_gone: Callable[[int], None], open_spill: Callable[[], SpillFile]
    ) -> None:
        self._warm_limit = warm_limit
        #: The common arenas, by number.
        self._commons: dict[int, Commons] = {}
        self._on_gone = on_gone
        self._open_spill = open_spill
        self._spill_file: SpillFile | None = None
        self._records: dict[BlockId, _Record] = {}
        self._homes: dict[int, _Home] = {}
        #: The arenas that workers allocate in.
        self._of_workers: set[int] = set()
        #: Bytes of blocks in use, in memory and on disk.
        self.live = 0
        #: The most that `live` ever was.
        self.peak = 0
        #: What was in memory lately, since a worker last had nothing to do for some time.
        self._high = RecentMost()
        #: Bytes of all blocks that ever moved to disk.
        self.spilled = 0
        #: Seconds that this took.
        self._spilling = 0.0

    # ---- arenas

    def add_arena(
        self, arena: Arena, give_back: Callable[[BlockId, int, bool], None], *, of_worker: bool = False
    ) -> None:
        """Take on an arena, and say where its ranges go back to."""
        self._homes[arena.number] = _Home(arena, give_back)
        if of_worker:
            self._of_workers.add(arena.number)

    def add_commons(self, commons: Commons) -> None:
        """Take on a common arena."""
        number = commons.arena.number
        self._commons[number] = commons
        self._homes[number] = _Home(commons.arena, commons.free_block)
        self.warm_limit = self._warm_limit  # a part of it is for this one

    @property
    def warm_limit(self) -> int:
        """How many bytes of ranges that nobody needs keep their pages."""
        return self._warm_limit

    @warm_limit.setter
    def warm_limit(self, nbytes: int) -> None:
        self._warm_limit = nbytes
        for commons in self._commons.values():
            commons.keep(nbytes // len(self._commons))

    def look(self) -> None:
        """See how many pages of common arenas are idle, and give back what is too many of them."""
        for number, commons in self._commons.items():
            commons.trim_excess()
            self._homes[number].warm = commons.warm_bytes

    def rest(self) -> None:
        """Give back all idle pages of common arenas."""
        for number, commons in self._commons.items():
            commons.give_back_all()
            self._homes[number].warm = commons.warm_bytes

    def rested(self, number: int, warm: int) -> None:
        """Note that a worker had nothing to do, and keeps no more than so many bytes of idle pages."""
        self._high.start_with(self.resident)
        home = self._homes[number]
        home.warm = min(home.warm, warm)

    def retire(self, number: int) -> None:
        """Note that the owner of an arena is dead: what lies in it stays, all else is given to the system."""
        home = self._homes[number]
        home.give_back = None
        home.warm = 0
        in_use = [
            (block.offset, record.length) for block, record in self._records.items() if block.arena == number
        ]
        home.arena.keep_only(in_use)
        self._close_if_empty(number, home)

    def _close_if_empty(self, number: int, home: _Home) -> None:
        if home.give_back is not None or home.blocks:
            return
        del self._homes[number]
        self._of_workers.discard(number)
        home.arena.close()
        home.arena.unlink()
        self._on_gone(number)

    @property
    def warm(self) -> int:
        """Bytes of pages that nobody needs now, beside those of common arenas."""
        return sum(home.warm for home in self._homes.values()) - self.common_warm

    @property
    def common_warm(self) -> int:
        """Bytes of pages of common arenas that nobody needs now, as far as is known."""
        return sum([self._homes[number].warm for number in self._commons])

    def occupied(self) -> int:
        """Bytes of memory that all arenas take up now; the spill file is not among them."""
        return sum(home.arena.occupied() for home in self._homes.values())

    @property
    def on_disk(self) -> int:
        """Bytes of blocks in use that are in the spill file."""
        return 0 if self._spill_file is None else self._spill_file.used

    def in_memory(self, extents: Sequence[Extent]) -> bool:
        """Tell whether any of these buffers is not in the spill file."""
        return any(extent.arena in self._homes for extent in extents)

    def bytes_on_disk(self, extents: Sequence[Extent]) -> int:
        """Count the bytes of buffers that are in the spill file."""
        if self._spill_file is None:
            return 0
        number = self._spill_file.arena.number
        return sum([extent.nbytes for extent in extents if extent.arena == number])

    @property
    def resident(self) -> int:
        """Bytes of blocks in use that are in memory."""
        return self.live - self.on_disk

    # ---- who needs what

    def keep(self, value: Encoded) -> None:
        """Note that a value is kept; from now on its extents say where its blocks are, even if they move."""
        for extent in _blocks_of(value.extents):
            self._record_of(extent).values[id(value)] = value

    def let_go(self, value: Encoded) -> None:
        """Note that a value is kept no more."""
        for extent in _blocks_of(value.extents):
            record = self._records[extent.id]
            del record.values[id(value)]
            self._free_if_idle(extent.id, record)

    def hold(self, extents: Sequence[Extent]) -> None:
        """Count one more that needs blocks where they are."""
        for extent in _blocks_of(extents):
            self._record_of(extent).holds += 1

    def _record_of(self, extent: Extent) -> _Record:
        record = self._records.get(extent.id)
        return self._add(extent) if record is None else record

    def _add(self, extent: Extent) -> _Record:
        home, commons = self._homes[extent.arena], self._commons.get(extent.arena)
        if commons is not None:
            commons.publish(extent.block, extent.length)
        home.blocks += 1
        home.warm = max(0, home.warm - extent.length)
        self.live += extent.length
        self.peak = max(self.peak, self.live)
        self._high.note(self.resident)
        record = self._records[extent.id] = _Record(extent.length)
        return record

    def drop(self, extents: Sequence[Extent]) -> None:
        """Count one less."""
        for extent in _blocks_of(extents):
            record = self._records[extent.id]
            record.holds -= 1
            self._free_if_idle(extent.id, record)

    def pin(self, block: BlockId, process: int) -> None:
        """Note that a process looks at a block."""
        record = self._records.get(block)
        if record is not None:
            record.pins.add(process)

    def unpin(self, block: BlockId, process: int) -> None:
        """Note that a process looks at a block no more."""
        record = self._records.get(block)
        if record is not None:
            record.pins.discard(process)
            self._free_if_idle(block, record)

    def pinned_by(self, process: int) -> list[BlockId]:
        """List the blocks that a process looks at."""
        return [block for block, record in self._records.items() if process in record.pins]

    def _free_if_idle(self, block: BlockId, record: _Record) -> None:
        if record.holds or record.values or record.pins:
            return
        self._high.note(self.resident)
        del self._records[block]
        self.live -= record.length
        self._free(block, record.length, keep_warm=self._may_stay_warm(block, record.length))

    def _may_stay_warm(self, block: BlockId, length: int) -> bool:
        """Tell whether a range keeps its pages that nobody needs.

        A page that was there when most was needed lately takes no more memory than was taken before, and a
        new one costs ten times as much as its use. Only workers give pages back when they have nothing to do.
        """
        commons = self._commons.get(block.arena)
        if commons is not None:
            return commons.keeps(length, self._homes[block.arena].warm)
        spare = self._warm_limit
        if spare and block.arena in self._of_workers:
            spare += max(0, self._high.most - self.resident - length)
        return self.warm + length <= spare

    def _free(self, block: BlockId, length: int, *, keep_warm: bool) -> None:
        """Give the range of a block back to where it came from."""
        home = self._homes.get(block.arena)
        if home is None:
            assert self._spill_file is not None
            self._spill_file.free(block, length)
            return
        home.blocks -= 1
        if home.give_back is None:
            home.arena.punch(block.offset, length)
            self._close_if_empty(block.arena, home)
            return
        warm = keep_warm or not home.arena.punch(block.offset, length)
        if warm:
            home.warm += length
        home.give_back(block, length, warm)

    # ---- to disk

    @property
    def spill_speed(self) -> float | None:
        """How many bytes have moved in a second; None if nothing has."""
        return self.spilled / self._spilling if self._spilling else None

    def movable(self, block: BlockId) -> bool:
        """Tell whether a block is in memory and needed by kept values only."""
        record = self._records.get(block)
        return (
            record is not None
            and block.arena in self._homes
            and bool(record.values)
            and not (record.holds or record.pins)
        )

    def spill(self, value: Encoded) -> int:
        """Move the blocks of a kept value to disk, those that can be moved.

        Returns
        -------
        int
            How many bytes have moved; so much memory went back to the system.

        Raises
        ------
        SpillError
            A block could not be moved, for want of room or else: `SpillFull` says which. It is where it was;
            some before it may have moved.
        """
        moved = 0
        for extent in _blocks_of(value.extents):
            if self.movable(extent.id):
                moved += self._move(extent.id)
        return moved

    def _move(self, old: BlockId) -> int:
        """Move a block to disk, tell the values that lie in it, and give its pages to the system."""
        if self._spill_file is None:
            self._spill_file = self._open_spill()
        record = self._records[old]
        begin = time.perf_counter()
        new = self._spill_file.write(self._homes[old.arena].arena, old.offset, record.length)
        self._spilling += time.perf_counter() - begin
        for value in record.values.values():
            value.extents = tuple(
                [extent.moved(new) if extent.id == old else extent for extent in value.extents]
            )
        self._records[new] = self._records.pop(old)
        self.spilled += record.length
        self._free(old, record.length, keep_warm=False)
        return record.length

    def close(self) -> None:
        """Let go of all arenas; what the user still looks at stays for as long. May be called again."""
        homes, self._homes = self._homes, {}
        looked_at: dict[int, list[tuple[int, int]]] = {number: [] for number in homes}
        for block, record in self._records.items():
            if PARENT in record.pins and block.arena in looked_at:
                looked_at[block.arena].append((block.offset, record.length))
        for commons in self._commons.values():
            commons.close()
        self._commons.clear()
        self._records.clear()
        for number, home in homes.items():
            if looked_at[number] or number not in self._of_workers:
                # Whatever still maps it, an array of the user's or the engine itself, would keep all of it.
                home.arena.keep_only(looked_at[number])
            home.arena.close()
            home.arena.unlink()
        if self._spill_file is not None:
            self._spill_file.close()


def _blocks_of(extents: Sequence[Extent]) -> Iterable[Extent]:
    """Give one extent for each block."""
    return {extent.id: extent for extent in extents}.values() if extents else ()
