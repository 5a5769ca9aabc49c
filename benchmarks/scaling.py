"""How far one parent goes: the real engine, with pretended workers on a virtual clock.

    python -m benchmarks.scaling              # all tables; takes some minutes
    python -m benchmarks.scaling --small      # a few thousand tasks; half a minute
    python -m benchmarks.scaling throughput memory

*throughput*: tasks in rows of three, each row needing its neighbour, for 4 to 256 workers and tasks of 0.1 ms
to 1 s. *Efficiency* is the share of all workers' time in which they do what they were asked to; the parent is
*busy* for the share of time in which it computes. *size*: the same for more tasks. *memory*: stencils over
blocks that are read and dropped, and how many blocks there are at a time; beside it, the parent's own memory
for each task.

`benchmarks.pretended` says what is real and what is not.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pretended import pretend, pretended_engine
from benchmarks.suite.report import table
from graphmill.types import Key

WORKERS = (4, 16, 64, 256)
SECONDS = (0.0001, 0.001, 0.01, 0.1, 1.0)
TASKS, MORE_TASKS = 10_000, (10_000, 100_000, 1_000_000)
#: Bytes of a block where memory is measured: less than real ones, so that no limit is met.
BLOCK = 1 << 20
#: Blocks that are read there, and the seconds that each task takes.
BLOCKS, LONG = 1_000, 0.1
#: Tasks of which the parent's memory is measured, as tracing each allocation is slow.
TRACED = 10_000

Graph = dict[Key, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one pretended run."""

    tasks: int
    workers: int
    #: Seconds from the call to its answer, and until the first task was sent.
    makespan: float
    planning: float
    #: Seconds that the parent computed, and that workers did what they were asked to, added up.
    parent: float
    worked: float
    #: The most bytes of blocks that were live at once.
    live: int

    @property
    def efficiency(self) -> float:
        """The share of workers' time that was of use, once the graph was laid out."""
        return self.worked / (self.workers * (self.makespan - self.planning))

    @property
    def rate(self) -> float:
        """Tasks for each second, once the graph was laid out."""
        return self.tasks / (self.makespan - self.planning)

    @property
    def busy(self) -> float:
        """The share of time in which the parent computed, once the graph was laid out."""
        return (self.parent - self.planning) / (self.makespan - self.planning)

    @property
    def cost(self) -> float:
        """What each task costs the parent, all in all, in microseconds."""
        return self.parent / self.tasks * 1e6


