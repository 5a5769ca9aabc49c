"""The general loop: runs graphs in this process, or on anything that has ``apply_async``.

The loop tells the pure scheduler what happened and does what it answers. Workers are whatever
`apply_async` leads to: this thread (`get_sync`), a pool of threads, a pool of processes.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from graphmill import config
from graphmill.callbacks import Callback, local_callbacks, unpack_callbacks
from graphmill.errors import WorkerError
from graphmill.graph import (
    Graph,
    as_mapping,
    evaluate,
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
from graphmill.graph.taskspec import Kinds
from graphmill.order import order, order_graph, sortkey
from graphmill.scheduler import Scheduler, State, start_state
from graphmill.scheduler.events import (
    Abort,
    Command,
    Release,
    Run,
    SlotsChanged,
    TaskFailed,
    TaskFinished,
)
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

#: What a worker answers: the key, the packed result or exception, and whether it failed.
Answer: TypeAlias = tuple[Key, Any, bool]


# ---- small parts


def identity(x: Any) -> Any:
    """Return `x`.

    Examples
    --------
    >>> identity(3)
    3
    """
    return x


def default_get_id() -> None:
    """Give no identity to workers."""
    return


def default_pack_exception(e: BaseException, dumps: Callable[[Any], Any]) -> Any:
    """Raise an exception where it happened, rather than send it back."""
    raise e


def reraise(exc: BaseException, tb: Any = None) -> None:
    """Raise an exception with the traceback that it had."""
    if exc.__traceback__ is not tb:
        raise exc.with_traceback(tb)
    raise exc


def queue_get(q: Any) -> Any:
    """Take the next item off a queue; waiting can be interrupted by Ctrl-C on every platform."""
    if sys.platform != "win32":
        return q.get()
    while True:
        # There, a wait without an end cannot be interrupted.
        try:
            return q.get(timeout=0.1)
        except Empty:
            continue


def nested_get(ind: Any, coll: Any) -> Any:
    """Look up nested lists of keys.

    Examples
    --------
    >>> nested_get(1, "abc")
    'b'
    >>> nested_get([[1, 0], [0, 1]], "abc")
    (('b', 'a'), ('a', 'b'))
    """
    if isinstance(ind, list):
        return tuple([nested_get(i, coll) for i in ind])
    return coll[ind]


# ---- the seed's functions on a state


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
    >>> def inc(x): return x + 1
    >>> def add(x, y): return x + y
    >>> state = start_state_from_dask({"x": 1, "y": 2, "z": (inc, "x"), "w": (add, "z", "y")})
    >>> state["cache"], state["ready"], state["waiting"]
    ({'x': 1, 'y': 2}, ['z'], {'w': {'z'}})
    """
    cache = _cache_or_default(cache)
    graph = read_graph(as_mapping(dsk), None, cache)
    if sortkey is None:
        sortkey = order_graph(graph).priorities.__getitem__
    return start_state(graph, cache, sortkey)


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
    assert not state["waiting_data"].get(key), f"{key!r} is still waited for"  # noqa: S101
    state["waiting_data"].pop(key, None)
    state["released"].add(key)
    if delete:
        del state["cache"][key]


