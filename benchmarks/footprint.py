"""How long a program takes, and how much memory it and all that it starts take together at most.

Memory is what the machine has less of: private pages of every process of the tree (`Pss_Anon`, so that pages
which forked processes share count once), and what the tree's arenas take in shared memory, which counts once
however many processes map it. The page cache does not count. Linux only; elsewhere only time is measured.

The watching process looks about twenty times a second, and less often where a look takes long: the system has to
walk all pages for it. It never takes more than about a tenth of one core.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
SHARED_MEMORY = Path("/dev/shm")  # where the system keeps it, not a place for temporary files

#: Seconds from one look to the next, at least.
INTERVAL = 0.05
#: The pause between two looks is at least so many times what the last look took.
PATIENCE = 9
#: Seconds that a program has to end when it is asked to.
GRACE = 10.0

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
    #: Looks that were taken.
    looks: int
    #: Seconds that they took together.
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
        Called after each look with the seconds since the start and the memory at that moment.

    Raises
    ------
    ProgramFailed
        It ended with an error.
    """
    looks, looking, peak, now = 0, 0.0, Memory(), Memory()
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.returncode is None:
                before = time.perf_counter()
                now = memory_of(process.pid)
                peak = max(peak, now, key=lambda memory: memory.total)
                if tell is not None:
                    tell(before - start, now)
                took = time.perf_counter() - before
                looks, looking = looks + 1, looking + took
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(INTERVAL - took, PATIENCE * took))
            seconds = time.perf_counter() - start
        finally:
            end(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode:
        raise ProgramFailed(f"{' '.join(command)} ended with {process.returncode} and said:\n{text}")
    return Footprint(seconds, peak, text, looks, looking)


def end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a program has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def memory_of(pid: int) -> Memory:
    """Measure a process with all that descend from it; nothing where the system does not tell."""
    processes = list(tree(pid))
    return Memory(sum(map(private_memory, processes)), arenas_of(frozenset(processes)))


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
