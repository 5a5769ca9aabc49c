"""Runs workloads on engines in turn, each run in a process that is watched, and checks the answers."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import psutil

from benchmarks.files import read_once
from benchmarks.footprint import ANY, Footprint, Lookout, ProgramFailed, watch
from benchmarks.suite.catalogue import WORKLOADS
from benchmarks.suite.engines import BASE, ENGINES, OURS
from benchmarks.suite.results import RIGHT, Ran, Trace
from benchmarks.suite.scales import Scale
from benchmarks.watched import ENVIRONMENT
from benchmarks.workload import Workload

ROOT = Path(__file__).parents[2]

#: Seconds that an engine may take to start, to end, and for what is imported; beside what it computes.
STARTING = 40.0
#: Seconds that threads may take for one run.
LONGEST = 900.0
#: Who takes so many times as long as threads is not run again.
SLOW = 3.0
#: Seconds for what a program has started to end by itself.
GRACE = 10.0
#: By this, processes are known that a run has started.
MARK = "GRAPHMILL_BENCHMARK_RUN"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How to measure."""

    scale: Scale
    data: Path
    #: How many processes run each workload on each engine, and how often each computes it.
    rounds: int
    computes: int
    #: By how many times longer than threads an engine may take before it is ended.
    patience: float


class Turns:
    """Runs one workload on several engines, which take turns.

    Parameters
    ----------
    wanted : Wanted
        How.
    name : str
        The workload.
    workers : int
        How many tasks run at once.
    session : int
        The number that its runs get.
    """

    def __init__(self, wanted: Wanted, name: str, workers: int, session: int) -> None:
        self._wanted = wanted
        self._workload: Workload = WORKLOADS[name](wanted.scale, wanted.data)
        self._workers = workers
        self._session = session
        self.runs: list[Ran] = []

    def take(self, engines: Sequence[str]) -> Iterator[Ran]:
        """Run all in turn, so often as is wanted, and give each run as it ends."""
        for number in range(self._wanted.rounds):
            for engine in engines:
                if number == 0 or self._worth_again(engine):
                    ran = self.run(engine)
                    self.runs.append(ran)
                    yield ran

    def _worth_again(self, engine: str) -> bool:
        """Tell whether an engine is run once more: not those that fail, nor those that are far slower."""
        if engine in (BASE, OURS):
            return True
        mine = [run for run in self.runs if run.engine == engine]
        base = min((run.best for run in self.runs if run.engine == BASE and run.seconds), default=inf)
        return all(run.right and run.best <= SLOW * base for run in mine)

    @property
    def _limit(self) -> float:
        """Seconds that the next run may take."""
        base = [run for run in self.runs if run.engine == BASE and run.seconds]
        if not base:
            return LONGEST
        return STARTING + self._wanted.patience * sum(min(base, key=lambda run: run.best).seconds)

    def run(self, engine: str) -> Ran:
        """Run it once on an engine."""
        if missing := ENGINES[engine].missing:
            return self._ran(engine, missing)
        with tempfile.TemporaryDirectory(prefix="results-", dir=self._wanted.data) as folder:
            output = Path(folder)
            before = busy_seconds()
            footprint, failure = self._watch(engine, output, Lookout(ANY), self._limit)
            others = busy_seconds() - before - footprint.cpu - footprint.looking
            told = last_line(footprint.output)
            ran = self._ran(engine, failure or RIGHT, footprint, told)
            ran = replace(ran, others=max(0.0, others / footprint.seconds))
            if not ran.right and not ran.seconds:
                lived = footprint.seconds - told.get("lived", 0.0)
                return replace(ran, at_least=lived) if ran.outcome.startswith(">") else ran
            return replace(ran, outcome=self._judged(ran, output))

    def _judged(self, ran: Ran, output: Path) -> str:
        """Say whether all answers there are were right; who is ended after its first one has answered."""
        wrong = filter(
            None, (self._workload.mistake(output / str(number)) for number in range(len(ran.seconds)))
        )
        answer = next(wrong, RIGHT)
        if answer != RIGHT:
            return f"wrong answer: {answer}"
        return RIGHT if ran.outcome.startswith(">") else ran.outcome

    def _ran(
        self,
        engine: str,
        outcome: str,
        footprint: Footprint | None = None,
        told: dict[str, Any] | None = None,
    ) -> Ran:
        told = told or {}
        ran = Ran(
            self._workload.name,
            engine,
            self._workers,
            self._wanted.scale.name,
            self._session,
            told.get("refused", outcome),
            tuple(told.get("seconds", ())),
            told.get("started"),
            spilled=told.get("spilled"),
        )
        if footprint is None:
            return ran
        return replace(
            ran,
            cpu=footprint.cpu,
            private=footprint.peak.private,
            shared=footprint.peak.arenas,
            resident=footprint.resident,
        )

    def trace(self, engine: str) -> Trace:
        """Run it once, and look at all memory as often as is possible without disturbing it."""
        points: list[tuple[float, int]] = []
        lookout = Lookout(ANY, exactly=True)
        with tempfile.TemporaryDirectory(prefix="results-", dir=self._wanted.data) as folder:
            _, failure = self._watch(
                engine,
                Path(folder),
                lookout,
                LONGEST,
                computes=1,
                tell=lambda at, _: points.append((at, lookout.now.total)),
            )
        if failure:
            raise RuntimeError(f"{self._workload.name} on {engine}: {failure}")
        return Trace(self._workload.name, engine, self._workers, self._wanted.scale.name, tuple(points))

    def _watch(
        self,
        engine: str,
        output: Path,
        lookout: Lookout,
        limit: float,
        computes: int | None = None,
        tell: Any = None,
    ) -> tuple[Footprint, str | None]:
        """Run it to its end; give what it took, and what went wrong if anything did."""
        wanted = self._wanted
        command = [sys.executable, "-m", "benchmarks.suite.child", self._workload.name, engine]
        command += ["--workers", str(self._workers), "--scale", wanted.scale.name]
        command += ["--computes", str(computes or wanted.computes)]
        command += ["--data", str(wanted.data), "--output", str(output)]
        mark = uuid.uuid4().hex
        # Workers of some engines find modules by this only.
        path = f"{ROOT}:{ENVIRONMENT['PYTHONPATH']}" if "PYTHONPATH" in ENVIRONMENT else str(ROOT)
        environment = ENVIRONMENT | {MARK: mark, "PYTHONPATH": path}
        try:
            return watch(command, environment=environment, time_limit=limit, lookout=lookout, tell=tell), None
        except ProgramFailed as error:
            found = error.footprint
            return found, failure(error, limit)
        finally:
            end_leftovers(mark)


