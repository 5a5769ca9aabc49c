"""A Dask cluster of two machines with two processes each: Dask's own workers, and graphmill within them.

Both run on this machine, and every byte between Dask workers goes over TCP. Memory is the private memory of
all processes together and what lies in shared memory, looked at several times a second; how much there was
before the first workload is told too. To look takes a third of a core where much is mapped, so time is
measured by itself. Needs ``distributed``.
"""

from __future__ import annotations

import argparse
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import psutil
from distributed import Client, LocalCluster, wait

from graphmill.distributed import GraphmillPlugin

da: Any = importlib.import_module("dask.array")  # most of it has no types

#: Seconds between two looks at memory.
INTERVAL = 0.1
SHARED_MEMORY = Path("/dev/shm")

Workload = Callable[[Any], Any]

WORKLOADS: dict[str, Workload] = {
    "transpose": lambda x: (x + x.T).sum(),
    "rechunk": lambda x: x.rechunk((x.shape[0] // 16, -1)).std(axis=1).mean(),
    "anomaly": lambda x: (x - x.mean(axis=0)).std(),
    "stencil": lambda x: da.map_overlap(_smooth, x, depth=2, boundary="none").mean(),
    "gram": lambda x: (x[:, :256].T @ x[:, :256]).sum(),
    "pairs": lambda x: (x[::2] * x[1::2] + x[::-2] * x[-2::-2]).mean(),
}


def _smooth(block: Any) -> Any:
    out = block.copy()
    for shift in (-2, -1, 1, 2):
        out += np.roll(block, shift, axis=0)
    return out / 5


@dataclass(slots=True)
class Watch:
    """The memory of all processes below this one, while it is looked at."""

    peak: int = 0
    _ended: bool = False

    def look(self) -> int:
        """Count bytes now."""
        nbytes = 0
        processes = psutil.Process().children(recursive=True)
        for process in processes:
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:
                continue  # it has ended
            nbytes += sum(int(line.split()[1]) << 10 for line in text.splitlines() if "Pss_Anon" in line)
        own = {str(process.pid) for process in processes}
        for path in SHARED_MEMORY.glob("graphmill-*"):
            if path.name.split("-")[1] not in own:
                continue
            try:
                nbytes += path.stat().st_blocks * 512
            except OSError:
                continue  # it is gone
        return nbytes

    def run(self) -> None:
        """Look until `end`."""
        while not self._ended:
            self.peak = max(self.peak, self.look())
            time.sleep(INTERVAL)

    def end(self) -> None:
        """Look no more."""
        self._ended = True


@contextmanager
def watched() -> Iterator[Watch]:
    """Look at memory while the enclosed block runs."""
    watch = Watch()
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload on one cluster."""

    seconds: float
    peak: int
    value: float


def measure(client: Client, workload: Workload, shape: tuple[int, int], chunk: int) -> Measured:
    """Load an array, and compute something of it: the best of three times, and the most memory of two."""
    with watched() as watch:
        values = [_timed(client, workload, shape, chunk)[1] for _ in range(2)]
    found = [_timed(client, workload, shape, chunk) for _ in range(3)]
    values += [value for _, value in found]
    assert max(values) - min(values) <= 1e-9 * abs(values[0]), values
    return Measured(min(seconds for seconds, _ in found), watch.peak, values[0])


def _timed(client: Client, workload: Workload, shape: tuple[int, int], chunk: int) -> tuple[float, float]:
    """Load an array, and compute something of it; tell the seconds that it took, and the value."""
    x = da.random.default_rng(1).random(shape, chunks=chunk)
    began = time.perf_counter()
    x = x.persist()
    wait(x)
    value = float(workload(x).compute())
    seconds = time.perf_counter() - began
    del x
    client.run(lambda: None)
    return seconds, value


def run_all(
    plugin: GraphmillPlugin | None, shape: tuple[int, int], chunk: int
) -> tuple[int, dict[str, Measured]]:
    """Run all workloads on a cluster of one kind; tells also the memory at the start."""
    workers, threads = (4, 1) if plugin is None else (2, 2)
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=threads, memory_limit="2GB", dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        if plugin is not None:
            client.register_plugin(plugin)
        # Modules are imported where they are needed, once.
        (da.ones((400, 400), chunks=100) + 1).sum().compute()
        before = Watch().look()
        found = {name: measure(client, workload, shape, chunk) for name, workload in WORKLOADS.items()}
        return before, found


def parse_amount(text: str) -> int | str:
    """Read an amount of memory: 0 is a number."""
    return int(text) if text.isdigit() else text


def main() -> None:
    """Measure both in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=6000, help="rows and columns of the array")
    parser.add_argument("--chunk", type=int, default=750, help="rows and columns of a chunk")
    parser.add_argument("--warm-limit", help="as for Engine; by default as the plugin has it")
    options = parser.parse_args()
    settings: dict[str, Any] = {}
    if options.warm_limit is not None:
        settings["warm_limit"] = parse_amount(options.warm_limit)
    shape = options.size, options.size
    with dask.config.set({"distributed.logging.distributed": "error"}):
        dask_before, plain = run_all(None, shape, options.chunk)
        before, ours = run_all(GraphmillPlugin(**settings), shape, options.chunk)
    print(f"{options.size} x {options.size} in chunks of {options.chunk}")
    print(f"at the start: Dask {dask_before / 1e6:.0f} MB, graphmill {before / 1e6:.0f} MB")
    print(f"{'':12}{'Dask':>8}{'graphmill':>11}{'ratio':>7}{'Dask':>9}{'graphmill':>12}{'ratio':>7}")
    for name, theirs in plain.items():
        mine = ours[name]
        assert abs(mine.value - theirs.value) <= 1e-9 * abs(theirs.value), name
        print(
            f"{name:12}{theirs.seconds:7.2f}s{mine.seconds:10.2f}s{mine.seconds / theirs.seconds:7.2f}"
            f"{theirs.peak / 1e6:7.0f}MB{mine.peak / 1e6:10.0f}MB{mine.peak / theirs.peak:7.2f}"
        )
    seconds = sum(each.seconds for each in ours.values()) / sum(each.seconds for each in plain.values())
    peak = max(each.peak for each in ours.values()) / max(each.peak for each in plain.values())
    print(f"all: time {seconds:.2f}, memory {peak:.2f}")


if __name__ == "__main__":
    main()
