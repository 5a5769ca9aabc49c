"""Static order: which task is to run before which.

`order` answers for a graph of any dialect; `order_graph` for one that has been read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from graphmill.graph.model import Graph, as_mapping, read_graph
from graphmill.order.depth_first import order_depth_first
from graphmill.order.guess import guess_sizes
from graphmill.order.index import Index, index_graph
from graphmill.order.release import Effort, ReleaseOrder
from graphmill.order.replay import is_in_order, peak_of
from graphmill.types import Key

__all__ = ["Order", "order", "order_graph", "sortkey"]


def sortkey(item: Any) -> tuple[str, Any]:
    """Make a key for sorting things of different types.

    Examples
    --------
    >>> sortkey("Hello"), sortkey(("x", 1))
    (('str', 'Hello'), ('tuple', ('x', 1)))
    """
    return type(item).__name__, item


def order(dsk: Any, sizes: Mapping[Key, int] | None = None) -> dict[Key, int]:
    """Find static priorities: in which order to run tasks so that few bytes are live at once.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    sizes
        The size of each task's output in bytes, as far as it is known.

    Returns
    -------
    dict
        A number for each key, from 0; the smallest runs first. Data comes just before its first user.

    Raises
    ------
    CycleError
        If tasks wait for each other; the message names them.

    Examples
    --------
    >>> order({"a": 1, "b": 2, "c": (abs, "a"), "d": (max, "b", "c")})
    {'a': 0, 'c': 1, 'b': 2, 'd': 3}
    """
    return order_graph(read_graph(as_mapping(dsk)), sizes).priorities


@dataclass(frozen=True, slots=True)
class Order:
    """An order, and what it costs."""

    #: A number for each key; the smallest runs first.
    priorities: dict[Key, int]
    #: The most bytes live at once on one worker; in units of `guess.ROOT` where no sizes are known.
    peak: int
    #: The largest output of a task that needs no other.
    largest_root: int

    def budget(self, workers: int) -> int:
        """Get the live bytes that so many workers need to be kept busy by this order."""
        return self.peak + (workers - 1) * self.largest_root


def order_graph(
    graph: Graph,
    sizes: Mapping[Key, int] | None = None,
    results: Collection[Key] | None = None,
) -> Order:
    """Order a graph that has been read.

    Parameters
    ----------
    graph
        The graph.
    sizes
        The size of each task's output in bytes, as far as it is known.
    results
        The keys asked for, whose values stay; by default those that no other task needs.

    Raises
    ------
    CycleError
        If tasks wait for each other; the message names them.
    """
    index = index_graph(graph, sizes, results)
    if not any(index.deps):
        # Tasks that have nothing to do with each other run as they are listed.
        sequence = list(range(len(index.keys)))
        largest = max(index.sizes, default=0)
        return Order(_with_data(graph, index, sequence), peak_of(index, sequence), largest)
    depth_first = order_depth_first(index)
    if len(depth_first) < len(index.keys) or not is_in_order(index, depth_first):
        graph.check_acyclic()
    sequence = depth_first
    if not sizes:
        index.sizes = guess_sizes(index, depth_first)
    peak = peak_of(index, depth_first)
    effort = _effort(len(index.keys))
    if effort is not None:
        rank = [0] * len(depth_first)
        for position, i in enumerate(depth_first):
            rank[i] = position
        candidate = ReleaseOrder(index, rank, effort).run()
        its_peak = peak_of(index, candidate)
        if its_peak < peak:
            sequence, peak = candidate, its_peak
    roots = [size for size, deps in zip(index.sizes, index.deps, strict=True) if not deps]
    return Order(_with_data(graph, index, sequence), peak, max(roots, default=0))


def _effort(tasks: int) -> Effort | None:
    """Look far where tasks are few, and probably large; not at all where they are many."""
    if tasks <= _THOROUGH:
        return Effort(largest=12, latest=4, reach=15)
    if tasks <= _CHEAP:
        return Effort(largest=1, latest=1, reach=8)
    return None


#: Up to how many tasks the order is thorough, and up to how many it looks at blocks at all.
_THOROUGH = 5_000
_CHEAP = 15_000


def _with_data(graph: Graph, index: Index, sequence: list[int]) -> dict[Key, int]:
    """Turn a sequence of tasks into a number for each key."""
    keys = index.keys
    if len(graph.dependencies) == len(keys):
        return {keys[i]: position for position, i in enumerate(sequence)}
    priorities: dict[Key, int] = {}
    for i in sequence:
        for dep in graph.dependencies[keys[i]]:
            if dep not in priorities:
                priorities[dep] = len(priorities)
        priorities[keys[i]] = len(priorities)
    for key in graph.dependencies:
        if key not in priorities:
            priorities[key] = len(priorities)
    return priorities