def busy_seconds() -> float:
    """Tell for how long all CPUs have done anything, added up, since the system started."""
    times = psutil.cpu_times()
    waiting = ("idle", "iowait", "guest", "guest_nice")  # guests' time is in that of users
    return float(sum(value for name, value in times._asdict().items() if name not in waiting))


def failure(error: ProgramFailed, limit: float) -> str:
    """Say in one line why a program failed."""
    found = error.footprint
    if found.seconds > limit:
        return f"> {limit:.0f} s"
    lines = [line.strip() for line in found.output.splitlines() if line.strip() and not line.startswith("{")]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Worker"))]
    return (named or lines or [f"ended with {error.code}"])[-1][:160]


def last_line(output: str) -> dict[str, Any]:
    """Read the last line that a child told."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            with suppress(json.JSONDecodeError):
                found: dict[str, Any] = json.loads(line)
                return found
    return {}


def end_leftovers(mark: str) -> None:
    """See to it that all has ended that a run has started; what is left after a while is killed."""
    deadline = time.monotonic() + GRACE
    while left := list(marked(mark)):
        if time.monotonic() > deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, GRACE)
            return
        time.sleep(0.05)


def marked(mark: str) -> Iterator[psutil.Process]:
    """Give the processes with a mark in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                yield process


def prepare(wanted: Wanted, name: str) -> None:
    """Make a workload's data and what its answer is compared with, and have its files read once."""
    wanted.data.mkdir(parents=True, exist_ok=True)
    store = WORKLOADS[name](wanted.scale, wanted.data).make()
    if store is not None:
        read_once(store)
