"""``graphmill bench``: a few computations with graphmill and with Dask's threads, on this machine.

Each runs in a process of its own, which is watched from here: so both are measured in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Final

import psutil

from graphmill.cli.bench_case import CASES, GRAPHMILL, THREADS
from graphmill.cli.output import Style, complain, styled, table, title
from graphmill.diagnostics.amounts import of_bytes, of_seconds
from graphmill.errors import CommandError, GraphmillError
from graphmill.footprint import PrivateMemory
from graphmill.memory.segments import SHARED_MEMORY

#: Seconds that one case may take, and from one look at its memory to the next.
LONGEST: Final = 300.0
INTERVAL: Final = 0.02
#: What the system counts blocks of files in, in bytes.
_BLOCK: Final = 512


@dataclass(frozen=True, slots=True)
class Figure:
    """What one case took with one scheduler."""

    #: In seconds; the better of two runs.
    seconds: float
    #: The most memory of all its processes, with what they share, in bytes.
    peak: int
    #: What came out, to be compared.
    result: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case with both schedulers."""

    name: str
    what: str
    graphmill: Figure
    threads: Figure

    def agrees(self) -> bool:
        """Tell whether both results are the same, but for the order of sums."""
        a, b = self.graphmill.result, self.threads.result
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))

    def as_json(self) -> dict[str, Any]:
        """Make plain data of it."""
        return {
            "name": self.name,
            "what": self.what,
            "agrees": self.agrees(),
            **{
                scheduler: {"seconds": figure.seconds, "peak_bytes": figure.peak}
                for scheduler, figure in ((GRAPHMILL, self.graphmill), (THREADS, self.threads))
            },
        }


def run(arguments: argparse.Namespace) -> int:
    """Run the cases, and print what they took."""
    names = list(CASES) if arguments.only is None else list(dict.fromkeys(arguments.only))
    for name in names:
        if name not in CASES:
            raise CommandError(f"There is no computation {name!r}; there are {', '.join(CASES)}")
    if importlib.util.find_spec("dask") is None or importlib.util.find_spec("dask.array") is None:
        raise CommandError("bench needs dask, which is not installed: pip install 'graphmill[array]'")
    found = []
    for at, name in enumerate(names):
        if sys.stderr.isatty():
            print(f"\r{at + 1} of {len(names)}: {name} ...\x1b[K", end="", file=sys.stderr, flush=True)
        figures = {
            scheduler: measure(name, scheduler, quick=arguments.quick) for scheduler in (GRAPHMILL, THREADS)
        }
        found.append(Comparison(name, CASES[name].what, figures[GRAPHMILL], figures[THREADS]))
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([comparison.as_json() for comparison in found], indent=2))
    else:
        show(found)
    wrong = [comparison.name for comparison in found if not comparison.agrees()]
    if wrong:
        complain(f"results differ: {', '.join(wrong)}")
    return 1 if wrong else 0


def show(found: list[Comparison]) -> None:
    """Print a table."""
    title("graphmill and Dask's threads: time and most memory")
    rows = [("", "graphmill", "threads", "time", "memory", "")]
    rows += [
        (
            each.name,
            f"{of_seconds(each.graphmill.seconds)}, {of_bytes(each.graphmill.peak)}",
            f"{of_seconds(each.threads.seconds)}, {of_bytes(each.threads.peak)}",
            f"{each.graphmill.seconds / each.threads.seconds:.2f}x",
            f"{each.graphmill.peak / each.threads.peak:.2f}x",
            each.what,
        )
        for each in found
    ]
    table(rows)
    print()
    print(styled("Below 1x, graphmill takes less.", Style.FAINT))


# ---- one case


def measure(name: str, scheduler: str, *, quick: bool) -> Figure:
    """Run a case in a process of its own.

    Raises
    ------
    GraphmillError
        If it fails, or takes too long.
    """
    command = [
        sys.executable,
        "-m",
        "graphmill.cli.bench_case",
        name,
        scheduler,
        *(["--quick"] if quick else []),
    ]
    # In a file: a full pipe would hold the process up.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=output, stderr=errors, stdin=subprocess.DEVNULL) as process:  # noqa: S603
            try:
                peak = watch(process)
            finally:
                end(process)
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            raise GraphmillError(
                f"{name} with {scheduler} ended with {process.returncode}:\n{errors.read().strip()}"
            )
        figures = json.loads(output.read())
    return Figure(figures["seconds"], peak, figures["result"])


def watch(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of a process; tell the most memory that it and its children took, in bytes."""
    deadline = time.monotonic() + LONGEST
    memory = PrivateMemory(lambda: tree(process.pid))
    peak = 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(INTERVAL)
            return peak
        peak = max(peak, memory.sample() + shared_by(process.pid))
        if time.monotonic() > deadline:
            raise GraphmillError(f"a computation was ended after {LONGEST:.0f} s: --quick makes it smaller")


def tree(pid: int) -> list[int]:
    """List a process and its descendants."""
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def shared_by(pid: int) -> int:
    """Count what a process has in shared memory."""
    blocks = 0
    for path in SHARED_MEMORY.glob(f"graphmill-{pid}-*"):
        with contextlib.suppress(FileNotFoundError):
            blocks += path.lstat().st_blocks
    return blocks * _BLOCK


def end(process: subprocess.Popen[bytes]) -> None:
    """Have a process end that should have; what an engine has made goes with it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
