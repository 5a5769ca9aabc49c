"""Depth-first order: linear in the size of the graph, and what breaks ties for the others."""

from __future__ import annotations

from graphmill.order.index import Index


def order_depth_first(index: Index) -> list[int]:
    """Order tasks so that each result is finished before the next is begun.

    Of a task's inputs, the one that more work stands behind comes first: its leftovers are then held while
    the lighter ones are made, not the other way round. Work shared by several tasks counts for each in part.

    Returns
    -------
    list of int
        Tasks in the order in which to run them; fewer than there are if some wait for each other.
    """
    plain = _visit(index, index.deps)
    if len(plain) < len(index.keys):
        return plain
    weight = [1.0] * len(plain)
    deps, users = index.deps, index.users
    for i in plain:
        for d in deps[i]:
            weight[i] += weight[d] / len(users[d])
    heavy_first = [sorted(of, key=weight.__getitem__, reverse=True) if len(of) > 1 else of for of in deps]
    return _visit(index, heavy_first)


def _visit(index: Index, deps: list[list[int]]) -> list[int]:
    """Leave tasks in depth-first order, results first, then whatever they do not need."""
    count = len(deps)
    #: 0: not met; 1: waits on the stack for its inputs; 2: done.
    stage = bytearray(count)
    done: list[int] = []
    starts = [i for i in range(count) if index.kept[i]]
    for start in starts if len(starts) == count else [*starts, *range(count)]:
        stack = [start]
        while stack:
            i = stack[-1]
            if stage[i] == 0:
                stage[i] = 1
                stack.extend([d for d in reversed(deps[i]) if not stage[d]])
            else:
                stack.pop()
                if stage[i] == 1:
                    stage[i] = 2
                    done.append(i)
    return done
