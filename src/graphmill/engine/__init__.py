"""Runs graphs on worker processes that share memory.

`get` is what users pass to Dask as the scheduler; it starts an engine when it is first called, and keeps it.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

from graphmill import config
from graphmill.engine.choices import checked
from graphmill.engine.core import Engine
from graphmill.engine.persisting import persist
from graphmill.local import get_sync
from graphmill.workers.shipped import in_worker

__all__ = ["Engine", "default_engine", "get"]

#: The settings with which an engine is made.
_SETTINGS = (
    "memory_limit",
    "memory_per_worker",
    "warm_limit",
    "spill_folder",
    "spill_limit",
    "retries",
    "task_timeout",
)


@dataclass(slots=True)
class _Default:
    """The engine that calls in one process share."""

    engine: Engine | None = None
    #: The settings that it was made with.
    settings: dict[str, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


#: By process number: a forked process must meet neither its parent's engine nor a lock that stays locked.
_defaults: dict[int, _Default] = {}


class Front:
    """What Dask is given as a scheduler, for the engine that calls without one share.

    Dask finds `persist` beside `get` because both are methods of one object.
    """

    def get(self, dsk: Any, keys: Any, num_workers: int | None = None, **kwargs: Any) -> Any:
        """Compute keys of a graph on every core of this machine.

        Workers are started by the first call, and kept until the program ends. Within a task, the same runs
        in that task's process.

        Parameters
        ----------
        dsk
            A graph of any dialect: a mapping, or an expression with ``__dask_graph__()``.
        keys
            A key, or nested lists of keys.
        num_workers
            At most so many tasks at once; by default as many as there are workers.
        **kwargs
            As for `Engine.get`.

        Returns
        -------
        object
            The value of `keys`; for lists of keys, tuples of values.

        Raises
        ------
        UnsupportedPlatform
            On Windows, where `graphmill.local.get_sync` and `get_async` work.

        Examples
        --------
        >>> from operator import add
        >>> get({"x": 1, "y": (add, "x", 2)}, "y")  # doctest: +SKIP
        3
        """
        if in_worker():
            return get_sync(dsk, keys, **kwargs)
        if num_workers is None:
            num_workers = config.get("num_workers")
        return default_engine(num_workers).get(dsk, keys, num_workers, **kwargs)

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute Dask collections, and keep their chunks in shared memory: see `Engine.persist`."""
        if in_worker():
            return persist(collections, optimize_graph, get_sync)
        engine = default_engine(kwargs.get("num_workers", config.get("num_workers")))
        return engine.persist(collections, optimize_graph, **kwargs)

    def __reduce__(self) -> str:
        return "front"


front = Front()
#: What users pass to Dask as the scheduler.
get = front.get


def default_engine(num_workers: int | None) -> Engine:
    """Get the engine that calls without one share, with at least so many workers and the present settings."""
    default = _defaults.setdefault(os.getpid(), _Default())
    with default.lock:
        engine = default.engine
        if num_workers is not None:
            checked(num_workers)
        settings = {name: config.get(name) for name in _SETTINGS}
        if engine is not None and not engine.closed:
            grows = num_workers is not None and num_workers > engine.num_workers
            if not grows and settings == default.settings:
                return engine
            engine.retire()
        default.engine = engine = Engine(num_workers)
        default.settings = settings
        return engine
