"""How long a program takes, and how much memory it and all that it starts take together at most.

Memory is what the machine has less of: private pages of every process of the tree (`Pss_Anon`, so that pages
which forked processes share count once), and what the tree's arenas take in shared memory, which counts once
however many processes map it. The page cache does not count. Linux only; elsewhere only time is measured.

The watching process looks about twenty times a second. For an exact look the system walks all pages, which
takes it milliseconds for each gigabyte, and holds up the watched program meanwhile. So that is only done when
counters that cost nothing, and never say too little, allow that there is a new peak; and less often where
looks take long.
"""

from __future__ import annotations

import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # where the system keeps it, not a place for temporary files

#: Seconds from one look to the next, at least.
INTERVAL = 0.05
#: The pause between two looks is at least so many times what the last look took.
PATIENCE = 9
#: Seconds that a program has to end when it is asked to.
GRACE = 10.0

PAGE = resource.getpagesize()
#: Bytes that the counters may lag behind, in each process.
SLACK = 4 << 20

SEGMENT = re.compile(r"graphmill-(\d+)-\d+-\d+")
PRIVATE = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)

#: What a process that has just ended answers to questions about it.
GONE = (FileNotFoundError, ProcessLookupError)


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
    #: What it printed, errors included.
    output: str
    #: How often it was looked at, and how often exactly.
    looks: int
    exact_looks: int
    #: CPU time that looking took, in seconds.
    looking: float


class ProgramFailed(Exception):
    """A program that was watched ended with an error; says what it had printed."""


def watch(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[float, Memory], None] | None = None,
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

    Raises
    ------
    ProgramFailed
        It ended with an error.
    """
    lookout = Lookout()
    with tempfile.TemporaryFile() as output:
        busy, start = time.process_time(), time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.returncode is None:
                before = time.perf_counter()
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
    if process.returncode:
        raise ProgramFailed(f"{' '.join(command)} ended with {process.returncode} and said:\n{text}")
    return Footprint(seconds, lookout.peak, text, lookout.looks, lookout.exact_looks, looking)


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

    peak: Memory = field(default_factory=Memory)
    #: How often it was looked at, and how often exactly.
    looks: int = 0
    exact_looks: int = 0

    def look(self, pid: int) -> None:
        """Measure a process with all that descend from it, if that may be a new peak."""
        self.looks += 1
        processes = frozenset(tree(pid))
        arenas = arenas_of(processes)
        if arenas + sum(map(private_at_most, processes)) > self.peak.total:
            self.exact_looks += 1
            now = Memory(sum(map(private_memory, processes)), arenas)
            self.peak = max(self.peak, now, key=lambda memory: memory.total)


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


def private_at_most(pid: int) -> int:
    """Do the same from counters, where pages that forks have in common count for each of them."""
    with suppress(*GONE):
        resident, shared = map(int, (PROC / str(pid) / "statm").read_bytes().split()[1:3])
        return (resident - shared) * PAGE + SLACK
    return 0


def arenas_of(processes: frozenset[int]) -> int:
    """Count the bytes that segments of shared memory take which some processes have made."""
    total = 0
    with suppress(*GONE):
        for path in SHARED_MEMORY.iterdir():
            name = SEGMENT.fullmatch(path.name)
            if name and int(name[1]) in processes:
                with suppress(*GONE):
                    total += path.stat().st_blocks * 512
    return total
