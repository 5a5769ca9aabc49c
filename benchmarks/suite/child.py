"""Runs one workload on one engine in this process, and says what it took: in lines of JSON, each with all.

Started by `benchmarks.suite.measure`, which watches it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.suite.base import NotApplicable, run
from benchmarks.suite.catalogue import WORKLOADS
from benchmarks.suite.engines import ENGINES
from benchmarks.suite.scales import SCALES
from benchmarks.workload import keep


def measure(wanted: argparse.Namespace) -> None:
    """Start the engine, compute so often, store what comes of it, and tell what it took."""
    workload = WORKLOADS[wanted.workload](SCALES[wanted.scale], wanted.data)
    globals().update({name: importlib.import_module(name) for name in workload.imports})
    told: dict[str, Any] = {"seconds": []}
    begin = time.perf_counter()
    with ENGINES[wanted.engine].start(wanted.workers) as running:
        running.start()
        told["started"] = time.perf_counter() - begin
        for number in range(wanted.computes):
            output = wanted.output / str(number)
            output.mkdir()
            # Not part of it: until `compute` is called, it is the same for all engines.
            compute = run(workload, running, output)
            told["lived"] = time.time() - psutil.Process().create_time()
            tell(told)
            begin = time.perf_counter()
            results = compute()
            told["seconds"].append(time.perf_counter() - begin)
            keep(results, output)
            del results
            tell(told)
        told["spilled"] = running.spilled()
    told["done"] = True
    tell(told)


def tell(what: dict[str, Any]) -> None:
    """Print a line for who watches."""
    print(json.dumps(what), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.child", description=__doc__)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--scale", choices=SCALES, required=True)
    parser.add_argument("--computes", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="an empty folder")
    try:
        measure(parser.parse_args(arguments))
    except NotApplicable as error:
        tell({"refused": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
