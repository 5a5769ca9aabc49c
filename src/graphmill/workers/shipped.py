"""What stands in a worker for things that do not travel with each task.

Functions and classes that cannot be imported are sent once, and referred to by number. Objects that tasks
write to, and that live in the engine's process, are stood in for by a `Target` that notes what is written.
Locks that Dask knows by a token lock across processes, by a file.

A worker has one thread and one engine, so there is one of each registry in the process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphmill.errors import StaysError
from graphmill.memory.block import Extent
from graphmill.workers.work import Shipped

_functions: dict[int, Shipped] = {}
_unpacked: dict[int, Any] = {}
_writes: list[tuple[int, Any, Any]] = []
_targets: dict[int, Any] = {}
_folder: list[Path] = []
_read: list[Callable[[Shipped], Any]] = []


def begin(folder: str, read: Callable[[Shipped], Any]) -> None:
    """Say where locks are, and how values are read in this process."""
    _folder[:] = [Path(folder)]
    _read[:] = [read]


def in_worker() -> bool:
    """Say whether this process is a worker."""
    return bool(_read)


# ---- functions


def add_functions(functions: Iterable[tuple[int, Shipped]]) -> None:
    """Take on functions, by number."""
    _functions.update(functions)


def forget_functions(numbers: Iterable[int]) -> None:
    """Let go of functions."""
    for number in numbers:
        _functions.pop(number, None)
        _unpacked.pop(number, None)


def function(number: int) -> Any:
    """Get a function or class that was sent before; unpacked when it is first needed."""
    if number not in _unpacked:
        _unpacked[number] = _read[0](_functions[number])
    return _unpacked[number]


# ---- values


def value(payload: bytes, extents: tuple[Extent, ...]) -> Any:
    """Get a value that lies in shared memory, and that a task refers to."""
    return _read[0](Shipped(payload, extents))


# ---- targets


class Target:
    """Stands for an object in the engine's process that a task stores to.

    Parameters
    ----------
    number
        By which the engine knows the object.
    form
        Its shape and type, if it is a NumPy array.
    """

    __slots__ = ("_form", "_number")

    def __init__(self, number: int, form: tuple[tuple[int, ...], np.dtype[Any]] | None = None) -> None:
        self._number = number
        self._form = form

    def __setitem__(self, index: Any, value: Any) -> None:
        """Note what to write; the engine's process does it when the task is done."""
        _writes.append((self._number, index, value))

    def __getitem__(self, index: Any) -> Any:
        """Give what was written there just now, and refuse otherwise: what is there is not known here."""
        if self._form is not None and _writes:
            number, where, value = _writes[-1]
            if number == self._number and where is index:
                return _as_stored(value, index, *self._form)
        raise StaysError("the task reads from an object that lives in the calling process")

    def __reduce__(self) -> tuple[Any, ...]:
        return target, (self._number, self._form)


def _as_stored(value: Any, index: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Make of a value what a NumPy array would have at an index after it is written there."""
    part = np.broadcast_to(np.empty((), dtype), shape)[index]
    if type(value) is np.ndarray and (value.shape, value.dtype) == (part.shape, dtype):
        return value
    stored = np.empty(part.shape, dtype)
    stored[...] = value
    return stored


def target(number: int, form: tuple[tuple[int, ...], np.dtype[Any]] | None = None) -> Any:
    """Get an object that tasks store to: in a worker what stands for it, in the engine's process itself."""
    return Target(number, form) if in_worker() else _targets[number]


def add_target(number: int, obj: Any) -> None:
    """Have the engine's process know an object by a number."""
    _targets[number] = obj


def forget_target(number: int) -> None:
    """Let go of an object."""
    _targets.pop(number, None)


def take_writes() -> list[tuple[int, Any, Any]]:
    """Get what the last task wrote to targets, and forget it."""
    writes = _writes[:]
    _writes.clear()
    return writes


# ---- locks


class SharedLock:
    """A lock between processes of this machine, which goes away with the process that holds it.

    Parameters
    ----------
    token
        Locks of one token are one lock.
    """

    __slots__ = ("_file", "_token")

    def __init__(self, token: Any) -> None:
        self._token = token
        self._file: int | None = None

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; waiting can be interrupted, and ends when the holder's process does.

        Parameters
        ----------
        blocking
            Whether to wait until the lock is free.
        timeout
            Not supported: a lock is waited for until it is free.
        """
        if timeout not in (-1, None):
            raise ValueError("A lock that is shared by processes cannot be waited for with a timeout")
        name = hashlib.sha256(repr(self._token).encode()).hexdigest()[:32]
        file = os.open(_folder[0] / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is None:
            raise RuntimeError("release of a lock that is not held")
        file, self._file = self._file, None
        os.close(file)

    def locked(self) -> bool:
        """Say whether somebody holds the lock."""
        if self._file is not None:
            return True
        if not self.acquire(blocking=False):
            return True
        self.release()
        return False

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedLock, (self._token,)


def share_lock(lock: Any, state: Any) -> None:
    """Set the state of a lock of a class derived from Dask's, and have it lock across processes."""
    lock.__setstate__(state)
    lock.lock = SharedLock(lock.token)
