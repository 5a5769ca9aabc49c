"""An arena: one large sparse segment of memory that many processes map.

The parent creates it, in shared memory or as a file in a folder, and removes it; workers attach. Each
process maps it at most twice, when it first needs to: *shared* to write (only the one that allocates in it
does), and *private*, where changes stay in the process, to read. So any number of blocks takes one
descriptor and two mappings. Knows pages only: which of them are in use by whom is not known here.

Its name goes with the process that created it, unless that is killed: then it stays, and whoever was told of
its path beforehand removes it.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import weakref
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from graphmill.errors import ArenaFull
from graphmill.memory import segments
from graphmill.memory.hugepages import HugePages
from graphmill.memory.leftovers import lock, own_name
from graphmill.memory.mapping import CAN_REVERT, HUGE_PAGE, address_of, advise, map_private, map_shared
from graphmill.memory.segments import SHARED_MEMORY

#: Offsets and lengths of blocks are multiples of it, in bytes.
PAGE = mmap.PAGESIZE

#: What a system says when there is no room for pages. A memory cgroup or strict accounting says ENOMEM.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM})

#: What it says when it cannot do such a thing at all.
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """All that another process needs to attach an arena, or to remove it after its owner died."""

    #: The arena's number, by which blocks name it.
    number: int
    #: Its length, in bytes.
    size: int
    #: Name of the segment or file.
    name: str
    #: Folder of the file; None if it is a segment of shared memory.
    folder: str | None

    def open(self) -> int:
        """Open the segment; return a descriptor that children do not inherit."""
        if self.folder is None:
            return segments.attach(self.name)
        return os.open(Path(self.folder, self.name), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)

    def unlink(self) -> None:
        """Remove the segment's name, for whoever cleans up. Memory that is mapped lives on."""
        with suppress(FileNotFoundError):
            if self.folder is None:
                segments.unlink(self.name)
            else:
                Path(self.folder, self.name).unlink()