def finish_task(
    dsk: Any,
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
    woken = sorted(state.wake(key), key=sortkey, reverse=True)
    state.ready.push(woken) if hasattr(state.ready, "push") else state.ready.extend(woken)
    for dep in sorted(state.forget(key), key=sortkey):
        if dep not in results:
            release_data(dep, state, delete=delete)
            _log_release(dep, key, state.cache)
    state.finished.add(key)
    state.running.remove(key)
    return state


# ---- where the worker is


def execute_task(
    key: Key,
    task_info: Any,
    dumps: Callable[[Any], Any],
    loads: Callable[[Any], Any],
    get_id: Callable[[], Any],
    pack_exception: Callable[..., Any],
) -> Answer:
    """Run one task where the worker is.

    Parameters
    ----------
    key
        The task's key.
    task_info
        The packed task and the values of its inputs.
    dumps, loads
        Pack and unpack what travels.
    get_id
        Tells who the worker is.
    pack_exception
        Turns an exception into something that can travel.

    Returns
    -------
    tuple
        The key, the packed result and worker, and False; or the key, the packed exception, and True.
    """
    try:
        task, values = loads(task_info)
        result = evaluate(task, values) if type(task) is tuple else task(values)
        return key, dumps((result, get_id())), False
    except BaseException as e:  # noqa: BLE001 - the caller's process decides what becomes of it
        return key, pack_exception(e, dumps), True


@dataclass(slots=True)
class _Unpacked:
    """An exception that nobody packed: it travels as it is."""

    error: BaseException


def _run(*args: Any) -> Answer:
    # A pool's callback is not called when its function raises, and then nobody would ever know.
    try:
        return execute_task(*args)
    except BaseException as e:  # noqa: BLE001 - raised again in the caller's process
        return args[0], _Unpacked(e), True


def apply_sync(
    func: Callable[..., Any],
    args: Iterable[Any] = (),
    kwds: Mapping[str, Any] | None = None,
    callback: Callable[[Any], Any] | None = None,
) -> None:
    """Do at once what `apply_async` does later."""
    result = func(*args, **(kwds or {}))
    if callback is not None:
        callback(result)


# ---- the loop


@dataclass(slots=True)
class _Pool:
    """How tasks get to their workers, and answers back."""

    apply_async: Callable[..., Any]
    get_id: Callable[[], Any]
    pack_exception: Callable[..., Any]
    dumps: Callable[[Any], Any]
    loads: Callable[[Any], Any]
    #: Answers, as they come in.
    answers: SimpleQueue[Answer] = field(default_factory=SimpleQueue)
    #: Whether the pool tells of tasks that it could not answer.
    tells_errors: bool = False

    def __post_init__(self) -> None:
        try:
            parameters = inspect.signature(self.apply_async).parameters
        except (TypeError, ValueError):
            return
        self.tells_errors = "error_callback" in parameters

    def submit(self, key: Key, task: Any, values: dict[Key, Any]) -> None:
        args = (
            key,
            self.dumps((task, values)),
            self.dumps,
            self.loads,
            self.get_id,
            self.pack_exception,
        )
        if self.apply_async is apply_sync:
            self.answers.put(_run(*args))
        elif self.tells_errors:
            self.apply_async(
                _run,
                args=args,
                callback=self.answers.put,
                error_callback=_Undeliverable(key, self.answers),
            )
        else:
            self.apply_async(_run, args=args, callback=self.answers.put)


@dataclass(slots=True)
class _Undeliverable:
    """Answers for a task whose pool could not."""

    key: Key
    answers: SimpleQueue[Answer]

    def __call__(self, error: BaseException) -> None:
        lost = WorkerError(f"The pool could not deliver the result of {self.key!r}: {error}")
        lost.__cause__ = error
        self.answers.put((self.key, _Unpacked(lost), True))


@dataclass(slots=True)
class _Job:
    """One call of `get_async`."""

    dsk: Mapping[Key, Any]
    graph: Graph
    scheduler: Scheduler
    pool: _Pool
    rerun_locally: bool
    raise_exception: Callable[..., Any]
    pretask: list[Callable[..., Any]]
    posttask: list[Callable[..., Any]]

    def run(self, num_workers: int) -> None:
        """Start tasks and take in answers until all is done, or a task has failed."""
        scheduler, answers = self.scheduler, self.pool.answers
        self._obey(scheduler.handle(SlotsChanged(num_workers)))
        while not scheduler.done:
            self._take_in(queue_get(answers))

    def _obey(self, commands: list[Command]) -> None:
        state = self.scheduler.state
        cache = state.cache
        for command in commands:
            if type(command) is Run:
                key = command.key
                for function in self.pretask:
                    function(key, self.dsk, state)
                values = {dep: cache[dep] for dep in state.dependencies[key]}
                self.pool.submit(key, self.graph.tasks[key], values)
            elif type(command) is Release:
                _log_release(command.key, command.by, cache)

    def _take_in(self, answer: Answer) -> None:
        key, packed, failed = answer
        if failed:
            self._fail(key, packed)
        value, worker_id = self.pool.loads(packed)
        commands = self.scheduler.handle(TaskFinished(key, value))
        for function in self.posttask:
            function(key, value, self.dsk, self.scheduler.state, worker_id)
        self._obey(commands)

    def _fail(self, key: Key, packed: Any) -> None:
        """Raise what a task raised."""
        if isinstance(packed, _Unpacked):
            error, traceback = packed.error, packed.error.__traceback__
        else:
            error, traceback = self.pool.loads(packed)
        aborted = self.scheduler.handle(TaskFailed(key, error))
        assert any(type(command) is Abort for command in aborted)  # noqa: S101 - it has no retries
        error.add_note(f"raised by the task {key!r}")
        if self.rerun_locally:
            self._rerun(key)
            error.add_note("run again in this process, the task raised nothing")
        self.raise_exception(error, traceback)
        raise error  # whatever raise_exception does, there is no result to go on with

    def _rerun(self, key: Key) -> None:
        state = self.scheduler.state
        self.graph.tasks[key]({dep: state.cache[dep] for dep in state.dependencies[key]})


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
    **kwargs: Any,
) -> Any:
    """Compute keys of a graph on anything that runs functions asynchronously.

    Parameters
    ----------
    apply_async
        Called as ``apply_async(func, args=(), kwds={}, callback=None)``, as pools of `multiprocessing` have it.
    num_workers
        How many tasks may run at once; None for the setting ``num_workers``, or the number of CPUs.
    dsk
        A graph of any dialect: a mapping, or an expression with ``__dask_graph__()``.
    result
        A key, or nested lists of keys.
    cache
        Where values are kept while they are needed; read at the start: keys that it has are not computed again.
    get_id
        Called where a task has run, to tell `posttask` callbacks where that was.
    rerun_exceptions_locally
        Run a task that has failed again in this process, for a debugger.
    pack_exception
        ``pack_exception(exception, dumps)``: makes ``dumps((exception, traceback))`` of an exception. By
        default exceptions travel as they are.
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
    results = set(flatten(result)) if isinstance(result, list) else {result}
    if num_workers is None:
        num_workers = config.get("num_workers") or os.cpu_count() or 1
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if rerun_exceptions_locally is None:
        rerun_exceptions_locally = config.get("rerun_exceptions_locally", False)
    cache = _cache_or_default(cache)
    pool = _Pool(apply_async, get_id, pack_exception, dumps, loads)
    dsk = as_mapping(dsk)
    with local_callbacks(callbacks) as listeners:
        if any(listener[0] for listener in listeners):
            dsk = dict(dsk)  # `start` may change it, and it is the caller's
        _, start_state_cbs, pretask, posttask, _ = unpack_callbacks(listeners)
        state: Any = {}
        started = []
        failed = True
        try:
            for listener in listeners:
                if listener[0]:
                    listener[0](dsk)
                started.append(listener)
            graph = read_graph(dsk, results, cache)
            scheduler = Scheduler(
                graph, results, order_graph(graph, results=results).priorities.__getitem__, cache
            )
            state = scheduler.state
            for function in start_state_cbs:
                function(dsk, state)
            _Job(
                dsk,
                graph,
                scheduler,
                pool,
                rerun_exceptions_locally,
                raise_exception,
                pretask,
                posttask,
            ).run(num_workers)
            failed = False
        finally:
            for *_, finish in started:
                if finish:
                    finish(dsk, state, failed)
    return nested_get(result, cache)


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


def _log_release(key: Key, by: Key, cache: Mapping[Key, Any]) -> None:
    if logger.isEnabledFor(logging.DEBUG):
        held = sum(getattr(value, "nbytes", None) or sys.getsizeof(value) for value in cache.values())
        logger.debug("released %r, by the end of %r; %d bytes held", key, by, held)
