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
from graphmill.order.release import ReleaseOrder, usual_reach
from graphmill.order.replay import is_in_order, peak_of
from graphmill.types import Key

__all__ = ["Order", "measure_order", "order", "order_graph", "sortkey"]


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
    #: The most that a worker brings in for one task: its output, and the inputs that need no others.
    largest_task: int

    def budget(self, workers: int) -> int:
        """Get the live bytes that so many workers need to be kept busy by this order.

        They get what the order needs on one worker, and what each further one reads ahead; where that would
        not let most of them work at once, as much as is needed for that.
        """
        return max(self.peak + (workers - 1) * self.largest_root, workers * self.largest_task * 7 // 8)


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
        return _order(graph, index, list(range(len(index.keys))))
    depth_first = order_depth_first(index)
    if len(depth_first) < len(index.keys) or not is_in_order(index, depth_first):
        graph.check_acyclic()
    reach = next((reach for tasks, reach in _REACH if len(depth_first) <= tasks), None)
    if reach is None:
        index.hold_sources()
        return _order(graph, index, depth_first)
    if not sizes:
        index.sizes = guess_sizes(index, depth_first)
    if index.sources:
        index.hold_sources()
        depth_first = order_depth_first(index)
    return _order(graph, index, _leaner(index, depth_first, max(reach, usual_reach(index))))


def _leaner(index: Index, depth_first: list[int], reach: int) -> list[int]:
    """Look for an order that releases early; keep it if it is leaner than the one that is there."""
    rank = [0] * len(depth_first)
    for position, i in enumerate(depth_first):
        rank[i] = position
    candidate = ReleaseOrder(index, rank, reach).run()
    return min(depth_first, candidate, key=lambda sequence: peak_of(index, sequence))


#: Up to so many tasks, the plans to let go of a block may have at least so many of them: more where blocks of
#: this graph need it. Measured in microseconds per task in `benchmarks/order.py`; above the last, only the
#: depth-first order is affordable.
_REACH = ((2_000, 30), (5_000, 15), (15_000, 6))


def measure_order(
    graph: Graph,
    priorities: dict[Key, int],
    sizes: Mapping[Key, int],
    results: Collection[Key] | None = None,
    *,
    guess: bool = True,
) -> Order:
    """Work out what an order costs by sizes that were not known when it was made.

    Parameters
    ----------
    graph
        The graph.
    priorities
        A number for each of its keys, as `order_graph` gives them.
    sizes
        The size of each task's output in bytes, as far as it is known.
    results
        The keys asked for, whose values stay; by default those that no other task needs.
    guess
        Whether other sizes are guessed by the shape of the graph, from those that are known. Else they count
        as nothing, and what comes out is what the order costs at least.
    """
    index = index_graph(graph, None, results)
    sequence = sorted(range(len(index.keys)), key=lambda i: priorities[index.keys[i]])
    if guess:
        index.sizes = _completed(index, sizes, guess_sizes(index, sequence))
    else:
        index.sizes = [sizes.get(key, 0) for key in index.keys]
    index.hold_sources()
    return Order(priorities, *_costs(index, sequence))


def _completed(index: Index, sizes: Mapping[Key, int], guessed: list[int]) -> list[int]:
    """Put sizes that are known in the place of guesses, and bring the others to the same scale."""
    known = [sizes.get(key) for key in index.keys]
    pairs = [(size, guess) for size, guess in zip(known, guessed, strict=True) if size is not None]
    scale = sum([size for size, _ in pairs]) / max(1, sum([guess for _, guess in pairs]))
    return [int(guess * scale) if size is None else size for size, guess in zip(known, guessed, strict=True)]


def _order(graph: Graph, index: Index, sequence: list[int]) -> Order:
    return Order(_with_data(graph, index, sequence), *_costs(index, sequence))


def _costs(index: Index, sequence: list[int]) -> tuple[int, int, int]:
    """Get the peak, the largest root and the largest task, as `Order` has them."""
    sizes, deps = index.sizes, index.deps
    roots = [0 if of else size for size, of in zip(sizes, deps, strict=True)]
    tasks = [
        size + sum([roots[d] for d in of])
        for i, (size, of) in enumerate(zip(sizes, deps, strict=True))
        if i not in index.sources
    ]
    return peak_of(index, sequence), max(roots, default=0), max(tasks, default=0)


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
