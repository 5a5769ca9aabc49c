"""Who still needs which block of shared memory, and where a block goes that nobody needs.

A block is held by the values that lie in it, once for each value that the parent keeps, and pinned by
processes that still look at it. When neither is the case any more, its range goes back to the allocator that
it came from: that of the parent, of a living worker, or, where the worker is dead, to the system.

Knows arenas and blocks. Must not know tasks, runs, or how messages travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId, Extent

#: The process whose pins are the user's: this one.
PARENT = -1


@dataclass(slots=True)
class _Record:
    """One block."""

    #: Its length, in bytes.
    length: int
    #: How many values that the parent keeps lie in it.
    holds: int = 0
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

    Notes
    -----
    For one thread at a time.
    """

    def __init__(self, warm_limit: int, on_gone: Callable[[int], None]) -> None:
        self._warm_limit = warm_limit
        self._on_gone = on_gone
        self._records: dict[BlockId, _Record] = {}
        self._homes: dict[int, _Home] = {}
        #: Bytes of blocks in use.
        self.live = 0
        #: The most that `live` ever was.
        self.peak = 0

    # ---- arenas

    def add_arena(self, arena: Arena, give_back: Callable[[BlockId, int, bool], None]) -> None:
        """Take on an arena, and say where its ranges go back to."""
        self._homes[arena.number] = _Home(arena, give_back)

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
        home.arena.close()
        home.arena.unlink()
        self._on_gone(number)

    @property
    def warm(self) -> int:
        """Bytes of pages that nobody needs now."""
        return sum(home.warm for home in self._homes.values())

    def occupied(self) -> int:
        """Bytes of memory that all arenas take up now."""
        return sum(home.arena.occupied() for home in self._homes.values())

    # ---- who needs what

    def hold(self, extents: Sequence[Extent]) -> None:
        """Count one more value that is kept, and that lies there."""
        for extent in _blocks_of(extents):
            record = self._records.get(extent.id)
            if record is None:
                record = self._add(extent)
            record.holds += 1

    def _add(self, extent: Extent) -> _Record:
        home = self._homes[extent.arena]
        home.blocks += 1
        home.warm = max(0, home.warm - extent.length)
        self.live += extent.length
        self.peak = max(self.peak, self.live)
        record = self._records[extent.id] = _Record(extent.length)
        return record

    def drop(self, extents: Sequence[Extent]) -> None:
        """Count one value less."""
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
        if record.holds or record.pins:
            return
        del self._records[block]
        self.live -= record.length
        home = self._homes[block.arena]
        home.blocks -= 1
        if home.give_back is None:
            home.arena.punch(block.offset, record.length)
            self._close_if_empty(block.arena, home)
            return
        warm = True
        if self.warm + record.length > self._warm_limit:
            warm = not home.arena.punch(block.offset, record.length)
        if warm:
            home.warm += record.length
        home.give_back(block, record.length, warm)

    def close(self) -> None:
        """Let go of all arenas, whatever lies in them; may be called again."""
        homes, self._homes = self._homes, {}
        self._records.clear()
        for home in homes.values():
            home.arena.close()
            home.arena.unlink()


def _blocks_of(extents: Sequence[Extent]) -> Iterable[Extent]:
    """Give one extent for each block."""
    return {extent.id: extent for extent in extents}.values() if extents else ()
