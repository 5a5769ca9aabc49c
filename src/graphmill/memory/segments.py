"""Segments of shared memory by name: made, opened and removed.

The only place that makes shared memory. Not by way of `multiprocessing.shared_memory`, whose tracker is one
more process, prints a warning when the maker dies, and is hit by what hits the maker's process group. Who
makes a segment sees to its end: a finaliser in the process, and the pool's template after its death.

Knows names only, and imports little: the template, which outlives all, has it too.
"""

from __future__ import annotations

import _posixshmem  # type: ignore[import-not-found]  # what SharedMemory is made of; no stub exists
import os
from pathlib import Path
from typing import Final

#: Where Linux keeps segments as files. Other systems have no such folder, and no way to list them; there it
#: stands for their names all the same.
SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  # no place for temporary files, but what shm_open uses


def create(name: str, size: int) -> int:
    """Make an empty segment that only this user can open; return a descriptor that children do not inherit.

    Raises
    ------
    OSError
        There is one of that name, or there cannot be one of that size.
    """
    descriptor = int(_posixshmem.shm_open(f"/{name}", os.O_RDWR | os.O_CREAT | os.O_EXCL, mode=0o600))
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        unlink(name)
        raise
    return descriptor


def attach(name: str) -> int:
    """Open a segment; return a descriptor that children do not inherit.

    Raises
    ------
    FileNotFoundError
        There is none of that name.
    """
    return int(_posixshmem.shm_open(f"/{name}", os.O_RDWR, mode=0o600))


def unlink(name: str) -> None:
    """Remove a segment's name. Memory that is mapped lives on.

    Raises
    ------
    FileNotFoundError
        There is none of that name.
    """
    _posixshmem.shm_unlink(f"/{name}")
