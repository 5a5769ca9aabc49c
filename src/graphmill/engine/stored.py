"""Values that stay in an engine's memory for as long as somebody has a handle to them.

The shelf is where they are kept: a value can move to disk while nobody looks at it, and goes when its handle
is collected, at a moment when the engine's books are in order. Tasks are given references, and no copies.
"""

from __future__ import annotations

import os
import uuid
import weakref
from contextlib import suppress
from math import inf
from typing import Any, Protocol

from graphmill.engine.blocks import Blocks
from graphmill.errors import EngineClosed, GraphmillError, SpillError
from graphmill.memory.block import Encoded


class Keeper(Protocol):
    """The engine, as far as it matters to what it keeps."""

    pid: int

    @property
    def closed(self) -> bool:
        """Whether it was closed."""

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for."""

    def give_back(self, value: Encoded) -> None:
        """Let go of a kept value soon; callable at any moment, on any thread."""


class Stored:
    """A handle to a value in an engine's memory; the memory is given back when the handle is collected.

    Parameters
    ----------
    engine
        Where it is kept.
    encoded
        The value, which the engine's shelf keeps.

    Notes
    -----
    It pickles as the value that it stands for, so that any other scheduler can use it too.
    """

    __slots__ = ("__weakref__", "_engine", "_made", "_token", "encoded")

    def __init__(self, engine: Keeper, encoded: Encoded) -> None:
        self._engine = engine
        #: Where the value is now.
        self.encoded = encoded
        #: What Dask calls the value, once it has asked.
        self._token: str | None = None
        #: The value, once its engine is closed.
        self._made: list[Any] = []

    def __del__(self) -> None:
        # Not in a forked process: what is there is a copy.
        if hasattr(self, "_made") and self._engine.pid == os.getpid():
            self._engine.give_back(self.encoded)

    def __repr__(self) -> str:
        return f"<Stored value of {self.encoded.nbytes} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _itself, (self.value(),)

    def __dask_tokenize__(self) -> str:
        if self._token is None:
            self._token = f"graphmill-{uuid.uuid4().hex}"
        return self._token

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of disk, that the value takes."""
        return self.encoded.nbytes

    def is_in(self, engine: object) -> bool:
        """Tell whether an engine keeps it, and can still pass it on by reference."""
        return self._engine is engine and not self._engine.closed

    def value(self) -> Any:
        """Make the value: arrays in it lie over the shared memory, and changes to them are seen here only.

        Raises
        ------
        EngineClosed
            If the engine was closed at the end of the program, or belongs to another process.
        DecodeError
            If the value cannot be rebuilt in this process.
        """
        if self._engine.pid != os.getpid():
            raise EngineClosed("The value is kept by the process that this one was forked from")
        if not self._made:
            try:
                return self._engine.read(self.encoded)
            except EngineClosed:
                if not self._made:  # closed just now, it has made it
                    raise
        return self._made[0]

    def settle(self) -> None:
        """Make the value for good, as its engine is about to be closed; it goes on lying where it is."""
        # Whoever asks for a value that cannot be made is told then that the engine is closed.
        with suppress(GraphmillError):
            self._made.append(self.value())


def _itself(value: Any) -> Any:
    return value


def resolve(value: Any) -> Any:
    """Get the value that a handle stands for; anything else is what it is."""
    return value.value() if type(value) is Stored else value


class Shelf:
    """The values that an engine keeps for handles.

    Parameters
    ----------
    engine
        Whose they are.
    blocks
        Its blocks.

    Notes
    -----
    For one thread at a time.
    """

    def __init__(self, engine: Keeper, blocks: Blocks) -> None:
        self._engine = engine
        self._blocks = blocks
        #: The values by identity.
        self._values: dict[int, Encoded] = {}
        #: Those of them that may be in memory, the one that was used longest ago first.
        self._in_memory: dict[int, Encoded] = {}
        #: When those are used next that a run needs: the static priority of a task.
        self._uses: dict[int, float] = {}
        self._handles: weakref.WeakValueDictionary[int, Stored] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Encoded) -> Stored:
        """Keep a value; it is let go once the handle is collected."""
        self._blocks.keep(value)
        self._values[id(value)] = self._in_memory[id(value)] = value
        handle = self._handles[id(value)] = Stored(self._engine, value)
        return handle

    def touch(self, value: Encoded) -> None:
        """Note that a value is used."""
        if id(value) in self._in_memory:
            self._in_memory[id(value)] = self._in_memory.pop(id(value))

    def expect(self, value: Encoded, use: float) -> None:
        """Note which task of a run needs a value next; those that are needed later go to disk before it."""
        self._uses[id(value)] = use

    def expect_no_more(self, value: Encoded) -> None:
        """Note that the run does not need a value any more."""
        self._uses.pop(id(value), None)

    def remove(self, value: Encoded) -> None:
        """Let go of a value."""
        self._in_memory.pop(id(value), None)
        self._uses.pop(id(value), None)
        if self._values.pop(id(value), None) is not None:
            self._blocks.let_go(value)

    def make_room(self, nbytes: int) -> int:
        """Move values to disk that nobody looks at now; return how many bytes of memory that gave."""
        moved = 0
        uses = self._uses
        for value in sorted(self._in_memory.values(), key=lambda value: -uses.get(id(value), inf)):
            if moved >= nbytes:
                break
            try:
                moved += self._blocks.spill(value)
            except SpillError:
                break  # there is no room, or no folder: what is in memory stays there
            if not self._blocks.in_memory(value.extents):
                del self._in_memory[id(value)]
        return moved

    def settle(self) -> None:
        """Have handles make their values, for the engine is about to be closed."""
        for handle in list(self._handles.values()):
            handle.settle()
