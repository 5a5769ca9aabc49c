"""What it costs to keep account of memory where no limit is reached.

One engine runs the same graphs in turn with accounts and without: then processes are not looked at, and the
scheduler is told of no limit. What counts is the median over pairs of runs, so that a busy machine slows
both.

    python -m benchmarks.accounting
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import dask.array

from graphmill import Engine
from graphmill.engine.limit import Limit
from graphmill.engine.run import Run
from graphmill.scheduler.room import Room

da: Any = dask.array

PAIRS = 15
#: Bytes that no task takes.
ENOUGH = 1 << 50


def accounting_costs(workers: int, pairs: int = PAIRS) -> Iterator[tuple[str, float]]:
    """Give what is run, and by which share it takes longer with accounts than without."""
    with Engine(workers) as engine:
        for name, run in (("blocks of 8 MB", blocks), ("tiny tasks", tiny)):
            seconds(run, engine)
            yield name, median(pair(run, engine) for _ in range(pairs)) - 1


def pair(run: Callable[[Any], object], engine: Engine) -> float:
    """Compare the time of a run with accounts to those of one before and one after it without."""
    before = without(run, engine)
    kept = seconds(run, engine)
    return 2 * kept / (before + without(run, engine))


def without(run: Callable[[Any], object], engine: Engine) -> float:
    """Time a run without accounts."""
    with no_accounts():
        return seconds(run, engine)


@contextmanager
def no_accounts() -> Iterator[None]:
    """Have no account kept of memory."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(Limit, "look"))
        stack.enter_context(patch.object(Run, "_room", return_value=None))
        stack.enter_context(patch.object(Room, "need", return_value=0))
        stack.enter_context(patch.object(Room, "start", return_value=ENOUGH))
        yield


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
