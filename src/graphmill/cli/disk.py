"""How fast a disk is, for what is spilled to it."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Not more is written than this, in bytes, and not for longer than this, in seconds.
MOST: Final = 256 << 20
LONGEST: Final = 2.0
#: What is written at once: the size of a block.
_PIECE: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured."""

    #: Bytes in a second, until they are on the disk.
    write: float
    #: The same when they are read back; None where the system may have kept them in memory.
    read: float | None
    #: How much was written.
    nbytes: int


def measure(folder: Path) -> Speed | None:
    """Write a temporary file and read it; None if the folder has no room for that."""
    status = os.statvfs(folder)
    most = min(MOST, status.f_bavail * status.f_frsize // 2)
    if most < _PIECE:
        return None
    # Not zeros, which some file systems do not write.
    piece = os.urandom(1 << 20) * (_PIECE >> 20)
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        nbytes, began = 0, time.perf_counter()
        while nbytes + _PIECE <= most and time.perf_counter() - began < LONGEST:
            nbytes += os.write(file.fileno(), piece)
        os.fsync(file.fileno())
        write = nbytes / (time.perf_counter() - began)
        return Speed(write, _read(file.fileno(), nbytes), nbytes)


def _read(descriptor: int, nbytes: int) -> float | None:
    if not hasattr(os, "posix_fadvise"):
        return None
    # What is on the disk already, the system lets go of.
    os.posix_fadvise(descriptor, 0, nbytes, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    read, began = 0, time.perf_counter()
    while read < nbytes and time.perf_counter() - began < LONGEST:
        read += len(os.read(descriptor, _PIECE))
    return read / (time.perf_counter() - began)
