"""An executor as `concurrent.futures` knows them, on worker processes that share memory."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeAlias

import cloudpickle

from graphmill.engine import Engine
from graphmill.engine.futures import Future
from graphmill.engine.stream import Group, Order
from graphmill.errors import EngineClosed, SetupFailed
from graphmill.workers.calls import Call, Setup
from graphmill.workers.shipped import in_worker

__all__ = ["Executor", "Future"]

#: A function, and what it is to be called with.
_Wanted: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class _Pending:
    """The futures of one executor that are not done. They do not refer to the executor, which may go."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        #: Told of when there are none.
        self.idle = threading.Condition(self.lock)
        self.futures: set[concurrent.futures.Future[Any]] = set()
        #: Why no more calls are taken.
        self.broken: str | None = None

    def end(self, future: concurrent.futures.Future[Any]) -> None:
        """Note that a future is done."""
        with self.lock:
            self.futures.discard(future)
            if not self.futures:
                self.idle.notify_all()

    def fail(self, error: BaseException | None) -> None:
        """Note what a call has raised."""
        if isinstance(error, SetupFailed):
            with self.lock:
                self.broken = str(error)


class Executor(concurrent.futures.Executor):
    """Runs calls on worker processes that share memory.

    Arrays in arguments and results lie in shared memory. What came from there goes back by reference: a
    result that is passed on, or its future, is not copied. Functions may change the arrays that they are
    given; nobody else sees it.

    Parameters
    ----------
    num_workers : int or "auto", optional
        How many processes; by default as many as there are CPUs for this process.
    memory_limit, warm_limit, folder, spill_folder, spill_limit : optional
        As for `Engine`.
    engine : Engine, optional
        Whose workers to use, instead of new ones; it may run graphs and other executors' calls besides. It
        stays open.
    initializer : callable, optional
        Called in each worker before its first call of this executor; if it raises, calls fail, and no more
        are taken.
    initargs : tuple
        Its arguments.

    Notes
    -----
    Within a worker, calls run at once, where they are submitted.

    Examples
    --------
    >>> with Executor(num_workers=2) as executor:  # doctest: +SKIP
    ...     executor.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        num_workers: int | Literal["auto"] | None = None,
        *,
        memory_limit: float | str | None = None,
        warm_limit: float | str | None = None,
        folder: str | os.PathLike[str] | None = None,
        spill_folder: str | os.PathLike[str] | None = None,
        spill_limit: float | str | None = None,
        engine: Engine | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        settings = {
            "memory_limit": memory_limit,
            "warm_limit": warm_limit,
            "folder": folder,
            "spill_folder": spill_folder,
            "spill_limit": spill_limit,
        }
        given = [
            name for name, value in (("num_workers", num_workers), *settings.items()) if value is not None
        ]
        if engine is not None and given:
            raise TypeError(f"An engine has settings of its own: give {', '.join(given)} to it, or no engine")
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, got {initializer!r}")
        self._owns = engine is None
        self._pid = os.getpid()
        self._engine: Engine | None = engine
        if engine is None and not in_worker():
            self._engine = Engine(num_workers, **settings)  # type: ignore[arg-type]  # each is of its own type
        self._setup: Setup | None = None
        if initializer is not None:
            self._setup = Setup(uuid.uuid4().hex, cloudpickle.dumps((initializer, initargs)))
        self._group = Group(self._engine.stream) if self._engine is not None else None
        self._pending = _Pending()
        self._shut_down = False
        if self._owns and self._engine is not None:
            # Who drops an executor without shutting it down still gets the results that he waits for.
            weakref.finalize(self, self._engine.retire).atexit = False

    @property
    def engine(self) -> Engine | None:
        """The engine that calls run on; None within a worker."""
        return self._engine

    # ---- calls

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Have a function called in a worker.

        Parameters
        ----------
        function
            Any function, also a local one. It is pickled in the background, when its turn comes.
        *args, **kwargs
            Its arguments. Among them, and within lists and the like, there may be futures of executors on the
            same engine: the call waits for them, and is given their results, by reference.

        Returns
        -------
        Future
            With `WorkerDied` if its worker dies three times over.

        Raises
        ------
        RuntimeError
            After `shutdown`, or at the end of the program.
        BrokenExecutor
            If the initializer has failed.
        EngineClosed
            In a process that was forked from this one.
        """
        return self._submit([(function, args, kwargs)])[0]

    def submit_named(self, key: Any, name: str, function: Callable[..., Any], /, *args: Any) -> Future:
        """Do the same for a call that errors name, and of whose kind there are others, as of a graph's task.

        Parameters
        ----------
        key
            As of a task: calls whose keys begin alike are taken to last and to take alike.
        name
            What errors call it.
        function, *args
            As for `submit`.
        """
        return self._submit([(function, args, {})], key, name)[0]

    def _submit(self, calls: Iterable[_Wanted], key: Any = None, name: str = "") -> list[Future]:
        if os.getpid() != self._pid:
            raise EngineClosed("The executor belongs to the process that this one was forked from")
        pending = self._pending
        futures, orders = [], []
        with pending.lock:
            if pending.broken is not None:
                raise concurrent.futures.BrokenExecutor(pending.broken)
            if self._shut_down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            for function, args, kwargs in calls:
                future = Future()
                if self._setup is not None:
                    future.on_failure = pending.fail
                call = Call(function, args, kwargs, self._setup)
                futures.append(future)
                if self._group is None:
                    _call_here(call, future)
                else:
                    orders.append(Order(self._group, call, future, key, name))
                    pending.futures.add(future)
        for order in orders:
            order.future.add_done_callback(pending.end)
        if orders and self._engine is not None:
            try:
                self._engine.stream.submit(orders)
            except BaseException:
                for order in orders:
                    order.future.cancel()
                raise
        return futures

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Call a function with items of iterables, several at a time.

        Parameters
        ----------
        fn
            The function; it gets one item of each iterable.
        *iterables
            The items; the shortest iterable ends it.
        timeout
            Seconds from now until a result must be there.
        chunksize
            How many calls travel together. Short calls are much faster with many.
        buffersize
            How many chunks are taken from the iterables ahead of what is asked for; None for all of them.

        Returns
        -------
        iterator
            The results, in order. What a call raised is raised where its result would come.

        Raises
        ------
        TimeoutError
            While iterating, if the time is up.
        ValueError
            If `chunksize` or `buffersize` is below 1.
        """
        for name, number in (("chunksize", chunksize), ("buffersize", buffersize)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        deadline = None if timeout is None else time.monotonic() + timeout
        chunks = _in_chunks(zip(*iterables, strict=False), chunksize)
        whole = partial(_call_each, fn)
        calls: Iterator[_Wanted] = ((whole, (chunk,), {}) for chunk in chunks)
        futures = self._submit(itertools.islice(calls, buffersize))
        rest = calls if buffersize is not None else iter(())
        return self._results(futures[::-1], rest, deadline)

    def _results(self, futures: list[Future], rest: Iterator[Any], deadline: float | None) -> Iterator[Any]:
        """Give results, the last future's first, and keep as many calls under way as there are futures."""
        try:
            while futures:
                yield from _next_chunk(futures, deadline)
                for call in itertools.islice(rest, 1):
                    futures[:0] = self._submit([call])
        finally:
            for future in futures:
                future.cancel()

    # ---- the end

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let go of the workers once those that there are have ended.

        Parameters
        ----------
        wait
            Whether to wait for that.
        cancel_futures
            Whether to cancel the calls that have not begun.
        """
        pending = self._pending
        with pending.lock:
            self._shut_down = True
            futures = list(pending.futures)
        if cancel_futures:
            for future in futures:
                future.cancel()
        del futures
        if wait and os.getpid() == self._pid:
            with pending.idle:
                pending.idle.wait_for(lambda: not pending.futures)
        if self._owns and self._engine is not None:
            self._close_engine(wait)

    def stop(self) -> None:
        """Stop all calls, those too that run; no more are made."""
        if self._group is not None:
            self._group.stream.stop(self._group)

    def _close_engine(self, wait: bool) -> None:
        assert self._engine is not None
        if wait:
            self._engine.close()
        else:
            self._engine.retire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # Whoever presses Ctrl-C wants an end, and the workers do not hear of it by themselves.
            self.stop()
        self.shutdown(wait=True)


def _call_here(call: Call, future: Future) -> None:
    """Call a function at once."""
    future.set_running_or_notify_cancel()
    try:
        result = call({})
    except BaseException as error:  # noqa: BLE001 - it is for whoever asks the future
        future.set_exception(error)
    else:
        future.set_result(result)


def _in_chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _call_each(function: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    return [function(*items) for items in chunk]


def _next_chunk(futures: list[Future], deadline: float | None) -> Iterator[Any]:
    """Take the last future out of a list, and give its results one by one, holding on to none."""
    future = futures.pop()
    try:
        results = future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except BaseException:
        future.cancel()
        raise
    del future
    results.reverse()
    while results:
        yield results.pop()
