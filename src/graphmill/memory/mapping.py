"""How a file becomes memory of this process.

Knows files and addresses; nothing of arenas or blocks. What differs between systems is asked of the
system's own constants: only Linux has MADV_REMOVE, and with it the two promises that the rest of the
package makes use of where it can. A private mapping shows what others write, page by page, until this
process writes to the page itself; and MADV_DONTNEED throws such a changed page away at once.
"""

from __future__ import annotations

import ctypes
import functools
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

#: Bytes that the system can put in place and map at once, where it can.
HUGE_PAGE = 2 << 20


def map_shared(descriptor: int, size: int) -> memoryview:
    """Map a file so that everybody sees what is written.

    Returns
    -------
    memoryview
        Of bytes. The mapping goes with the last object that refers to it.

    Raises
    ------
    OSError
        No address space is left.
    """
    return map_file(descriptor, size, mmap.MAP_SHARED)


def map_private(descriptor: int, size: int) -> memoryview:
    """Map a file so that nobody else sees what is written.

    Returns
    -------
    memoryview
        Of bytes. The mapping goes with the last object that refers to it.

    Raises
    ------
    OSError
        No address space is left.
    """
    return map_file(descriptor, size, mmap.MAP_PRIVATE | NORESERVE)


def map_file(descriptor: int, size: int, flags: int) -> memoryview:
    """Map a whole file, and say what it was about if that fails."""
    try:
        window = Window(descriptor, 0, size, flags)
    except OSError as error:
        error.add_note(f"while mapping a segment of {size} bytes; ulimit -v limits the address space")
        raise
    seen = (ctypes.c_ubyte * size).from_address(window.address)
    seen.window = window  # type: ignore[attr-defined]  # lives as long as views of it do
    return memoryview(seen).cast("B")


def revert(mapping: memoryview, offset: int, nbytes: int) -> None:
    """Throw away what this process changed in a private mapping; only where CAN_REVERT says so.

    Parameters
    ----------
    mapping : memoryview
        The private mapping.
    offset, nbytes : int
        Which part of it, on whole pages, in bytes.
    """
    advise(mapping, offset, nbytes, mmap.MADV_DONTNEED)


def address_of(memory: Any) -> int:
    """Tell at which address writable memory starts."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def advise(mapping: memoryview, offset: int, nbytes: int, advice: int) -> None:
    """Tell the system what is to become of a part of a mapping, on whole pages.

    Raises
    ------
    OSError
        It refused.
    """
    if c_library().madvise(address_of(mapping) + offset, nbytes, advice):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def c_library() -> Any:
    """Get the C library, with what is used of it declared."""
    library = ctypes.CDLL(None, use_errno=True)
    whole, pointer, size = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
    library.mmap.restype = pointer
    library.mmap.argtypes = [pointer, size, whole, whole, whole, ctypes.c_long]
    library.munmap.argtypes = [pointer, size]
    library.madvise.argtypes = [pointer, size, whole]
    return library


def map_at(
    address: int | None, nbytes: int, flags: int, descriptor: int, offset: int, access: int = READ_WRITE
) -> int:
    """Map a part of a file, as the C library's mmap does; return where.

    Raises
    ------
    OSError
        It could not be done.
    """
    found = c_library().mmap(address, nbytes, access, flags, descriptor, offset)
    if found == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(found)


def map_aligned(nbytes: int, flags: int, descriptor: int, offset: int) -> int:
    """Map a part of a file where its huge pages can be mapped as such; return where.

    Raises
    ------
    OSError
        It could not be done.
    """
    # Taken first with room to move in, since the system itself aligns shared memory only where it is
    # configured to use huge pages.
    nothing = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    begin = map_at(None, nbytes + HUGE_PAGE, nothing, -1, 0, access=0)
    address = begin + (offset - begin) % HUGE_PAGE
    unmap = c_library().munmap
    try:
        map_at(address, nbytes, flags | MAP_FIXED, descriptor, offset)
    except OSError:
        unmap(begin, nbytes + HUGE_PAGE)
        raise
    end, last = -(-(address + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE, begin + nbytes + HUGE_PAGE
    if address > begin:
        unmap(begin, address - begin)
    if last > end:
        unmap(end, last - end)
    return address


def make_private(mapping: memoryview, descriptor: int) -> None:
    """Turn a shared mapping into a private one, at the same place, for a forked process.

    Memory that both processes know as their own must not be shared by accident. Where segments cannot be
    mapped privately, it stays shared.
    """
    if CAN_REVERT:
        flags = mmap.MAP_PRIVATE | NORESERVE | MAP_FIXED
        map_at(address_of(mapping), len(mapping), flags, descriptor, 0)


class Window:
    """A mapping of a part of a file. It goes when nobody looks any more.

    Made by the C library directly: Python's own mapping keeps a descriptor open for each, and lies
    anywhere. NumPy sees it as an array of bytes.

    Parameters
    ----------
    descriptor : int
        The file; not needed any more afterwards.
    offset, nbytes : int
        The part of it, on whole pages, in bytes.
    flags : int, optional
        By default private: changes are this process's own.

    Raises
    ------
    OSError
        No address space is left, or too many mappings exist.
    """

    def __init__(
        self, descriptor: int, offset: int, nbytes: int, flags: int = mmap.MAP_PRIVATE | NORESERVE
    ) -> None:
        map_it = map_aligned if CAN_REVERT and nbytes >= HUGE_PAGE else functools.partial(map_at, None)
        #: Where it starts in this process.
        self.address = map_it(nbytes, flags, descriptor, offset)
        #: Its length, in bytes.
        self.nbytes = nbytes
        finalizer = weakref.finalize(self, c_library().munmap, self.address, nbytes)
        finalizer.atexit = False  # the process's end does it, and arrays may still be in use until then

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}
