"""How many quick tasks go to a worker at a time.

A message costs more than a small task, so those go together: as many as a worker does in two milliseconds.
More would keep others waiting for what is in the report, and for tasks that turn out to take long.

Pure: tasks are anything, times come in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

#: Seconds of work in a batch. A worker is given two of them ahead (`estimates.AHEAD`), so that it has
#: something to do while the report of the first is read.
_LENGTH = 0.002
#: Seconds of work in one to which others were added that follow on its tasks.
LONGEST = 2 * _LENGTH
#: Tasks in a batch, at most.
MOST = 256


def in_batches(tasks: Sequence[T], seconds: Sequence[float], workers: int) -> Iterator[Sequence[T]]:
    """Cut a sequence of tasks into batches, so that all workers have something to do.

    Parameters
    ----------
    tasks
        Tasks that may start now, in the order in which they should.
    seconds
        How long each is expected to take.
    workers
        How many workers there are for them.
    """
    number = max(min(workers, len(tasks)), -int(-sum(seconds) // _LENGTH), -(-len(tasks) // MOST))
    begin = 0
    for at in range(1, number + 1):
        end = len(tasks) * at // number
        if end > begin:
            yield tasks[begin:end]
        begin = end
