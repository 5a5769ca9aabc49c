"""What a system must have for an engine to run; said when it is made or starts, before something else fails.

Looks and tells, and changes nothing.
"""

from __future__ import annotations

import logging
import os
import resource
import tempfile
from pathlib import Path
from typing import Final

from graphmill.errors import ConfigError, PoolError
from graphmill.footprint import private_bytes
from graphmill.memory.arena import room, shared_memory_room

logger = logging.getLogger("graphmill")

#: Files that this process has open for an engine, and for each worker besides: channels, arenas, claims.
_FILES, _FILES_PER_WORKER = 14, 5

#: Below so many bytes of shared memory, arenas are in files instead.
LEAST_SHARED_MEMORY: Final = 1 << 30

LIMITS: Final = (
    "Limits on open files (ulimit -n), processes (ulimit -u) and address space (ulimit -v), and the room in "
    "temporary folders say how many workers there may be; fewer need less"
)


def require_descriptors(num_workers: int) -> None:
    """See that this process may open as many files as an engine needs.

    Raises
    ------
    PoolError
        If it may not.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = _FILES + _FILES_PER_WORKER * num_workers
    if most != resource.RLIM_INFINITY and most - _open_files() < needed:
        raise PoolError(
            f"This process may have {most} files open (ulimit -n), and has {_open_files()}; an engine of "
            f"{num_workers} workers needs {needed} more. Raise the limit, or use fewer workers"
        )


def _open_files() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - names are enough
    except OSError:
        return 3  # nobody tells: those that every process has


def tell_what_is_not_seen() -> None:
    """Warn where the system does not say how much memory processes take."""
    if not private_bytes(os.getpid()):
        logger.warning(
            "The system does not tell how much memory processes take (is /proc missing?): memory_limit holds "
            "for blocks only"
        )


def temporary_folder() -> str:
    """Find the folder for temporary files.

    Raises
    ------
    ConfigError
        If there is none that can be written to.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ConfigError(
            f"There is no folder for temporary files: {error.strerror}. Set TMPDIR to one that may be "
            "written to, or use Engine(folder=...)"
        ) from error


def usable_folder(folder: str | os.PathLike[str]) -> Path:
    """See that files can be made in a folder, and get its absolute path.

    Raises
    ------
    ConfigError
        If they cannot.
    """
    path = Path(folder).absolute()
    if not path.exists():
        raise ConfigError(f"The folder {str(path)!r} does not exist: make it first, or choose another")
    if not path.is_dir():
        raise ConfigError(f"{str(path)!r} is not a folder: choose one for the engine's files")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"No files can be made in the folder {str(path)!r}: choose another")
    return path


def lacks_shared_memory(folder: Path) -> bool:
    """Tell whether blocks are kept in files in a folder, since there is too little shared memory."""
    free = shared_memory_room()
    return free is not None and free < min(LEAST_SHARED_MEMORY, room(folder))
