"""Runs graphs on worker processes that share memory.

`get` is what users pass to Dask as the scheduler; it starts an engine when it is first called, and keeps it.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from graphmill import config
from graphmill.engine.core import Engine, checked
from graphmill.local import get_sync
from graphmill.workers.shipped import in_worker

__all__ = ["Engine", "get"]

_lock = threading.Lock()
_default: list[Engine] = []
#: The settings with which an engine is made, and those of the default engine.
_SETTINGS = ("memory_limit", "memory_per_worker", "warm_limit", "spill_folder", "spill_limit")
_made_with: dict[str, Any] = {}


def get(dsk: Any, keys: Any, num_workers: int | None = None, **kwargs: Any) -> Any:
    """Compute keys of a graph on every core of this machine.

    Workers are started by the first call, and kept until the program ends. Within a task, the same runs in
    that task's process.

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
    return _default_engine(num_workers).get(dsk, keys, num_workers, **kwargs)


def _default_engine(num_workers: int | None) -> Engine:
    """Get the engine that calls without one share, with at least so many workers and the present settings."""
    with _lock:
        if _default and (_default[0].pid != os.getpid() or _default[0].closed):
            _default.clear()
        if num_workers is not None:
            checked(num_workers)
        settings = {name: config.get(name) for name in _SETTINGS}
        grows = bool(_default) and num_workers is not None and num_workers > _default[0].num_workers
        if _default and (grows or settings != _made_with):
            _default.pop().retire()
        if not _default:
            _default.append(Engine(num_workers))
            _made_with.update(settings)
        return _default[0]
