"""The engines that workloads are run on: graphmill and its peers, each started with a number of workers.

A peer that is not installed is no error here: `missing` says so. Nothing of a peer is imported before it is
used, as that would count as the memory of others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.suite.base import Call, Running

Start = Callable[[int], AbstractContextManager[Running]]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """An engine, and what it needs."""

    name: str
    #: What it is, for readers of tables.
    title: str
    start: Start
    #: The module without which it cannot run, and the package that has it.
    needs: str | None = None

    @property
    def missing(self) -> str | None:
        """Say what is missing here, if anything is."""
        if self.needs is None or find_spec(self.needs) is not None:
            return None
        return f"{self.needs} is not installed"


@contextmanager
def graphmill(workers: int) -> Iterator[Running]:
    """Start an engine with default settings."""
    from graphmill import Engine  # noqa: PLC0415

    with Engine(workers) as engine:
        yield Running({"scheduler": engine.get}, engine.get, spilled=lambda: engine.memory().spilled)


@contextmanager
def threads(workers: int) -> Iterator[Running]:
    """Use Dask's threads."""
    import dask.threaded  # noqa: PLC0415

    get: Any = dask.threaded.get
    yield Running(
        {"scheduler": "threads", "num_workers": workers},
        lambda dsk, keys: get(dsk, keys, num_workers=workers),
    )


@contextmanager
def processes(workers: int) -> Iterator[Running]:
    """Use Dask's processes; each computation starts its own, as it does for users."""
    import dask.multiprocessing  # noqa: PLC0415

    get: Any = dask.multiprocessing.get
    yield Running(
        {"scheduler": "processes", "num_workers": workers},
        lambda dsk, keys: get(dsk, keys, num_workers=workers),
    )


@contextmanager
def distributed(workers: int) -> Iterator[Running]:
    """Start a cluster of processes with one thread each."""
    from distributed import Client, LocalCluster  # noqa: PLC0415

    cluster: Any = LocalCluster
    with (
        cluster(workers, threads_per_worker=1, processes=True, dashboard_address=None) as made,
        Client(made) as client,
    ):
        run: Any = client.run
        get: Any = client.get
        yield Running({"scheduler": client.get}, get, spilled=lambda: sum(run(written_by_worker).values()))


def written_by_worker(dask_worker: Any) -> int:
    """Tell how many bytes a worker of a cluster has ever written to disk."""
    told = dask_worker.data.cumulative_metrics
    return int(
        sum(value for (*_, what, unit), value in told.items() if (what, unit) == ("disk-write", "bytes"))
    )


@contextmanager
def ray(workers: int) -> Iterator[Running]:
    """Start Ray on this machine."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # else it would leave a token in the user's home
    import ray as package  # noqa: PLC0415
    from ray.util.dask import ray_dask_get  # noqa: PLC0415

    package.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield Running({"scheduler": ray_dask_get}, ray_dask_get)
    finally:
        package.shutdown()


@contextmanager
def joblib(workers: int) -> Iterator[Running]:
    """Start joblib's processes, which take calls but no graphs."""
    from joblib import Parallel, delayed  # noqa: PLC0415

    with Parallel(n_jobs=workers) as parallel:

        def calls(wanted: list[Call]) -> list[Any]:
            found: list[Any] = parallel(delayed(function)(*given) for function, given in wanted)
            return found

        yield Running(calls=calls)


ENGINES = {
    kind.name: kind
    for kind in (
        EngineKind("threads", "`dask.threaded`", threads),
        EngineKind("graphmill", "graphmill", graphmill),
        EngineKind("distributed", "`distributed.LocalCluster`, processes", distributed, "distributed"),
        EngineKind("processes", "`dask.multiprocessing`", processes),
        EngineKind("ray", "`ray.util.dask`", ray, "ray"),
        EngineKind("joblib", "joblib's loky, for calls without a graph", joblib, "joblib"),
    )
}
#: What all times and memory are compared with.
BASE, OURS = "threads", "graphmill"
