"""What the caller's process sees of an engine's memory, and when it has seen the last of it.

Arrays die at any moment and on any thread, and so do handles. What was seen is noted then, and given back
when nobody is at work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graphmill.engine.blocks import PARENT, Blocks
from graphmill.engine.stored import Shelf, Stored
from graphmill.engine.turns import Turns
from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId, Encoded, Extent
from graphmill.memory.codec import decode
from graphmill.memory.lease import Reader


class Views:
    """The caller's views of blocks, and the values that are kept for handles of its.

    Parameters
    ----------
    turns
        Whose turn it is.
    arenas
        All arenas by number; it may grow and shrink.
    blocks
        Counts who needs which block.
    """

    def __init__(self, turns: Turns, arenas: Mapping[int, Arena], blocks: Blocks) -> None:
        self._turns = turns
        self._blocks = blocks
        self._reader = Reader(arenas, self._on_view_gone)
        #: Called when something was let go of.
        self.on_gone: Callable[[], None]
        #: Where values are kept for handles; set once there is one.
        self.shelf: Shelf
        #: Blocks of which a view has gone since anybody looked.
        self._unseen: deque[BlockId] = deque()
        #: Values whose handles have gone since.
        self._given_back: deque[Encoded] = deque()
        turns.tidy = self._let_go

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for, over the blocks that it lies in."""
        if not value.extents:
            return decode(value.payload)
        with self._turns.access():
            buffers = [self._reader.view(extent) for extent in value.extents]
            for extent in value.extents:
                self._blocks.pin(extent.id, PARENT)
        return decode(value.payload, buffers)

    def look_after(self, values: Iterable[Any]) -> None:
        """Forget changes to values that were read."""
        with self._turns.access():
            for value in values:
                encoded = value.encoded if isinstance(value, Stored) else value
                if isinstance(encoded, Encoded):
                    for extent in encoded.extents:
                        self._reader.drop_dirty(extent.id)

    def locate(self, address: int, nbytes: int) -> Extent | None:
        """Find where memory of this process lies in shared memory, if nobody here has changed it."""
        extent = self._reader.locate(address, nbytes)
        return extent if extent is not None and self._reader.is_clean(extent) else None

    def give_back(self, value: Encoded) -> None:
        """Let go of a value that was kept for a handle: at once if nobody is at work, else soon."""
        if not self._turns.closed:
            self._given_back.append(value)
            self._turns.tidy_soon()

    def _on_view_gone(self, block: BlockId) -> None:
        """Give memory back that the user has let go of, in the same way.

        Called by the interpreter whenever an array dies, so also in the middle of anything else.
        """
        self._unseen.append(block)
        self._turns.tidy_soon()

    def _let_go(self) -> None:
        """Let go of blocks that nobody in this process looks at any more, and of values without a handle."""
        if not (self._given_back or self._unseen):
            return
        while self._given_back:
            self.shelf.remove(self._given_back.popleft())
        while self._unseen:
            block = self._unseen.popleft()
            if not self._reader.sees(block):
                self._blocks.unpin(block, PARENT)
        self.on_gone()

    def close(self) -> None:
        """Stop looking after views; those that live on stay valid."""
        self._reader.close()
