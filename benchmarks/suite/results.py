"""What the suite has measured: runs, in a file from one time to the next, and what follows from them.

A ratio is always one between runs of one session, in which engines took turns. So runs that are measured
again replace those of the same workload, engine and number of workers, while those of others stay, with the
runs of threads that they are compared with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.suite.engines import BASE

RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a workload, in a process of its own."""

    workload: str
    engine: str
    workers: int
    scale: str
    #: Runs with the same number took turns.
    session: int
    #: `RIGHT`, or what went wrong.
    outcome: str
    #: What each computation took, from `compute` to its answer.
    seconds: tuple[float, ...] = ()
    #: Seconds until the engine had run its first tasks; None if it never did.
    started: float | None = None
    #: If it was ended since it took too long: the seconds that its first computation had taken by then.
    at_least: float | None = None
    #: CPU time of all its processes, in seconds; what was killed is not in it.
    cpu: float = 0.0
    #: Private memory and shared memory when both together were most, in bytes.
    private: int = 0
    shared: int = 0
    #: The most that was resident, summed over processes, in bytes.
    resident: int = 0
    #: Bytes that the engine moved to disk; None where it does not tell.
    spilled: int | None = None
    #: How many CPUs other programs took meanwhile, in the mean.
    others: float = 0.0

    @property
    def right(self) -> bool:
        """Whether each answer was right."""
        return self.outcome == RIGHT

    @property
    def best(self) -> float:
        """What the quickest computation took, in seconds."""
        return min(self.seconds)

    @property
    def peak(self) -> int:
        """The most memory that was taken, in bytes."""
        return self.private + self.shared


@dataclass(frozen=True, slots=True)
class Trace:
    """Memory over time, of one run."""

    workload: str
    engine: str
    workers: int
    scale: str
    #: Seconds since its start, and bytes.
    points: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """An engine on a workload, next to threads."""

    #: Its runs, and those of threads in the same session.
    runs: list[Ran]
    base: list[Ran]

    @property
    def measured(self) -> bool:
        """Whether it has computed at all, rightly or not."""
        return any(run.seconds for run in self.runs)

    @property
    def outcome(self) -> str:
        """`RIGHT`, or the first thing that went wrong."""
        return next((run.outcome for run in self.runs if not run.right), RIGHT)

    @property
    def seconds(self) -> float | None:
        """The median over processes of what their quickest computation took."""
        return middle(run.best for run in self.runs if run.seconds)

    @property
    def first(self) -> float | None:
        """The median of what first computations took."""
        return middle(run.seconds[0] for run in self.runs if run.seconds)

    @property
    def peak(self) -> float | None:
        """The median of peaks of memory, in bytes."""
        return middle(run.peak for run in self.runs if run.seconds)

    @property
    def time(self) -> float | None:
        """Its time over that of threads: the median over pairs that took turns."""
        return middle(
            ours.best / theirs.best
            for ours, theirs in zip(self.runs, self.base, strict=False)
            if ours.seconds and theirs.seconds
        )

    @property
    def first_time(self) -> float | None:
        """The same for first computations."""
        return middle(
            ours.seconds[0] / theirs.seconds[0]
            for ours, theirs in zip(self.runs, self.base, strict=False)
            if ours.seconds and theirs.seconds
        )

    @property
    def at_least(self) -> float | None:
        """If it was ended: by how many times longer than threads it had computed."""
        theirs = middle(run.best for run in self.base if run.seconds)
        given = [run.at_least for run in self.runs if run.at_least is not None]
        return max(given) / theirs if given and theirs else None

    @property
    def memory(self) -> float | None:
        """Its peak over that of threads."""
        theirs = middle(run.peak for run in self.base if run.seconds)
        return self.peak / theirs if self.peak is not None and theirs else None

    @property
    def spread(self) -> float:
        """How far runs lie apart: half the range of their times, over the median."""
        times = [run.best for run in self.runs if run.seconds]
        return (max(times) - min(times)) / 2 / median(times) if times else 0.0


@dataclass(slots=True)
class Results:
    """All that was measured at one scale."""

    #: What it was measured on.
    machine: dict[str, Any] = field(default_factory=dict)
    runs: list[Ran] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what was written."""
        found = json.loads(path.read_text())
        runs = [Ran(**{**run, "seconds": tuple(run["seconds"])}) for run in found["runs"]]
        traces = [
            Trace(**{**trace, "points": tuple((at, nbytes) for at, nbytes in trace["points"])})
            for trace in found["traces"]
        ]
        return cls(found["machine"], runs, traces)

    def write(self, path: Path) -> None:
        """Write it, one run a line, so that it can be read in a diff."""
        path.parent.mkdir(parents=True, exist_ok=True)
        runs, traces = (
            ",\n".join("  " + json.dumps(rounded(asdict(each))) for each in records)
            for records in (self.runs, self.traces)
        )
        machine = json.dumps(self.machine, indent=2)
        path.write_text(f'{{\n"machine": {machine},\n"runs": [\n{runs}\n],\n"traces": [\n{traces}\n]\n}}\n')

    @property
    def next_session(self) -> int:
        """A number for the next session."""
        return 1 + max((run.session for run in self.runs), default=0)

    def add(self, runs: list[Ran]) -> None:
        """Take in the runs of one session, in the place of older ones of the same."""
        measured = {(run.workload, run.workers, run.engine) for run in runs}
        kept = [
            run
            for run in self.runs
            if run.engine == BASE or (run.workload, run.workers, run.engine) not in measured
        ]
        # Threads are kept only for those who are compared with them.
        wanted = {(run.workload, run.workers, run.session) for run in kept if run.engine != BASE}
        self.runs = [
            run
            for run in kept
            if run.engine != BASE
            or (run.workload, run.workers, run.session) in wanted
            or (run.workload, run.workers, BASE) not in measured
        ] + runs

    def add_trace(self, trace: Trace) -> None:
        """Take in a trace, in the place of an older one of the same."""
        key = (trace.workload, trace.engine, trace.workers)
        self.traces = [each for each in self.traces if (each.workload, each.engine, each.workers) != key]
        self.traces.append(trace)

    def compared(self, workload: str, engine: str, workers: int) -> Compared | None:
        """Get what was measured of an engine on a workload, the last time; None if nothing was."""
        runs = [run for run in self.runs if (run.workload, run.workers) == (workload, workers)]
        sessions = [run.session for run in runs if run.engine == engine]
        if not sessions:
            return None
        last = max(sessions)
        of_session = [run for run in runs if run.session == last]
        return Compared(
            [run for run in of_session if run.engine == engine],
            [run for run in of_session if run.engine == BASE],
        )


def rounded(value: Any) -> Any:
    """Leave out digits that mean nothing."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def middle(numbers: Iterable[float]) -> float | None:
    """Get the median; None of nothing."""
    found = list(numbers)
    return median(found) if found else None


def geometric_mean(numbers: Iterable[float]) -> float | None:
    """Get the geometric mean; None of nothing."""
    found = list(numbers)
    return exp(sum(map(log, found)) / len(found)) if found else None
