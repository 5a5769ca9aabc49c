"""Names that tell who owns a segment or folder, and removal of what dead owners left.

Whoever owns something holds a lock on it for as long as it lives. A process number alone proves nothing:
it may be in use again by another process, which the start time shows, or it may belong to an engine in
another container that shares the folder, which only the lock shows.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from graphmill.memory.segments import SHARED_MEMORY

logger = logging.getLogger(__name__)

PROC = Path("/proc")
NAME = re.compile(r"graphmill-(\d+)-(\d+)-\d+")
NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that made something, as a name tells."""

    #: Its process number.
    pid: int
    #: When it started, in whatever unit `start_time` has on this system.
    started: int

    @classmethod
    def of(cls, name: str) -> Self | None:
        """Read a name; None if it is none of ours."""
        found = NAME.fullmatch(name)
        return cls(int(found[1]), int(found[2])) if found else None

    def alive(self) -> bool:
        """Tell whether the process still runs, as far as this one can see."""
        return start_time(self.pid) == self.started


def own_name() -> str:
    """Make up a name that this process has not used before: ``graphmill-<pid>-<start time>-<n>``."""
    pid = os.getpid()
    return f"graphmill-{pid}-{start_time(pid) or 0}-{next(NUMBERS)}"  # 0 where nobody tells: see `lock`


def start_time(pid: int) -> int | None:
    """Tell when a process started; None if there is none, or only one that is dead but not reaped."""
    if not (PROC / "self" / "stat").exists():
        return start_time_elsewhere(pid)
    try:
        text = (PROC / str(pid) / "stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name comes first, in brackets, and may hold anything.
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def start_time_elsewhere(pid: int) -> int | None:
    """Do the same without /proc: whole seconds, which no change of the clock touches there."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None  # one that may not be looked at is another user's, and owns nothing of ours


def lock(descriptor: int) -> None:
    """Mark a segment or folder as in use by this process, until the descriptor is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        # Nobody removes what cannot be locked, so the lock is not missed.
        logger.debug("no lock on descriptor %d: %s", descriptor, error)


def remove_leftovers(*folders: Path) -> list[Path]:
    """Remove what engines left behind that are no more: segments, arenas in files, folders.

    Only things of this user are touched, and only if their process is gone and nobody holds a lock on
    them; where a file system has no locks, everything stays.

    Parameters
    ----------
    *folders : Path
        Where to look, besides the system's own folder for shared memory. They need not exist.

    Returns
    -------
    list of Path
        What was removed.
    """
    return [path for path in _abandoned_in(folders) if remove_unlocked(path)]


def find_leftovers(*folders: Path) -> list[Path]:
    """Find what `remove_leftovers` would remove now."""
    return [path for path in _abandoned_in(folders) if is_free(path)]


def _abandoned_in(folders: tuple[Path, ...]) -> Iterator[Path]:
    for folder in dict.fromkeys((SHARED_MEMORY, *folders)):
        yield from abandoned(folder)


def abandoned(folder: Path) -> Iterator[Path]:
    """Find what carries the name of a process that is gone."""
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in paths:
        owner = Owner.of(path.name)
        if owner is not None and not owner.alive():
            yield path


def is_free(path: Path) -> bool:
    """Tell whether a file or folder is this user's and nobody holds a lock on it."""
    with _locked(path) as status:
        return status is not None


def remove_unlocked(path: Path) -> bool:
    """Remove a file or folder of this user that nobody holds a lock on; tell whether it was done."""
    with _locked(path) as status:
        if status is None:
            return False
        try:
            if stat.S_ISDIR(status.st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            return False  # another engine that starts was quicker
        except OSError as error:
            logger.warning("%s, left by a dead engine, cannot be removed: %s", path, error)
            return False
        return True


@contextmanager
def _locked(path: Path) -> Iterator[os.stat_result | None]:
    """Hold the lock on a file or folder of this user; None if it is not to be had."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None  # another engine that starts was quicker
        return
    except OSError as error:
        logger.warning("%s, left by a dead engine, cannot be opened: %s", path, error)
        yield None
        return
    try:
        yield _lock_if_free(descriptor, path)
    finally:
        os.close(descriptor)


def _lock_if_free(descriptor: int, path: Path) -> os.stat_result | None:
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None  # it is in use after all
    except OSError as error:
        logger.warning(
            "%s, left by a dead engine, cannot be removed, as it cannot be locked: %s", path, error
        )
        return None
    return status


class OwnedFolder:
    """A folder of this process's own, for arenas in files. It goes with `close`, with all that it holds.

    Parameters
    ----------
    base : Path
        The folder to make it in.
    name : str, optional
        One that `own_name` has made up, for whoever has told of it beforehand; by default, another.

    Raises
    ------
    OSError
        It cannot be made there.
    """

    def __init__(self, base: Path, name: str | None = None) -> None:
        #: Where it is; nobody else may look into it (0700).
        self.path = base / (name or own_name())
        self.path.mkdir(mode=0o700)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lock(descriptor)
        self._finalizer = weakref.finalize(self, remove_folder, self.path, descriptor, os.getpid())

    def close(self) -> None:
        """Remove it. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def remove_folder(path: Path, descriptor: int, owner: int) -> None:
    """Remove a folder unless this is a forked copy of the process that made it."""
    if os.getpid() == owner:
        with suppress(FileNotFoundError):  # whoever cleans up after a dead engine came first
            shutil.rmtree(path)
    os.close(descriptor)
