"""How a file becomes memory of this process.

Knows files and addresses; nothing of arenas or blocks. What differs between systems is asked of the
system's own constants: only Linux has MADV_REMOVE, and with it the two promises that the rest of the
package makes use of where it can. A private mapping shows what others write, page by page, until this
process writes to the page itself; and MADV_DONTNEED throws such a changed page away at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any

#: Private mappings can be set back to what the file holds.
CAN_REVERT = hasattr(mmap, "MADV_REMOVE")

#: Memory for changes is not set aside beforehand: most inputs are never changed. Python knows the name
#: only since 3.13; this is its value on Linux (x86, ARM, RISC-V).
NORESERVE: int = getattr(mmap, "MAP_NORESERVE", 0x4000 if CAN_REVERT else 0)

#: Put a mapping where another one is; Python has no name for it. The same value on Linux and macOS.
MAP_FIXED = 0x10

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


def map_shared(descriptor: int, size: int) -> mmap.mmap:
    """Map a file so that everybody sees what is written.

    Raises
    ------
    OSError
        No address space is left.
    """
    return map_file(descriptor, size, mmap.MAP_SHARED)


def map_private(descriptor: int, size: int) -> mmap.mmap:
    """Map a file so that nobody else sees what is written.

    Raises
    ------
    OSError
        No address space is left.
    """
    return map_file(descriptor, size, mmap.MAP_PRIVATE | NORESERVE)


def map_file(descriptor: int, size: int, flags: int) -> mmap.mmap:
    """Map a whole file, and say what it was about if that fails."""
    try:
        return mmap.mmap(descriptor, size, flags=flags, prot=READ_WRITE)
    except OSError as error:
        error.add_note(f"while mapping a segment of {size} bytes; ulimit -v limits the address space")
        raise


def revert(mapping: mmap.mmap, offset: int, nbytes: int) -> None:
    """Throw away what this process changed in a private mapping; only where CAN_REVERT says so.

    Parameters
    ----------
    mapping : mmap
        The private mapping.
    offset, nbytes : int
        Which part of it, on whole pages, in bytes.
    """
    mapping.madvise(mmap.MADV_DONTNEED, offset, nbytes)


def address_of(mapping: mmap.mmap) -> int:
    """Tell at which address a mapping starts."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def map_at(address: int | None, nbytes: int, flags: int, descriptor: int, offset: int) -> int:
    """Map a part of a file, as the C library's mmap does; return where.

    Raises
    ------
    OSError
        It could not be done.
    """
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    whole = ctypes.c_int
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, whole, whole, whole, ctypes.c_long]
    found = function(address, nbytes, READ_WRITE, flags, descriptor, offset)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


def make_private(mapping: mmap.mmap, descriptor: int) -> None:
    """Turn a shared mapping into a private one, at the same place, for a forked process.

    Memory that both processes know as their own must not be shared by accident. Where segments cannot be
    mapped privately, it stays shared.
    """
    if CAN_REVERT:
        flags = mmap.MAP_PRIVATE | NORESERVE | MAP_FIXED
        map_at(address_of(mapping), len(mapping), flags, descriptor, 0)


class Window:
    """A private mapping of a part of a file, with changes of its own. It goes when nobody looks any more.

    Made by the C library directly, because Python's own mapping keeps a descriptor open for each.
    NumPy sees it as an array of bytes.

    Parameters
    ----------
    descriptor : int
        The file; not needed any more afterwards.
    offset, nbytes : int
        The part of it, on whole pages, in bytes.

    Raises
    ------
    OSError
        No address space is left, or too many mappings exist.
    """

    def __init__(self, descriptor: int, offset: int, nbytes: int) -> None:
        unmap = ctypes.CDLL(None).munmap
        unmap.restype = ctypes.c_int
        unmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        #: Where it starts in this process.
        self.address = map_at(None, nbytes, mmap.MAP_PRIVATE | NORESERVE, descriptor, offset)
        #: Its length, in bytes.
        self.nbytes = nbytes
        finalizer = weakref.finalize(self, unmap, self.address, nbytes)
        finalizer.atexit = False  # the process's end does it, and arrays may still be in use until then

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}
