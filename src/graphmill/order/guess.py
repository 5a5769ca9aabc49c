"""Sizes of outputs where none are known, guessed from the shape of the graph.

To take every output as one is a poor guess: the pieces that a block is cut into then weigh as much as the
block, and to cut it looks like waste. So does a finished result that will be held anyway. What matters to
the order is only which outputs are much smaller than others.
"""

from __future__ import annotations

from graphmill.order.index import Index

#: The size of what a task without inputs returns; the others are fractions of it.
ROOT = 720_720
#: A task's share of its only input, where other tasks join that input with more: an edge, or a partial sum.
_SHARE = 0.05


def guess_sizes(index: Index, sequence: list[int]) -> list[int]:
    """Guess the size of each output.

    Parameters
    ----------
    index
        The graph.
    sequence
        Its tasks, each after those that it needs.

    Returns
    -------
    list of int
        Sizes, `ROOT` for tasks that need no others.
    """
    deps, users, kept = index.deps, index.users, index.kept
    sources = index.sources
    weight = [1.0] * len(deps)
    is_piece = bytearray(len(deps))
    for i in sequence:
        needed = deps[i]
        if i in sources:
            source = sources[i]
            if source is not None:
                weight[i] = weight[source]
                is_piece[i] = is_piece[source]
        elif len(needed) == 1:
            d = needed[0]
            if len(users[d]) > 1:
                cut_up = all(len(deps[user]) == 1 and user not in sources for user in users[d])
                weight[i] = weight[d] / len(users[d]) if cut_up else weight[d] * _SHARE
                is_piece[i] = 1
            else:
                weight[i] = weight[d]
                is_piece[i] = is_piece[d]
        elif needed:
            weights = [weight[d] for d in needed]
            joined = all(is_piece[d] for d in needed)
            weight[i] = sum(weights) if joined else max(weights)
    for i, of in enumerate(users):
        # What is held to the end is held in every order.
        if kept[i] or (len(of) == 1 and kept[of[0]]):
            weight[i] = 0
    return [max(1, int(ROOT * share)) for share in weight]
