"""What travels between the engine and its workers.

Named tuples, since there is one or more for each task: they pickle in a third of the time of a dataclass.
Positions are never relied on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from graphmill.memory.arena import ArenaHandle
from graphmill.memory.block import BlockId, Extent
from graphmill.types import Key

# ---- from the engine to a worker


class Shipped(NamedTuple):
    """A value on its way to a worker."""

    #: The pickled value, without its large buffers.
    payload: bytes
    #: Where those lie.
    extents: tuple[Extent, ...] = ()


class Job(NamedTuple):
    """A task to run."""

    #: Its number, never used again.
    number: int
    #: The node of the graph: called with a mapping of its inputs.
    node: Shipped
    #: Its inputs, by key.
    inputs: tuple[tuple[Key, Shipped], ...]
    #: Whether it is known to be over so soon that reports of others may wait for it.
    quick: bool = False
    #: The most bytes that it may take besides its inputs; None for any number.
    allowance: int | None = None


class Batch(NamedTuple):
    """Quick tasks, to be run one after the other, and reported together.

    Fields in the plural have one item for each task: so they pickle in a third of the time.
    """

    #: Its number, never used again; jobs have other ones.
    number: int
    #: What is called: the number of a recipe, or the node of the graph, pickled, without large buffers.
    calls: tuple[int | bytes, ...]
    #: For a recipe, what is the task's own besides its inputs, pickled where tasks might change it or see
    #: that it is shared; for a node, the keys of its inputs.
    leaves: tuple[tuple[Any, ...] | bytes, ...]
    #: Its inputs; those without large buffers as their payload alone, and the number of an earlier task for
    #: what that gives.
    inputs: tuple[tuple[Shipped | bytes | int, ...], ...]
    #: The most bytes that it may take besides its inputs.
    allowances: tuple[int, ...]
    #: How many of them, the last, need what others in the batch give.
    followers: int = 0
    #: Tasks whose results nobody needs but so many others in the batch.
    inner: tuple[tuple[int, int], ...] = ()

    @property
    def quick(self) -> bool:
        """It is known to be over soon."""
        return True


class Freed(NamedTuple):
    """A range of the worker's own arenas that nobody needs any more."""

    #: The block that it was.
    block: BlockId
    #: Its length, in bytes.
    length: int
    #: Whether its pages are still there.
    warm: bool


class Begin(NamedTuple):
    """The first message to a worker process."""

    #: The arena that its results go to.
    own: int
    #: The arena in a file that takes over when that is full; None if there is none.
    overflow: int | None
    #: How many bytes of pages that nobody uses it may keep.
    warm_limit: int
    #: A folder for locks that are shared between processes.
    folder: str
    #: The pipe by which jobs are claimed; None where there cannot be any.
    claims: str | None = None
    #: The common arena, the path of its map, and the worker's number there; None where there is none.
    common: tuple[int, str, int] | None = None
    #: The key by which multiprocessing's managers know who belongs to the program.
    authkey: bytes = b""


class Work(NamedTuple):
    """All that a worker is told at a time; to be followed in this order."""

    #: Dask's settings, pickled, if they have changed.
    settings: bytes | None = None
    #: Arenas that it does not know yet.
    arenas: tuple[ArenaHandle, ...] = ()
    #: Arenas that are gone.
    closed: tuple[int, ...] = ()
    #: Ranges that it may use again.
    freed: tuple[Freed, ...] = ()
    #: Functions that jobs refer to by number.
    functions: tuple[tuple[int, Shipped], ...] = ()
    #: Functions that no job refers to any more.
    forgotten: tuple[int, ...] = ()
    #: How many bytes of pages that nobody uses it may keep from now on; None if that has not changed.
    warm_limit: int | None = None
    #: Whether it is to give back all memory that it has no use for now, and to say so.
    rest: bool = False
    #: Jobs not to begin.
    cancelled: tuple[int, ...] = ()
    #: Jobs that the engine may take back: to be claimed before they are begun.
    claimed: tuple[int, ...] = ()
    #: What to run, in this order.
    jobs: tuple[Job | Batch, ...] = ()


# ---- from a worker to the engine


class Warned(NamedTuple):
    """A warning that a task has given."""

    #: The warning, pickled.
    message: bytes
    #: Where it was given.
    filename: str
    #: The line there.
    line: int
    #: The module there, which filters may go by; None if it is not known.
    module: str | None = None


class Rested(NamedTuple):
    """A worker has had nothing to do for some time, or was told to rest, and has given idle pages back."""

    #: Bytes of its arenas' pages that it still keeps for the next job.
    warm: int


class Report(NamedTuple):
    """What became of a job."""

    #: Its number.
    number: int
    #: The result, if there is one.
    result: Shipped | None
    #: The exception, from `encode_exception`; if there is no result and no exception, the job was cancelled.
    error: bytes | None = None
    #: Whether the engine's process must run it itself, and `error` is why.
    stays: bool = False
    #: What the task wrote to objects that live in the engine's process: their numbers, indices and values.
    writes: Shipped | None = None
    #: When it began, in seconds of `time.perf_counter`, and how long it took.
    began: float = 0.0
    seconds: float = 0.0
    #: The most bytes that it took besides its inputs, with its result, as far as it can be told.
    taken: int = 0
    #: Bytes of the result that were copied to where others see them; the others were born there.
    copied: int = 0
    #: It was stopped since it asked for more than its allowance: for so many bytes, all in all.
    refused: int = 0
    #: Bytes of its arenas' pages that the worker keeps for the next job.
    warm: int = 0
    #: Bytes of private memory that it has now that the job is done, with what it shares with other processes;
    #: 0 where that was not looked at.
    private: int = 0
    #: Blocks that the worker now looks at beyond its jobs, and no more.
    pinned: tuple[BlockId, ...] = ()
    unpinned: tuple[BlockId, ...] = ()
    #: Warnings that were given meanwhile.
    warned: tuple[Warned, ...] = ()


class BatchReport(NamedTuple):
    """What became of a batch."""

    #: Its number.
    number: int
    #: What became of each task, in their order: the payload of a result without large buffers, where nothing
    #: else is to be told; its length, if it was for tasks of the batch alone, and they are done; or a report.
    #: None for one that could not follow the others. Tasks that are missing at the end were not begun.
    outcomes: tuple[bytes | int | Report | None, ...] = ()
    #: How long each took, in seconds.
    seconds: tuple[float, ...] = ()
    #: When the first began, by the worker's performance counter, in seconds.
    began: float = 0.0
    #: Bytes of its arenas' pages that the worker keeps for the next job.
    warm: int = 0
    #: Blocks that the worker now looks at beyond its jobs, and no more.
    pinned: tuple[BlockId, ...] = ()
    unpinned: tuple[BlockId, ...] = ()