def rows(count: int, seconds: float) -> tuple[Graph, Key]:
    """Build rows of three tasks, the last of which needs the row before too, and one task that ends all."""
    dsk: Graph = {}
    for i in range(max(1, count // 3)):
        dsk["a", i] = (pretend, jittered(seconds, i), 0)
        dsk["b", i] = (pretend, jittered(seconds, i + 1), 0, ("a", i))
        dsk["c", i] = (pretend, jittered(seconds, i + 2), 0, ("b", i), ("a", max(0, i - 1)))
    groups = [
        [("c", i) for i in range(start, min(start + 64, count // 3))] for start in range(0, count // 3, 64)
    ]
    for number, group in enumerate(groups):
        dsk["d", number] = (pretend, seconds, 0, group)
    dsk["end",] = (pretend, seconds, 0, [("d", number) for number in range(len(groups))])
    return dsk, ("end",)


def stencil(count: int, seconds: float) -> tuple[Graph, Key]:
    """Build blocks that are read, combined with their neighbours, and reduced to nothing."""
    dsk: Graph = {}
    for i in range(count):
        dsk["read", i] = (pretend, jittered(seconds, i), BLOCK)
        near = [("read", j) for j in (i - 1, i, i + 1) if 0 <= j < count]
        dsk["mix", i] = (pretend, jittered(seconds, i + 1), BLOCK, near)
        dsk["drop", i] = (pretend, jittered(seconds, i + 2), 0, ("mix", i))
    dsk["end",] = (pretend, seconds, 0, [("drop", i) for i in range(count)])
    return dsk, ("end",)


def jittered(seconds: float, number: int) -> float:
    """Vary a time by up to a third, so that workers do not march in step."""
    return seconds * (0.67 + 0.66 * ((number * 2654435761 % 4096) / 4096))


def run(graph: tuple[Graph, Key], workers: int) -> Outcome:
    """Compute a graph on pretended workers that have done something before."""
    dsk, key = graph
    engine, pool = pretended_engine(workers)
    with engine:
        first: Graph = {("first", i): (pretend, 1.0, 0) for i in range(2 * workers)}
        engine.get(first, list(first))
        gc.collect()
        pool.restart_clock()
        begin = pool.read_clock()
        engine.get(dsk, key)
        end = pool.read_clock()
        assert pool.first_job is not None
        worked = sum(worker.worked for worker in pool.workers)
        live = engine.blocks.peak
        return Outcome(len(dsk), workers, end - begin, pool.first_job - begin, pool.parent, worked, live)


def throughput(tasks: int, workers: Sequence[int]) -> Iterator[str]:
    """Vary workers, and the time that tasks take."""
    head = ["workers", *(f"{seconds * 1e3:g} ms" for seconds in SECONDS)]
    found = {(count, seconds): run(rows(tasks, seconds), count) for count in workers for seconds in SECONDS}
    figures: dict[str, Callable[[Outcome], str]] = {
        "Efficiency": lambda each: f"{each.efficiency:.2f}",
        "Tasks for each second": lambda each: f"{each.rate:,.0f}",
        "Share of time in which the parent computes": lambda each: f"{each.busy:.2f}",
    }
    for what, cell in figures.items():
        yield f"{what}, {tasks:,} tasks of so long:\n"
        body = [[str(count), *(cell(found[count, seconds]) for seconds in SECONDS)] for count in workers]
        yield table(head, body)
    costs = sorted(each.cost for each in found.values())
    middle = costs[len(costs) // 2]
    yield f"A task costs the parent {costs[0]:.0f} to {costs[-1]:.0f} µs, {middle:.0f} in the median.\n"


def size(counts: Sequence[int], workers: int = 16, seconds: float = 0.001) -> Iterator[str]:
    """Vary the number of tasks."""
    body = []
    for count in counts:
        found = run(rows(count, seconds), workers)
        print(f"{count:,} tasks", file=sys.stderr)  # it takes minutes
        cells = (found.planning / found.tasks * 1e6, found.cost, found.rate, found.efficiency)
        formats = ("{:.1f}", "{:.1f}", "{:,.0f}", "{:.2f}")
        body.append([f"{count:,}", *(form.format(cell) for form, cell in zip(formats, cells, strict=True))])
    yield f"{workers} workers, tasks of {seconds * 1e3:g} ms:\n"
    head = ["tasks", "µs to lay out a task", "µs in all", "tasks for each second", "efficiency"]
    yield table(head, body)


def memory(blocks: int, traced: int, workers: Sequence[int]) -> Iterator[str]:
    """Vary workers where blocks are held."""
    body = []
    for count in workers:
        found = run(stencil(blocks, LONG), count)
        held = found.live / BLOCK
        body.append([str(count), f"{held:.0f}", f"{held / count:.2f}", f"{found.efficiency:.2f}"])
    yield f"A stencil over {blocks:,} blocks, tasks of {LONG * 1e3:g} ms:\n"
    yield table(["workers", "blocks live at most", "for each worker", "efficiency"], body)
    yield f"The parent's own memory: {bytes_per_task(traced):,.0f} bytes for each of {traced:,} tasks.\n"


def bytes_per_task(count: int) -> float:
    """Measure the most memory that is taken beyond the graph, that of pretended workers included."""
    graph = rows(count, 0.001)
    gc.collect()
    tracemalloc.start()
    try:
        run(graph, 4)
        return tracemalloc.get_traced_memory()[1] / count
    finally:
        tracemalloc.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", default=[], help="throughput, size or memory; by default all")
    parser.add_argument("--small", action="store_true", help="fewer tasks")
    given = parser.parse_args(arguments)
    small = given.small
    workers = (4, 64) if small else WORKERS
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "throughput": lambda: throughput(TASKS // 10 if small else TASKS, workers),
        "size": lambda: size((1_000, 10_000) if small else MORE_TASKS),
        "memory": lambda: memory(BLOCKS // 5 if small else BLOCKS, TRACED // 5 if small else TRACED, workers),
    }
    unknown = set(given.parts) - set(parts)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose from {', '.join(parts)}")
    # Ended as by Ctrl-C, so that arenas go: there is no template that would remove them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for name in given.parts or parts:
        print(f"## {name}\n")
        for text in parts[name]():
            print(text, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
