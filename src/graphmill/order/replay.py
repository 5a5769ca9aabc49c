"""What an order costs: live bytes when tasks run one after the other."""

from __future__ import annotations

from collections.abc import Iterable

from graphmill.order.index import Index


def peak_of(index: Index, sequence: Iterable[int]) -> int:
    """Work out the most bytes that are live at once when tasks run in this order on one worker.

    An output is live from the start of its task until the last task that needs it has ended.
    """
    deps, sizes = index.deps, index.sizes
    left = [len(of) + kept for of, kept in zip(index.users, index.kept, strict=True)]
    live = peak = 0
    for i in sequence:
        live += sizes[i]
        peak = max(peak, live)
        for d in deps[i]:
            left[d] -= 1
            if not left[d]:
                live -= sizes[d]
    return peak


def is_in_order(index: Index, sequence: Iterable[int]) -> bool:
    """Say whether every task comes after all that it needs, which no order can do in a cycle."""
    done = bytearray(len(index.keys))
    deps = index.deps
    for i in sequence:
        for d in deps[i]:
            if not done[d]:
                return False
        done[i] = 1
    return True
