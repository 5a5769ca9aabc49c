"""Where values lie. Records only: nothing here maps, allocates or frees anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self


class BlockId(NamedTuple):
    """Names a block, the unit of allocation and release, on the whole machine.

    A tuple, so that it is cheap as a key of the many mappings that count blocks.
    """

    #: Number of the arena.
    arena: int
    #: Where in the arena the block starts, in bytes.
    offset: int


class Extent(NamedTuple):
    """Where one buffer lies in shared memory.

    A tuple too: with each value that travels some of these do, and they pickle in a fraction of the time.
    """

    #: Number of the arena.
    arena: int
    #: Where in the arena the block starts that the buffer is part of, in bytes.
    block: int
    #: Where in the block the buffer starts, in bytes.
    offset: int
    #: Length of the buffer, in bytes.
    nbytes: int
    #: Length of the whole block, in bytes: what is free again once nobody needs the block.
    length: int

    @property
    def id(self) -> BlockId:
        """The block that the buffer is part of."""
        return BlockId(self.arena, self.block)

    def moved(self, block: BlockId) -> Extent:
        """Tell where the buffer lies once its block has moved."""
        return self._replace(arena=block.arena, block=block.offset)


@dataclass(slots=True)
class Encoded:
    """A value as it travels between processes: a few bytes, and where its large buffers lie.

    Whoever keeps track of blocks may move them, and says so here; nobody else changes it.
    """

    #: The pickled value (protocol 5), without the buffers.
    payload: bytes
    #: Where the buffers lie, in the order in which unpickling asks for them.
    extents: tuple[Extent, ...]
    #: Memory that the value takes, in bytes: the payload, and each block once.
    nbytes: int

    @classmethod
    def of(cls, payload: bytes, extents: Iterable[Extent]) -> Self:
        """Make the record and count its bytes.

        Parameters
        ----------
        payload : bytes
            The pickled value.
        extents : iterable of Extent
            Where its buffers lie.
        """
        extents = tuple(extents)
        blocks = {extent.id: extent.length for extent in extents}
        return cls(payload, extents, len(payload) + sum(blocks.values()))
