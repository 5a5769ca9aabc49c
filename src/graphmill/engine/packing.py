"""Makes single calls ready for the way to a worker.

What lies in shared memory already goes by reference: results that this process looks at and has not changed,
and futures. All else that is large is copied there, for this call alone, since the caller may change it
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from graphmill.engine.blocks import Blocks
from graphmill.engine.futures import Future
from graphmill.engine.known import Known
from graphmill.engine.shipping import Modules, TaskPickler, add_references, itself
from graphmill.engine.stored import Shelf, Stored
from graphmill.errors import EncodeError
from graphmill.memory.block import Encoded, Extent
from graphmill.memory.codec import encode
from graphmill.memory.heap import Heap
from graphmill.memory.reducers import Buffers, Pickler, Sink
from graphmill.workers import shipped


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a value cannot be packed now: it refers to a future without a result."""

    #: One that is not done.
    unfinished: Future | None
    #: What came instead of a result, if all are done.
    failure: BaseException | None


@dataclass(slots=True)
class Packer:
    """Packs values outside any graph.

    Parameters
    ----------
    heap
        Where copies go.
    blocks
        Counts who needs which block.
    shelf
        What the engine keeps for handles.
    engine
        The engine: only what it keeps itself can go by reference.
    locate
        Finds where memory of this process lies in shared memory, if what is there is the same.

    Notes
    -----
    For one thread at a time.
    """

    heap: Heap
    blocks: Blocks
    shelf: Shelf
    engine: object
    locate: Callable[[int, int], Extent | None]
    stand_ins: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    #: What earlier values have shown.
    known: Known = field(default_factory=Known)
    #: Bytes of arguments that were copied into shared memory, and those that lay there already.
    copied: int = 0
    referred: int = 0
    _modules: Modules = field(default_factory=Modules)
    #: For the value that is being packed: what it refers to, what is in the way, and copies.
    _references: list[Extent] = field(default_factory=list)
    _obstacle: Obstacle | None = None
    _copies: list[Extent] = field(default_factory=list)

    def pack(self, value: Any, name: str) -> Encoded | Obstacle:
        """Pack a value, and hold the blocks that it lies in, until they are dropped.

        Raises
        ------
        EncodeError
            If some part of it cannot be pickled.
        """
        self._references, self._copies = [], []
        self.known = Known()  # modules may be loaded anew
        try:
            payload, extents = encode(value, self._place, name=name, pickler=self._pickler)
        except BaseException:
            self._drop_copies()
            raise
        obstacle, self._obstacle = self._obstacle, None
        if obstacle is not None:
            self._drop_copies()
            return obstacle
        add_references(payload, extents, self._references)
        packed = Encoded.of(payload, extents)
        self.blocks.hold(packed.extents)
        return packed

    def store(self, value: Any) -> Any:
        """Put a value of this process into shared memory, and get a handle.

        Returns
        -------
        object
            The value itself, if nothing large is in it, or if it cannot be sent.
        """
        try:
            packed = self.pack(value, "a value to be kept")
        except EncodeError:
            return value
        if isinstance(packed, Obstacle) or not packed.extents:
            return value
        stored = self.shelf.add(packed)
        self.blocks.drop(packed.extents)
        return stored

    def _drop_copies(self) -> None:
        self._obstacle = None
        self.blocks.hold(self._copies)
        self.blocks.drop(self._copies)

    def _pickler(self, sink: Sink, buffers: Buffers) -> Pickler:
        return TaskPickler(sink, buffers, self, once=False)

    def _place(self, memory: Any, owner: object) -> Extent:  # noqa: ARG002 - the codec's
        address, nbytes = memory.__array_interface__["data"][0], memory.nbytes
        found = self.locate(address, nbytes)
        if found is not None:
            self.referred += nbytes
            return found
        if self._obstacle is not None:
            return Extent(-1, 0, 0, 0, 0)  # it is not used: the value is packed again, or not at all
        copy = self.heap.copy_in(memory)
        self.copied += nbytes
        self._copies.append(copy)
        return copy

    # ---- what the pickler asks

    def is_here_only(self, function: Any) -> bool:
        """Say whether a function or class is from a module that no other process can import."""
        return self._modules.is_here_only(function)

    def knows(self, _: Any) -> bool:
        """Functions go with their calls: none is packed by itself."""
        return False

    def number_of(self, function: Any) -> int:
        """Functions go with their calls: nobody asks for a number."""
        raise AssertionError(f"{function!r} is not packed by itself")

    def refer(self, value: Future | Stored) -> tuple[Any, ...]:
        """Get the call that makes a value which lies in shared memory, or is to come."""
        stored = value if isinstance(value, Stored) else self._result_of(value)
        if not isinstance(stored, Stored):
            return itself, (stored,)
        if not stored.is_in(self.engine):
            return itself, (stored.value(),)
        self.shelf.touch(stored.encoded)
        extents = stored.encoded.extents
        self._references.extend(extents)
        self.referred += sum(extent.nbytes for extent in extents)
        return shipped.value, (stored.encoded.payload, extents)

    def _result_of(self, future: Future) -> Any:
        """Get the handle to a future's result, or a small result itself; None if there is none."""
        if not future.done():
            self._obstacle = Obstacle(future, None)
            return None
        if future.cancelled():
            error: BaseException | None = CancelledError(
                "an argument of the call is a future that was cancelled"
            )
        else:
            error = None if future.stored is not None else future.exception()
        if error is not None:
            self._obstacle = self._obstacle or Obstacle(None, error)
            return None
        return future.result() if future.stored is None else future.stored
