"""One graph, whatever dialect it was written in.

A `Graph` holds what has to run for the keys that were asked for, and no more: the tasks, the data, and
who depends on whom. Task-spec nodes are kept as they are; tuple tasks become nodes of our own.

Knows the dialects through `legacy` and `taskspec`. Must not know how a graph is ordered or run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from graphmill.errors import MissingDependencyError, MissingKeyError
from graphmill.graph.legacy import NO_KEYS, MixedTask, Reader, TupleTask
from graphmill.graph.taskspec import Kind, Kinds
from graphmill.graph.walk import cycle_error, find_cycle
from graphmill.types import Key, Node

#: Among how many keys a misspelt one is looked for; more would take seconds.
_SEARCHED = 5_000
#: How many of the tasks that need a missing key an error names.
_SHOWN = 3


@dataclass(slots=True)
class Graph:
    """What has to run, what it needs, and what is there already."""

    #: The nodes to run.
    tasks: dict[Key, Node] = field(default_factory=dict)
    #: The values that the graph itself holds.
    data: dict[Key, Any] = field(default_factory=dict)
    #: For each key, tasks and data alike, what must be there before it: for data, nothing.
    dependencies: dict[Key, frozenset[Key]] = field(default_factory=dict)
    #: Tasks that only hand on the value of another key: what they return is that very object.
    aliases: dict[Key, Key] = field(default_factory=dict)

    def dependents(self) -> dict[Key, AbstractSet[Key]]:
        """For each key, the tasks that need it; keys that no task needs share one empty set."""
        result: dict[Key, Any] = dict.fromkeys(self.dependencies, NO_KEYS)
        for key, deps in self.dependencies.items():
            for dep in deps:
                users = result[dep]
                if users:
                    users.add(key)
                else:
                    result[dep] = {key}
        return result

    def sources(self) -> dict[Key, Key]:
        """For each alias, the key whose value it is in the end, through aliases of aliases."""
        found: dict[Key, Key] = {}
        for alias in self.aliases:
            chain: list[Key] = []
            key = alias
            while key in self.aliases and key not in found and len(chain) < len(self.aliases):
                chain.append(key)
                key = self.aliases[key]
            found.update(dict.fromkeys(chain, found.get(key, key)))
        return found

    def check_acyclic(self) -> None:
        """Raise `CycleError`, naming its keys, if tasks wait for each other."""
        cycle = find_cycle(self.dependencies)
        if cycle:
            raise cycle_error(cycle)


def as_mapping(dsk: Any) -> Mapping[Key, Any]:
    """Get the graph out of whatever Dask passes to a scheduler.

    Parameters
    ----------
    dsk
        A mapping of keys to tasks, or an expression or collection with ``__dask_graph__()``.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if hasattr(dsk, "__dask_graph__") and not isinstance(dsk, Mapping):
        dsk = dsk.__dask_graph__()
    if isinstance(dsk, dict):
        return dsk
    if isinstance(dsk, Mapping):
        return dict(dsk)
    raise TypeError(
        f"A graph must be a mapping of keys to tasks, or have __dask_graph__(); got {type(dsk).__name__}"
    )


