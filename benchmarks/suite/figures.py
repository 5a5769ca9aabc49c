"""The figures that are wanted of graphmill, beside those that were found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.suite.base import Kind
from benchmarks.suite.catalogue import WORKLOADS
from benchmarks.suite.engines import OURS
from benchmarks.suite.results import Compared, Results, geometric_mean
from benchmarks.suite.scales import SCALES

PEER = "distributed"
ARRAYS = (Kind.ARRAY, Kind.BLAS)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure that is wanted."""

    name: str
    #: What was found; None if it was not measured.
    found: float | None
    most: float
    #: What it was worked out from.
    of: str = ""

    @property
    def verdict(self) -> str:
        """Say whether it is as wanted."""
        if self.found is None:
            return "not measured"
        return "yes" if self.found <= self.most else "no"


def figures(results: Results, workers: int) -> Iterator[Figure]:
    """Work out all figures for one number of workers."""

    def ours(name: str) -> Compared | None:
        return results.compared(name, OURS, workers)

    yield Figure("20,000 tasks of a raw graph: time / threads", time_of(ours("tiny-raw")), 0.20)
    yield Figure("the same: µs per task", per_task(results, workers), 40)
    yield Figure("44,500 tiny dask.array tasks: time / threads", time_of(ours("tiny-array")), 0.40)
    yield Figure("Python-bound function per block: time / threads", time_of(ours("python-blocks")), 0.55)
    for kind, most in ((Kind.ARRAY, 1.0), (Kind.BLAS, 1.05)):
        times = each(results, workers, kind, lambda found: found.time)
        yield worst(f"worst {kind.value} workload: time / threads", times, most)
    times = of_kinds(results, workers, lambda found: found.time)
    yield mean("array workloads, geometric mean: time / threads", times, 0.70)
    peers = dict(against_peer(results, workers, lambda found: found.seconds, bound=True))
    yield mean(f"array workloads, geometric mean: time / {PEER}", peers, 0.40)
    memory = of_kinds(results, workers, lambda found: found.memory)
    yield worst("worst array workload: memory / threads", memory, 1.1)
    yield mean("array workloads, geometric mean: memory / threads", memory, 0.75)
    peers = dict(against_peer(results, workers, lambda found: found.peak))
    yield mean(f"array workloads, geometric mean: memory / {PEER}", peers, 0.50)


def time_of(found: Compared | None) -> float | None:
    """Give the ratio to threads, if there is one."""
    return None if found is None else found.time


def per_task(results: Results, workers: int) -> float | None:
    """Work out the microseconds of a trivial task; the number of tasks is that of the scale."""
    found = results.compared("tiny-raw", OURS, workers)
    if found is None or found.seconds is None:
        return None
    return found.seconds / SCALES[found.runs[0].scale].independent * 1e6


Ratio = Callable[[Compared], float | None]


def each(results: Results, workers: int, kind: Kind, ratio: Ratio) -> dict[str, float]:
    """Give a figure of graphmill for each workload of a kind."""
    found = {}
    for name, workload in WORKLOADS.items():
        compared = results.compared(name, OURS, workers)
        if workload.kind is kind and compared is not None:
            value = ratio(compared)
            if value is not None:
                found[name] = value
    return found


def of_kinds(results: Results, workers: int, ratio: Ratio) -> dict[str, float]:
    """Give it for all array workloads."""
    return {name: value for kind in ARRAYS for name, value in each(results, workers, kind, ratio).items()}


def against_peer(
    results: Results, workers: int, figure: Ratio, *, bound: bool = False
) -> Iterator[tuple[str, float]]:
    """Compare with the peer on each array workload; both ratios to threads, as sessions may differ.

    Where the peer was ended, it took at least as long as it had, which can stand for its time.
    """
    for name, workload in WORKLOADS.items():
        ours, theirs = (results.compared(name, engine, workers) for engine in (OURS, PEER))
        if workload.kind not in ARRAYS or ours is None or theirs is None:
            continue
        relative = [value_over_base(found, figure) for found in (ours, theirs)]
        if relative[1] is None and bound:
            relative[1] = theirs.at_least
        if relative[0] is not None and relative[1] is not None:
            yield name, relative[0] / relative[1]


def value_over_base(found: Compared, figure: Ratio) -> float | None:
    """Give a figure of an engine over that of threads in the same session."""
    mine, base = figure(found), figure(Compared(found.base, found.base))
    return mine / base if mine is not None and base else None


def worst(name: str, values: dict[str, float], most: float) -> Figure:
    """Take the largest of several."""
    if not values:
        return Figure(name, None, most)
    largest = max(values, key=values.__getitem__)
    over = [each for each, value in values.items() if value > most]
    more = f"; above: {', '.join(over)}" if over else ""
    return Figure(name, values[largest], most, f"{largest}{more}")


def mean(name: str, values: dict[str, float], most: float) -> Figure:
    """Take the geometric mean of several."""
    return Figure(name, geometric_mean(values.values()), most, f"{len(values)} workloads")