class Arena:
    """One segment, as this process sees it. Made by `create` and `attach`.

    As a context manager it is closed at the end, and unlinked by the process that created it.
    """

    def __init__(self, handle: ArenaHandle, descriptor: int) -> None:
        #: What other processes need to attach it.
        self.handle = handle
        self._descriptor: int | None = descriptor
        self._shared: memoryview | None = None
        self._private: memoryview | None = None
        #: None where small pages only can be had: in files, and on other systems than Linux.
        self._huge = HugePages() if CAN_REVERT and handle.folder is None else None
        #: Removes the name, once; None in processes that only attached.
        self._unlink: weakref.finalize[..., Self] | None = None

    @classmethod
    def create(cls, number: int, size: int, folder: Path | None = None, name: str | None = None) -> Self:
        """Create a segment, all of it empty.

        Parameters
        ----------
        number : int
            By which blocks name it.
        size : int
            Its length, in bytes; rounded up to whole pages. No memory is taken yet.
        folder : Path, optional
            Make it a file in this folder, which must exist; in shared memory otherwise.
        name : str, optional
            One that `own_name` has made up; by default, another.

        Raises
        ------
        OSError
            There cannot be such a segment: see `fitting_size`.
        """
        size = -(-size // PAGE) * PAGE
        handle = ArenaHandle(number, size, name or own_name(), None if folder is None else str(folder))
        if folder is None:
            descriptor = segments.create(handle.name, size)
        else:
            descriptor = create_file(folder / handle.name, size)
        lock(descriptor)
        arena = cls(handle, descriptor)
        arena._unlink = weakref.finalize(arena, remove, handle, os.getpid())
        return arena

    @classmethod
    def attach(cls, handle: ArenaHandle) -> Self:
        """Open a segment that another process created.

        Raises
        ------
        FileNotFoundError
            It is gone.
        """
        return cls(handle, handle.open())

    @property
    def number(self) -> int:
        """Its number, by which blocks name it."""
        return self.handle.number

    @property
    def size(self) -> int:
        """Its length, in bytes."""
        return self.handle.size

    @property
    def descriptor(self) -> int:
        """The open file.

        Raises
        ------
        ValueError
            The arena is closed.
        """
        if self._descriptor is None:
            raise ValueError(f"arena {self.number} is closed")
        return self._descriptor

    # ---- mappings

    @property
    def shared(self) -> memoryview:
        """The mapping to write through: everybody sees it."""
        if self._shared is None:
            self._shared = map_shared(self.descriptor, self.size)
        return self._shared

    @property
    def address(self) -> int:
        """Where the shared mapping starts in this process."""
        return address_of(self.shared)

    @property
    def private(self) -> memoryview:
        """The mapping to read through: what this process writes there, nobody else sees."""
        if self._private is None:
            self._private = map_private(self.descriptor, self.size)
        return self._private

    @property
    def private_address(self) -> int:
        """Where the private mapping starts in this process."""
        return address_of(self.private)

    # ---- pages

    def reserve(self, offset: int, nbytes: int) -> None:
        """Make sure that pages are there where none were, so that writing to them cannot fail.

        Without it a full file system kills the process that writes (SIGBUS). Systems other than Linux
        have no limit on shared memory besides memory itself; there only files are filled.

        Parameters
        ----------
        offset, nbytes : int
            Which part, in bytes.

        Raises
        ------
        ArenaFull
            There is no room. Some of the pages may have come nevertheless.
        """
        if not 0 <= offset <= offset + nbytes <= self.size:
            raise ValueError(f"{nbytes} bytes at {offset} are no part of arena {self.number}")
        begin = end = offset
        if self._huge is not None and nbytes >= HUGE_PAGE:
            begin, end = self._huge.fill(self.descriptor, self.shared, offset, nbytes)
        try:
            for start, stop in ((offset, begin), (end, offset + nbytes)):
                if stop > start:
                    reserve_pages(self.descriptor, start, stop - start, self.handle.folder is not None)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ArenaFull(f"no room for {nbytes} bytes in {self.handle.name}: {error.strerror}") from error

    def punch(self, offset: int, nbytes: int) -> bool:
        """Give pages back to the system at once; they read as zeros afterwards.

        Parameters
        ----------
        offset, nbytes : int
            Which part, on whole pages, in bytes.

        Returns
        -------
        bool
            False if this system or file system cannot: the pages and their content are still there.
        """
        if not hasattr(mmap, "MADV_REMOVE"):
            return False
        try:
            advise(self.shared, offset, nbytes, mmap.MADV_REMOVE)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
        return True

    def keep_only(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Give back all pages but those of some ranges, after the process died that allocated here.

        Parameters
        ----------
        ranges : iterable of (int, int)
            Offset and length of each block that is still needed, in bytes.
        """
        at = 0
        for offset, length in [*sorted(ranges), (self.size, 0)]:
            if offset > at:
                self.punch(at, offset - at)
            at = max(at, offset + length)

    def occupied(self) -> int:
        """Count the bytes of its pages that are in use, by whomever."""
        return os.fstat(self.descriptor).st_blocks * 512

    # ---- the end

    def close(self) -> None:
        """Let go of it in this process; views that still live stay valid. May be called twice."""
        self._shared = self._private = None  # unmapped when the last view goes
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def unlink(self) -> None:
        """Remove its name, in the process that created it. May be called twice."""
        if self._unlink is not None:
            self._unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.unlink()


def create_file(path: Path, size: int) -> int:
    """Create a sparse file that only this user can open; return a descriptor that children do not inherit."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        path.unlink()
        raise
    return descriptor


def remove(handle: ArenaHandle, owner: int) -> None:
    """Remove a segment unless this is a forked copy of the process that created it."""
    if os.getpid() == owner:
        handle.unlink()


def reserve_pages(descriptor: int, offset: int, nbytes: int, is_file: bool) -> None:
    """Have the system set pages aside, by whatever it offers for that."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, offset, nbytes)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
        else:
            return
    if is_file:
        write_zeros(descriptor, offset, nbytes)


def write_zeros(descriptor: int, offset: int, nbytes: int) -> None:
    """Fill a part of a file."""
    end = offset + nbytes
    while offset < end:
        offset += os.pwrite(descriptor, ZEROS[: end - offset], offset)


def shared_memory_room() -> int | None:
    """Tell how many bytes are left for shared memory; None where there is no limit but memory itself."""
    return room(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None


def room(folder: Path) -> int:
    """Tell how many bytes are left for this user on the file system of a folder."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def fitting_size(wanted: int, mappings: int) -> int:
    """Tell how large arenas may be under the limits of this process.

    Parameters
    ----------
    wanted : int
        The size that would be best, in bytes.
    mappings : int
        How many mappings of that size one process will have: two for each arena that it reads and writes.

    Returns
    -------
    int
        At most `wanted`, in whole pages. Half of the address space that ``ulimit -v`` leaves is kept
        for everything else, and half of what strict accounting of memory leaves
        (``vm.overcommit_memory = 2``).
    """
    limits = [wanted, file_size_limit()]
    limits += [left // 2 // mappings for left in (address_space_left(), commit_left()) if left is not None]
    return max(0, min(limits)) // PAGE * PAGE


def file_size_limit() -> int:
    """Tell how long a file may be (``ulimit -f``)."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return 1 << 62 if limit == resource.RLIM_INFINITY else limit


def address_space_left() -> int | None:
    """Tell how much more this process may map (``ulimit -v``); None where there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return None
    return int(limit - psutil.Process().memory_info().vms)


def commit_left() -> int | None:
    """Tell how much memory may still be promised; None where the system promises freely."""
    try:
        strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
        lines = Path("/proc/meminfo").read_text().splitlines() if strict else []
    except FileNotFoundError:
        return None
    kibibytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return (kibibytes["CommitLimit"] - kibibytes["Committed_AS"]) * 1024 if strict else None
