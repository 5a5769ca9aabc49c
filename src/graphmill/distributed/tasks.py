"""A Dask worker's executor: runs tasks in the processes of an engine, and in threads what has to be there."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

import numpy as np
from distributed import worker as dask_worker
from distributed.core import error_message

from graphmill.distributed.data import SharedData
from graphmill.engine import Engine
from graphmill.engine.futures import Future
from graphmill.engine.slicing import index_of
from graphmill.errors import EncodeError, GraphmillError
from graphmill.executor import Executor
from graphmill.loop import reraise
from graphmill.memory.block import Encoded
from graphmill.workers.answers import Answer, run_task

_RUN_TASK: Any = dask_worker._run_task_simple  # noqa: SLF001 - what a worker calls an executor with
_RUN_IN_THREAD: Any = dask_worker._run_task  # noqa: SLF001 - what it runs in threads instead
#: How the names of distributed's modules begin.
_DISTRIBUTED = ("distributed.", "dask.distributed.")
#: Parts of arrays lie where those do while all takes no more than one part in so many of the memory.
_MUCH = 2
#: Arrays below so many bytes are cut by tasks.
_SMALL = 64 << 10
#: The payload of an array, as the answer of a task, has fewer bytes.
_SHORT = 1024
#: How many arguments of a task are looked at.
_LOOKED_AT = 16

#: A task, its inputs by key, and how many seconds the scheduler's clock is ahead.
_Work: TypeAlias = tuple[Any, dict[Any, Any], float]


class TaskExecutor(concurrent.futures.Executor):
    """Runs the tasks of one Dask worker.

    Parameters
    ----------
    engine
        Whose processes run them; it is closed with the executor.
    data
        What the worker holds.
    worker
        The Dask worker.
    threads
        Its executor of threads, which it closes itself.
    """

    def __init__(self, engine: Engine, data: SharedData, worker: Any, threads: Any) -> None:
        self._engine = engine
        self._data = data
        self._worker = worker
        self._processes = Executor(engine=engine)
        self._threads = threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Run a function, and return at once: a task in a process, anything else in a thread."""
        if fn is not _RUN_TASK:
            threaded: concurrent.futures.Future[Any] = self._threads.submit(fn, *args, **kwargs)
            return threaded
        work: Any = args
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()  # the worker's are never cancelled
        if needs_worker(work[0]):
            self._run_here(future, work)
            return future
        part = self._cut(work)
        if part is not None:
            future.set_result(_success(part, None, work[2]))
            return future
        inputs = {key: self._data.reference(key, value) for key, value in work[1].items()}
        key = getattr(work[0], "key", None)
        call = self._processes.submit_named(key, f"the task {key!r}", run_task, work[0], inputs)
        call.add_done_callback(partial(self._on_done, future, work))
        return future

    def _cut(self, work: _Work) -> Answer | None:
        """Give the result of a task that only cuts an array in shared memory; None for any other.

        It is a view, which keeps the whole array: so that is done where parts make up most of it, or a good
        part, and only while there is plenty of memory. When another task needs it, it is found where it lies.
        """
        start, (task, inputs, _) = time.time(), work
        index = index_of(task)
        if index is None:
            return None
        [source] = inputs
        state, held = self._worker.state.tasks.get(source), self._data.stored(source)
        if (
            state is None
            or held is None
            or not _is_simple(held.encoded)
            or _MUCH * self._engine.blocks.resident > self._engine.limit.capacity
        ):
            return None
        try:
            part = self._data[source][index]
        except (IndexError, TypeError, ValueError, GraphmillError):
            return None  # the task itself says what is wrong
        [extent] = held.encoded.extents
        if type(part) is not np.ndarray or 2 * part.nbytes * len(state.dependents) < extent.length:
            return None
        return Answer(part, part.nbytes, np.ndarray, start, time.time())

    def _on_done(
        self,
        future: concurrent.futures.Future[Any],
        work: _Work,
        call: concurrent.futures.Future[Any],
    ) -> None:
        assert isinstance(call, Future)
        error = call.exception()
        if error is None:
            answer: Answer = call.result()
            future.set_result(_success(answer, call.stored, work[2]))
        elif call.stays or (isinstance(error, EncodeError) and not call.sent):
            self._run_here(future, work)  # it cannot be sent: it has not begun
        else:
            future.set_result(_failure(error, work[2]))

    def _run_here(self, future: concurrent.futures.Future[Any], work: _Work) -> None:
        try:
            self._threads.submit(self._run, future, work)
        except RuntimeError as error:
            future.set_exception(error)  # it was shut down meanwhile

    def _run(self, future: concurrent.futures.Future[Any], work: _Work) -> None:
        """Run a task in this thread, as the worker's own threads do."""
        worker, (task, data, delay) = self._worker, work
        state = worker.execution_state, task.key, worker.active_threads, worker.active_threads_lock
        try:
            future.set_result(_RUN_IN_THREAD(task, data, *state, delay))
        except BaseException as error:  # noqa: BLE001 - it is the worker that decides what it means
            future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        if not wait:
            # The worker does not wait for what runs; a process that does not end would keep it all the same.
            self._engine.close()
        self._processes.shutdown(wait=wait, cancel_futures=cancel_futures)
        self._data.close()
        self._engine.close()


