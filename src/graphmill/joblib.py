"""graphmill as a backend of joblib, so for scikit-learn and others that use it.

Needs joblib 1.3 or later by its documentation; tried with 1.6.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from threading import Lock
from typing import Any, Final

import joblib
import numpy as np
from joblib.parallel import ParallelBackendBase, SequentialBackend

from graphmill import config
from graphmill.engine import default_engine
from graphmill.executor import Executor
from graphmill.machine import available_cpus
from graphmill.workers.shipped import in_worker

__all__ = ["GraphmillBackend", "register"]

#: Bytes from which an array that several calls are given enters shared memory once, as joblib maps arrays.
_SHARED: Final = 1 << 20


def register(*, make_default: bool = False) -> None:
    """Let joblib know graphmill as a backend.

    Parameters
    ----------
    make_default
        Whether `joblib.Parallel` uses it where nothing else is said.

    Examples
    --------
    >>> register()
    >>> with joblib.parallel_config("graphmill", n_jobs=2):  # doctest: +SKIP
    ...     joblib.Parallel()(joblib.delayed(abs)(n) for n in range(-2, 2))
    [2, 1, 0, 1]
    """
    joblib.register_parallel_backend("graphmill", GraphmillBackend, make_default=make_default)


class GraphmillBackend(ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs joblib's calls on the workers that `graphmill.get` uses.

    Large arrays among arguments enter shared memory once for each `Parallel` call, however many calls are
    given them: do not change one in place between two calls. Functions may change what they are given.
    Within workers, joblib runs one call after the other.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._executor: Executor | None = None
        self._most = 1
        self._lock = Lock()
        #: Calls that run, and those that wait since as many run as may.
        self._running: set[Future[Any]] = set()
        self._waiting: deque[_Waiting] = deque()
        #: Arrays that have entered shared memory, by their identity.
        self._shared: dict[int, tuple[Any, Any]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Tell how many calls run at once."""
        if n_jobs == 0:
            raise ValueError("n_jobs=0 has no meaning: give a number of workers, or -1 for all of them")
        if in_worker():
            return 1
        all_of_them: int = config.get("num_workers") or available_cpus()
        if n_jobs is None or n_jobs < 0:
            return max(1, all_of_them + 1 + (-1 if n_jobs is None else n_jobs))
        return n_jobs

    def configure(self, n_jobs: int | None = 1, parallel: Any = None, **options: Any) -> int:
        """Make ready for calls."""
        del options
        self.parallel = parallel
        self._most = self.effective_n_jobs(n_jobs)
        self._executor = Executor() if in_worker() else Executor(engine=default_engine(self._most))
        return self._most

    def submit(self, func: Any, callback: Callable[[Future[Any]], None] | None = None) -> _Waiting:
        """Have a batch of calls made."""
        waiting = _Waiting(func.items, callback)
        with self._lock:
            self._waiting.append(waiting)
        self._begin()
        return waiting

    #: What it is called before joblib 1.5.
    apply_async = submit

    def _with_handles(self, calls: Iterable[tuple[Any, Any, Any]]) -> Iterator[tuple[Any, list[Any], Any]]:
        for function, args, kwargs in calls:
            named = {name: self._handle(value) for name, value in kwargs.items()}
            yield function, [self._handle(value) for value in args], named

    def _handle(self, value: Any) -> Any:
        engine = None if self._executor is None else self._executor.engine
        if engine is None or not isinstance(value, np.ndarray) or value.nbytes < _SHARED:
            return value
        if id(value) not in self._shared:
            self._shared[id(value)] = value, engine.store(value)
        return self._shared[id(value)][1]

    def _begin(self) -> None:
        """Submit what may run now."""
        begun = []
        with self._lock:
            while self._waiting and self._executor is not None and len(self._running) < self._most:
                waiting = self._waiting.popleft()
                future = self._submitted(waiting.calls)
                self._running.add(future)
                begun.append((waiting, future))
        for waiting, future in begun:
            future.add_done_callback(self._end)
            if waiting.callback is not None:
                future.add_done_callback(waiting.callback)

    def _submitted(self, calls: list[Any]) -> Future[Any]:
        """Submit calls; where that fails, the error is what comes of them, since joblib waits for them."""
        assert self._executor is not None
        try:
            with_handles = list(self._with_handles(calls))
            return self._executor.submit(_call_all, with_handles, self.nesting_level or 0)
        except Exception as error:  # noqa: BLE001 - it is raised where joblib asks for the results
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    def _end(self, future: Future[Any]) -> None:
        with self._lock:
            self._running.discard(future)
        self._begin()

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """Get the results of a batch, or raise what a call of it has raised."""
        try:
            return out.result()
        except Exception as error:
            # joblib takes the traceback off, with the frames of the worker: as text they stay.
            error.__cause__ = FramesOfWorker("".join(traceback.format_exception(error)))
            raise

    def stop_call(self) -> None:
        """Let go of arrays."""
        with self._lock:
            self._shared.clear()

    def terminate(self) -> None:
        """Let go of the workers, which are kept for what comes next."""
        executor, self._executor = self._executor, None
        with self._lock:
            self._waiting.clear()
            self._shared.clear()
        if executor is not None:
            executor.shutdown()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop the calls that run, and make none of the others."""
        executor, self._executor = self._executor, None
        with self._lock:
            self._waiting.clear()
        if executor is not None:
            executor.stop()
            executor.shutdown()
        if ensure_ready:
            self.configure(self._most, self.parallel)

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Have calls within calls made one after the other."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


class FramesOfWorker(Exception):
    """Where in a worker an error was raised, as text."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


class _Waiting:
    """A batch of calls that waits for its turn."""

    __slots__ = ("callback", "calls")

    def __init__(self, calls: list[Any], callback: Callable[[Future[Any]], None] | None) -> None:
        self.calls = calls
        self.callback = callback


def _call_all(calls: list[tuple[Any, list[Any], dict[str, Any]]], nesting_level: int) -> list[Any]:
    with joblib.parallel_config(SequentialBackend(nesting_level=nesting_level + 1), n_jobs=None):
        return [function(*args, **kwargs) for function, args, kwargs in calls]
