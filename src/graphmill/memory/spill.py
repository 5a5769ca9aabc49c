"""The spill file: where blocks go when memory is short.

An arena in a file on disk, with the allocator that all arenas have. So a block that has moved there is read
as any other, through the private mapping, by whoever reads it: nothing is loaded first, and nobody has a
second copy. Only the process that made the file writes to it. Space goes back to the disk when a block is
released.

Bytes move from file to file within the system, outside the GIL. It is told at once to write them to the
disk: memory that waits to be written cannot be used for anything else, and counts for a control group.

Knows files and ranges. Must not know who needs a block, nor which one should go.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from graphmill.errors import ArenaFull, ConfigError, SpillError, SpillFull
from graphmill.memory.arena import FULL, PAGE, UNSUPPORTED, Arena, fitting_size, room
from graphmill.memory.block import BlockId
from graphmill.memory.leftovers import OwnedFolder
from graphmill.memory.ranges import Ranges

logger = logging.getLogger(__name__)

#: Elsewhere, sendfile is for sockets only.
BETWEEN_FILES = sys.platform == "linux"

#: File systems that are memory.
IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
#: File systems on other machines, or that other programs provide.
REMOTE = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "davfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"}
)

#: Addresses cost nothing, but holes of the wrong length are of no use: the file is longer than the bytes that
#: can be in it, by this factor, up to this length in bytes, which all common file systems allow.
ADDRESSES_PER_BYTE = 4
LONGEST_FILE = 1 << 43


class SpillFile:
    """Blocks on disk. Made by the process that owns the blocks; others attach its arena.

    Parameters
    ----------
    base : Path
        The folder to make it in, within a folder of its own.
    number : int
        The number of its arena.
    limit : int, optional
        How many bytes may be there at once; by default as many as the disk has room for.
    name : str, optional
        What the folder is to be called that the file is in, from `own_name`.

    Raises
    ------
    SpillError
        There cannot be such a file.

    Notes
    -----
    For one thread at a time.
    """

    def __init__(self, base: Path, number: int, limit: int | None = None, name: str | None = None) -> None:
        self._limit = limit
        #: Bytes of the blocks that are there.
        self.used = 0
        try:
            self._folder = OwnedFolder(base, name)
        except OSError as error:
            raise _unusable(base, error) from error
        try:
            most = room(base) if limit is None else limit
            size = fitting_size(min(ADDRESSES_PER_BYTE * most, LONGEST_FILE), mappings=2)
            #: What others attach.
            self.arena = Arena.create(number, size, self._folder.path)
        except OSError as error:
            self._folder.close()
            raise _unusable(base, error) from error
        self._ranges = Ranges(self.arena.size, PAGE)

    @property
    def folder(self) -> Path:
        """The folder that holds the file and nothing else; only this user may look into it."""
        return self._folder.path

    def write(self, source: Arena, offset: int, length: int) -> BlockId:
        """Copy a block to disk.

        Parameters
        ----------
        source : Arena
            Where it is.
        offset, length : int
            Which part of that, on whole pages, in bytes.

        Returns
        -------
        BlockId
            Where it is now, too. It has the same length there.

        Raises
        ------
        SpillFull
            There is no room. Nothing has changed.
        SpillError
            It could not be written. Nothing has changed.
        """
        if self._limit is not None and self.used + length > self._limit:
            raise self._full(length, f"spill_limit allows {self._limit}")
        try:
            taken = self._ranges.allocate(length)
        except ArenaFull as error:
            raise self._full(length, f"no longer file than {self.arena.size} can be had") from error
        block = BlockId(self.arena.number, taken.offset)
        self.used += length
        try:
            self.arena.reserve(taken.offset, length)
            copy(source, offset, self.arena.descriptor, taken.offset, length)
            start_writing(self.arena.descriptor, taken.offset, length)
        except BaseException as error:
            self.free(block, length)
            if isinstance(error, ArenaFull) or (isinstance(error, OSError) and error.errno in FULL):
                raise self._full(length, f"the disk has {self._room()} left") from error
            if isinstance(error, OSError):
                raise _unusable(self.folder.parent, error) from error
            raise
        return block

    def free(self, block: BlockId, length: int) -> None:
        """Give the space of a block back to the disk.

        Raises
        ------
        ValueError
            No such block is there.
        """
        try:
            punched = self.arena.punch(block.offset, length)
        except OSError as error:
            # A disk that is full or fails may refuse even that. The space is used again by the next block.
            logger.warning("space in %s cannot be given back to the disk: %s", self.folder, error)
            punched = False
        self._ranges.free(block.offset, length, warm=not punched)
        self.used -= length

    def _room(self) -> int:
        status = os.fstatvfs(self.arena.descriptor)
        return status.f_bavail * status.f_frsize

    def _full(self, length: int, why: str) -> SpillFull:
        return SpillFull(
            f"no room to move {length} bytes to disk in {self.folder.parent}: {self.used} bytes are there, "
            f"and {why}; smaller chunks need less, spill_folder= takes a folder with more room, and "
            "spill_limit= says how much of it may be used"
        )

    # ---- the end

    def close(self) -> None:
        """Remove the file, whoever needs what is in it. May be called twice."""
        self.arena.close()
        self.arena.unlink()
        self._folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _unusable(base: Path, error: OSError) -> SpillError:
    return SpillError(
        f"blocks cannot be moved to disk in {base}: {error.strerror or error}; "
        "spill_folder= takes another folder"
    )


def copy(source: Arena, offset: int, target: int, at: int, nbytes: int) -> None:
    """Copy from an arena to a file, by descriptor, without holding the GIL.

    Raises
    ------
    OSError
        Not all of it could be written.
    """
    end = offset + nbytes
    try:
        os.lseek(target, at, os.SEEK_SET)
        while offset < end and BETWEEN_FILES:
            moved = os.sendfile(target, source.descriptor, offset, end - offset)
            if not moved:
                break
            offset += moved
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
    at += nbytes - (end - offset)
    memory = source.shared
    while offset < end:
        moved = os.pwrite(target, memory[offset:end], at)
        offset += moved
        at += moved


def start_writing(descriptor: int, offset: int, nbytes: int) -> None:
    """Have the system write to the disk what is only in memory as yet, and not wait for that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


