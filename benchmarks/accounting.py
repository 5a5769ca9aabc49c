"""What it costs to keep account of memory where no limit is reached.

Two engines in one process, one of which keeps no account, take turns on the same graphs; what counts is the
median over pairs of runs, so that a busy machine slows both.

    python -m benchmarks.accounting
"""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import dask.array

from graphmill import Engine

da: Any = dask.array

#: What switches it off in `Engine`.
SWITCH = "accounting"
PAIRS = 9


def accounting_costs(workers: int, pairs: int = PAIRS) -> Iterator[tuple[str, float]]:
    """Give what is run, and by which share it takes longer with accounts than without.

    Gives nothing where engines have no such switch.
    """
    if SWITCH not in inspect.signature(Engine).parameters:
        return
    make: Any = Engine
    with ExitStack() as stack:
        on, off = (stack.enter_context(make(workers, **{SWITCH: kept})) for kept in (True, False))
        for name, run in (("blocks of 8 MB", blocks), ("tiny tasks", tiny)):
            seconds(run, on), seconds(run, off)
            yield name, median(seconds(run, on) / seconds(run, off) for _ in range(pairs)) - 1


def seconds(run: Callable[[Any], object], engine: Any) -> float:
    """Time one run."""
    begin = time.perf_counter()
    run(engine)
    return time.perf_counter() - begin


def blocks(engine: Any) -> object:
    """Compute something of 16 blocks and their mirror images."""
    x = da.random.default_rng(0).random((4_000, 4_000), chunks=1_000)
    return (x + x.T).sum().compute(scheduler=engine.get)


def tiny(engine: Any) -> object:
    """Run five thousand tasks that do nothing."""
    dsk: dict[Any, Any] = {("x", i): (abs, -i) for i in range(5_000)}
    dsk["sum"] = (sum, list(dsk))
    return engine.get(dsk, "sum")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accounting", description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    for name, cost in accounting_costs(parser.parse_args(arguments).workers):
        print(f"{name}: {cost:+.1%}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
