"""Runs of workloads in processes of their own, watched, in a memory control group or without, and checked."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cgroup import Group
from benchmarks.footprint import Memory, ProgramFailed, watch
from benchmarks.trace import Event, read
from benchmarks.workload import Stored
from benchmarks.workloads import Sizes

MB = 10**6

KILLED = -9

#: Two tasks use two processors already, and QR of tall blocks takes ten times as long on more threads.
ENVIRONMENT = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured."""

    data: Path
    sizes: Sizes
    #: Bytes that the control group may take; None where there can be none.
    group: int | None
    workers: int
    repeats: int
    #: Seconds that one run may take.
    time_limit: float


@dataclass(frozen=True, slots=True)
class Setting:
    """How a workload is run."""

    scheduler: str
    #: graphmill's limit, in bytes.
    limit: int | None = None
    #: Whether it runs in the control group.
    grouped: bool = False

    @property
    def title(self) -> str:
        """Say it in few words."""
        limit = f", limit {self.limit / MB:.0f} MB" if self.limit else ""
        return f"{self.scheduler}{limit}{', in the group' if self.grouped else ''}"


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a run."""

    workload: str
    setting: Setting
    #: What went wrong, or "right".
    outcome: str
    #: The time that the computation took, or all of it until it failed.
    seconds: float
    #: CPU time of all of it, in seconds: on a busy machine it says more. What was killed is not in it.
    cpu: float
    peak: Memory
    #: How many processes the system killed in the group.
    kills: int
    #: The most that the group took, page cache included, in bytes.
    group_peak: int | None
    #: What the engine says of memory.
    memory: dict[str, Any] | None
    #: What happened, where it was recorded.
    trace: list[Event] | None = None

    @property
    def right(self) -> bool:
        """Whether it ended well."""
        return self.outcome == "right"


class Bench:
    """Runs workloads, and prints what comes of each run.

    Parameters
    ----------
    wanted : Wanted
        How.
    """

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted

    def run(self, workload: Stored, setting: Setting, *, trace: bool = False) -> Ran:
        """Run a workload in a process of its own, and check its answer."""
        wanted = self._wanted
        with ExitStack() as stack:
            output = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="results-", dir=wanted.data))
            )
            record = output / "trace.jsonl" if trace else None
            command = self._command(workload, setting, output, record)
            group = None
            if setting.grouped and wanted.group is not None:
                group = stack.enter_context(Group.create(wanted.group))
                command = group.command(command)
            said: dict[str, Any] = {}
            try:
                footprint = watch(command, environment=ENVIRONMENT, time_limit=wanted.time_limit)
            except ProgramFailed as error:
                footprint = error.footprint
                outcome = self._failure(error)
            else:
                said = json.loads(footprint.output.splitlines()[-1])
                outcome = workload.mistake(output) or "right"
            ran = Ran(
                workload.name,
                setting,
                outcome,
                said.get("seconds", footprint.seconds),
                footprint.cpu,
                footprint.peak,
                group.kills if group else 0,
                group.peak if group else None,
                said.get("memory"),
                read(record) if record is not None and record.exists() else None,
            )
        print(row(ran), flush=True)
        return ran

    def _command(self, workload: Stored, setting: Setting, output: Path, record: Path | None) -> list[str]:
        wanted = self._wanted
        command = [sys.executable, "-m", "benchmarks.run_workload", workload.name]
        command += ["--scheduler", setting.scheduler, "--workers", str(wanted.workers)]
        command += ["--sized-for", str(wanted.sizes.limit), "--data", str(wanted.data)]
        command += ["--output", str(output)]
        command += ["--small"] if wanted.sizes.small else []
        command += [] if wanted.sizes.chunks is None else ["--chunk", str(wanted.sizes.chunks)]
        command += ["--limit", str(setting.limit)] if setting.limit else []
        command += ["--trace", str(record)] if record is not None else []
        return command

    def _failure(self, error: ProgramFailed) -> str:
        if error.footprint.seconds > self._wanted.time_limit:
            return f"not done after {self._wanted.time_limit:.0f} s"
        if error.code == KILLED:
            return "killed"
        return (error.footprint.output.strip().splitlines() or [f"ended with {error.code}"])[-1]

    def best(self, workload: Stored, *settings: Setting) -> list[Ran]:
        """Run settings in turn, several times each; take the quickest of each that ended well."""
        rounds = [[self.run(workload, setting) for setting in settings] for _ in range(self._wanted.repeats)]
        return [min(runs, key=lambda ran: (not ran.right, ran.seconds)) for runs in zip(*rounds, strict=True)]


def row(ran: Ran) -> str:
    """Lay out one run."""
    group = "" if ran.group_peak is None else f"{ran.group_peak / MB:9.0f}"
    kills = f" ({ran.kills} killed)" if ran.kills else ""
    parts = "".join(f"{part / MB:9.0f}" for part in (ran.peak.total, ran.peak.private, ran.peak.arenas))
    times = f"{ran.seconds:8.1f}{ran.cpu:8.1f}"
    return f"  {ran.setting.title:<42}{times}{parts}{group:>9}  {ran.outcome}{kills}"


HEAD = f"  {'':<42}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'private':>9}{'arenas':>9}{'group':>9}"
