"""What worker processes cost: to start, to have, and to speak to.

- Start: from `Pool()` to an answer of each of two workers, in a fresh process that has imported some
  libraries. The template imports them again, so the time that the import took stands beside it.
- Memory: Pss of template and workers, and how much each further worker adds.
- Messages: one small message there and back, and one of ten in flight, in turn with a pipe of
  multiprocessing between two processes. "Held" is within an `InterruptHold`, as in an engine's loop.

    python -m benchmarks.workers
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from graphmill.workers.child import WorkerChannel
from graphmill.workers.pool import Pool
from graphmill.workers.signals import InterruptHold

#: What a parent may have imported.
LIBRARIES = ((), ("numpy",), ("numpy", "dask.array", "zarr"))
MESSAGES = 2000
IN_FLIGHT = 10
SERVE = "benchmarks.workers:echo"


def echo(channel: WorkerChannel) -> None:
    """Be a worker that sends back what comes."""
    while True:
        for message in channel.receive():
            channel.send(message)


def answers(pool: Pool, count: int) -> None:
    """Wait for so many messages."""
    while count > 0:
        count -= len(pool.poll(60))


def pss(pid: int | None) -> float:
    """Read a process's share of memory, in MB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of process {pid}")


def start(libraries: Sequence[str]) -> dict[str, float]:
    """Measure one start, in seconds, and the memory of the processes, in MB."""
    begin = time.perf_counter()
    for library in libraries:
        importlib.import_module(library)
    imported = time.perf_counter()
    with Pool(2, serve=SERVE) as pool:
        for worker in range(2):
            pool.send(worker, "hello")
        sent = time.perf_counter()
        answers(pool, 2)
        answered = time.perf_counter()
    totals = [memory(count) for count in (1, 4)]
    return {
        "import": imported - begin,
        "call": sent - imported,
        "start": answered - imported,
        "first": totals[0],
        "each": (totals[1] - totals[0]) / 3,
    }


def memory(count: int) -> float:
    """Measure what a template and so many workers take together."""
    with Pool(count, serve=SERVE) as pool:
        for worker in range(count):
            pool.send(worker, "hello")
        answers(pool, count)
        return pss(pool.template_pid) + sum(pss(pool.pid(worker)) for worker in range(count))


def show_starts(repeats: int) -> None:
    """Print the best of some starts for each set of libraries."""
    columns = ("imported by the parent", "import", "send", "start", "template + 1", "each more")
    print("{:26}{:>11}{:>11}{:>11}{:>14}{:>11}".format(*columns))
    for libraries in LIBRARIES:
        command = [sys.executable, "-m", "benchmarks.workers", "--start", *libraries]
        runs = [json.loads(subprocess.check_output(command)) for _ in range(repeats)]
        best = {name: min(run[name] for run in runs) for name in runs[0]}
        seconds = "".join(f"{best[name]:9.3f} s" for name in ("import", "call", "start"))
        megabytes = f"{best['first']:11.1f} MB{best['each']:8.1f} MB"
        print(f"{', '.join(libraries) or 'nothing':26}{seconds}{megabytes}")


def pipe_echo(connection: Connection[Any, Any]) -> None:
    """Be the other process of a pipe."""
    while True:
        try:
            connection.send(connection.recv())
        except EOFError:
            return


def exchange(send: Callable[[], Any], receive: Callable[[], int], in_flight: int) -> float:
    """Time one message there and back, in microseconds."""
    begin = time.perf_counter()
    for _ in range(in_flight):
        send()
    done = 0
    while done < MESSAGES:
        count = receive()
        done += count
        for _ in range(count):
            send()
    took = time.perf_counter() - begin
    left = in_flight
    while left > 0:
        left -= receive()
    return took / done * 1e6


def show_messages(repeats: int) -> None:
    """Print times of messages over a pipe and to a worker, measured in turn."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    other = context.Process(target=pipe_echo, args=(far,))
    other.start()
    far.close()

    def receive_one() -> int:
        near.recv()
        return 1

    print(f"\n{'microseconds a message':26}{'pipe':>9}{'held':>9}{'ratio':>9}{'not held':>11}")
    with near, Pool(1, serve=SERVE) as pool:
        for in_flight in (1, IN_FLIGHT):
            best = [float("inf")] * 3
            for _ in range(repeats):
                took = [exchange(lambda: near.send("x"), receive_one, in_flight)]
                for hold in (InterruptHold(), nullcontext()):
                    with hold:
                        took.append(
                            exchange(lambda: pool.send(0, "x"), lambda: len(pool.poll(60)), in_flight)
                        )
                best = list(map(min, best, took))
            pipe, held, bare = best
            print(f"{in_flight:3} in flight{pipe:22.1f}{held:9.1f}{held / pipe:9.2f}{bare:11.1f}")
    other.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or be one of the fresh processes that are measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--start", nargs="*", help="measure one start, with these libraries imported")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.start is not None:
        print(json.dumps(start(options.start)))
        return 0
    show_starts(options.repeats)
    show_messages(options.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
