"""Inputs: views of blocks that can be read without a copy, and written without anybody else seeing it.

A view lies over the private mapping of an arena. All views of a block in this process hang on one array of
its bytes, its *lease*, which NumPy, memoryviews and unpickled arrays keep alive in turn. A weak reference
to the lease therefore tells whether anybody here still looks at the block, be it long after the task, through
a global or a cache; until then its memory must not be used for anything else.

Pages that a task changed are thrown away the moment the lease dies. If it outlives its task, whoever holds
it keeps seeing his own changes, and a later task that is given the same block gets a mapping of its own
(or, where there is no such thing, a copy). So at any time:

- a block without a lease has no changed page in this process;
- what a task sees was changed by nobody but itself.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphmill.memory.arena import PAGE, Arena
from graphmill.memory.block import BlockId, Extent
from graphmill.memory.mapping import CAN_REVERT, Window, revert
from graphmill.memory.pagemap import PageMap

Bytes: TypeAlias = NDArray[np.uint8]

#: With more changed stretches than this in a block, all between the first and the last page goes at once.
MANY_RUNS = 64


class Lease(weakref.ref[Bytes]):
    """A weak reference to the bytes of a block in this process, with what is known about them."""

    __slots__ = ("address", "block", "length", "mapping")

    #: The block.
    block: BlockId
    #: Its length, in bytes.
    length: int
    #: Where its bytes start in this process.
    address: int
    #: The mapping of the whole arena, if they lie in that one.
    mapping: memoryview | None


class Reader:
    """The leases of one process.

    Parameters
    ----------
    arenas : mapping of int to Arena
        The arenas by number; looked up when a block is first viewed, so it may grow.
    on_gone
        Called with a block when a lease of it has gone, at any time and on any thread.

    Notes
    -----
    Make it after a fork, not before. One thread at a time may call it; views may die on any thread. There
    must be one reader only for each arena in a process: they would throw away each other's changes.
    """

    def __init__(self, arenas: Mapping[int, Arena], on_gone: Callable[[BlockId], None] | None = None) -> None:
        self._arenas = arenas
        self._on_gone = on_gone
        self._pages = PageMap()
        #: {block: the lease that further views of it share}: those of the tasks that run now.
        self._current: dict[BlockId, Lease] = {}
        #: {block: its lease in the mapping of the whole arena}
        self._in_mapping: dict[BlockId, Lease] = {}
        #: {identity: a lease with a mapping of its own}; hardly ever any.
        self._in_windows: dict[int, Lease] = {}
        #: All leases by address, for `locate`; None when it has to be made anew.
        self._by_address: tuple[list[int], list[Lease]] | None = None
        # At the end of the process leases go too, when there is not enough left to look after them.
        weakref.finalize(self, forget, self._current, self._in_mapping, self._in_windows)

    def view(self, extent: Extent) -> Bytes:
        """Look at a buffer.

        Parameters
        ----------
        extent : Extent
            Where it lies.

        Returns
        -------
        ndarray of uint8, shape (nbytes,)
            Writable; changes are seen through other views of the block too, until `drop_dirty`, and
            by no other process ever. Arrays and memoryviews made of it keep the lease alive.

        Raises
        ------
        KeyError
            There is no such arena.
        OSError
            There is no address space left to map it.
        """
        lease = self._current.get(extent.id)
        whole = None if lease is None else lease()
        if whole is None:
            whole = self._open(self._arenas[extent.arena], extent.id, extent.length)
        return whole[extent.offset : extent.offset + extent.nbytes]

    def alive(self) -> set[BlockId]:
        """Tell which blocks somebody in this process still looks at."""
        return {lease.block for lease in self._leases() if lease() is not None}

    def sees(self, block: BlockId) -> bool:
        """Tell whether somebody in this process still looks at a block."""
        lease = self._in_mapping.get(block)
        if lease is not None and lease() is not None:
            return True
        windows = tuple(self._in_windows.values())
        return any(each.block == block and each() is not None for each in windows)

    def locate(self, address: int, nbytes: int) -> Extent | None:
        """Find the block that memory of this process lies in.

        Returns
        -------
        Extent or None
            None if no block is viewed there.
        """
        by_address = self._by_address
        if by_address is None:
            leases = sorted(self._leases(), key=attrgetter("address"))
            by_address = self._by_address = [lease.address for lease in leases], leases
        starts, leases = by_address
        at = bisect_right(starts, address) - 1
        if at < 0:
            return None
        lease = leases[at]
        offset = address - lease.address
        if offset + nbytes > lease.length or lease() is None:
            return None
        return Extent(lease.block.arena, lease.block.offset, offset, nbytes, lease.length)

    def is_clean(self, extent: Extent) -> bool:
        """Tell whether everything that this process sees of a buffer is as in shared memory.

        Returns
        -------
        bool
            False also where it cannot be told.
        """
        block = extent.id
        leases = [each for each in tuple(self._in_windows.values()) if each.block == block]
        if (lease := self._in_mapping.get(block)) is not None:
            leases.append(lease)
        return all(self._pages.changed(each.address + extent.offset, extent.nbytes) == [] for each in leases)

    def drop_dirty(self, block: BlockId) -> None:
        """Say that the task is over that a block was an input of.

        If the task's views are gone, so are its changes. If somebody kept one, he keeps it as it is, and
        the next `view` of the block shows the original.
        """
        self._current.pop(block, None)

    def close(self) -> None:
        """Stop looking after leases; views that live on stay valid. May be called twice."""
        forget(self._current, self._in_mapping, self._in_windows)
        self._by_address = None
        self._pages.close()

    def _leases(self) -> tuple[Lease, ...]:
        """All leases of memory that others share; taken at once, since they may go on any thread."""
        return (*tuple(self._in_mapping.values()), *tuple(self._in_windows.values()))

    def _open(self, arena: Arena, block: BlockId, length: int) -> Bytes:
        """Make the bytes of a block, and the lease that views of it share from now on."""
        mapping = arena.private if CAN_REVERT and block not in self._in_mapping else None
        window = open_window(arena, block.offset, length) if mapping is None else None
        whole: Bytes
        if mapping is not None:
            whole = np.frombuffer(mapping, np.uint8, length, block.offset)
        elif window is not None:
            whole = np.asarray(window)
        else:
            whole = np.frombuffer(arena.shared, np.uint8, length, block.offset).copy()
        lease = Lease(whole, self._gone)
        lease.block, lease.length, lease.mapping = block, length, mapping
        lease.address = whole.__array_interface__["data"][0]
        if mapping is not None:
            self._in_mapping[block] = lease
        elif window is not None:
            self._in_windows[id(lease)] = lease
        self._current[block] = lease
        self._by_address = None
        return whole

    def _gone(self, lease: Lease) -> None:
        """Clean up after a lease that nobody holds any more; called by the interpreter, on any thread.

        The mapping is set back before it is offered again, so that no new view can lose changes.
        """
        block = lease.block
        if self._current.get(block) is lease:
            self._current.pop(block, None)
        if self._in_mapping.get(block) is lease:
            self._revert(lease)
            self._in_mapping.pop(block, None)
        self._in_windows.pop(id(lease), None)
        self._by_address = None
        if self._on_gone is not None:
            self._on_gone(block)

    def _revert(self, lease: Lease) -> None:
        """Throw away the changed pages of a block, and no others: those would have to be mapped again."""
        assert lease.mapping is not None
        changed = self._pages.changed(lease.address, lease.length)
        if changed is None:
            changed = [(0, lease.length // PAGE)]
        elif len(changed) > MANY_RUNS:
            changed = [(changed[0][0], changed[-1][1])]
        for first, last in changed:
            revert(lease.mapping, lease.block.offset + first * PAGE, (last - first) * PAGE)


def forget(*leases: dict[Any, Lease]) -> None:
    """Drop the references to leases, so that nothing happens any more when those go."""
    for each in leases:
        each.clear()


def open_window(arena: Arena, offset: int, length: int) -> Any:
    """Map a block once more; None where private mappings do not show what others write, or no more fit."""
    if not CAN_REVERT:
        return None
    try:
        return Window(arena.descriptor, offset, length)
    except OSError:
        return None
