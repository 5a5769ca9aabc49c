"""How much private memory processes take, told often and cheaply.

Private memory is anonymous memory that is resident: heaps, temporaries, changed copies of shared pages.
What lies in arenas is not in it, and is counted by whoever owns them.

Two ways to look at a process. The *fast* one reads a counter that the system keeps anyway, but pages that
forked processes share count for each of them. The *exact* one has the system walk all pages that are mapped,
and shares them out. Measured on a worker with dask.array imported (90 MB of private memory, of which 56 MB
are others' share): fast 6 µs; exact 2 ms, and 25 to 45 ms more for each GB of arenas that is mapped; on a
busy machine, three times as long. So `PrivateMemory` looks exactly only now and then, to learn how much of a
process is shared.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import psutil

PROC: Final = Path("/proc")

#: Seconds from one exact look at a process to the next, at least.
REFRESH: Final = 2.0
#: The time between exact looks is at least so many times what the last ones took: half a percent.
PATIENCE: Final = 200

_ANONYMOUS: Final = re.compile(rb"^Anonymous:\s+(\d+) kB", re.MULTILINE)
_PSS_ANON: Final = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)
_RESIDENT: Final = re.compile(rb"^(VmHWM|RssFile|RssShmem):\s+(\d+) kB", re.MULTILINE)
#: What has the system forget the peak of a process, and nothing else.
_FORGET_PEAK: Final = b"5"
#: Seconds in which no task takes much memory and gives it back.
_BRIEF: Final = 0.005


def private_bytes(pid: int, *, proc: Path = PROC) -> int:
    """Tell quickly how much private memory a process takes.

    Parameters
    ----------
    pid : int
        The process.
    proc : Path
        Where the system tells of its processes.

    Returns
    -------
    int
        Bytes; pages that it shares with a process that it was forked from, or with its own forks, count in
        full. 0 if there is no such process any more. In older systems the counter lags behind by up to some
        MB, the more the more CPUs there are.
    """
    return resident_bytes(pid, proc=proc)[0]


def resident_bytes(pid: int, *, proc: Path = PROC) -> tuple[int, int]:
    """Tell quickly how much private memory a process takes, and how much it maps.

    Parameters
    ----------
    pid : int
        The process.
    proc : Path
        Where the system tells of its processes.

    Returns
    -------
    (int, int)
        Bytes, as for `private_bytes`, and those of files and shared memory; all of it private where there is
        no /proc.
    """
    # Neither Path nor a file object: they take as long as the system does.
    try:
        descriptor = os.open(f"{proc}/{pid}/statm", os.O_RDONLY)
    except FileNotFoundError:
        return (0, 0) if (proc / "self").exists() else (_resident(pid), 0)
    try:
        _, resident, shared, *_ = os.read(descriptor, 256).split()
    except ProcessLookupError:
        return 0, 0
    finally:
        os.close(descriptor)
    return (int(resident) - int(shared)) * mmap.PAGESIZE, int(shared) * mmap.PAGESIZE


def exact_private_bytes(pid: int, *, proc: Path = PROC) -> int:
    """Tell exactly how much private memory a process takes; this may take long.

    Parameters
    ----------
    pid : int
        The process.
    proc : Path
        Where the system tells of its processes.

    Returns
    -------
    int
        Bytes; of a page that several processes share, each has its part, so the sum over all of them is
        right. 0 if there is no such process any more. Where the system does not tell that, what the process
        has for itself alone; and if it tells not even that, `private_bytes`.
    """
    found = _PSS_ANON.search(_rollup(pid, proc))
    if found:
        return int(found[1]) << 10
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.NoSuchProcess:
        return 0
    except psutil.AccessDenied:
        return private_bytes(pid, proc=proc)


def others_share(pid: int, *, proc: Path = PROC) -> int:
    """Tell by how much `private_bytes` of a process exceeds `exact_private_bytes`, from a single exact look.

    Both are taken from the same look, as a process may take or give back hundreds of MB between two.
    """
    rollup = _rollup(pid, proc)
    whole, share = _ANONYMOUS.search(rollup), _PSS_ANON.search(rollup)
    return int(whole[1]) - int(share[1]) << 10 if whole and share else 0


class PrivateMemory:
    """Watches how much private memory some processes take together.

    Parameters
    ----------
    pids : callable
        Gives the processes there are at present.
    proc : Path
        Where the system tells of its processes.
    clock : callable
        Gives seconds.

    Attributes
    ----------
    last : dict of int to int
        Bytes of each process when `sample` was last called. The sum is right, whichever process a shared
        page is counted for.

    Notes
    -----
    What a process shares is learned when it, or another, is first seen, and then anew every `REFRESH`
    seconds, the longest unseen first, but never so often that it takes more than one part in `PATIENCE` of
    the time. The calling process is not looked at exactly: it was forked from none of the others, nor they
    from it.

    In between, errors go one way or the other, and are bounded by what the forks shared when last looked at:

    - *Too little* where a process has written to shared pages since, or given them back, or where one that
      shared them has ended, so that the others' parts have grown. Never by more than was taken off: a
      process that grows is counted at once, by every byte that it grows.
    - *Too much* where a process has made more pages that others share since.

    When processes have gone, all others are therefore due to be looked at again, in turn.

    Not thread-safe.
    """

    def __init__(
        self,
        pids: Callable[[], Iterable[int]],
        *,
        proc: Path = PROC,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._pids = pids
        self._proc = proc
        self._clock = clock
        self.last: dict[int, int] = {}
        #: What `pids` gave last.
        self._known: list[int] = []
        #: What is to be taken off each process's counter, in bytes.
        self._shared: dict[int, int] = {}
        #: When each is to be looked at again; the one whose last look is the longest ago comes first.
        self._due: dict[int, float] = {}
        #: Until when there is no exact look for lack of time.
        self._rest_until = 0.0

    def sample(self) -> int:
        """Tell how many bytes of private memory the processes take now, all together."""
        pids = list(dict.fromkeys(self._pids()))
        self._learn(pids)
        self.last = {
            pid: max(0, private_bytes(pid, proc=self._proc) - self._shared.get(pid, 0)) for pid in pids
        }
        return sum(self.last.values())

    def as_last(self, pid: int, nbytes: int) -> int:
        """Tell what `last` would have for a process that itself has found so many bytes."""
        return max(0, nbytes - self._shared.get(pid, 0))

    def _learn(self, pids: list[int]) -> None:
        """Look exactly at processes that are new, and at one more if it is time."""
        if pids != self._known:
            self._known = pids
            others = [pid for pid in pids if pid != os.getpid()]
            new = [pid for pid in others if pid not in self._due]
            self._due = {pid: -math.inf for pid in self._due if pid in others}
            self._shared = {pid: self._shared[pid] for pid in self._due}
            # A fork takes off what is counted for those that it shares with: else that would count twice.
            for pid in others if new else ():
                self._look(pid)
        now = self._clock()
        if self._due and now >= self._rest_until:
            pid, due = next(iter(self._due.items()))
            if now >= due:
                self._look(pid)

    def _look(self, pid: int) -> None:
        start = self._clock()
        self._shared[pid] = others_share(pid, proc=self._proc)
        end = self._clock()
        self._rest_until = max(self._rest_until, start) + PATIENCE * (end - start)
        self._due.pop(pid, None)  # it goes to the end
        self._due[pid] = end + REFRESH


class PeakMemory:
    """How much more private memory this process had for a while than before, though it gave it back.

    `begin`, then `note` while what was mapped meanwhile is still mapped, then `take`.

    Notes
    -----
    The system keeps the most that a process ever had resident, and forgets it when told to. Mapped files and
    shared memory are in it. They are taken off as they are at the end or at the beginning, whichever is more;
    what a task maps, touches and unmaps counts as its own, so it may come out too large, but not too small.
    Where the system keeps or forgets nothing of the kind, nothing is found. Noting costs 20 µs.
    """

    def __init__(self, *, proc: Path = PROC) -> None:
        self._status = _opened(proc / "self" / "status", os.O_RDONLY)
        self._forget = _opened(proc / "self" / "clear_refs", os.O_WRONLY)
        self._began: float | None = None
        self._private = self._mapped = self._found = 0

    def begin(self, private: int, mapped: int) -> None:
        """Forget what was.

        Parameters
        ----------
        private, mapped : int
            What there is now, as `resident_bytes` tells it.
        """
        self._found, self._began = 0, None
        if self._forget is None or self._status is None:
            return
        try:
            os.pwrite(self._forget, _FORGET_PEAK, 0)
        except OSError:  # the system has the file, and does not let it be written to
            self.close()
            return
        self._private, self._mapped = private, mapped
        self._began = time.perf_counter()

    def note(self) -> None:
        """See how much it was, if that was long enough to take much."""
        if self._began is None or time.perf_counter() - self._began < _BRIEF or self._status is None:
            return
        status = os.pread(self._status, 4096, 0)
        found = {name: int(kilobytes) << 10 for name, kilobytes in _RESIDENT.findall(status)}
        mapped = found.get(b"RssFile", 0) + found.get(b"RssShmem", 0)
        self._found = max(0, found.get(b"VmHWM", 0) - max(mapped, self._mapped) - self._private)

    def take(self) -> int:
        """Give what was noted, in bytes; 0 if nothing was."""
        found, self._found, self._began = self._found, 0, None
        return found

    def close(self) -> None:
        """Close files."""
        for descriptor in (self._status, self._forget):
            if descriptor is not None:
                os.close(descriptor)
        self._status = self._forget = None


def _opened(path: Path, flags: int) -> int | None:
    try:
        return os.open(path, flags)
    except OSError:  # not Linux, or one without it
        return None


def _rollup(pid: int, proc: Path) -> bytes:
    """Have the system look at all pages of a process; empty where it cannot be had."""
    try:
        return (proc / str(pid) / "smaps_rollup").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _resident(pid: int) -> int:
    """Tell what a process has in memory, where there is no /proc; what it maps is in it too."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
