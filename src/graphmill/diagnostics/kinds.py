"""What tasks of each kind took, ranked; tasks too short to be seen put together; how many ran at a time.

Knows records. Must not know how they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphmill.diagnostics.log import Outcome
from graphmill.diagnostics.records import TaskRecord


@dataclass(slots=True)
class KindUse:
    """What all tasks of one kind took."""

    kind: str
    #: How many gave a result, and how many goes had to be repeated.
    tasks: int = 0
    again: int = 0
    #: All together, and the longest, in seconds.
    seconds: float = 0.0
    longest: float = 0.0
    #: The size of their results and of their inputs, and what had to be copied, in bytes.
    output_bytes: int = 0
    input_bytes: int = 0
    copied_bytes: int = 0
    #: The most that one took besides its inputs, in bytes.
    taken_bytes: int = 0

    @property
    def mean(self) -> float:
        """How long one takes, in seconds."""
        return self.seconds / max(1, self.tasks + self.again)


def rank_kinds(tasks: Iterable[TaskRecord]) -> list[KindUse]:
    """Add up by kind; what took most time comes first."""
    found: dict[str, KindUse] = {}
    for task in tasks:
        use = found.get(task.kind)
        if use is None:
            use = found[task.kind] = KindUse(task.kind)
        if task.outcome == Outcome.DONE.value:
            use.tasks += 1
        else:
            use.again += 1
        use.seconds += task.seconds
        use.longest = max(use.longest, task.seconds)
        use.output_bytes += task.output_bytes
        use.input_bytes += task.input_bytes
        use.copied_bytes += task.copied_bytes
        use.taken_bytes = max(use.taken_bytes, task.taken_bytes)
    return sorted(found.values(), key=lambda use: (-use.seconds, use.kind))


@dataclass(slots=True)
class Bar:
    """A piece of a worker's time: a task, or short ones of one kind that share a cell of time."""

    worker: int
    kind: str
    start: float
    end: float
    #: What to call it.
    label: str
    #: How long its tasks took, in seconds.
    seconds: float
    output_bytes: int
    input_bytes: int
    outcome: str = Outcome.DONE.value
    #: Which part of the worker's line it fills, from the bottom up.
    low: float = 0.0
    high: float = 1.0


def bars(tasks: Iterable[TaskRecord]) -> list[Bar]:
    """Make one bar for each task, by worker and start."""
    ordered = sorted(tasks, key=lambda task: (task.worker, task.start))
    return [
        Bar(
            task.worker,
            task.kind,
            task.start,
            task.end,
            label_of(task.key),
            task.seconds,
            task.output_bytes,
            task.input_bytes,
            task.outcome,
        )
        for task in ordered
    ]


def overview(pieces: Sequence[Bar], kinds: Sequence[str], cells: int) -> list[Bar]:
    """Put bars that are too short to be seen together.

    Parameters
    ----------
    pieces
        By worker and start.
    kinds
        All kinds, in the order in which they lie upon each other.
    cells
        Into how many pieces of one length to cut the time there is. A bar that is longer stays itself; of
        the shorter ones that start in a cell, those of one kind become one bar over the whole cell, as high
        as the part of the time that they take.
    """
    if not pieces:
        return []
    begin = min(piece.start for piece in pieces)
    width = max((max(piece.end for piece in pieces) - begin) / cells, 1e-9)
    made: list[Bar] = []
    shared: dict[tuple[int, int], dict[str, list[Bar]]] = {}
    for piece in pieces:
        if piece.end - piece.start >= width:
            made.append(piece)
        else:
            place = (piece.worker, int((piece.start - begin) / width))
            shared.setdefault(place, {}).setdefault(piece.kind, []).append(piece)
    rank = {kind: at for at, kind in enumerate(kinds)}
    for (worker, cell), by_kind in shared.items():
        whole = max(width, sum(piece.seconds for each in by_kind.values() for piece in each))
        low = 0.0
        for kind in sorted(by_kind, key=rank.__getitem__):
            bar = _together(by_kind[kind], worker, begin + cell * width, width)
            bar.low, low = low, low + bar.seconds / whole
            bar.high = low
            made.append(bar)
    return made


def _together(pieces: Sequence[Bar], worker: int, start: float, width: float) -> Bar:
    return Bar(
        worker,
        pieces[0].kind,
        start,
        start + width,
        pieces[0].label if len(pieces) == 1 else f"{len(pieces):,} tasks",
        sum(piece.seconds for piece in pieces),
        sum(piece.output_bytes for piece in pieces),
        sum(piece.input_bytes for piece in pieces),
    )


def label_of(key: object) -> str:
    """Write a key as short as it stays clear: a name with its token cut, and the block's place.

    Examples
    --------
    >>> label_of(("sum-0123456789abcdef0123456789abcdef", 2, 0)), label_of("load-7"), label_of(3)
    ('sum-012345 (2, 0)', 'load-7', '3')
    """
    name, place = (key[0], key[1:]) if type(key) is tuple and key else (key, ())
    text = str(name)
    head, dash, token = text.rpartition("-")
    if len(token) > 8:  # noqa: PLR2004 - shorter ones may mean something
        text = f"{head}{dash}{token[:6]}"
    if not place:
        return text
    return f"{text} ({', '.join(map(str, place))})"


def concurrency(
    tasks: Sequence[TaskRecord], start: float, end: float, bins: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Tell how many tasks ran at a time.

    Parameters
    ----------
    tasks
        In any order.
    start, end
        From when to when, in seconds.
    bins
        Into how many pieces to cut that.

    Returns
    -------
    array of (bins + 1,)
        The edges of the pieces, in seconds.
    array of (bins,)
        How many ran on average during each.
    """
    edges = np.linspace(start, max(end, start + 1e-6), bins + 1)
    busy = _elapsed(edges, np.array([task.start for task in tasks]))
    busy -= _elapsed(edges, np.array([task.end for task in tasks]))
    return edges, np.maximum(np.diff(busy) / np.diff(edges), 0.0)


def _elapsed(edges: npt.NDArray[np.float64], moments: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up, for each edge, how long ago all moments before it were."""
    moments = np.sort(moments)
    count = np.searchsorted(moments, edges)
    before = np.concatenate([[0.0], np.cumsum(moments)])[count]
    elapsed: npt.NDArray[np.float64] = count * edges - before
    return elapsed
