"""Tells which pages of this process's private mappings it has changed.

Linux shows for each page of a process whether it is still the file's own or a copy made for a write
(/proc/self/pagemap; no privilege is needed for that much). Elsewhere nobody can tell.
"""

from __future__ import annotations

import mmap
import os
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphmill.memory.mapping import address_of

PAGE = mmap.PAGESIZE

#: What the kernel tells of each page: one 64-bit number.
ENTRY = 8
#: The three highest bits: present in memory, swapped out, a page of a file.
STATE = np.uint64(61)
FILE = np.uint64(1)

#: Pages that are side by side: the first and the one after the last, counted from the start of the range.
Run: TypeAlias = tuple[int, int]


class PageMap:
    """What the kernel tells a process of its own pages.

    Notes
    -----
    The file is opened at the first question, and closed by `close`. After a fork it would still show the
    parent, so it is then opened anew.
    """

    __slots__ = ("_closed", "_descriptor", "_process")

    def __init__(self) -> None:
        self._descriptor: int | None = None
        #: The process that tried to open the file.
        self._process: int | None = None
        self._closed = False

    def changed(self, address: int, nbytes: int) -> list[Run] | None:
        """Find the pages of a private mapping that were written to, in memory or swapped out.

        Parameters
        ----------
        address, nbytes : int
            The memory in question; a page of which only a part is meant counts as a whole.

        Returns
        -------
        list of (int, int), or None
            Where such pages are, in pages from the one that `address` lies in; None if it cannot be told.
        """
        if self._process != os.getpid() and not self._closed:
            self._open()
        if self._descriptor is None:
            return None
        return self._read(address // PAGE, -(-(address + nbytes) // PAGE))

    def close(self) -> None:
        """Close the file; from then on nothing can be told. May be called twice."""
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> None:
        """Open the file, and see whether it tells the truth: a sandbox may show zeros."""
        self._drop()
        self._process = os.getpid()
        try:
            self._descriptor = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # no such file on this system, or not for us
        with mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as probe:
            probe[0] = 1
            first = address_of(probe) // PAGE
            seen = self._read(first, first + 1)
        if seen != [(0, 1)]:
            self._drop()

    def _read(self, first: int, last: int) -> list[Run] | None:
        """Read the entries of some pages."""
        assert self._descriptor is not None
        try:
            data = os.pread(self._descriptor, (last - first) * ENTRY, first * ENTRY)
        except OSError:
            return None
        if len(data) != (last - first) * ENTRY:
            return None
        state = np.frombuffer(data, np.uint64) >> STATE
        # Present or swapped out, and not a page of the file: a copy of this process's own.
        copies = (state > FILE) & (state & FILE == 0)
        return runs(copies) if copies.any() else []


def runs(flags: NDArray[np.bool_]) -> list[Run]:
    """Find where flags are set side by side."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))
