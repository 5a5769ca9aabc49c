"""What the scheduler is told, and what it answers.

Events go in, commands come out. A value is whatever the driver uses to stand for a result: the result
itself, or a reference to it. The scheduler never looks into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from graphmill.types import Key

# ---- events


@dataclass(slots=True, unsafe_hash=True)
class SlotsChanged:
    """So many tasks may run at once from now on; told once at the start, and when workers come or go."""

    #: How many tasks may run at once.
    slots: int


@dataclass(slots=True, unsafe_hash=True)
class TaskFinished:
    """A task has run."""

    #: The task.
    key: Key
    #: Its result, or a reference to it.
    value: Any = None
    #: The size of the result in bytes, where the driver knows it.
    nbytes: int | None = None
    #: Who ran it, for callbacks.
    worker: Any = None
    #: How long it took, in seconds, where the driver knows it.
    seconds: float | None = None
    #: The most bytes that it took besides its inputs, with its output, where the driver knows it.
    taken: int | None = None


@dataclass(slots=True, unsafe_hash=True)
class TaskFailed:
    """A task raised an exception."""

    #: The task.
    key: Key
    #: What it raised.
    error: BaseException
    #: Where it was raised, as far as the driver knows.
    traceback: Any = None


@dataclass(slots=True, unsafe_hash=True)
class TaskLost:
    """A task will never answer, through no fault that it told: its worker died, or it took too long."""

    #: The task.
    key: Key
    #: What happened to it, for the error should it happen too often.
    error: BaseException


@dataclass(slots=True, unsafe_hash=True)
class BudgetChanged:
    """So many bytes may be live from now on before tasks that grow memory are held back."""

    #: How many; None for any number.
    budget: int | None


@dataclass(slots=True, unsafe_hash=True)
class RoomChanged:
    """There is a limit to memory, and so much was left under it when all commands had been followed.

    It is told before whatever has happened since.
    """

    #: Bytes that tasks may take that start now, beside all that runs and all that is held.
    free: int
    #: Bytes that one task could have if everything else were on disk.
    capacity: int
    #: Whether some values have to go to disk in any case, so that it is of no use to wait with it.
    spills: bool = False
    #: Values that were to go to disk and are still in memory, all or in part: somebody looks at them.
    stayed: tuple[Key, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class TaskTooBig:
    """A task was stopped since it took more memory than it was given. It is run again, with more."""

    #: The task.
    key: Key
    #: Bytes that it needs at least, besides its inputs.
    need: int
    #: What to raise if there cannot be more.
    error: BaseException
    #: Bytes that it could have alone, as it is now that it has ended; None for what was told last.
    capacity: int | None = None


@dataclass(slots=True, unsafe_hash=True)
class Cancelled:
    """Nobody wants the results any more: nothing new is started."""


Event: TypeAlias = (
    SlotsChanged | BudgetChanged | RoomChanged | TaskFinished | TaskFailed | TaskLost | TaskTooBig | Cancelled
)

# ---- commands


@dataclass(slots=True, unsafe_hash=True)
class Run:
    """Start this task: all its inputs are in the cache."""

    #: The task.
    key: Key
    #: Bytes that it may take besides its inputs; None where there is no limit.
    allowance: int | None = None


@dataclass(slots=True, unsafe_hash=True)
class Spill:
    """Move this value to disk, before what comes next is started."""

    #: Whose value it is.
    key: Key
    #: The value, or the reference to it, as it came in.
    value: Any


@dataclass(slots=True, unsafe_hash=True)
class Release:
    """Give back what this value holds: nobody waits for it."""

    #: Whose value it was.
    key: Key
    #: The value, or the reference to it, as it came in.
    value: Any
    #: The task by whose end it was let go.
    by: Key


@dataclass(slots=True, unsafe_hash=True)
class Abort:
    """The run has failed: no more tasks will be started."""

    #: The task that failed.
    key: Key
    #: Why.
    error: BaseException


Command: TypeAlias = Run | Spill | Release | Abort
