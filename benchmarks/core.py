"""What the scheduler itself costs, in microseconds and bytes per task.

Graphs: independent tasks and chains written as tuples, and Dask's own for ``(x + x.T).sum()``. Dask's local
scheduler is measured beside ours, in turn, so that a busy machine slows both. All times are the processor's:
others who use the machine count less than on the clock.

    python -m benchmarks.core
    python -m benchmarks.core --scale     # 10,000 against 1,000,000 tasks; takes a minute or two

With ``--scale``, a bare loop is measured too: a set for each key, put into a dictionary and looked up again.
What that grows by is the price of memory that no cache holds, and of pages touched for the first time.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array
import dask.local

from benchmarks.families import capture
from graphmill.collector import collector_paused
from graphmill.graph import read_graph
from graphmill.local import get_sync
from graphmill.loop import plan_order
from graphmill.scheduler import Scheduler
from graphmill.scheduler.events import Event, Run, SlotsChanged, TaskFinished
from graphmill.types import Key

da: Any = dask.array
dask_get_sync: Any = dask.local.get_sync


def inc(x: int) -> int:
    """Do almost nothing."""
    return x + 1


@dataclass(frozen=True, slots=True)
class Workload:
    """A graph and what is asked of it."""

    name: str
    dsk: dict[Key, Any]
    keys: list[Key]


def independent(count: int) -> Workload:
    """Build tasks that have nothing to do with each other."""
    dsk: dict[Key, Any] = {("x", i): (inc, i) for i in range(count)}
    return Workload(f"{count:,} independent tasks", dsk, list(dsk))


def chains(count: int) -> Workload:
    """Build rows of three tasks, the last of which needs the first of the next row too."""
    rows = count // 3
    dsk: dict[Key, Any] = {}
    for i in range(rows):
        dsk["x", i] = (inc, i)
        dsk["y", i] = (inc, ("x", i))
        dsk["z", i] = (max, ("y", i), ("x", (i + 1) % rows))
    return Workload(f"{len(dsk):,} tasks in short chains", dsk, [("z", i) for i in range(rows)])


def transpose_sum(blocks: int) -> Workload:
    """Take Dask's graph for a matrix plus its transpose, summed, on blocks of 25 x 25."""
    x = da.ones((25 * blocks, 25 * blocks), chunks=(25, 25))
    dsk, keys = capture([(x + x.T).sum()])
    return Workload(f"{len(dsk):,} tasks of (x + x.T).sum()", dict(dsk), keys)


@dataclass(slots=True)
class Costs:
    """Microseconds per task of each part."""

    read: float
    order: float
    state: float
    run: float


def measure(work: Workload) -> Costs:
    """Time each part of the core on one graph, with nothing executed."""
    clock = time.process_time
    times = [clock()]
    with collector_paused(len(work.dsk)):
        graph = read_graph(work.dsk, work.keys)
        results = frozenset(work.keys)
        times.append(clock())
        plan = plan_order(graph, results)
        times.append(clock())
        scheduler = Scheduler(graph, results, plan.priority, {}, plan.options)
        times.append(clock())
    drive(scheduler)
    times.append(clock())
    count = len(graph.tasks)
    spans = [(b - a) / count * 1e6 for a, b in pairwise(times)]
    return Costs(*spans)


def drive(scheduler: Scheduler) -> None:
    """Tell the scheduler that each task is done as soon as it is started."""
    event: Event | None = SlotsChanged(1)
    while event is not None:
        commands = scheduler.handle(event)
        event = None
        for command in commands:
            if type(command) is Run:
                event = TaskFinished(command.key, 1)


def best(work: Workload, repeats: int = 3) -> Costs:
    """Take the shortest of several measurements of each part."""
    found = [measure(work) for _ in range(repeats)]
    return Costs(*(min(getattr(c, name) for c in found) for name in Costs.__slots__))


def bytes_per_task(work: Workload) -> float:
    """Measure the most memory that the core takes beyond the user's graph, per task."""
    gc.collect()
    tracemalloc.start()
    try:
        measure(work)
        return tracemalloc.get_traced_memory()[1] / len(work.dsk)
    finally:
        tracemalloc.stop()


def whole_run(work: Workload, repeats: int = 3) -> tuple[float, float]:
    """Time whole runs in this process, ours and Dask's in turn: microseconds per task, the best of each."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(repeats):
        for get, times in ((get_sync, ours), (dask_get_sync, theirs)):
            times.append(time_run(get, work))
    return min(ours), min(theirs)


def time_run(get: Any, work: Workload) -> float:
    """Time one whole run, in microseconds per task."""
    gc.collect()
    start = time.process_time()
    get(work.dsk, work.keys)
    return (time.process_time() - start) / len(work.dsk) * 1e6


def report(work: Workload) -> None:
    """Print one graph's line."""
    costs = best(work)
    ours, theirs = whole_run(work)
    print(
        f"{work.name:<36}{costs.read + costs.state:6.1f}{costs.order:7.1f}{costs.run:7.1f}"
        f"{bytes_per_task(work):8.0f}{ours:9.1f}{theirs:8.1f}{ours / theirs:7.2f}",
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=__doc__)
    parser.add_argument("--scale", action="store_true", help="compare 10,000 with 1,000,000 tasks")
    if parser.parse_args(arguments).scale:
        scale()
        return 0
    print(f"{'':36}µs per task{'':14}bytes    get_sync, µs per task")
    print(f"{'':36} build  order    run per task     ours    Dask  ratio")
    for work in (independent(20_000), chains(20_000), transpose_sum(138)):
        report(work)
    return 0


SMALL, LARGE = 10_000, 1_000_000
#: On how many tasks memory is measured: tracing each allocation makes it slow.
TRACED = 100_000


def scale() -> None:
    """Print how the cost of a task grows with the size of the graph."""
    print(f"µs per task at {SMALL:,} and {LARGE:,} tasks, and the ratio\n")
    for build in (independent, chains):
        small, large = build(SMALL), build(LARGE)
        before, after = best(small, 10), best(large, 2)
        for name in Costs.__slots__:
            growth(f"  {name}", getattr(before, name), getattr(after, name))
        growth(f"{build.__name__}, scheduler alone", total(before), total(after))
        whole = min(time_run(get_sync, small) for _ in range(10))
        growth(f"{build.__name__}, get_sync", whole, time_run(get_sync, large))
        print(f"{bytes_per_task(build(TRACED)):.0f} bytes per task, of {TRACED:,}\n", flush=True)
    growth(
        "a bare loop",
        min(bare_loop(SMALL) for _ in range(10)),
        min(bare_loop(LARGE) for _ in range(3)),
    )


def growth(name: str, small: float, large: float) -> None:
    """Print one line of what grows."""
    print(f"{name:<32}{small:7.2f}{large:7.2f}{large / small:7.2f} x", flush=True)


def total(costs: Costs) -> float:
    """Add up the parts."""
    return costs.read + costs.order + costs.state + costs.run


def bare_loop(count: int) -> float:
    """Time what no scheduler can do without: an entry and a set for each key, made and looked up."""
    keys: list[Key] = [("x", i) for i in range(count)]
    held: dict[Key, set[Key]] = {}
    with collector_paused(count):
        start = time.process_time()
        for key in keys:
            held[key] = {key}
        for key in keys:
            held[key].discard(key)
        return (time.process_time() - start) / count * 1e6


if __name__ == "__main__":
    sys.exit(main())
