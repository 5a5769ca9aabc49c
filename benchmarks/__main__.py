"""Real workloads on every engine: time, start-up, memory, and whether answers are right.

Each run has a process of its own, and engines take turns. What is measured goes into a file, a page and
plots: benchmarks/results/<scale>.json, benchmarks/RESULTS.md and benchmarks/results/*.png, or into the folder
that ``--results`` names.

    python -m benchmarks                                   # all of it; takes half an hour or more
    python -m benchmarks --quick                           # small data, less than three minutes
    python -m benchmarks --only fft store --merge          # some workloads anew, the others as they were
    python -m benchmarks --only elementwise --workers 1,2,auto --engines graphmill --merge
    python -m benchmarks --trace anomaly --only --merge    # memory over time, and nothing else
    python -m benchmarks --report                          # page and plots from what was measured before

Engines that are not installed are left out, and the page says so: pip install --group bench has them all.
Data are made once, in the folder that ``--data`` names, and take 6 GB of disk.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from benchmarks.suite.catalogue import WORKLOADS
from benchmarks.suite.engines import BASE, ENGINES, OURS
from benchmarks.suite.machine import machine
from benchmarks.suite.measure import ROOT, Turns, Wanted, prepare
from benchmarks.suite.plots import can_draw, draw
from benchmarks.suite.report import MB, Report, workloads_page
from benchmarks.suite.results import Ran, Results
from benchmarks.suite.scales import SCALES
from graphmill.machine import available_cpus

RESULTS = ROOT / "benchmarks" / "results"
#: Seconds after which a quick run begins with no more peers; one that has begun may take some more.
QUICK = 120.0


@dataclass(slots=True)
class Session:
    """One call of the suite."""

    wanted: Wanted
    results: Results
    #: Where results go after each workload; None to keep them here.
    file: Path | None
    #: When no more peers are begun, by the monotonic clock.
    until: float = inf
    number: int = field(init=False)

    def __post_init__(self) -> None:
        self.number = self.results.next_session

    def measure(self, name: str, workers: int, engines: Sequence[str]) -> None:
        """Run one workload on all engines, and print each run as it ends."""
        print(f"\n{name}, {workers} workers: {WORKLOADS[name].title}", flush=True)
        prepare(self.wanted, name)
        turns = Turns(self.wanted, name, workers, self.number)
        for ran in turns.take(engines):
            print(row(ran), flush=True)
        self.results.add(turns.runs)
        self.save()

    def trace(self, name: str, workers: int, engines: Sequence[str]) -> None:
        """Run one workload once more on each engine, with its memory over time."""
        prepare(self.wanted, name)
        for engine in engines:
            if ENGINES[engine].missing is None:
                self.results.add_trace(Turns(self.wanted, name, workers, self.number).trace(engine))
                print(f"{name}: memory over time of {engine}", flush=True)
        self.save()

    def save(self) -> None:
        """Write what there is."""
        if self.file is not None:
            self.results.write(self.file)


def row(ran: Ran) -> str:
    """Lay out one run."""
    times = " ".join(f"{each:.2f}" for each in ran.seconds) or "-"
    started = "-" if ran.started is None else f"{ran.started:.2f}"
    peak = f"{ran.peak / MB:.0f}" if ran.peak else "-"
    return f"  {ran.engine:<12} start {started:>5} s, {times:>12} s, peak {peak:>5} MB  {ran.outcome}"


def quick(session: Session, names: Sequence[str], workers: int, engines: Sequence[str]) -> None:
    """Run threads and graphmill on all workloads, then, while there is time, each of the others too."""
    first = [name for name in engines if name in (BASE, OURS)]
    for name in names:
        session.measure(name, workers, first)
    for engine in engines:
        for name in names:
            if engine not in first and time.monotonic() < session.until:
                session.number += 1
                session.measure(name, workers, [BASE, engine])


def worker_counts(text: str) -> list[int]:
    """Read numbers of workers, such as 1,2,auto."""
    try:
        counts = [available_cpus() if each == "auto" else int(each) for each in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of numbers; 1,2,auto is one") from None
    if min(counts) < 1:
        raise argparse.ArgumentTypeError("at least one worker is needed")
    return list(dict.fromkeys(counts))


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small data, and no files but data")
    parser.add_argument("--scale", choices=SCALES, help="size of all data (default: full, or quick)")
    parser.add_argument("--only", nargs="*", choices=WORKLOADS, metavar="WORKLOAD", help="some workloads")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="some engines; threads are always run")
    parser.add_argument("--workers", type=worker_counts, default="auto", help="1,2,auto (default: auto)")
    parser.add_argument("--rounds", type=int, help="processes for each engine (default: 3; 1 if quick)")
    parser.add_argument("--computes", type=int, default=2, help="computations in each process (default: 2)")
    parser.add_argument(
        "--patience", type=float, default=8, help="times as long as threads that a run may take (default: 8)"
    )
    parser.add_argument("--trace", nargs="+", choices=WORKLOADS, default=[], help="memory over time of these")
    parser.add_argument("--merge", action="store_true", help="keep other results that are there already")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--list", action="store_true", help="say what the workloads are")
    parser.add_argument("--data", type=Path, help="folder of the data (default: one in the temporary folder)")
    parser.add_argument("--results", type=Path, help=f"folder of results (default: {RESULTS})")
    return parser.parse_args(given)


def begin(given: argparse.Namespace) -> Session:
    """Fill in what was not said, and read what is to be kept."""
    scale = SCALES[given.scale or ("quick" if given.quick else "full")]
    data = given.data or Path(tempfile.gettempdir(), "graphmill-benchmark-data")
    rounds = given.rounds or (1 if given.quick else 3)
    wanted = Wanted(scale, data.absolute(), rounds, given.computes, given.patience)
    folder = given.results or (None if given.quick else RESULTS)
    file = None if folder is None else folder / f"{scale.name}.json"
    results = Results()
    if file is not None and (given.merge or given.report) and file.exists():
        results = Results.read(file)
    if not given.report:
        results.machine = machine()
    until = time.monotonic() + QUICK if given.quick else inf
    return Session(wanted, results, file, until)


def measure(session: Session, given: argparse.Namespace) -> None:
    """Run all that was asked for."""
    names = list(WORKLOADS) if given.only is None else given.only
    engines = [name for name in ENGINES if given.engines is None or name in (*given.engines, BASE)]
    if given.quick:
        quick(session, names, given.workers[0], engines)
        return
    for workers in given.workers:
        for name in names:
            session.measure(name, workers, engines)
    for name in given.trace:
        session.trace(name, given.workers[-1], [each for each in engines if each not in ("ray", "joblib")])


def publish(session: Session) -> None:
    """Write the page and the plots, or print the table where no files are wanted."""
    report = Report(session.results)
    if session.file is None:
        print(f"\n{report.machine()}\n{report.table()}\n{report.notes()}\n{report.summary()}")
        return
    folder = session.file.parent
    page = folder / "RESULTS.md" if folder != RESULTS else RESULTS.with_name("RESULTS.md")
    plots = draw(session.results, folder) if can_draw() else []
    if not plots:
        print("no plots: matplotlib is not installed, or there is nothing to draw")
    page.write_text(
        report.page([(title, str((folder / name).relative_to(page.parent))) for title, name in plots])
        + "\n## The workloads\n\n"
        + workloads_page()
    )
    print(f"\n{report.table()}\n{report.summary()}\nin full: {page}")


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print as it comes; 0 if no answer of graphmill's is wrong."""
    asked = arguments(given)
    if asked.list:
        print(workloads_page())
        return 0
    # Ended as by Ctrl-C, so that what runs ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session = begin(asked)
    if not asked.report:
        measure(session, asked)
    publish(session)
    ours = [run for run in session.results.runs if run.engine == OURS]
    return 0 if all(run.right for run in ours) else 1


if __name__ == "__main__":
    sys.exit(main())
