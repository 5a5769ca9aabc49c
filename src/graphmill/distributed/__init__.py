"""A Dask cluster with one Dask worker for each machine, and graphmill inside.

Dask moves data between machines and decides which machine runs a task; on each machine the processes of one
engine run them, and share memory. ``dask worker --preload graphmill.distributed`` starts such a worker;
`GraphmillPlugin` makes one of workers that are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
from typing import Any

from distributed.core import Status
from distributed.diagnostics.plugin import WorkerPlugin

from graphmill import config
from graphmill.distributed.data import SharedData
from graphmill.distributed.tasks import TaskExecutor
from graphmill.engine import Engine

__all__ = ["GraphmillPlugin", "dask_setup"]

logger = logging.getLogger("graphmill")

#: The part of a Dask worker's memory limit that its engine may take. Dask's nanny ends a worker at 95 %.
_SHARE = 0.9


class GraphmillPlugin(WorkerPlugin):
    """Has the tasks of Dask workers run in graphmill's processes.

    Register it before anything is computed: ``client.register_plugin(GraphmillPlugin())``.

    Parameters
    ----------
    num_workers : int, optional
        How many processes each Dask worker has; by default as many as it has threads. Another number than
        that is for workers that are not registered with a scheduler yet.
    memory_limit : int or str, optional
        As for `Engine`, for each Dask worker; by default 90% of the limit that this has.
    **settings
        More arguments of `Engine`.
    """

    name = "graphmill"

    def __init__(
        self, num_workers: int | None = None, memory_limit: float | str | None = None, **settings: Any
    ) -> None:
        self._num_workers = num_workers
        self._memory_limit = memory_limit
        self._settings = settings

    async def setup(self, worker: Any) -> None:
        """Start an engine, and have a Dask worker use it."""
        num_workers = self._num_workers or worker.state.nthreads
        if num_workers != worker.state.nthreads:
            if worker.status not in (Status.undefined, Status.init):
                logger.warning(
                    "%s has %d threads and %d processes: start it with --nthreads %d, else it is not given "
                    "as many tasks as it can run",
                    *(worker.name, worker.state.nthreads, num_workers, num_workers),
                )
            else:
                worker.state.nthreads = num_workers
        limit, manager = self._memory_limit, worker.memory_manager
        if limit is None and config.get("memory_limit") is None and manager.memory_limit:
            limit = int(manager.memory_limit * _SHARE)
        engine = Engine(num_workers, memory_limit=limit, **self._settings)
        try:
            await asyncio.to_thread(_start, engine)
        except BaseException:
            engine.close()
            raise
        data = SharedData(engine)
        data.update(manager.data)
        # The engine keeps to its limit by itself, and moves to disk what it must.
        manager.memory_target_fraction = manager.memory_spill_fraction = False
        manager.memory_pause_fraction = False
        manager.data = worker.state.data = data
        threads = worker.executors["threads"] = worker.executors["default"]
        worker.executors["default"] = TaskExecutor(engine, data, worker, threads)
        worker.monitor.get_process_memory = engine.bytes_taken

    async def teardown(self, worker: Any) -> None:
        """Have the worker use threads again; what it holds stays valid."""
        executor = worker.executors.get("default")
        if not isinstance(executor, TaskExecutor):
            return
        worker.executors["default"] = worker.executors.pop("threads")
        data = worker.memory_manager.data
        worker.memory_manager.data = worker.state.data = dict(data)
        del worker.monitor.get_process_memory
        await asyncio.to_thread(executor.shutdown, wait=True)


def _start(engine: Engine) -> None:
    """Start an engine, with what most tasks need: a Dask worker has that only once the first one comes."""
    with contextlib.suppress(ImportError):  # as its own dependencies may be missing
        importlib.import_module("dask.array")
    engine.start()


async def dask_setup(worker: Any) -> None:
    """Set up a Dask worker started with ``--preload graphmill.distributed``; settings are those of `get`."""
    if not hasattr(worker, "executors"):
        return  # a nanny, which reads the same option
    await worker.plugin_add(plugin=GraphmillPlugin(config.get("num_workers")), catch_errors=False)