# ---- where it lies


def checked_folder(folder: Path) -> Path:
    """See that a folder that a user has chosen can be used to spill to.

    Raises
    ------
    ConfigError
        It is none, or nothing can be written there.
    """
    if not is_usable(folder):
        raise ConfigError(f"spill_folder must be a folder that can be written to, got {os.fspath(folder)!r}")
    kind = file_system(folder)
    if kind in IN_MEMORY:
        logger.warning(
            "What is spilled to %s stays in memory, since that is a %s; another spill_folder saves memory",
            folder,
            kind,
        )
    return folder.resolve()


def default_folder() -> Path | None:
    """Find the best folder to spill to: on a disk of this machine, a fast one if there is any.

    Returns
    -------
    Path or None
        None if nothing can be written anywhere but to memory.
    """
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108 - for a folder of our own
    with suppress(FileNotFoundError):
        candidates.append(Path.cwd())
    return best_folder(candidates)


def best_folder(candidates: Iterable[Path]) -> Path | None:
    """Choose among folders; of several that are equally good, the first."""
    usable = {folder.resolve(): None for folder in candidates if is_usable(folder)}
    kinds = {folder: file_system(folder) for folder in usable}
    on_disk = [folder for folder, kind in kinds.items() if kind not in IN_MEMORY]
    return min(on_disk, key=lambda folder: slowness(folder, kinds[folder]), default=None)


def is_usable(folder: Path) -> bool:
    """Tell whether files can be made in a folder."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def slowness(folder: Path, kind: str) -> int:
    """Tell whether a folder is on a fast disk, a disk that turns, or another machine: 0, 1 or 2."""
    return 2 if kind in REMOTE or kind.startswith("fuse.") else int(turns(folder))


def turns(folder: Path) -> bool:
    """Tell whether the system takes a folder's disk for one that turns."""
    device = folder.stat().st_dev
    node = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for disk in (node, node.parent):  # a partition has no queue, but its disk has
        queue = disk / "queue" / "rotational"
        if queue.exists():
            return queue.read_text().strip() == "1"
    return False


def file_system(folder: Path) -> str:
    """Tell the kind of file system that a folder is on; empty if that is not known."""
    path = folder.resolve()
    above = {os.fspath(each): len(each.parts) for each in (path, *path.parents)}
    try:
        mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in above]
    except OSError:  # Linux without /proc
        return ""
    # Of those mounted at one place, the last is what is seen.
    nearest = max(reversed(mounts), key=lambda mount: above[mount.mountpoint], default=None)
    return "" if nearest is None else str(nearest.fstype)