def _is_simple(value: Encoded) -> bool:
    """Tell whether a value is an array in one block, or little more: to look at it takes no time."""
    return len(value.extents) == 1 and len(value.payload) < _SHORT and value.nbytes >= _SMALL


def _success(answer: Answer, stored: Any, delay: float) -> dict[str, Any]:
    """Tell the worker of a result, which stays in shared memory if it lies there."""
    return {
        "op": "task-finished",
        "status": "OK",
        "result": answer.result if stored is None else stored,
        "nbytes": answer.nbytes,
        "type": answer.kind,
        "start": answer.start + delay,
        "stop": answer.stop + delay,
        "thread": 0,
    }


def _failure(error: BaseException, delay: float) -> dict[str, Any]:
    """Tell the worker of an exception."""
    if not isinstance(error, Exception):
        # The worker would take these for its own end.
        error = RuntimeError(f"The task ended its process: {error!r}")
    now = time.time() + delay
    try:
        reraise(error)
    except Exception as raised:  # noqa: BLE001 - Dask asks the interpreter what was raised
        message: Any = error_message(raised)
    return {
        **message,
        "op": "task-erred",
        "actual_exception": error,
        "start": now,
        "stop": now,
        "thread": 0,
    }


# ---- which tasks need the worker itself


def needs_worker(task: Any) -> bool:
    """Say whether a task uses the Dask worker that it runs on: Dask's shuffle does, users' functions may."""
    return any(_uses_distributed(function) for function in _functions_of(task))


def _functions_of(task: Any) -> Iterator[Any]:
    """List the functions that a task calls, as far as that shows."""
    yield type(task)
    function = getattr(task, "func", None)
    if function is None:
        return
    yield function
    for argument in (*task.args[:_LOOKED_AT], *list(task.kwargs.values())[:_LOOKED_AT]):
        value = getattr(argument, "value", argument)
        if isinstance(value, FunctionType | partial):
            yield value
        elif isinstance(value, dict):
            for inner in list(value.values()):
                if hasattr(inner, "func"):
                    yield from _functions_of(inner)


def _uses_distributed(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    if _is_of_distributed(getattr(function, "__module__", None)):
        return True
    function = getattr(function, "__wrapped__", function)
    if not isinstance(function, FunctionType):
        return False
    with contextlib.suppress(KeyError):
        return _known[function.__code__]
    if len(_known) > _MOST_KNOWN:
        _known.clear()
    found = _known[function.__code__] = _code_uses(function.__code__, function.__globals__)
    return found


#: What was found out about code.
_known: dict[CodeType, bool] = {}
_MOST_KNOWN = 10_000


def _code_uses(code: CodeType, names: dict[str, Any]) -> bool:
    for name in code.co_names:
        meant = names.get(name)
        # An import within the function goes by the module's name.
        module = meant.__name__ if isinstance(meant, ModuleType) else getattr(meant, "__module__", None)
        if _is_of_distributed(module) or _is_of_distributed(name):
            return True
    return any(_code_uses(inner, names) for inner in code.co_consts if isinstance(inner, CodeType))


def _is_of_distributed(module: Any) -> bool:
    return isinstance(module, str) and f"{module}.".startswith(_DISTRIBUTED)
