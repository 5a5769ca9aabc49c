"""What the engine costs, next to Dask's threads and to plain memory copies, in one run.

    python -m benchmarks.engine               # everything
    python -m benchmarks.engine start tiny    # some of it

Figures are ratios between things measured in turn in one process, since machines are noisy: the best of
several rounds of each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import dask.array
import dask.threaded
import numpy as np
import psutil

from graphmill.engine import Engine
from graphmill.local import get_sync

da: Any = dask.array
#: Elements of a block of 32 MB of float64.
BLOCK = 4 << 20
ROUNDS = 5


def best(function: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Time a call, in seconds: the shortest of several."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


START = """
import time
{imports}
import graphmill
from graphmill.engine import Engine
begin = time.perf_counter()
engine = Engine(2)
engine.get({{("x", i): (abs, -i) for i in range(8)}}, [("x", i) for i in range(8)])
first = time.perf_counter() - begin
begin = time.perf_counter()
engine.get({{"x": 1, "y": (abs, "x")}}, "y")
second = time.perf_counter() - begin
engine.close()
print(first, second)
"""
IMPORTS = """
import time
begin = time.perf_counter()
{imports}
import graphmill.engine
print(time.perf_counter() - begin)
"""


def start() -> str:
    """First and second compute on a fresh engine, beside the import of the libraries in use."""
    lines = []
    for name, imports in (("nothing", ""), ("dask.array, zarr", "import dask.array, zarr")):
        imported = median(float(_python(IMPORTS.format(imports=imports))) for _ in range(3))
        pairs = [_python(START.format(imports=imports)).split() for _ in range(3)]
        first, second = (median(float(pair[i]) for pair in pairs) for i in (0, 1))
        lines.append(
            f"start, with {name} imported ({imported:.2f} s): first compute {first:.2f} s, "
            f"second {second * 1e3:.1f} ms"
        )
    return "\n".join(lines)


def _python(source: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=60
    )
    return run.stdout


def tiny(engine: Engine) -> str:
    """Microseconds per task that does nothing."""
    count = 20_000
    dsk: dict[Any, Any] = {("x", i): (abs, -i) for i in range(count)}
    dsk["sum"] = (sum, [("x", i) for i in range(count)])
    times = {
        name: best(lambda get=get: get(dsk, "sum"), 3) / count * 1e6  # type: ignore[misc]
        for name, get in (("graphmill", engine.get), ("get_sync", get_sync), ("threads", dask.threaded.get))
    }
    return "tiny tasks, microseconds each: " + ", ".join(f"{name} {each:.0f}" for name, each in times.items())


def passing(engine: Engine) -> str:
    """What it costs to hand a block of 32 MB from one task to another, beside a copy of it."""
    source, target = np.ones(BLOCK), np.ones(BLOCK)
    copy = best(lambda: np.copyto(target, source), 20)
    count = 8
    dsk: dict[Any, Any] = {("x", 0): (np.ones, BLOCK)}
    dsk |= {("x", i): (np.add, ("x", i - 1), 1.0) for i in range(1, count)}
    dsk["y"] = (_first, ("x", count - 1))
    together: dict[Any, Any] = {"y": (_chain, count)}
    spread = best(lambda: engine.get(dsk, "y"), 8)
    alone = best(lambda: engine.get(together, "y"), 8)
    each = (spread - alone) / (count - 1)
    return f"passing a block of 32 MB on costs {each / copy:.2f} copies of it ({each * 1e3:.1f} ms each)"


def _first(x: Any) -> float:
    return float(x[0])


def _chain(count: int) -> float:
    x = np.ones(BLOCK)
    for _ in range(1, count):
        x = np.add(x, 1.0)
    return _first(x)


def python_bound(engine: Engine) -> str:
    """Speed-up of tasks that hold the GIL, over one at a time."""
    dsk: dict[Any, Any] = {("x", i): (_loop, 300_000) for i in range(32)}
    keys = list(dsk)
    alone = best(lambda: get_sync(dsk, keys), 3)
    ours = best(lambda: engine.get(dsk, keys), 3)
    threads = best(lambda: dask.threaded.get(dsk, keys, num_workers=engine.num_workers), 3)
    return (
        f"tasks bound to Python, {engine.num_workers} workers: {alone / ours:.2f} x one at a time; "
        f"threads {alone / threads:.2f} x"
    )


def _loop(count: int) -> int:
    total = 0
    for i in range(count):
        total += i
    return total


def arrays(engine: Engine) -> str:
    """Array workloads: time, graphmill's over that of threads."""
    lines = []
    rng = np.random.default_rng(0)
    x = da.from_array(rng.random((4_000, 4_000)), chunks=1_000).persist(scheduler="sync")
    r = da.random.default_rng(0).random((4_000, 4_000), chunks=1_000)
    for name, expression in {
        "(r + r.T).sum()": (r + r.T).sum(),
        "(r - r.mean(0)).std()": (r - r.mean(0)).std(),
        "r.T @ r, its mean": (r.T @ r).mean(),
        "x + 1 to one array": x + 1,
        "r, rechunked, its mean over columns": r.rechunk((200, 4_000)).mean(1).sum(),
    }.items():
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(best(lambda e=expression: e.compute(scheduler=engine.get), 1))  # type: ignore[misc]
            theirs.append(
                best(lambda e=expression: e.compute(scheduler="threads", num_workers=engine.num_workers), 1)  # type: ignore[misc]
            )
        lines.append(f"{name:<38} {min(ours) / min(theirs):5.2f} x the time of threads ({min(theirs):.2f} s)")
    return "\n".join(lines)


def rest(_: Engine) -> str:
    """What a worker adds to memory while it does nothing: four workers' processes less those of one."""
    sizes = {}
    for workers in (1, 4):
        with Engine(workers) as engine:
            dsk: dict[Any, Any] = {("x", i): (_loop, 100_000) for i in range(8 * workers)}
            engine.get(dsk, list(dsk))
            family = psutil.Process().children(recursive=True)
            sizes[workers] = sum(each.memory_full_info().pss for each in family)
    return f"memory that a worker adds at rest: {(sizes[4] - sizes[1]) / 3e6:.1f} MB (Pss)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line says."""
    parts: dict[str, Callable[[Engine], str]] = {
        "tiny": tiny,
        "passing": passing,
        "python": python_bound,
        "arrays": arrays,
        "rest": rest,
    }
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("parts", nargs="*", default=["start", *parts])
    parser.add_argument("--workers", type=int, default=None)
    chosen = parser.parse_args(arguments)
    for name in chosen.parts:
        if name == "start":
            print(start(), flush=True)
            continue
        with Engine(chosen.workers) as engine:
            print(parts[name](engine), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
