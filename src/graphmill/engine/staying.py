"""Which tasks stay in the caller's process, and which objects do.

A task that puts results together into what the caller gets back reads blocks in place and makes an ordinary
array: that is best done where the array is wanted. An object that tasks store to is the caller's: what is
written must arrive there, not in a copy. A quoted value is nothing to run.

Dask's functions are known by name, so that Dask is not imported for graphs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphmill.graph import Graph
from graphmill.graph.legacy import TupleTask
from graphmill.types import Key, Node

#: Functions of Dask that store a chunk or read what was stored, and which of their arguments is the target.
#: Another may be a lock.
_TARGET_OF = {"store_chunk": 1, "load_store_chunk": 1, "load_chunk": 0}
_SUBGRAPH = "_execute_subgraph"
#: Stores of Zarr whose contents are in memory.
_ZARR_IN_MEMORY = frozenset({"MemoryStore", "GpuMemoryStore", "ManagedMemoryStore", "dict", "KVStore"})

#: Gets the value that an argument of a task stands for; None if it is not known before the run.
Lookup = Callable[[Any], Any]


@dataclass(slots=True)
class Target:
    """An object of this process that tasks store to."""

    obj: Any
    #: The locks that guard it, by identity.
    locks: dict[int, Any] = field(default_factory=dict)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold its locks, taken in the same order everywhere; Dask asks no more of a lock than this."""
        with ExitStack() as held:
            for _, lock in sorted(self.locks.items()):
                lock.acquire()
                held.callback(lock.release)
            yield


def stays(key: Key, node: Node, graph: Graph, results: Collection[Key]) -> bool:
    """Say whether a task puts together what the caller gets, or only hands over a value."""
    if type(node) is TupleTask and _is_quoted(node.spec):
        return True
    if key not in results or len(graph.dependencies[key]) < 2:  # noqa: PLR2004 - nothing to put together
        return False
    function = getattr(node, "func", None)
    name = getattr(function, "__name__", "")
    module = getattr(function, "__module__", None) or ""
    return name == "finalize" and module.partition(".")[0] == "dask"


def _is_quoted(spec: Any) -> bool:
    """Say whether a tuple task is how Dask writes a value in which nothing is to be looked for."""
    if type(spec) is not tuple or len(spec) != 1:
        return False
    kind = type(spec[0])
    return kind.__name__ == "literal" and kind.__module__ == "dask.core"


@dataclass(slots=True)
class Targets:
    """What tasks of one graph store to, as far as it lives in this process."""

    #: The objects, by identity.
    objects: dict[int, Target] = field(default_factory=dict)
    #: Tasks that read what such an object has.
    readers: set[Key] = field(default_factory=set)
    #: Locks that workers need, by identity: they guard what is written there.
    needed: set[int] = field(default_factory=set)
    #: What tasks store to that lives elsewhere; None where it is not known before the run.
    elsewhere: list[Any] = field(default_factory=list)

    def unneeded_locks(self) -> list[Any]:
        """List the locks that workers do without, since nothing that those guard is written there."""
        locks = {number: lock for target in self.objects.values() for number, lock in target.locks.items()}
        return [lock for number, lock in locks.items() if number not in self.needed]


def find_targets(graph: Graph) -> Targets:
    """Find the objects that tasks store to or load from and that live in this process."""
    found = Targets()
    top = _Outside(graph)
    for key, node in graph.tasks.items():
        for access in _accesses_in(node, top):
            obj = access.target
            if obj is None or _travels(obj):
                found.needed.add(id(access.lock))
                if access.stores:
                    found.elsewhere.append(obj)
                continue
            target = found.objects.setdefault(id(obj), Target(obj))
            if access.lock is not None:
                target.locks[id(access.lock)] = access.lock
            # An array's stand-in knows what it would give for what was just stored; no other does.
            if access.loads and not (access.stores and type(obj) is np.ndarray):
                found.readers.add(key)
    return found


class _Outside:
    """Looks up arguments of the graph's own tasks."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __call__(self, argument: Any) -> Any:
        key = getattr(argument, "key", None)
        if hasattr(argument, "value") and hasattr(argument, "dependencies"):
            return argument.value
        if type(argument).__name__ == "TaskRef":
            return self._graph.data.get(key)
        return argument


class _Inside:
    """Looks up arguments of tasks that were fused into one."""

    def __init__(self, inner: dict[Key, Any], names: Collection[Key], given: Any, outside: Lookup) -> None:
        self._inner = inner
        self._given = dict(zip(names, given, strict=False))
        self._outside = outside

    def __call__(self, argument: Any) -> Any:
        if type(argument).__name__ != "TaskRef":
            return self._outside(argument)
        if argument.key in self._given:
            return self._outside(self._given[argument.key])
        node = self._inner.get(argument.key)
        return getattr(node, "value", None)


@dataclass(frozen=True, slots=True)
class _Access:
    """What a task does to an object."""

    target: Any
    lock: Any
    stores: bool
    loads: bool


def _accesses_in(node: Any, lookup: Lookup) -> Iterator[_Access]:
    """Find the stores and loads that a task does, also deep inside it."""
    function = getattr(node, "func", None)
    name = getattr(function, "__name__", "")
    if function is None or not name:
        return
    if name == _SUBGRAPH:
        inner, _, names, *given = node.args
        inner = getattr(inner, "value", inner)
        inside = _Inside(inner, getattr(names, "value", names), given, lookup)
        for each in inner.values():
            yield from _accesses_in(each, inside)
    elif (position := _TARGET_OF.get(name)) is not None and len(node.args) > position:
        arguments = [lookup(each) for each in (*node.args[position + 1 :], *node.kwargs.values())]
        lock = next((each for each in arguments if hasattr(each, "acquire")), None)
        loads = name == "load_chunk" or bool(lookup(node.kwargs.get("load_stored")))
        yield _Access(lookup(node.args[position]), lock, stores=position > 0, loads=loads)


def _travels(target: Any) -> bool:
    """Say whether what is written to a copy of an object in another process arrives in the object."""
    if isinstance(target, np.memmap):
        return target.mode in ("r+", "w+") and target.filename is not None
    if type(target).__module__.partition(".")[0] == "zarr":
        store = getattr(target, "store", None)
        return store is not None and type(store).__name__ not in _ZARR_IN_MEMORY
    return False
