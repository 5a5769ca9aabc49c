"""What runs take under one memory limit for the machine: whether they end well, time, memory, and disk.

Each run has a process of its own, and is watched with all processes that it starts. Those under a hard limit
run in a memory control group, where the system kills what exceeds it; where none can be made, it says so, and
they run without. Every answer is checked. The figures that are wanted stand beside those found:

- graphmill ends well in the group, with the right answer, and none of its processes is killed;
- its peak is at most 1.05 of its memory limit;
- with a limit of half the peak that it has without, it takes at most 1.5 times as long, or 2.5 times where
  blocks must be spilled;
- it spills at most 1.5 times as much as what the order of its tasks makes necessary (`benchmarks.belady`);
- where no limit is reached, keeping account of memory takes at most 2 % of the time.

    python -m benchmarks.memory                                # all, on up to 4 GB each; takes half an hour
    python -m benchmarks.memory --small --only svd anomaly     # an eighth of the size

Data are made once, in the folder that ``--data`` names, and take 4 GB of disk there; results, up to 3 GB.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.accounting import accounting_costs
from benchmarks.belady import optimum
from benchmarks.cgroup import Group, NoGroup
from benchmarks.files import read_once
from benchmarks.run_workload import limits
from benchmarks.watched import HEAD, MB, Bench, Ran, Setting, Wanted
from benchmarks.workload import Stored
from benchmarks.workloads import WORKLOADS, Sizes

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": MB, "GB": 10**9}

#: What is wanted, at most.
PEAK, SLOWER, SLOWER_SPILLING, SPILLED, ACCOUNTING = 1.05, 1.5, 2.5, 1.5, 0.02

NO_LIMIT = "engines take no memory limit yet"


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


def measure(bench: Bench, workload: Stored, wanted: Wanted) -> Report:
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
    """Work out the figures that are wanted of one workload.

    Parameters
    ----------
    free, hard, half : Ran
        Runs without limits, in the control group, and with half the peak that the first had; None where
        engines have no limit.
    wanted : Wanted
        How they were run.
    """
    no_group = "" if wanted.group is not None else "no control group here"
    yield Figure("processes killed or failed in the group", max(hard.kills, not hard.right), 0, no_group)
    limited = [ran for ran in (hard, half) if ran is not None and ran.setting.limit and ran.right]
    shares = [ran.peak.total / ran.setting.limit for ran in limited if ran.setting.limit]
    yield Figure("peak / memory limit", max(shares, default=None), PEAK, "" if limits() else NO_LIMIT)
    yield how_much_slower(free, hard, half)
    yield how_much_spilled(hard, wanted.sizes)


def how_much_slower(free: Ran, hard: Ran, half: Ran | None) -> Figure:
    """Compare times with and without a limit."""
    name = "time with half the peak / without a limit"
    if half is None or half.setting.limit is None:
        return Figure(name, None, SLOWER, NO_LIMIT)
    if not half.right:
        return Figure(name, None, SLOWER, half.outcome)
    must = hard.trace is not None and optimum(hard.trace, budget(half.setting.limit, half)).spilled > 0
    ratio = half.seconds / free.seconds
    return Figure(name, ratio, SLOWER_SPILLING, "must spill") if must else Figure(name, ratio, SLOWER)


def how_much_spilled(ran: Ran, sizes: Sizes) -> Figure:
    """Compare what was spilled with what had to be."""
    name = "bytes spilled / at least needed"
    if not ran.right or ran.trace is None:
        return Figure(name, None, SPILLED, ran.outcome)
    least = optimum(ran.trace, budget(ran.setting.limit or sizes.limit, ran)).spilled
    needed = f"at least {least / MB:.0f} MB"
    spilled = (ran.memory or {}).get("spilled")
    if spilled is None:
        return Figure(name, None, SPILLED, f"{needed}; the engine does not tell")
    # A block or two do no harm where none would be needed.
    share = spilled / max(least, 2 * sizes.chunk)
    return Figure(name, share, SPILLED, f"{needed}; {spilled / MB:.0f} MB were")


def budget(limit: int, ran: Ran) -> int:
    """Tell what a limit leaves for blocks, beside the private memory of processes."""
    return max(0, limit - ran.peak.private)


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
    parser.add_argument("--chunk", type=size, help="bytes of a chunk (default: 32MB; 8MB if small)")
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
        data.absolute(),
        Sizes(limit, small, given.chunk),
        grouped(group),
        given.workers,
        given.repeats,
        given.time_limit,
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print as it comes; 0 if no answer of graphmill's is wrong."""
    asked = arguments(given)
    # Ended as by Ctrl-C, so that groups, results and what runs go with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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


def measured(workload: Stored, wanted: Wanted) -> Report:
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
    for name, cost in accounting_costs(workers):
        yield Figure(f"cost of keeping account, {name}", cost, ACCOUNTING)


if __name__ == "__main__":
    sys.exit(main())
