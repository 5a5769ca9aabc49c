"""How good our order is, and what it costs, next to Dask's.

For each graph family, runs are simulated on the real scheduler (`benchmarks.simulate`): ours with selection
by priority and admission within a budget, Dask's with its own order and its last-in-first-out stack. What is
printed is the peak of live bytes, ours ÷ Dask's, for each number of workers, and the same for the makespan.

    python -m benchmarks.order                 # all families, sizes unknown and known
    python -m benchmarks.order --cost          # microseconds per task, also for large graphs
    python -m benchmarks.order --search 20     # seconds of local search per small instance
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import dask.order

from benchmarks.families import FAMILIES, Case, Scale
from benchmarks.simulate import Outcome, simulate
from graphmill.graph import Graph, read_graph
from graphmill.order import measure_order, order_graph
from graphmill.order.index import Index, index_graph
from graphmill.order.replay import peak_of
from graphmill.scheduler import Options, Selection

# Dask names a narrower type for keys than it takes.
dask_order: Any = dask.order.order

WORKERS = (1, 2, 8, 32)


@dataclass(frozen=True, slots=True)
class Row:
    """One family: ours ÷ Dask's, for each number of workers."""

    name: str
    peaks: list[float]
    makespans: list[float]


def geometric_mean(values: Iterable[float]) -> float:
    """Take the geometric mean."""
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def run_dask(case: Case, graph: Graph, workers: Sequence[int]) -> list[Outcome]:
    """Simulate Dask's order with Dask's policy."""
    priority = dask_order(case.dsk).__getitem__
    options = Options(Selection.LIFO)
    return [simulate(graph, case.keys, priority, case.nbytes, count, options) for count in workers]


def run_ours(case: Case, graph: Graph, workers: Sequence[int], *, sized: bool) -> list[Outcome]:
    """Simulate our order with our policy.

    Where sizes are unknown, the order guesses them; admission goes by real sizes all the same,
    since the engine sees each output's size as it comes in.
    """
    order = order_graph(graph, case.nbytes if sized else None, case.keys)
    measured = measure_order(graph, order.priorities, case.nbytes, case.keys)
    outcomes = []
    for count in workers:
        options = Options(Selection.PRIORITY, case.nbytes, measured.budget(count))
        outcomes.append(simulate(graph, case.keys, order.priorities.__getitem__, case.nbytes, count, options))
    return outcomes


def compare(case: Case, workers: Sequence[int], *, sized: bool) -> Row:
    """Compare ours with Dask's on one graph."""
    graph = read_graph(case.dsk, case.keys)
    theirs = run_dask(case, graph, workers)
    ours = run_ours(case, graph, workers, sized=sized)
    pairs = list(zip(ours, theirs, strict=True))
    return Row(
        case.name,
        [a.peak / b.peak for a, b in pairs],
        [a.makespan / b.makespan for a, b in pairs],
    )


def table(rows: list[Row], workers: Sequence[int]) -> str:
    """Lay out the ratios, one family a line, the geometric means last."""
    head = "family".ljust(22) + "".join(f"  W={w:<4}" for w in workers)
    lines = [f"{head}  |{head[22:]}", f"{'':22}  peak ÷ Dask's{'':14}  |  makespan ÷ Dask's"]
    for row in rows:
        peaks = "".join(f"  {value:6.2f}" for value in row.peaks)
        spans = "".join(f"  {value:6.2f}" for value in row.makespans)
        lines.append(f"{row.name:<22}{peaks}  |{spans}")
    mean_peaks = [geometric_mean(row.peaks[i] for row in rows) for i in range(len(workers))]
    mean_spans = [geometric_mean(row.makespans[i] for row in rows) for i in range(len(workers))]
    lines.append(
        f"{'geometric mean':<22}"
        + "".join(f"  {value:6.3f}" for value in mean_peaks)
        + "  |"
        + "".join(f"  {value:6.3f}" for value in mean_spans)
    )
    everything = geometric_mean(value for row in rows for value in row.peaks)
    worst = max(rows, key=lambda row: geometric_mean(row.peaks))
    lines.append(
        f"peak over all: {everything:.3f}; worst family: {worst.name}, "
        f"{geometric_mean(worst.peaks):.3f}; over 1.02 in the mean over W: "
        + (", ".join(r.name for r in rows if geometric_mean(r.peaks) > 1.02) or "none")
    )
    return "\n".join(lines)


