"""What runs take under one memory limit for the machine: whether they end well, time, memory, and disk.

Each run has a process of its own, and is watched with all processes that it starts. Those under a hard limit
run in a memory control group, where the system kills what exceeds it; where none can be made, it says so, and
they run without. Every answer is checked. The figures that are wanted stand beside those found:

- graphmill ends well in the group, with the right answer;
- its peak is at most 1.05 of its memory limit;
- with a limit of half the peak that it has without, it takes at most 1.5 times as long, or 2.5 times where
  blocks must be spilled;
- it spills at most 1.5 times as much as what the order of its tasks makes necessary (`benchmarks.belady`);
- where no limit is reached, keeping account of memory takes at most 2 % of the time.

    python -m benchmarks.memory                                # all, on up to 4 GB each; takes half an hour
    python -m benchmarks.memory --small --only svd anomaly     # an eighth of the size

Data are made once, in the folder that ``--data`` names, and take 7 GB of disk there; results, up to 3 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accounting import SWITCH, accounting_costs
from benchmarks.belady import optimum
from benchmarks.cgroup import Group, NoGroup
from benchmarks.demo import read_once
from benchmarks.footprint import Memory, ProgramFailed, watch
from benchmarks.run_workload import limits
from benchmarks.trace import Event, read
from benchmarks.workloads import WORKLOADS, Sizes, Workload

MB = 10**6
UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": MB, "GB": 10**9}

#: What is wanted, at most.
PEAK, SLOWER, SLOWER_SPILLING, SPILLED, ACCOUNTING = 1.05, 1.5, 2.5, 1.5, 0.02

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

    def run(self, workload: Workload, setting: Setting, *, trace: bool = False) -> Ran:
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

    def _command(self, workload: Workload, setting: Setting, output: Path, record: Path | None) -> list[str]:
        wanted = self._wanted
        command = [sys.executable, "-m", "benchmarks.run_workload", workload.name]
        command += ["--scheduler", setting.scheduler, "--workers", str(wanted.workers)]
        command += ["--sized-for", str(wanted.sizes.limit), "--data", str(wanted.data)]
        command += ["--output", str(output)]
        command += ["--small"] if wanted.sizes.small else []
        command += ["--limit", str(setting.limit)] if setting.limit else []
        command += ["--trace", str(record)] if record is not None else []
        return command

    def _failure(self, error: ProgramFailed) -> str:
        if error.footprint.seconds > self._wanted.time_limit:
            return f"not done after {self._wanted.time_limit:.0f} s"
        if error.code == KILLED:
            return "killed"
        return (error.footprint.output.strip().splitlines() or [f"ended with {error.code}"])[-1]

    def best(self, workload: Workload, *settings: Setting) -> list[Ran]:
        """Run settings in turn, several times each; take the quickest of each that ended well."""
        rounds = [[self.run(workload, setting) for setting in settings] for _ in range(self._wanted.repeats)]
        return [min(runs, key=lambda ran: (not ran.right, ran.seconds)) for runs in zip(*rounds, strict=True)]


@dataclass(frozen=True, slots=True)
class Figure:
    """One of the figures that are wanted."""

    name: str
    #: None where it cannot be had.
    value: float | None
    most: float
    #: What it was worked out from, or why it is missing.
    why: str = ""

    @property
    def verdict(self) -> str:
        """Say whether it is as wanted."""
        if self.value is None:
            return "missing"
        return "ok" if self.value <= self.most else "over"

    def __str__(self) -> str:
        value = "-" if self.value is None else f"{self.value:.3f}"
        return f"  {self.name:<42}{value:>9}{self.most:>9.2f}  {self.verdict:<8}{self.why}".rstrip()


@dataclass(frozen=True, slots=True)
class Report:
    """All of one workload."""

    workload: str
    title: str
    runs: list[Ran]
    figures: list[Figure]


def measure(bench: Bench, workload: Workload, wanted: Wanted) -> Report:
    """Run one workload in all settings."""
    limit = wanted.sizes.limit if limits() else None
    threads, free = bench.best(workload, Setting("threads"), Setting("graphmill"))
    crowded = bench.run(workload, Setting("threads", grouped=True))
    hard = bench.run(workload, Setting("graphmill", limit, grouped=True), trace=True)
    runs = [threads, free, crowded, hard]
    half = None
    if limits() and free.right:
        half, again = bench.best(workload, Setting("graphmill", free.peak.total // 2), Setting("graphmill"))
        runs += [half, again]
        free = min(free, again, key=lambda ran: (not ran.right, ran.seconds))
    return Report(workload.name, workload.title, runs, list(judge(free, hard, half, wanted)))


def judge(free: Ran, hard: Ran, half: Ran | None, wanted: Wanted) -> Iterator[Figure]:
    """Work out the figures that are wanted of one workload."""
    limit = wanted.sizes.limit
    none = "" if limits() else "engines take no memory limit yet"
    ended = "" if wanted.group is not None else "no control group here"
    yield Figure("failed in the group", float(not hard.right), 0, ended)
    yield Figure(
        "peak / memory limit", hard.peak.total / limit if hard.right and limits() else None, PEAK, none
    )
    spilled = (hard.memory or {}).get("spilled")
    if half is None:
        yield Figure("time with half the peak / without a limit", None, SLOWER, none)
    else:
        must = hard.trace is not None and optimum(hard.trace, budget(free.peak.total // 2, hard)).spilled > 0
        ratio = half.seconds / free.seconds if half.right else None
        yield Figure(
            "time with half the peak / without a limit",
            ratio,
            SLOWER_SPILLING if must else SLOWER,
            "blocks must be spilled" if must else "",
        )
    if hard.trace is None or not hard.right:
        yield Figure("bytes spilled / at least needed", None, SPILLED, "it did not end well")
        return
    least = optimum(hard.trace, budget(limit, hard)).spilled
    needed = f"at least {least / MB:.0f} MB"
    if spilled is None:
        yield Figure("bytes spilled / at least needed", None, SPILLED, f"{needed}; the engine does not tell")
    else:
        # A run that need not spill may as well spill a block or two.
        share = spilled / max(least, 2 * wanted.sizes.chunk)
        yield Figure(
            "bytes spilled / at least needed", share, SPILLED, f"{needed}, {spilled / MB:.0f} MB were"
        )


def budget(limit: int, ran: Ran) -> int:
    """Tell what a limit leaves for blocks, beside the private memory of processes."""
    return max(0, limit - ran.peak.private)


def row(ran: Ran) -> str:
    """Lay out one run."""
    group = "" if ran.group_peak is None else f"{ran.group_peak / MB:9.0f}"
    kills = f" ({ran.kills} killed)" if ran.kills else ""
    parts = "".join(f"{part / MB:9.0f}" for part in (ran.peak.total, ran.peak.private, ran.peak.arenas))
    times = f"{ran.seconds:8.1f}{ran.cpu:8.1f}"
    return f"  {ran.setting.title:<42}{times}{parts}{group:>9}  {ran.outcome}{kills}"


HEAD = f"  {'':<42}{'s':>8}{'CPU s':>8}{'peak MB':>9}{'private':>9}{'arenas':>9}{'group':>9}"


def size(text: str) -> int:
    """Read a number of bytes, such as 800MB."""
    number = text.rstrip("kMGB")
    try:
        return int(float(number) * UNITS[text[len(number) :].strip()])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text} is no size; 800MB is one") from None


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[*WORKLOADS, "accounting"], help="some of it")
    parser.add_argument("--limit", type=size, help="graphmill's limit (default: 800MB; 500MB if small)")
    parser.add_argument("--cgroup", type=size, help="that of the group (default: 1GB; 600MB if small)")
    parser.add_argument("--small", action="store_true", help="an eighth of the size")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of which the quickest counts, where timed"
    )
    parser.add_argument("--time-limit", type=float, default=600, metavar="SECONDS", help="for each run")
    parser.add_argument("--data", type=Path, help="folder of the data (default: one in the temporary folder)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures into a file too")
    return parser.parse_args(given)


def grouped(limit: int) -> int | None:
    """Give the limit of the control group if there can be one; say so if not."""
    try:
        Group.create(limit).close()
    except NoGroup as error:
        print(f"No memory control group can be made ({error}): nothing is killed.")
        return None
    return limit


def settle(given: argparse.Namespace) -> Wanted:
    """Fill in what was not said."""
    small = given.small
    limit = given.limit or (500 * MB if small else 800 * MB)
    group = given.cgroup or (600 * MB if small else 1000 * MB)
    data = given.data or Path(tempfile.gettempdir(), "graphmill-benchmark-data")
    data.mkdir(parents=True, exist_ok=True)
    return Wanted(
        data.absolute(), Sizes(limit, small), grouped(group), given.workers, given.repeats, given.time_limit
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print as it comes; 0 if no answer of graphmill's is wrong."""
    asked = arguments(given)
    wanted = settle(asked)
    names = asked.only or [*WORKLOADS, "accounting"]
    reports = [
        measured(WORKLOADS[name](wanted.sizes, wanted.data), wanted) for name in names if name in WORKLOADS
    ]
    if "accounting" in names:
        reports.append(Report("accounting", "no limit reached", [], list(accounting(wanted.workers))))
        show_figures(reports[-1])
    if asked.json:
        asked.json.write_text(json.dumps([record(report) for report in reports], indent=1))
    runs = [ran for report in reports for ran in report.runs if ran.setting.scheduler == "graphmill"]
    return 0 if all(ran.right for ran in runs) else 1


def measured(workload: Workload, wanted: Wanted) -> Report:
    """Make data, run one workload in all settings, and print what comes of it meanwhile."""
    print(f"\n{workload.name}: {workload.title}", flush=True)
    read_once(workload.make())
    print(HEAD, flush=True)
    report = measure(Bench(wanted), workload, wanted)
    show_figures(report)
    return report


def show_figures(report: Report) -> None:
    """Print what was found beside what is wanted."""
    print(f"  {report.workload:<42}{'found':>9}{'wanted':>9}", *report.figures, sep="\n", flush=True)


def record(report: Report) -> dict[str, Any]:
    """Turn a report into plain data, without traces."""
    runs = [replace(ran, trace=None) for ran in report.runs]
    return asdict(replace(report, runs=runs))


def accounting(workers: int) -> Iterator[Figure]:
    """Work out what keeping account costs."""
    costs = list(accounting_costs(workers))
    if not costs:
        yield Figure("cost of keeping account", None, ACCOUNTING, f"engines have no switch {SWITCH!r} yet")
    for name, cost in costs:
        yield Figure(f"cost of keeping account, {name}", cost, ACCOUNTING)


if __name__ == "__main__":
    sys.exit(main())
