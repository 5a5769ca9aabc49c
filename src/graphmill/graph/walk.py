"""Walking graphs: flattening, reversing, sorting topologically, finding cycles.

Knows mappings from keys to keys. Must not know what a task looks like.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from graphmill.errors import CycleError, GraphError
from graphmill.types import Key

#: How many keys of a cycle an error message names before it leaves some out.
_SHOWN = 12


def flatten(seq: Any, container: type | tuple[type, ...] = list) -> Iterator[Any]:
    """Yield the leaves of nested lists.

    Parameters
    ----------
    seq
        Nested containers, or one leaf; a string is always a leaf.
    container
        The type, or types, that count as nested containers.

    Raises
    ------
    GraphError
        If a container is inside itself.

    Examples
    --------
    >>> list(flatten([1, [2, [3]], (4, 5)]))
    [1, 2, 3, (4, 5)]
    >>> list(flatten("x"))
    ['x']
    >>> list(flatten(((1, 2), (1, 2)), container=tuple))
    [1, 2, 1, 2]
    """
    if isinstance(seq, str) or not isinstance(seq, container):
        yield seq
        return
    stack = [iter(seq)]  # type: ignore[call-overload]
    inside = {id(seq): None}  # as deep as the stack
    while stack:
        for item in stack[-1]:
            if isinstance(item, container) and not isinstance(item, str):
                if id(item) in inside:
                    raise GraphError("A list of keys contains itself: nothing can be computed for it")
                stack.append(iter(item))  # type: ignore[call-overload]
                inside[id(item)] = None
                break
            yield item
        else:
            stack.pop()
            inside.popitem()


def reverse_dict(d: Mapping[Key, Iterable[Key]]) -> dict[Key, set[Key]]:
    """Turn "depends on" into "is needed by", or back.

    Examples
    --------
    >>> reverse_dict({"a": (1, 2), "b": (2,)}) == {"a": set(), "b": set(), 1: {"a"}, 2: {"a", "b"}}
    True
    """
    result: dict[Key, set[Key]] = {key: set() for key in d}
    for key, others in d.items():
        for other in others:
            found = result.get(other)
            if found is None:
                result[other] = {key}
            else:
                found.add(key)
    return result


def find_cycle(dependencies: Mapping[Key, Collection[Key]], keys: Iterable[Key] | None = None) -> list[Key]:
    """Find keys that depend on each other.

    Parameters
    ----------
    dependencies
        What each key depends on; keys that it does not have are taken to depend on nothing.
    keys
        Where to start; everywhere by default.

    Returns
    -------
    list
        The cycle, each key depending on the next one, the first key repeated at the end; empty where
        there is none.

    Examples
    --------
    >>> find_cycle({"x": ["y"], "y": ["z"], "z": ["x"]})
    ['x', 'y', 'z', 'x']
    >>> find_cycle({"x": ["y"], "y": []})
    []
    """
    return _depth_first(dependencies, dependencies if keys is None else keys)[1]


def sort_topologically(dependencies: Mapping[Key, Collection[Key]]) -> list[Key]:
    """Sort keys so that each comes after all that it depends on.

    Raises
    ------
    CycleError
        If there is no such order; the message names the keys of a cycle.

    Examples
    --------
    >>> sort_topologically({"z": ["y"], "y": ["x"], "x": []})
    ['x', 'y', 'z']
    """
    ordered, cycle = _depth_first(dependencies, dependencies)
    if cycle:
        raise cycle_error(cycle)
    return [key for key in ordered if key in dependencies]


def cycle_error(cycle: list[Key]) -> CycleError:
    """Word the error for a cycle as `find_cycle` gives it."""
    shown = [repr(key) for key in cycle]
    if len(shown) > _SHOWN:
        shown[_SHOWN // 2 : -_SHOWN // 2] = [f"... {len(shown) - _SHOWN} more ..."]
    return CycleError(
        "Found no accessible jobs: these keys wait for each other, so none of them can run:\n     "
        + "\n  -> ".join(shown)
    )


def _depth_first(
    dependencies: Mapping[Key, Collection[Key]], keys: Iterable[Key]
) -> tuple[list[Key], list[Key]]:
    """Visit all that the keys depend on: the order in which they were left, and the first cycle."""
    left: dict[Key, None] = {}
    for start in keys:
        if start in left:
            continue
        # A dict keeps the path in order and answers "is it on the path" at once.
        path = {start: None}
        branches = [iter(dependencies.get(start, ()))]
        while branches:
            for dep in branches[-1]:
                if dep in path:
                    trail = list(path)
                    return list(left), [*trail[trail.index(dep) :], dep]
                if dep not in left:
                    path[dep] = None
                    branches.append(iter(dependencies.get(dep, ())))
                    break
            else:
                branches.pop()
                left[path.popitem()[0]] = None
    return list(left), []
