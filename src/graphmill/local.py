"""The general loop: runs graphs in this process, or on anything that has ``apply_async``.

The loop tells the pure scheduler what happened and does what it answers. Workers are whatever
`apply_async` leads to: this thread (`get_sync`), a pool of threads, a pool of processes.
"""

from __future__ import annotations

import gc
import inspect
import logging
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from graphmill import config
from graphmill.callbacks import Callback, Told, local_callbacks, told, unpack_callbacks
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


def default_pack_exception(
    e: BaseException,
    dumps: Callable[[Any], Any],  # noqa: ARG001 - as Dask's
) -> Any:
    """Raise an exception where it happened, rather than send it back."""
    raise e


def reraise(exc: BaseException, tb: Any = None) -> None:
    """Raise an exception with the traceback that it had."""
    if exc.__traceback__ is not tb:
        raise exc.with_traceback(tb)
    raise exc


def queue_get(q: Any) -> Any:
    """Take the next item off a queue; waiting can be interrupted by Ctrl-C on every platform."""
    while sys.platform == "win32":
        # There, a wait without an end cannot be interrupted.
        try:
            return q.get(timeout=0.1)
        except Empty:
            continue
    return q.get()


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


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector from running.

    Laying out a graph makes objects by the million and no garbage, but each full collection looks at all of
    them, and at all that the user's graph holds: measured at up to half of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
    log = _ReleaseLog.if_wanted(state.cache)
    for dep in sorted(state.forget(key), key=sortkey):
        if dep not in results:
            release_data(dep, state, delete=delete)
            if log:
                log.release(dep, key)
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
        The key, the packed result and worker, and False; or the key, the packed exception, and
        True.
    """
    try:
        task, values = loads(task_info)
        result = evaluate(task, values) if type(task) is tuple else task(values)
        return key, dumps((result, get_id())), False
    except BaseException as e:  # noqa: BLE001 - the caller's process decides what becomes of it
        return key, pack_exception(e, dumps), True


@dataclass(slots=True)
class _Raised:
    """An exception that nobody packed: it travels as it is, or else as its text."""

    error: BaseException

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled means going to another process, where the traceback cannot follow.
        try:
            packed = pickle.dumps(self.error)
        except Exception:  # noqa: BLE001 - an exception may hold anything
            packed = None
        return _raised_elsewhere, (packed, "".join(traceback.format_exception(self.error)))


def _raised_elsewhere(packed: bytes | None, story: str) -> _Raised:
    try:
        error = packed and pickle.loads(packed)  # noqa: S301 - it comes from our own worker
    except Exception:  # noqa: BLE001 - many exceptions can be pickled, but not unpickled
        error = None
    if not isinstance(error, BaseException):
        return _Raised(WorkerError(f"A task raised an exception that cannot be sent:\n{story}"))
    error.add_note(f"In the worker process:\n{story}")
    return _Raised(error)


def _run(heard: Told, *args: Any) -> Answer:
    """Run a task, and answer in any case."""
    token = told.set(heard)
    # A pool's callback is not called when its function raises, and then nobody would ever know.
    try:
        return execute_task(*args)
    except BaseException as e:  # noqa: BLE001 - raised again in the caller's process
        return args[0], _Raised(e), True
    finally:
        told.reset(token)


@dataclass(slots=True)
class _Parcel:
    """What goes through a pool of `multiprocessing`, which only sees bytes.

    Such a pool never answers if what it is sent, or what it sends back, can be pickled but not
    unpickled: the worker process, or the thread that reads its answers, ends without a word. So
    that is done where it may fail. In a pool of threads nothing is pickled.
    """

    content: Any
    packed: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        from multiprocessing.reduction import ForkingPickler  # noqa: PLC0415 - the pool's own

        content = self.content if self.packed else bytes(ForkingPickler.dumps(self.content))
        return _Parcel, (content, True)

    def open(self) -> Any:
        """Get the content, or raise what keeps it from being unpickled."""
        return pickle.loads(self.content) if self.packed else self.content  # noqa: S301 - ours


def _run_parcel(parcel: _Parcel) -> _Parcel:
    """Run a task that may have come from another process."""
    try:
        args = parcel.open()
    except BaseException as e:  # noqa: BLE001 - raised again in the caller's process
        return _Parcel((None, _Raised(e), True))
    return _Parcel(_run(*args))


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
    #: Whether it is a pool of `multiprocessing`, for which see `_Parcel`.
    needs_parcels: bool = False

    def __post_init__(self) -> None:
        module = sys.modules.get("multiprocessing.pool")
        owner = getattr(self.apply_async, "__self__", None)
        self.needs_parcels = module is not None and isinstance(owner, module.Pool)
        try:
            parameters = inspect.signature(self.apply_async).parameters
        except (TypeError, ValueError):
            return
        self.tells_errors = "error_callback" in parameters

    def submit(self, key: Key, task: Any, values: dict[Key, Any]) -> None:
        """Have a task run."""
        args = (
            told.get(),
            key,
            self.dumps((task, values)),
            self.dumps,
            self.loads,
            self.get_id,
            self.pack_exception,
        )
        if self.apply_async is apply_sync:
            self.answers.put(_run(*args))
            return
        reply = _Reply(key, self.answers)
        more = {"error_callback": reply.lose} if self.tells_errors else {}
        if self.needs_parcels:
            self.apply_async(_run_parcel, args=(_Parcel(args),), callback=reply.unpack, **more)
        else:
            self.apply_async(_run, args=args, callback=self.answers.put, **more)


@dataclass(slots=True)
class _Reply:
    """Where the answer for one task goes."""

    key: Key
    answers: SimpleQueue[Answer]

    def unpack(self, parcel: _Parcel) -> None:
        """Take in an answer."""
        try:
            _, packed, failed = parcel.open()
        except BaseException as e:  # noqa: BLE001 - raised in the caller's thread
            self.lose(e)
        else:
            self.answers.put((self.key, packed, failed))

    def lose(self, error: BaseException) -> None:
        """Answer for a task whose pool could not."""
        lost = WorkerError(f"The pool could not deliver the result of {self.key!r}: {error}")
        lost.__cause__ = error
        self.answers.put((self.key, _Raised(lost), True))


@dataclass(slots=True)
class _ReleaseLog:
    """Tells of each release, and of the bytes then held."""

    cache: Mapping[Key, Any]
    #: The bytes of each value, when it was last seen.
    sizes: dict[Key, int]
    #: Their sum.
    held: int

    @classmethod
    def if_wanted(cls, cache: Mapping[Key, Any]) -> _ReleaseLog | None:
        """Begin a log if debugging is on."""
        if not logger.isEnabledFor(logging.DEBUG):
            return None
        sizes = {key: _nbytes(value) for key, value in cache.items()}
        return cls(cache, sizes, sum(sizes.values()))

    def add(self, key: Key, value: Any) -> None:
        """Count a value that has come."""
        self.held += _nbytes(value) - self.sizes.get(key, 0)
        self.sizes[key] = _nbytes(value)

    def release(self, key: Key, by: Key) -> None:
        """Tell of a value that was let go."""
        if key not in self.cache:
            self.held -= self.sizes.pop(key, 0)
        logger.debug("released %r, by the end of %r; %d bytes held", key, by, self.held)


def _nbytes(value: Any) -> int:
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sys.getsizeof(value)


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
    log: _ReleaseLog | None

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
            elif type(command) is Release and self.log:
                self.log.release(command.key, command.by)

    def _take_in(self, answer: Answer) -> None:
        key, packed, failed = answer
        if failed:
            self._fail(key, packed)
        value, worker_id = self._unpack(key, packed)
        commands = self.scheduler.handle(TaskFinished(key, value))
        if self.log:
            self.log.add(key, value)
        for function in self.posttask:
            function(key, value, self.dsk, self.scheduler.state, worker_id)
        self._obey(commands)

    def _unpack(self, key: Key, packed: Any) -> Any:
        try:
            return self.pool.loads(packed)
        except BaseException as e:
            e.add_note(f"while the answer of the task {key!r} was unpacked")
            raise

    def _fail(self, key: Key, packed: Any) -> None:
        """Raise what a task raised."""
        if isinstance(packed, _Raised):
            error, traceback = packed.error, packed.error.__traceback__
        else:
            error, traceback = self._unpack(key, packed)
        aborted = self.scheduler.handle(TaskFailed(key, error))
        assert any(type(command) is Abort for command in aborted)  # it has no retries
        note = f"raised by the task {key!r}"
        error.add_note(note)
        if self.rerun_locally:
            self._rerun(key, note)
            error.add_note("run again in this process, the task raised nothing")
        self.raise_exception(error, traceback)
        raise error  # whatever raise_exception does, there is no result to go on with

    def _rerun(self, key: Key, note: str) -> None:
        state = self.scheduler.state
        values = {dep: state.cache[dep] for dep in state.dependencies[key]}
        try:
            self.graph.tasks[key](values)
        except BaseException as e:
            e.add_note(f"{note}, run again in this process")
            raise


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
    results = set(flatten(result)) if isinstance(result, list) else {result}
    if num_workers is None:
        num_workers = config.get("num_workers", os.cpu_count() or 1)
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
            with collector_paused():
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
                _ReleaseLog.if_wanted(cache),
            ).run(num_workers)
            failed = False
        finally:
            with ExitStack() as stack:  # it calls all, whichever of them raise
                for *_, finish in reversed(started):
                    if finish:
                        stack.callback(finish, dsk, state, failed)
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