def cost_table(names: Sequence[str]) -> str:
    """Time ordering beside Dask's, in microseconds per task."""
    lines = [f"{'graph':<34}{'tasks':>8}  ours  dask.order"]
    for scale in ("medium", "large"):
        for name in names:
            case = FAMILIES[name](_scale(scale), measure=False)
            graph = read_graph(case.dsk, case.keys)
            ours = best_time(order_graph, graph, None, case.keys)
            theirs = best_time(dask_order, case.dsk)
            count = len(graph.tasks)
            lines.append(
                f"{name + ', ' + scale:<34}{count:>8}{ours / count * 1e6:6.1f}{theirs / count * 1e6:8.1f}"
            )
    return "\n".join(lines)


def _scale(name: str) -> Scale:
    return "large" if name == "large" else "medium"


def best_time(function: Callable[..., object], *arguments: object, repeats: int = 3) -> float:
    """Time a call, in seconds: the shortest of several, as the machine may be busy."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


def search(index: Index, sequence: list[int], seconds: float, seed: int = 0) -> int:
    """Look for a leaner order on one worker by moving tasks at random, accepting what is no worse.

    Returns
    -------
    int
        The smallest peak found, in bytes.
    """
    rng = random.Random(seed)
    best = peak_of(index, sequence)
    current, sequence = best, list(sequence)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        moved = _move_one(index, sequence, rng)
        peak = peak_of(index, moved)
        # Slightly worse orders are accepted now and then, to get out of dead ends.
        if peak <= current or rng.random() < 0.002:
            sequence, current = moved, peak
            best = min(best, peak)
    return best


def _move_one(index: Index, sequence: list[int], rng: random.Random) -> list[int]:
    """Move a run of tasks elsewhere between what it needs and what needs it."""
    position = {task: at for at, task in enumerate(sequence)}
    at = rng.randrange(len(sequence))
    task = sequence[at]
    first = max((position[d] for d in index.deps[task]), default=-1) + 1
    last = min((position[u] for u in index.users[task]), default=len(sequence)) - 1
    target = rng.randint(first, last)
    moved = sequence[:at] + sequence[at + 1 :]
    moved.insert(target, task)
    return moved


def search_table(seconds: float) -> str:
    """Show how far ours is from the best that a local search finds, on small instances and one worker."""
    lines = [f"{'family, small':<24}{'ours':>8}{'Dask':>8}  ÷ the best known"]
    ratios = []
    for name, family in FAMILIES.items():
        case = family("small")
        graph = read_graph(case.dsk, case.keys)
        index = index_graph(graph, case.nbytes, case.keys)
        index.hold_sources()
        numbers = {key: i for i, key in enumerate(index.keys)}
        ours, theirs = (
            [numbers[k] for k in sorted(graph.tasks, key=priorities.__getitem__)]
            for priorities in (
                order_graph(graph, case.nbytes, case.keys).priorities,
                dask_order(case.dsk),
            )
        )
        best = min(search(index, start, seconds / 2) for start in (ours, theirs))
        ratio = peak_of(index, ours) / best
        ratios.append(ratio)
        lines.append(f"{name:<24}{ratio:8.2f}{peak_of(index, theirs) / best:8.2f}")
    lines.append(f"{'geometric mean':<24}{geometric_mean(ratios):8.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.order", description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES))
    parser.add_argument("--cost", action="store_true", help="time ordering instead")
    parser.add_argument("--search", type=float, metavar="SECONDS", help="search instead")
    chosen = parser.parse_args(arguments)
    if chosen.cost:
        print(cost_table(chosen.families))
        return 0
    if chosen.search is not None:
        print(search_table(chosen.search))
        return 0
    cases = [FAMILIES[name]("medium") for name in chosen.families]
    for sized in (False, True):
        print(f"sizes {'known' if sized else 'unknown'} to the order")
        print(table([compare(case, WORKERS, sized=sized) for case in cases], WORKERS))
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
