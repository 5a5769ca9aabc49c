"""Collections whose chunks stay in an engine's memory, as graphs hold them.

A chunk is a task that resolves a handle, so any scheduler can run such a graph, and Dask may fuse the task
into others. An engine that keeps the chunk itself finds the handle before the run, and takes it as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from graphmill.engine.stored import Stored, resolve
from graphmill.graph import Graph
from graphmill.types import Key


def persist(
    collections: Any, optimize_graph: bool, compute: Callable[[Any, list[Key]], Iterable[Any]], **kwargs: Any
) -> Any:
    """Compute collections, and get others that stand for the same with their chunks at hand.

    Parameters
    ----------
    collections
        A collection, or several in a list or tuple.
    optimize_graph
        Whether Dask is to optimise their graphs.
    compute
        Computes keys of a graph: gives a handle for each that lies in shared memory, else the value.
    **kwargs
        For Dask, which hands them on to the scheduler.

    Returns
    -------
    object
        A collection, or a list of collections.
    """
    from dask import base  # noqa: PLC0415 - who has a collection has loaded it
    from dask._task_spec import DataNode, Task  # noqa: PLC0415 - as above

    def get(dsk: Any, keys: list[Key], **_: Any) -> list[Any]:
        return [
            Task(key, resolve, value) if isinstance(value, Stored) else DataNode(key, value)
            for key, value in zip(keys, compute(dsk, keys), strict=True)
        ]

    several = isinstance(collections, list | tuple)
    found: Any = base.persist(  # type: ignore[no-untyped-call]  # as most of Dask
        *(collections if several else (collections,)),
        traverse=False,
        optimize_graph=optimize_graph,
        scheduler=get,
        **kwargs,
    )
    return list(found) if several else found[0]


def take_stored(graph: Graph, engine: object) -> dict[Key, Stored]:
    """Make data of the tasks that only resolve a handle to a value which an engine keeps.

    Returns
    -------
    dict of key to Stored
        What was found.
    """
    found: dict[Key, Stored] = {}
    for key, node in graph.tasks.items():
        if getattr(node, "func", None) is resolve:
            handle = node.args[0]  # type: ignore[attr-defined]  # one of Dask's tasks
            if type(handle) is Stored and handle.is_in(engine):
                found[key] = handle
    for key, handle in found.items():
        del graph.tasks[key]
        graph.data[key] = handle
    return found
