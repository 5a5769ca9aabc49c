"""How long a program takes, and how much memory it and all that it starts take together at most.

Memory is what the machine has less of: private pages of every process of the tree (`Pss_Anon`, so that pages
which forked processes share count once), and what arenas in shared memory take, of those that any of these
processes has open; each counts once. For other libraries' sake, `Lookout` can count whatever files these
processes have open in memory. The page cache does not count, nor do arenas in files on a disk. Linux only;
elsewhere only time is measured.

The watching process looks about twenty times a second. For an exact look the system walks all pages, which
takes it milliseconds for each gigabyte, and holds up the watched program meanwhile. So that is only done when
counters that cost nothing, and never say too little, allow that there is a new peak; and less often where
looks take long.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from pathlib import Path

PROC = Path("/proc")

#: Seconds from one look to the next, at least.
INTERVAL = 0.05
#: The pause between two looks is at least so many times what the last look took.
PATIENCE = 9
#: Seconds that a program has to end when it is asked to.
GRACE = 10.0

PAGE = resource.getpagesize()
#: Bytes that the counters may lag behind, in each process.
SLACK = 4 << 20

#: An arena's file, in shared memory or in a folder; the system says so of one whose name is gone.
ARENA = re.compile(r".*/graphmill-\d+-\d+-\d+(?: \(deleted\))?")
#: Any file, so that shared memory counts whoever made it.
ANY = re.compile(r".*", re.DOTALL)
PRIVATE = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)

#: What a process that has just ended answers to questions about it; to root, it still tells some of it.
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Memory:
    """What a tree of processes takes at one moment."""

    #: Bytes of private memory, all processes together.
    private: int = 0
    #: Bytes in arenas, used or kept for use.
    arenas: int = 0

    @property
    def total(self) -> int:
        """Both together, in bytes."""
        return self.private + self.arenas


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a program took."""

    #: From its start to its end.
    seconds: float
    #: When it took most.
    peak: Memory
    #: The most that its processes had resident, added up, in bytes: what they share counts for each.
    resident: int
    #: What it printed, errors included.
    output: str
    #: How often it was looked at, and how often exactly.
    looks: int
    exact_looks: int
    #: CPU time that looking took, in seconds.
    looking: float
    #: CPU time that it took itself, with all that it started and waited for, in seconds.
    cpu: float


class ProgramFailed(Exception):
    """A program that was watched ended with an error; says what it had printed."""

    def __init__(self, message: str, code: int, footprint: Footprint) -> None:
        super().__init__(message)
        #: What it ended with: the number of a signal, negative, if that ended it.
        self.code = code
        #: What it took until then.
        self.footprint = footprint


def watch(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[float, Memory], None] | None = None,
    time_limit: float = inf,
    lookout: Lookout | None = None,
) -> Footprint:
    """Run a program to its end.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments.
    environment : mapping, optional
        Its environment; by default that of this process.
    tell : callable, optional
        Called after each look with the seconds since the start and the peak so far.
    time_limit : float, optional
        Seconds after which it is ended; as long as it takes by default.
    lookout : Lookout, optional
        What looks at it; by default a new one.

    Raises
    ------
    ProgramFailed
        It ended with an error, or was ended.
    """
    lookout = lookout or Lookout()
    with tempfile.TemporaryFile() as output:
        busy, start, before_it = time.process_time(), time.perf_counter(), cpu_of_children()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.returncode is None:
                before = time.perf_counter()
                if before - start > time_limit:
                    end(process)
                    break
                lookout.look(process.pid)
                if tell is not None:
                    tell(before - start, lookout.peak)
                took = time.perf_counter() - before
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(INTERVAL - took, PATIENCE * took))
            seconds, looking = time.perf_counter() - start, time.process_time() - busy
        finally:
            end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    cpu = cpu_of_children() - before_it
    footprint = Footprint(
        seconds, lookout.peak, lookout.resident, text, lookout.looks, lookout.exact_looks, looking, cpu
    )
    if process.returncode:
        message = f"{' '.join(command)} ended with {process.returncode} and said:\n{text}"
        raise ProgramFailed(message, process.returncode, footprint)
    return footprint


