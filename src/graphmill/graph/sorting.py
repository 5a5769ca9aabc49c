"""Sorting the tasks of a graph of any dialect."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from graphmill.graph.legacy import get_dependencies
from graphmill.graph.walk import find_cycle, flatten, sort_topologically
from graphmill.types import Key


def toposort(dsk: Mapping[Key, Any], dependencies: Mapping[Key, Collection[Key]] | None = None) -> list[Key]:
    """List the keys of a graph so that each comes after all that it depends on.

    Raises
    ------
    CycleError
        If tasks wait for each other; the message names them.

    Examples
    --------
    >>> toposort({"z": (abs, "y"), "y": (abs, "x"), "x": 1})
    ['x', 'y', 'z']
    """
    if dependencies is None:
        dependencies = {key: get_dependencies(dsk, key) for key in dsk}
    known = set(dependencies)
    return [key for key in sort_topologically(dependencies) if key in known]


def isdag(d: Mapping[Key, Any], keys: Any) -> bool:
    """Say whether computing `keys`, a key or nested lists of them, involves no cycle.

    Examples
    --------
    >>> isdag({"x": (abs, "y"), "y": (abs, "x")}, "y"), isdag({"x": 0, "y": (abs, "x")}, "y")
    (False, True)
    """
    wanted = list(flatten(keys))
    dependencies: dict[Key, set[Key]] = {}
    stack = list(wanted)
    while stack:
        key = stack.pop()
        if key not in dependencies and key in d:
            dependencies[key] = get_dependencies(d, key)
            stack.extend(dependencies[key])
    return not find_cycle(dependencies, wanted)
