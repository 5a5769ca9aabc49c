"""Runs one workload in this process, and says what it took as the last line of its output, in JSON.

Started by `benchmarks.memory`, which watches it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from benchmarks.trace import Recorder, write
from benchmarks.workload import dask_compute, keep
from benchmarks.workloads import WORKLOADS, Sizes
from graphmill import Engine

SCHEDULERS = ("graphmill", "threads")


def limits() -> bool:
    """Tell whether engines take a memory limit."""
    return "memory_limit" in inspect.signature(Engine).parameters


def engine(workers: int, limit: int | None) -> Any:
    """Make an engine, with a limit if one is asked for."""
    make: Any = Engine
    return make(workers) if limit is None else make(workers, memory_limit=limit)


def run(wanted: argparse.Namespace) -> dict[str, Any]:
    """Compute, store what comes of it, and tell what it took."""
    sizes = Sizes(wanted.sized_for, wanted.small, wanted.chunk)
    workload = WORKLOADS[wanted.workload](sizes, wanted.data)
    collections = workload.collections(wanted.output)
    recorder = Recorder()
    with ExitStack() as stack:
        begin = time.perf_counter()
        options: dict[str, Any] = {"scheduler": "threads", "num_workers": wanted.workers}
        made: Any = None
        if wanted.scheduler == "graphmill":
            made = stack.enter_context(engine(wanted.workers, wanted.limit))
            options = {"scheduler": made.get}
        if wanted.trace is not None:
            stack.enter_context(recorder)
        results = dask_compute(*collections, **options)
        seconds = time.perf_counter() - begin
        memory = made.memory() if hasattr(made, "memory") else None
    keep(results, wanted.output)
    if wanted.trace is not None:
        write(recorder.events, wanted.trace)
    told = asdict(memory) if is_dataclass(memory) and not isinstance(memory, type) else None
    return {"seconds": seconds, "memory": told}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run_workload", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--scheduler", choices=SCHEDULERS, default="graphmill")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, help="the engine's memory limit, in bytes")
    parser.add_argument(
        "--sized-for", type=int, required=True, help="the limit that sizes depend on, in bytes"
    )
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--chunk", type=int, help="bytes of a chunk")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    parser.add_argument("--trace", type=Path, help="file to write what happened into")
    print(json.dumps(run(parser.parse_args(arguments))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