def read_graph(
    dsk: Mapping[Key, Any],
    keys: Iterable[Key] | None = None,
    cache: Collection[Key] = NO_KEYS,
) -> Graph:
    """Read a graph of any dialect, as far as the keys that are asked for need it.

    Parameters
    ----------
    dsk
        Keys and what they stand for: tuple tasks, task-spec nodes, data, in any mixture.
    keys
        The keys asked for; all by default.
    cache
        Keys whose values are there already: they are not looked up in the graph.

    Raises
    ------
    MissingKeyError
        If a key asked for is in neither; the message says which keys look like it.
    MissingDependencyError
        If a task needs a key that is in neither; the message names both.

    Examples
    --------
    >>> graph = read_graph({"x": 1, "y": (abs, "x"), "z": (abs, "x")}, ["y"])
    >>> sorted(graph.tasks), graph.data, sorted(graph.dependencies["y"])
    (['y'], {'x': 1}, ['x'])
    """
    asked = list(dsk) if keys is None else list(keys)
    cached = len(cache) > 0
    reader = Reader(dsk, cache) if cached else Reader(dsk)
    kinds = Kinds()
    # Copied, a dictionary keeps the user's order, never has to grow, and costs less than one filled anew.
    dependencies: dict[Key, frozenset[Key]] = dict.fromkeys(dsk, _UNREAD)
    tasks = dict(dsk)
    data: dict[Key, Any] = {}
    aliases: dict[Key, Key] = {}
    stack = asked[::-1]
    # The hot loop of building a graph: one turn per task and per edge.
    while stack:
        key = stack.pop()
        if dependencies.get(key, _UNREAD) is not _UNREAD:
            continue
        if cached and key in cache:
            dependencies[key] = NO_KEYS
            tasks.pop(key, None)
            continue
        try:
            value = tasks[key]
        except KeyError:
            raise _missing(key, asked, dsk, cache, dependencies) from None
        kind = kinds[type(value)]
        if kind is Kind.NODE or kind is Kind.ALIAS:
            deps = value.dependencies
            if type(deps) is not frozenset:
                deps = frozenset(deps)  # the state shares it, so it must be one that nobody changes
            if kind is Kind.ALIAS:
                aliases[key] = value.target
        elif kind is Kind.DATA:
            data[key] = value.value
            del tasks[key]
            deps = NO_KEYS
        else:
            read = reader.read(value)
            if read is None:
                data[key] = value
                del tasks[key]
                deps = NO_KEYS
            else:
                deps, nodes = read
                tasks[key] = MixedTask(value, deps) if nodes else TupleTask(value, deps)
        dependencies[key] = deps
        stack.extend(deps)
    return _needed(Graph(tasks, data, dependencies, aliases))


#: Stands for what a key depends on until that has been read.
_UNREAD: Final = frozenset((object(),))


def _needed(graph: Graph) -> Graph:
    """Leave out what the walk has not come to."""
    if any(deps is _UNREAD for deps in graph.dependencies.values()):
        graph.dependencies = {key: deps for key, deps in graph.dependencies.items() if deps is not _UNREAD}
        graph.tasks = {key: task for key, task in graph.tasks.items() if key in graph.dependencies}
    return graph


def _missing(
    key: Key,
    asked: Collection[Key],
    dsk: Mapping[Key, Any],
    cache: Collection[Key],
    dependencies: Mapping[Key, Collection[Key]],
) -> Exception:
    """Word the error for a key that is nowhere: a key asked for goes before one that a task needs."""
    for wanted in asked:
        if wanted not in dsk and wanted not in cache:
            return _missing_key(wanted, dsk)
    return _missing_dependency(key, dependencies)


def _missing_dependency(key: Key, dependencies: Mapping[Key, Collection[Key]]) -> Exception:
    users = [user for user, deps in dependencies.items() if key in deps]
    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    shown = ", ".join(repr(user) for user in users[:_SHOWN])
    return MissingDependencyError(
        f"Missing dependency {key!r}: {shown}{more} needs it, and neither the graph nor the cache has it"
    )


def _missing_key(key: Key, dsk: Mapping[Key, Any]) -> Exception:
    by_name: dict[str, Key] = {}
    for candidate in dsk:
        by_name.setdefault(str(candidate), candidate)
        if len(by_name) >= _SEARCHED:
            break
    names = get_close_matches(str(key), by_name, n=3, cutoff=0.6)
    hint = (
        "; keys that look like it: " + ", ".join(repr(by_name[name]) for name in names)
        if names
        else f"; none of its {len(dsk)} keys looks like it"
    )
    return MissingKeyError(f"The graph has no key {key!r}{hint}")
