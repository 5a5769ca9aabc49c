"""Running tasks on anything that has ``apply_async``: this thread, a pool of threads or of processes.

Knows how tasks and answers travel through such a pool, what may happen to them on the way, and how a task is
run at the other end. Must not know graphs, nor why a task runs now.
"""

from __future__ import annotations

import inspect
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

from graphmill.callbacks import Told, told
from graphmill.errors import WorkerError
from graphmill.graph import evaluate
from graphmill.scheduler import State
from graphmill.scheduler.events import TaskFailed, TaskFinished
from graphmill.types import Key

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


def queue_get(q: Any) -> Any:
    """Take the next item off a queue; waiting can be interrupted by Ctrl-C on every platform."""
    while sys.platform == "win32":
        # There, a wait without an end cannot be interrupted.
        try:
            return q.get(timeout=0.1)
        except Empty:
            continue
    return q.get()


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


# ---- where the loop is


@dataclass(slots=True)
class ApplyExecutor:
    """Runs tasks on anything that has ``apply_async``; an `Executor` of the loop.

    It has no way to stop what runs: that is up to the owner of the pool.
    """

    #: Called as ``apply_async(func, args=(), kwds={}, callback=None)``.
    apply_async: Callable[..., Any]
    #: How many tasks may be in the pool at once.
    slots: int
    #: Called where a task has run, to tell where that was.
    get_id: Callable[[], Any] = default_get_id
    #: Makes ``dumps((exception, traceback))`` of an exception; by default they travel as they are.
    pack_exception: Callable[..., Any] = default_pack_exception
    #: Pack and unpack what travels.
    dumps: Callable[[Any], Any] = identity
    loads: Callable[[Any], Any] = identity
    #: Takes the next answer off the queue.
    take: Callable[[SimpleQueue[Answer]], Answer] = queue_get
    #: Answers, as they come in.
    answers: SimpleQueue[Answer] = field(init=False, default_factory=SimpleQueue)
    #: Whether the pool tells of tasks that it could not answer.
    tells_errors: bool = field(init=False, default=False)
    #: Whether it is a pool of `multiprocessing`, for which see `_Parcel`.
    needs_parcels: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        module = sys.modules.get("multiprocessing.pool")
        owner = getattr(self.apply_async, "__self__", None)
        self.needs_parcels = module is not None and isinstance(owner, module.Pool)
        try:
            parameters = inspect.signature(self.apply_async).parameters
        except (TypeError, ValueError):
            return
        self.tells_errors = "error_callback" in parameters

    def begin(self, state: State, *, shows: bool) -> None:
        """Do nothing: tasks are sent as they come."""

    def submit(self, key: Key, task: Any, values: dict[Key, Any], allowance: int | None) -> None:  # noqa: ARG002
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

    def spill(self, key: Key, value: Any) -> None:  # noqa: ARG002 - the protocol's
        """Refuse: where a pool has its values is not known here, so no plan for it may set a limit."""
        raise ValueError(f"the value of {key!r} cannot be moved to disk: a pool knows no limit to memory")

    def release(self, key: Key, value: Any) -> None:
        """Do nothing: a value goes with the last reference to it."""

    def flush(self) -> None:
        """Do nothing: tasks are sent one by one."""

    def wait(self, ready: int) -> list[TaskFinished | TaskFailed]:  # noqa: ARG002 - the protocol's
        """Wait for an answer."""
        key, packed, failed = self.take(self.answers)
        if not failed:
            value, worker = self._unpack(key, packed)
            return [TaskFinished(key, value, None, worker)]
        if isinstance(packed, _Raised):
            return [TaskFailed(key, packed.error, packed.error.__traceback__)]
        error, where = self._unpack(key, packed)
        return [TaskFailed(key, error, where)]

    def value_of(self, value: Any) -> Any:
        """Give back the value: it stands for itself."""
        return value

    def cancel(self) -> None:
        """Do nothing: the pool goes on with what it has, and nobody takes in its answers."""

    def _unpack(self, key: Key, packed: Any) -> Any:
        try:
            return self.loads(packed)
        except BaseException as e:
            e.add_note(f"while the answer of the task {key!r} was unpacked")
            raise


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
