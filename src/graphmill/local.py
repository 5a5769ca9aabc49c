"""The surface that people know from Dask's local scheduler: `get_sync`, `get_async`, and their parts.

What a graph needs to run on any pool is said here once, in the words of that surface; the work is done by
`loop` and `apply`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, MutableMapping
from typing import Any

from graphmill import config
from graphmill.apply import (
    ApplyExecutor,
    apply_sync,
    default_get_id,
    default_pack_exception,
    execute_task,
    identity,
    queue_get,
)
from graphmill.callbacks import Callback, local_callbacks, unpack_callbacks
from graphmill.graph import (
    as_mapping,
    flatten,
    get_dependencies,
    has_tasks,
    inline_functions,
    isdag,
    ishashable,
    istask,
    read_graph,
    reverse_dict,
    toposort,
)
from graphmill.loop import Settings, nested_get, reraise, run_graph
from graphmill.machine import available_cpus
from graphmill.order import order, order_graph, sortkey
from graphmill.release_log import ReleaseLog
from graphmill.scheduler import State, start_state
from graphmill.types import Key, Priority

__all__ = [
    "Callback",
    "State",
    "apply_sync",
    "default_get_id",
    "default_pack_exception",
    "execute_task",
    "finish_task",
    "flatten",
    "get_async",
    "get_dependencies",
    "get_sync",
    "has_tasks",
    "identity",
    "inline_functions",
    "isdag",
    "ishashable",
    "istask",
    "local_callbacks",
    "nested_get",
    "order",
    "queue_get",
    "release_data",
    "reraise",
    "reverse_dict",
    "sortkey",
    "start_state_from_dask",
    "toposort",
    "unpack_callbacks",
]

logger = logging.getLogger(__name__)


def start_state_from_dask(
    dsk: Any,
    cache: MutableMapping[Key, Any] | None = None,
    sortkey: Priority | None = None,
) -> State:
    """Lay out the state of a graph before anything has run.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    cache
        Values that are there already: they are not computed again. The graph's data is added to it.
    sortkey
        Static priorities, the smallest first; by default, `order`.

    Examples
    --------
    >>> def inc(x):
    ...     return x + 1
    >>> def add(x, y):
    ...     return x + y
    >>> state = start_state_from_dask({"x": 1, "y": 2, "z": (inc, "x"), "w": (add, "z", "y")})
    >>> state["cache"], state["ready"], state["waiting"]
    ({'x': 1, 'y': 2}, ['z'], {'w': {'z'}})
    """
    cache = _cache_or_default(cache)
    graph = read_graph(as_mapping(dsk), None, cache)
    if sortkey is None:
        sortkey = order_graph(graph).priorities.__getitem__
    state = start_state(graph, cache, sortkey)
    state.unshare()  # whoever asks for a state may want to drive it
    return state


def release_data(key: Key, state: State, delete: bool = True) -> None:
    """Let go of a value that nobody waits for.

    Parameters
    ----------
    key
        Whose value.
    state
        The state of the run.
    delete
        Whether to take the value out of the cache.
    """
    assert not state["waiting_data"].get(key), f"{key!r} is still waited for"
    state["waiting_data"].pop(key, None)
    state["released"].add(key)
    if delete:
        del state["cache"][key]


def finish_task(
    dsk: Any,  # noqa: ARG001 - as Dask's
    key: Key,
    state: State,
    results: Collection[Key],
    sortkey: Priority,
    delete: bool = True,
    release_data: Callable[..., Any] = release_data,
) -> State:
    """Mark a task as finished: wake its dependents, and let go of the inputs nobody waits for.

    Parameters
    ----------
    dsk
        The graph; not looked at.
    key
        The task, whose value is in the cache.
    state
        The state of the run; changed in place, and returned.
    results
        The keys asked for, whose values stay.
    sortkey
        Static priorities, the smallest first.
    delete
        Whether released values leave the cache.
    release_data
        Called for each input that is let go.
    """
    state.ready.push(sorted(state.wake(key), key=sortkey, reverse=True))
    log = ReleaseLog.if_wanted(state.cache, logger)
    for dep in sorted(state.forget(key), key=sortkey):
        if dep not in results:
            release_data(dep, state, delete=delete)
            if log:
                log.release(dep, key)
    state.finished.add(key)
    state.running.remove(key)
    return state


def get_async(
    apply_async: Callable[..., Any],
    num_workers: int | None,
    dsk: Any,
    result: Any,
    cache: MutableMapping[Key, Any] | None = None,
    get_id: Callable[[], Any] = default_get_id,
    rerun_exceptions_locally: bool | None = None,
    pack_exception: Callable[..., Any] = default_pack_exception,
    raise_exception: Callable[..., Any] = reraise,
    callbacks: Any = None,
    dumps: Callable[[Any], Any] = identity,
    loads: Callable[[Any], Any] = identity,
    **kwargs: Any,  # noqa: ARG001 - meant for other schedulers
) -> Any:
    """Compute keys of a graph on anything that runs functions asynchronously.

    Parameters
    ----------
    apply_async
        Called as ``apply_async(func, args=(), kwds={}, callback=None)``, as pools of
        `multiprocessing` have it.
    num_workers
        How many tasks may run at once; None for the setting ``num_workers``, or the number of CPUs.
    dsk
        A graph of any dialect: a mapping, or an expression with ``__dask_graph__()``.
    result
        A key, or nested lists of keys.
    cache
        Where values are kept while they are needed; read at the start: keys that it has are not
        computed again.
    get_id
        Called where a task has run, to tell `posttask` callbacks where that was.
    rerun_exceptions_locally
        Run a task that has failed again in this process, for a debugger.
    pack_exception
        ``pack_exception(exception, dumps)``: makes ``dumps((exception, traceback))`` of an
        exception. By default exceptions travel as they are.
    raise_exception
        ``raise_exception(exception, traceback)``: raises it here.
    callbacks
        One callback, or several, instead of those that are registered.
    dumps, loads
        Pack and unpack tasks, values and results for the way to a worker and back.
    **kwargs
        Ignored: arguments meant for other schedulers.

    Returns
    -------
    object
        The value of `result`; for lists of keys, tuples of values.

    Raises
    ------
    CycleError
        If tasks wait for each other; a `ValueError`.
    MissingKeyError, MissingDependencyError
        If the graph lacks a key.
    """
    if num_workers is None:
        num_workers = config.get("num_workers", available_cpus())
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if rerun_exceptions_locally is None:
        rerun_exceptions_locally = config.get("rerun_exceptions_locally", False)
    executor = ApplyExecutor(apply_async, num_workers, get_id, pack_exception, dumps, loads, queue_get)
    settings = Settings(
        callbacks=callbacks,
        rerun_locally=rerun_exceptions_locally,
        raise_exception=raise_exception,
        logger=logger,
    )
    return run_graph(dsk, result, executor, _cache_or_default(cache), settings)


def get_sync(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute keys of a graph in this process, one task at a time.

    Parameters
    ----------
    dsk
        A graph of any dialect.
    keys
        A key, or nested lists of keys.
    **kwargs
        As for `get_async`; `num_workers` is ignored.

    Examples
    --------
    >>> get_sync({"x": 1, "y": (abs, -5), "z": (max, "x", "y")}, ["z", ["x"]])
    (5, (1,))
    """
    kwargs.pop("num_workers", None)
    return get_async(apply_sync, 1, dsk, keys, **kwargs)


def _cache_or_default(cache: MutableMapping[Key, Any] | None) -> MutableMapping[Key, Any]:
    if cache is None:
        cache = config.get("cache")
    return {} if cache is None else cache
