"""Every exception that graphmill raises on its own account.

::

    GraphmillError
    ├── GraphError(ValueError)        the graph cannot be run as it is
    │   ├── CycleError                tasks that wait for each other
    │   ├── MissingDependencyError    a task needs a key that the graph does not have
    │   └── MissingKeyError(KeyError) a key was asked for that the graph does not have
    ├── ConfigError(ValueError)       a setting has a value that cannot be used
    ├── CommandError                  the command line asks for what cannot be done
    ├── EncodeError(TypeError)        a value cannot be sent to another process
    ├── DecodeError                   a value that was sent cannot be rebuilt
    ├── ArenaFull                     shared memory, or the disk behind it, has no room left
    ├── MemoryLimitError(MemoryError) a task, or a result, needs more memory than the limit leaves for it
    ├── AllowanceSpent                a task asks for more memory than it was given; caught by the engine
    ├── SpillError                    a block cannot be moved to disk; it stays in memory
    │   └── SpillFull                 the disk, or what may be used of it, has no room left
    ├── WorkerError                   a pool lost a task instead of answering
    │   ├── RemoteError               a task raised an exception that cannot be sent
    │   ├── SetupFailed               what was to run first in each worker raised an exception
    │   ├── TaskTimeout(TimeoutError) a task took longer than it may
    │   └── WorkerDied                the workers that ran a task died, time and again
    ├── EngineClosed                  an engine was used after its end
    ├── StaysError                    a task needs what only the caller's process has; caught by the engine
    ├── PoolError                     worker processes cannot be started or used
    │   ├── ChannelClosed             the process at the other end of a channel is gone
    │   ├── MessageError              what came over a channel cannot be read; ends the process that sent it
    │   └── UnsupportedPlatform(NotImplementedError)  there is no shared-memory pool on this system
    ├── MissingExtra(ImportError)     a library is needed that comes with an extra
    ├── NotRecorded                   a report was asked for where nothing was recorded
    └── InvalidTransition             an event that cannot happen in this state: a bug in graphmill
"""

from __future__ import annotations

from typing import Any


class GraphmillError(Exception):
    """The root of graphmill's own errors."""


class GraphError(GraphmillError, ValueError):
    """The graph cannot be run as it is."""


class CycleError(GraphError):
    """Tasks wait for each other, so that none of them can ever run."""


class MissingDependencyError(GraphError):
    """A task needs a key that is neither in the graph nor in the cache."""


class MissingKeyError(GraphError, KeyError):
    """A key was asked for that is neither in the graph nor in the cache."""

    # KeyError shows the repr of its argument; a message wants to be read as it is.
    __str__ = Exception.__str__


class ConfigError(GraphmillError, ValueError):
    """A setting has a value that cannot be used."""


class CommandError(GraphmillError):
    """The command line asks for what cannot be done."""


class EncodeError(GraphmillError, TypeError):
    """A value, or something in it, cannot be sent to another process."""


class DecodeError(GraphmillError):
    """A value that came from another process cannot be rebuilt here."""


class MemoryLimitError(GraphmillError, MemoryError):
    """A task, or a result, needs more memory than the limit leaves for it."""


class AllowanceSpent(GraphmillError):
    """A task asks for more memory than it was given."""


class ArenaFull(GraphmillError):
    """A segment of shared memory has no room left, or the file system that it lies on has none."""


class SpillError(GraphmillError):
    """A block cannot be moved to disk: there is no folder for it, or writing failed. It stays in memory."""


class SpillFull(SpillError):
    """The disk that blocks move to has no room left, or as much is there as may be."""


class WorkerError(GraphmillError):
    """A pool lost a task, or could not send its result, instead of answering."""


class RemoteError(WorkerError):
    """A task raised an exception that cannot be sent to another process: what is known of it.

    Parameters
    ----------
    type_name
        The name of the exception's type, with its module.
    message
        What the exception said.
    story
        All that Python would have printed of it: traceback, type and message.
    """

    def __init__(self, type_name: str, message: str, story: str) -> None:
        super().__init__(type_name, message, story)
        self.type_name = type_name
        self.message = message
        self.story = story

    def __str__(self) -> str:
        return f"A task raised an exception that cannot be sent:\n{self.story}"


class PoolError(GraphmillError):
    """Worker processes cannot be started, or their pool cannot be used as it was."""


class ChannelClosed(PoolError):
    """The process at the other end of a channel is gone, or what it sent cannot be read any more."""


class MessageError(PoolError):
    """What came over a channel is no message, or cannot be read; the process that sent it is ended."""


class UnsupportedPlatform(PoolError, NotImplementedError):
    """There is no shared-memory pool on this system."""


class SetupFailed(WorkerError):
    """What was to run in each worker before anything else raised an exception."""


class WorkerDied(WorkerError):
    """The workers that ran a task died: the system, or the task itself, ended them.

    Parameters
    ----------
    message
        What happened, and what to try.
    key
        The task's key.
    function
        The name of the function that it calls.
    exitcode, signal
        What the last worker exited with, or which signal ended it; the other one is None.
    memory
        The memory of its own that the last worker was last seen to have, in bytes; None if that is not known.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: Any = None,
        function: str | None = None,
        exitcode: int | None = None,
        signal: int | None = None,
        memory: int | None = None,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.function = function
        self.exitcode = exitcode
        self.signal = signal
        self.memory = memory


class TaskTimeout(WorkerError, TimeoutError):
    """A task took longer than it may, and was stopped."""


class EngineClosed(GraphmillError):
    """An engine was used after its end, or by another process than the one that made it."""


class StaysError(GraphmillError):
    """A task needs something that only the caller's process has: it is run there."""


class MissingExtra(GraphmillError, ImportError):
    """A library is needed that is not installed; the message says how to get it."""


class NotRecorded(GraphmillError):
    """A report was asked for where nothing was recorded."""


class InvalidTransition(GraphmillError):
    """An event arrived that cannot happen in the present state: a bug in graphmill or its driver."""
