"""Makes values and tasks ready for the way to a worker, for one run.

Functions and classes that cannot be imported are packed once, whatever number of tasks use them. Large
arrays that the graph itself holds enter shared memory once. Objects that tasks store to are replaced by
stand-ins, and locks that Dask knows by a token by locks between processes.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

import numpy as np

from graphmill.engine.blocks import Blocks
from graphmill.engine.futures import Future
from graphmill.engine.known import Known
from graphmill.engine.recipes import Call, Recipes
from graphmill.engine.stored import Stored
from graphmill.errors import EncodeError
from graphmill.memory.block import BlockId, Encoded, Extent
from graphmill.memory.codec import PAYLOAD_LIMIT, PLACED, THRESHOLD, encode
from graphmill.memory.heap import Heap
from graphmill.memory.reducers import PROTOCOL, Buffers, Pickler, Sink
from graphmill.workers import shipped
from graphmill.workers.recipe import Recipe
from graphmill.workers.work import Shipped


@dataclass(slots=True)
class Numbers:
    """Numbers for what is sent to workers; an engine never gives one twice."""

    last: int = 0

    def next(self) -> int:
        """Get another."""
        self.last += 1
        return self.last


@dataclass(slots=True)
class _Embedded:
    """An array that the graph holds, in shared memory."""

    #: Its address and length, in bytes.
    place: tuple[int, int]
    #: Kept alive, so that its address stays its own.
    owner: object
    extent: Extent
    #: How often it was packed.
    uses: int = 1


class Modules:
    """Knows which modules exist in this process only, as far as anybody asked."""

    __slots__ = ("_here_only",)

    def __init__(self) -> None:
        self._here_only: dict[str, bool] = {}

    def is_here_only(self, function: Any) -> bool:
        """Say whether a function or class is from a module that this process has, and no other can import."""
        root = str(getattr(function, "__module__", None)).partition(".")[0]
        found = self._here_only.get(root)
        if found is None:
            found = self._here_only[root] = root in sys.modules and not _can_be_found(root)
        return found


@dataclass(slots=True)
class Shipper:
    """Packs what one run sends to workers.

    Parameters
    ----------
    heap
        Where the buffers of the graph's own values go.
    blocks
        Counts who needs them.
    numbers
        For functions and classes.
    engine
        The engine: what it keeps itself can go by reference.
    """

    heap: Heap
    blocks: Blocks
    numbers: Numbers
    engine: object = None
    #: For objects that do not leave this process, by identity: the call that makes what stands for them.
    stand_ins: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    #: What earlier values have shown.
    known: Known = field(default_factory=Known)
    #: What functions and classes are packed as, by number.
    packed: dict[int, Shipped] = field(default_factory=dict)
    #: Numbers of functions and classes by identity, with the object, which keeps that its own.
    _functions: dict[int, tuple[int, object]] = field(default_factory=dict)
    _embedded: dict[tuple[int, int], _Embedded] = field(default_factory=dict)
    _by_block: dict[BlockId, _Embedded] = field(default_factory=dict)
    _modules: Modules = field(default_factory=Modules)
    _recipes: Recipes = field(init=False)
    #: Functions that the value being packed refers to.
    _referred: dict[int, None] = field(default_factory=dict)
    #: Where values lie in shared memory that it refers to.
    _references: list[Extent] = field(default_factory=list)
    #: The same for those that were packed, by identity; they are held.
    _referring: dict[int, list[Extent]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._recipes = Recipes(self._pack_recipe)

    def ship(self, value: Any, name: str) -> tuple[Encoded, tuple[int, ...]]:
        """Pack a value that the graph holds, or one of its nodes.

        Parameters
        ----------
        value
            What to pack.
        name
            What errors call it.

        Returns
        -------
        Encoded
            The value. Its blocks are kept until `forget` or `close`.
        tuple of int
            Numbers of those in `packed` that a worker must have before it can read the value.

        Raises
        ------
        EncodeError
            If some part of it cannot be pickled.
        """
        self._referred.clear()
        self._references = []
        if id(value) in self.stand_ins:
            function, arguments = self.stand_ins[id(value)]
            value = shipped.Target(*arguments) if function is shipped.target else function(*arguments)
        payload, extents = encode(value, self._place, name=name, pickler=self._task_pickler)
        if not self._references:
            return Encoded.of(payload, extents), tuple(self._referred)
        add_references(payload, extents, self._references)
        packed = Encoded.of(payload, extents)
        self._referring[id(packed)] = self._references
        self.blocks.hold(self._references)
        return packed, tuple(self._referred)

    def ship_small(self, nodes: Iterable[Any]) -> tuple[list[Call | bytes | None], tuple[int, ...]]:
        """Pack nodes of the graph that have no large buffers, each by itself.

        Returns
        -------
        list of Call, bytes or None
            Each by its recipe, if it has one, or as `decode` takes it; None where a node has large buffers,
            refers to values in shared memory, or cannot be pickled: `ship` does the one, and says why of the
            other.
        tuple of int
            Numbers of those in `packed` that a worker must have before it can read them.
        """
        self._referred.clear()
        self._references = []
        sink, buffers = io.BytesIO(), Buffers(THRESHOLD)
        pickler = self._task_pickler(sink, buffers)
        found: list[Call | bytes | None] = []
        for node in nodes:
            call = self._recipes.read(node)
            if call is not None:
                self._referred.update(dict.fromkeys(call.functions))
                if call.is_plain:
                    found.append(call)
                    continue
            sink.seek(0)
            sink.truncate()
            try:
                pickler.dump(node if call is None else call.leaves)
            except Exception:  # noqa: BLE001 - `ship` meets it again, and names it
                found.append(None)
            else:
                is_small = not (buffers.found or self._references) and sink.tell() < PAYLOAD_LIMIT
                payload = sink.getvalue() if is_small else None
                found.append(payload if call is None or payload is None else call._replace(leaves=payload))
            if found[-1] is None:  # what it has left behind is not the next one's
                self._references = []
                buffers = Buffers(THRESHOLD)
                pickler = self._task_pickler(sink, buffers)
            else:
                pickler.clear_memo()  # tasks may change what their nodes hold
        return found, tuple(self._referred)

    def _pack_recipe(self, recipe: Recipe) -> tuple[int, tuple[int, ...]]:
        others, self._referred = self._referred, {}
        try:
            payload, extents = encode(recipe, self._place, name="a recipe", pickler=self._task_pickler)
            number = self.numbers.next()
            self.packed[number] = Shipped(payload, tuple(extents))
            return number, (number, *self._referred)
        finally:
            self._referred = others

    def forget(self, value: Encoded) -> None:
        """Let go of the buffers of a value that nothing else shares; the others may be wanted again."""
        for extent in value.extents:
            found = self._by_block.get(extent.id)
            if found is not None and found.uses == 1:
                self._drop(found)
        references = self._referring.pop(id(value), None)
        if references is not None:
            self.blocks.drop(references)

    def close(self) -> None:
        """Let go of all buffers; may be called again."""
        for found in list(self._by_block.values()):
            self._drop(found)
        for references in self._referring.values():
            self.blocks.drop(references)
        self._referring.clear()

    def _drop(self, found: _Embedded) -> None:
        del self._embedded[found.place], self._by_block[found.extent.id]
        self.blocks.drop([found.extent])

    def _place(self, memory: Any, owner: object) -> Extent:
        place = (memory.__array_interface__["data"][0], memory.nbytes)
        found = self._embedded.get(place)
        if found is not None:
            found.uses += 1
            return found.extent
        extent = self.heap.copy_in(memory)
        found = _Embedded(place, (memory, owner), extent)
        self._embedded[place] = self._by_block[extent.id] = found
        self.blocks.hold([extent])
        return extent

    def _task_pickler(self, sink: Sink, buffers: Buffers) -> Pickler:
        return TaskPickler(sink, buffers, self, once=True)

    def _function_pickler(self, sink: Sink, buffers: Buffers) -> Pickler:
        return TaskPickler(sink, buffers, self, once=False)

    def is_here_only(self, function: Any) -> bool:
        """Say whether a function or class is from a module that this process has, and no other can import."""
        return self._modules.is_here_only(function)

    def knows(self, function: Any) -> bool:
        """Say whether a function or class was packed by itself already."""
        return id(function) in self._functions

    def number_of(self, function: Any) -> int:
        """Get the number of a function or class that cannot be imported, and see that it is packed."""
        known = self._functions.get(id(function))
        if known is None:
            number = self.numbers.next()
            name = getattr(function, "__qualname__", "a function")
            payload, extents = encode(function, self._place, name=name, pickler=self._function_pickler)
            self.packed[number] = Shipped(payload, tuple(extents))
            known = self._functions[id(function)] = number, function
        self._referred[known[0]] = None
        return known[0]

    def refer(self, value: Any) -> tuple[Any, ...]:
        """Get the call that makes a value which lies in shared memory."""
        if isinstance(value, Future):
            if value.stored is None:
                raise EncodeError("it refers to a future without a result in shared memory: use its result()")
            value = value.stored
        if not value.is_in(self.engine):
            return itself, (value.value(),)
        extents = value.encoded.extents
        self._references.extend(extents)
        return shipped.value, (value.encoded.payload, extents)


def itself(value: Any) -> Any:
    """Return what was given."""
    return value


def add_references(payload: bytes, extents: list[Extent], references: list[Extent]) -> None:
    """Add to the buffers of a value what it refers to otherwise, so that whoever needs it needs that too."""
    # Buffers that nobody asks for do no harm; a payload that was placed has to stay the last.
    end = len(extents) - (payload == PLACED)
    extents[end:end] = references


class Substitutes(Protocol):
    """Knows what is stood in for."""

    #: What earlier values have shown.
    known: Known
    #: For objects that do not leave this process, by identity: the call that makes what stands for them.
    stand_ins: dict[int, tuple[Any, ...]]

    def is_here_only(self, function: Any) -> bool:
        """Say whether a function or class is from a module that this process has, and no other can import."""

    def knows(self, function: Any) -> bool:
        """Say whether a function or class was packed before."""

    def number_of(self, function: Any) -> int:
        """Get the number of a function or class that cannot be imported, and see that it is packed."""

    def refer(self, value: Any) -> tuple[Any, ...]:
        """Get the call that makes a value which lies in shared memory."""


class TaskPickler(Pickler):
    """Pickles with stand-ins.

    Parameters
    ----------
    sink, buffers
        As for `Pickler`.
    shipper
        Knows what is stood in for.
    once
        Whether functions are packed by themselves; else they go with the value, with all they refer to.
    """

    def __init__(self, sink: Sink, buffers: Buffers, shipper: Substitutes, *, once: bool) -> None:
        super().__init__(sink, buffers)
        self._shipper = shipper
        self._once = once
        self._lock_class = _lock_class()
        self._plain, self._importable = shipper.known.plain, shipper.known.importable

    def reducer_override(self, obj: Any) -> Any:
        """Take an object apart; called for each that is not of a simple builtin type."""
        kind = type(obj)
        stand_ins = self._shipper.stand_ins
        if stand_ins and id(obj) in stand_ins:
            return stand_ins[id(obj)]
        if kind in self._plain:
            return NotImplemented
        if id(obj) in self._importable:
            return NotImplemented
        if self._once and kind in self._shipper.known.composed and self._shipper.known.meets_again(obj):
            return shipped.function, (self._shipper.number_of(obj),)
        if kind is Stored or kind is Future:
            return self._shipper.refer(obj)
        if isinstance(obj, self._lock_class):
            return _reduce_lock(obj)
        if kind is not FunctionType and not isinstance(obj, type):
            if not isinstance(obj, np.ndarray) and kind not in self._shipper.known.composed:
                self._plain.add(kind)
            return super().reducer_override(obj)
        if self._once and self._shipper.knows(obj):
            return shipped.function, (self._shipper.number_of(obj),)  # taken apart once: that is slow
        here_only = self._shipper.is_here_only(obj)
        reduced = self.by_value(obj) if here_only else super().reducer_override(obj)
        if self._once and reduced is not NotImplemented:
            return shipped.function, (self._shipper.number_of(obj),)
        if reduced is NotImplemented:
            self._importable[id(obj)] = obj
        return reduced


def _can_be_found(module: str) -> bool:
    """Look for a module that is not in any package as an import would, whether it is imported or not."""
    # What stands in `sys.modules` has been made by hand, or run as a script, if nobody finds it.
    return any(finder.find_spec(module, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))


def _lock_class() -> Any:
    """Get the class of Dask's locks that have a token, if Dask is in use."""
    return getattr(sys.modules.get("dask.utils"), "SerializableLock", ())


def _reduce_lock(lock: Any) -> Any:
    """Have a lock between the threads of a process be one between workers."""
    if lock.locked():
        # Files do not know of it: here, the lock itself keeps the task off.
        raise EncodeError("it takes a lock that is held in this process")
    if type(lock) is _lock_class():
        return shipped.SharedLock, (lock.token,)
    make, arguments, state, *_ = lock.__reduce_ex__(PROTOCOL)
    return make, arguments, state, None, None, shipped.share_lock
