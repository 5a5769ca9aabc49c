"""Memory-mapped files: they travel as the file's name and the place in it, so that writes arrive there.

Only while the file can still be found under its name. A private mapping (mode ``c``) may differ from
its file, so it travels as bytes, as an anonymous one does.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from graphmill.memory.arrays import Array, address_of, is_bytes, name_of, reach_of

#: What the kernel lists for each mapping, up to the path: addresses, rights, offset, device, inode.
_MAPS = Path("/proc/self/maps")
_COLUMNS = 6


def file_view(array: Any) -> tuple[Any, ...] | None:
    """Get the arguments for `open_view`, or None if there is no file to refer to.

    Parameters
    ----------
    array
        A `numpy.memmap`.
    """
    mapping, name = array._mmap, array.filename  # noqa: SLF001 - what it lies in; memmap offers no other way
    if mapping is None or name is None or array.mode == "c" or not array.size or not is_bytes(array.dtype):
        return None
    mapped = address_of(np.frombuffer(mapping, np.uint8))
    low, length = reach_of(array.shape, array.strides, array.itemsize)
    inside: int = array.__array_interface__["data"][0] + low - mapped
    if not 0 <= inside <= len(mapping) - length:
        return None
    # A slice of a memmap has the offset of the whole; the mapping starts at the page of that offset.
    start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + inside
    if not _still_there(os.fspath(name), mapped, start + length):
        return None
    mode = "r" if array.mode == "r" else "r+"  # w+ would empty the file
    frozen = mode != "r" and not array.flags.writeable
    layout = (name_of(array.dtype), array.shape, array.strides, -low, frozen)
    return os.fspath(name), mode, start, length, *layout


def open_view(
    name: str,
    mode: Any,
    start: int,
    length: int,
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    frozen: bool,
) -> Array:
    """Map the part of a file that an array shows."""
    whole: np.memmap[Any, Any] = np.memmap(name, np.uint8, mode, start, (length,))
    array: np.memmap[Any, Any] = np.ndarray.__new__(np.memmap, shape, dtype, whole, offset, strides)
    array.__array_finalize__(whole)  # the file's name, the mode, the offset
    if frozen:
        array.flags.writeable = False
    return array


def _still_there(name: str, address: int, end: int) -> bool:
    """Tell whether a name still leads to the mapped file, and that is long enough."""
    try:
        size = Path(name).stat().st_size
    except OSError:
        return False
    return size >= end and _mapped_path(address) in (None, os.path.realpath(name))


def _mapped_path(address: int) -> str | None:
    """Get the path of the file that is mapped at an address; None where the system does not tell.

    A file that was deleted, or replaced by another of its name, has "(deleted)" at the end.
    """
    if sys.platform != "linux":
        return None
    with _MAPS.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(maxsplit=_COLUMNS - 1)
            first, _, last = fields[0].partition("-")
            if int(first, 16) <= address < int(last, 16):
                return fields[-1].replace("\\012", "\n") if len(fields) == _COLUMNS else ""
    return ""
