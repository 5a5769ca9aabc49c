"""What travels between the processes of a pool, save what its user sends.

All of it pickles with nothing but this module: the template process reads it before it has imported
anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: In place of a task's number: whichever task runs.
ANY_TASK: Final = -1


@dataclass(frozen=True, slots=True)
class Died:
    """A worker's end, as `Pool.poll` tells it: once per process, after all that the process had sent."""

    #: The process; None if it ended before it could be told.
    pid: int | None
    #: What it exited with; None if a signal ended it.
    exitcode: int | None
    #: The signal that ended it, or None. SIGKILL where the template process died: its workers die with it.
    signal: int | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parent looks for modules and files; sent ahead of other messages whenever it changes."""

    #: The entries of `sys.path`.
    path: tuple[str, ...]
    #: The working directory; None if it is gone.
    folder: str | None


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message of a worker: whoever has heard of it knows its process, too."""

    #: Its process.
    pid: int


# ---- from the parent to the template


@dataclass(frozen=True, slots=True)
class Prepare:
    """The first message: what must be known before a worker can be forked."""

    #: The parent's process id: whose end is the end of all.
    parent: int
    #: The function that workers run, as `module:name`.
    serve: str
    #: The record that each worker is given, pickled.
    setup: bytes
    #: Modules to import beforehand, so that workers share their pages.
    preload: tuple[str, ...]
    #: Libraries that these must not load before they are used.
    deferred: tuple[str, ...]
    #: The parent's `sys.argv`.
    argv: tuple[str, ...]
    #: How many workers there may be at a time.
    workers: int


@dataclass(frozen=True, slots=True)
class Fork:
    """Start a worker; the descriptor of its channel comes with the message."""

    #: Its number, from 0.
    worker: int


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Raise KeyboardInterrupt in a task."""

    #: The worker's number.
    worker: int
    #: The task's number, or ANY_TASK.
    task: int


@dataclass(frozen=True, slots=True)
class Kill:
    """End a worker at once."""

    #: Its number.
    worker: int


@dataclass(frozen=True, slots=True)
class Guard:
    """Remove these files and folders if the parent dies without a goodbye."""

    #: Paths that `workers.leftovers.check` accepts; what does not exist yet, or any more, is no error.
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unguard:
    """Leave these files and folders alone again."""

    #: As given to Guard.
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndWorkers:
    """End all workers, and say so; guard what is guarded until the goodbye."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """End, with all workers; the parent has removed its files itself."""


# ---- from the template to the parent


@dataclass(frozen=True, slots=True)
class Importing:
    """A module's import begins: if nothing follows, it is to blame."""

    #: Its name.
    module: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is imported; workers are forked from now on."""

    #: Modules that could not be imported, each with the reason.
    failed: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Spoilt:
    """There are other threads, so that forking is not safe: start again without these modules."""

    #: Those whose import started a thread, or all that were imported if none can be blamed.
    blamed: tuple[str, ...]
    #: Those that had been imported before the first thread started.
    innocent: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The function that workers should run cannot be had."""

    #: The traceback, as text.
    reason: str


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker has started."""

    #: Its number.
    worker: int
    #: Its process.
    pid: int


@dataclass(frozen=True, slots=True)
class NotForked:
    """The system has no process to give."""

    #: The worker's number.
    worker: int
    #: What the system said.
    reason: str


@dataclass(frozen=True, slots=True)
class AllEnded:
    """No worker is left, as was asked for."""


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker has ended."""

    #: Its number.
    worker: int
    #: The process that it was.
    pid: int
    #: What it exited with, or minus the signal that ended it.
    code: int
