"""Python's cyclic garbage collector, kept out of the way of large graphs. Knows nothing of graphs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

#: From how many tasks on it pays to keep a graph out of the collections that follow.
_MANY = 5_000
#: Python 3.12 begins with some hundred objects frozen; whoever freezes for a purpose freezes far more.
_FROZEN_AT_START = 1_000


@contextmanager
def collector_paused(tasks: int = 0) -> Iterator[None]:
    """Keep the cyclic garbage collector from running.

    Laying out a graph makes objects by the million and no garbage, but each full collection looks at all of
    them, and at all that the user's graph holds: measured at up to half of the time.

    Parameters
    ----------
    tasks
        About how many tasks are laid out. Where they are many, what was made meanwhile is made to count as
        old: the next collections, of which each looks at ever more, would find no garbage in it either
        (a tenth to a quarter of the scheduler's time per task, measured on 20,000 to 1,000,000).
    """
    if not gc.isenabled():
        yield
        return
    many = tasks >= _MANY and gc.get_freeze_count() < _FROZEN_AT_START
    if many:
        gc.collect(1)  # what is young now may be garbage, and must not grow old with the rest
    gc.disable()
    try:
        yield
    finally:
        if many:
            gc.freeze()
            gc.unfreeze()  # of all, into the oldest generation; nobody else had frozen anything
        gc.enable()
