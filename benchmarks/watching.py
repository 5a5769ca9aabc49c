"""What it costs to watch: many tiny tasks, with progress, with a profile, and without; and a large report.

    python -m benchmarks.watching           # both
    python -m benchmarks.watching tiny      # only the tasks
    python -m benchmarks.watching report    # only the report: how long a browser takes to have it ready

Rounds follow each other in one process, each way in turn; told is the median of ratios to rounds without.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import graphmill
from benchmarks.browser import CHROMIUM, Browser
from graphmill.diagnostics import progress
from graphmill.diagnostics.log import Entry, Outcome, RunLog
from graphmill.diagnostics.records import Recording, record_runs
from graphmill.diagnostics.report import render_report
from graphmill.diagnostics.terminal import TerminalDisplay
from graphmill.diagnostics.watch import Glance
from graphmill.engine import Engine

TASKS = 40_000
ROUNDS = 7
WORKERS = 8


class Terminal(io.StringIO):
    """Takes what a terminal would show."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """It says that it is one."""
        return True


def tiny() -> str:
    """Time tiny tasks with and without somebody who watches."""
    dsk: dict[Any, Any] = {("x", i): (abs, -i) for i in range(TASKS // 2)}
    dsk |= {("y", i): (abs, ("x", i)) for i in range(TASKS // 2)}
    dsk["sum"] = (sum, [("y", i) for i in range(TASKS // 2)])
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nobody": nullcontext,
        "progress": lambda: progress(display=TerminalDisplay(Terminal(), width=100)),
        "profile": graphmill.profile,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    works: dict[str, list[float]] = {name: [] for name in ways}
    with Engine(2) as engine:
        engine.get(dsk, "sum")
        for _ in range(ROUNDS):
            for name, way in ways.items():
                with way():
                    begin, work = time.perf_counter(), time.process_time()
                    engine.get(dsk, "sum")
                    works[name].append(time.process_time() - work)
                    times[name].append(time.perf_counter() - begin)
    text = f"{TASKS:,} tiny tasks, {min(times['nobody']) / TASKS * 1e6:.1f} µs each"
    for name in ("progress", "profile"):
        extra = _more(works[name], works["nobody"])
        text += f"; {name} costs {_more(times[name], times['nobody'])} of the time, {extra} of the work here"
    return text


def _more(watched: Sequence[float], bare: Sequence[float]) -> str:
    ratio = median(one / other for one, other in zip(watched, bare, strict=True))
    return f"{ratio - 1:+.1%} (best {min(watched) / min(bare) - 1:+.1%})"


def recording(count: int) -> Recording:
    """Make up a recording of many tasks."""
    rng = random.Random(1)
    kinds = [
        f"{name}-0123456789abcdef0123456789abcdef"
        for name in ["random", "add", "split", "merge", "mean", "store"]
    ]
    ends = [0.0] * WORKERS
    entries = []
    for i in range(count):
        worker = min(range(WORKERS), key=ends.__getitem__)
        began = ends[worker] + rng.random() * 1e-4
        seconds = rng.expovariate(500)
        kind = kinds[min(len(kinds) - 1, int(rng.expovariate(0.5)))]
        entries.append(
            Entry((kind, i % 1000, i // 1000), worker, began, seconds, 10**6, 10**6, 0, Outcome.DONE)
        )
        ends[worker] = began + seconds
    end = max(ends)
    log = RunLog(entries=entries, began=0.0, ended=end, keys=[entry.key for entry in entries])
    glances = [
        Glance(end * i / 500, 4 * 10**9, 10**9, 10**9 + i * 10**6, 10**9, 10**8, 0, 0, 0, WORKERS, 0)
        for i in range(500)
    ]
    return record_runs(WORKERS, [log], glances, 0.0)


def report(count: int = 100_000) -> str:
    """Time how long a browser takes until a large report is there, and until all of it is drawn."""
    made = recording(count)
    begin = time.perf_counter()
    text = render_report([made])
    took = time.perf_counter() - begin
    said = f"report of {count:,} tasks: made in {took:.1f} s, {len(text) / 1e6:.1f} MB"
    if CHROMIUM is None:
        return said
    times = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "report.html"
            page.write_text(text, encoding="utf-8")
            with Browser(Path(folder) / "profile") as browser:
                begin = time.perf_counter()
                browser.open(page.as_uri())
                browser.wait_for("document.documentElement.dataset.ready")
                browser.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
                times.append(time.perf_counter() - begin)
                assert browser.errors == []
    return f"{said}; open in {min(times):.1f} to {max(times):.1f} s"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts: dict[str, Callable[[], str]] = {"tiny": tiny, "report": report}
    parser.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    for name in parser.parse_args(arguments).parts or parts:
        print(parts[name](), flush=True)


if __name__ == "__main__":
    main()
