"""``graphmill worker``: one Dask worker for this machine, whose tasks run in graphmill's processes."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import signal
from typing import Any

from graphmill import config
from graphmill.cli.options import take_settings
from graphmill.cli.output import complain
from graphmill.errors import CommandError, MissingExtra

#: Seconds in which a worker has to end.
_END_LIMIT = 30


def run(arguments: argparse.Namespace) -> int:
    """Run a worker until it is told to end, or its scheduler is gone; returns its exit code."""
    take_settings(arguments)
    need_distributed("graphmill worker")
    # What asks for a number of workers knows how many are the default here; it starts none.
    engine: Any = importlib.import_module("graphmill.engine").Engine()
    engine.close()
    asyncio.run(_serve(arguments, engine.num_workers, engine.memory_limit))
    return 0


async def _serve(arguments: argparse.Namespace, num_workers: int, memory_limit: int) -> None:
    distributed: Any = importlib.import_module("distributed")
    plugin = importlib.import_module("graphmill.distributed").GraphmillPlugin(num_workers, memory_limit)
    worker = distributed.Worker(
        arguments.scheduler,
        nthreads=num_workers,
        memory_limit=memory_limit,
        name=arguments.name,
        local_directory=config.get("spill_folder"),
        plugins=(plugin,),
        dashboard=False,
    )
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    starting = asyncio.ensure_future(_started(worker))
    try:
        await asyncio.wait((starting, asyncio.ensure_future(ended.wait())), return_when="FIRST_COMPLETED")
        if ended.is_set():
            return
        starting.result()
        complain(f"{num_workers} processes at {worker.address}, for {arguments.scheduler}")
        ends = [asyncio.ensure_future(each) for each in (ended.wait(), worker.finished())]
        await asyncio.wait(ends, return_when="FIRST_COMPLETED")
    except (OSError, TimeoutError) as error:
        raise CommandError(
            f"The scheduler at {arguments.scheduler} does not answer: {error}; is the address right?"
        ) from error
    finally:
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, TimeoutError):
            await starting
        await worker.close(timeout=_END_LIMIT)


async def _started(worker: Any) -> None:
    await asyncio.wait_for(worker, connect_limit())


def connect_limit() -> float:
    """Get the seconds in which a scheduler has to answer, from Dask's configuration."""
    dask: Any = importlib.import_module("dask")
    utils: Any = importlib.import_module("dask.utils")
    return float(utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect", "30s")))


def need_distributed(what: str) -> None:
    """See that Dask's distributed scheduler is installed."""
    if importlib.util.find_spec("distributed") is None:
        raise MissingExtra(
            f"{what} needs distributed, which is not installed: pip install 'graphmill[distributed]'"
        )
