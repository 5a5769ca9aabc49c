"""Static priorities in which users have a say: some tasks, with all that they need, run before the others."""

from __future__ import annotations

from collections.abc import Mapping

from graphmill.graph.model import Graph
from graphmill.types import Key


def raised(
    priorities: Mapping[Key, int], graph: Graph, wanted: Mapping[Key, float], usual: float = 0
) -> dict[Key, int]:
    """Put what users want first before the rest, and leave the order as it is otherwise.

    Parameters
    ----------
    priorities
        A static order: the smallest first, inputs before the tasks that need them.
    graph
        The graph.
    wanted
        For some tasks, a number: larger ones run earlier. A task is wanted as much as any that needs it.
    usual
        The number of all other tasks.

    Returns
    -------
    dict of key to int
        The new order.
    """
    order = sorted(priorities, key=priorities.__getitem__)
    level: dict[Key, float] = {}
    for key in reversed(order):
        mine = level[key] = max(wanted.get(key, usual), level.get(key, wanted.get(key, usual)))
        for dep in graph.dependencies[key]:
            if mine > level.get(dep, wanted.get(dep, usual)):
                level[dep] = mine
    order.sort(key=lambda key: -level[key])
    return {key: rank for rank, key in enumerate(order)}