def cpu_of_children() -> float:
    """Tell what all processes took that have been waited for, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a program has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Lookout:
    """Keeps the peak of a tree of processes."""

    #: Which files in memory count, by their names.
    counted: re.Pattern[str] = ARENA
    #: Whether each look is exact, so that `now` is known.
    exactly: bool = False
    peak: Memory = field(default_factory=Memory)
    #: What was found by the last exact look.
    now: Memory = field(default_factory=Memory)
    #: The most that was resident, summed over all processes, in bytes.
    resident: int = 0
    #: Devices whose files take memory.
    in_memory: frozenset[int] = field(default_factory=lambda: frozenset(file_systems_in_memory()))
    #: How often it was looked at, and how often exactly.
    looks: int = 0
    exact_looks: int = 0

    def look(self, pid: int) -> None:
        """Measure a process with all that descend from it, if that may be a new peak."""
        self.looks += 1
        processes = frozenset(tree(pid))
        arenas = files_in_memory(processes, self.in_memory, self.counted)
        counters = [resident_and_shared(each) for each in processes]
        self.resident = max(self.resident, sum(resident for resident, _ in counters))
        # Where pages are shared by forks, this counts them for each.
        at_most = sum(resident - shared + SLACK for resident, shared in counters)
        if self.exactly or arenas + at_most > self.peak.total:
            self.exact_looks += 1
            self.now = Memory(sum(map(private_memory, processes)), arenas)
            self.peak = max(self.peak, self.now, key=lambda memory: memory.total)


def tree(pid: int) -> Iterator[int]:
    """Give a process and all that descend from it and still run, parents first."""
    found = [pid]
    for parent in found:  # grows meanwhile
        yield parent
        found.extend(children(parent))


def children(pid: int) -> Iterator[int]:
    """Give the processes that any thread of a process has started."""
    with suppress(*GONE):
        for thread in (PROC / str(pid) / "task").iterdir():
            with suppress(*GONE):
                yield from map(int, (thread / "children").read_text().split())


def private_memory(pid: int) -> int:
    """Count the bytes of private memory of one process, its share of those that forks have in common."""
    with suppress(*GONE):
        found = PRIVATE.search((PROC / str(pid) / "smaps_rollup").read_bytes())
        return int(found[1]) << 10 if found else 0
    return 0


def resident_and_shared(pid: int) -> tuple[int, int]:
    """Count the bytes of one process that are resident, and those of them that are files or shared memory."""
    with suppress(*GONE):
        resident, shared = map(int, (PROC / str(pid) / "statm").read_bytes().split()[1:3])
        return resident * PAGE, shared * PAGE
    return 0, 0


def files_in_memory(processes: Iterable[int], devices: Collection[int], counted: re.Pattern[str]) -> int:
    """Count the bytes of files that some processes have open, and that lie on some file systems."""
    found = chain.from_iterable(open_files(pid, devices, counted) for pid in processes)
    return sum(dict(found).values())


def open_files(
    pid: int, devices: Collection[int], counted: re.Pattern[str]
) -> Iterator[tuple[tuple[int, int], int]]:
    """Give files that a process has open: what identifies each, and the bytes that it takes."""
    with suppress(*GONE):
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with suppress(*GONE):
                if counted.fullmatch(str(descriptor.readlink())):
                    status = descriptor.stat()
                    if status.st_dev in devices:
                        yield (status.st_dev, status.st_ino), status.st_blocks * 512


def file_systems_in_memory() -> Iterator[int]:
    """Give the devices of file systems whose files lie in memory."""
    with suppress(FileNotFoundError):
        for line in (PROC / "self" / "mountinfo").read_text().splitlines():
            fields, _, rest = line.partition(" - ")
            if rest.split()[0] == "tmpfs":
                yield os.makedev(*map(int, fields.split()[2].split(":")))
