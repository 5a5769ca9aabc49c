"""The engine: worker processes, shared memory, and any number of runs at a time.

Several threads may call `get` at once; whichever of them has nothing else to do looks after the workers for
all (`turns`). What an engine is made of is in `parts`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self
from weakref import ref

from graphmill import config
from graphmill.diagnostics.recorder import MOST_TASKS, Recorder
from graphmill.diagnostics.watch import Glance, Watcher, begin_log
from graphmill.engine import open_engines
from graphmill.engine.adapting import Adapting
from graphmill.engine.blocks import Blocks
from graphmill.engine.choices import Choices, checked
from graphmill.engine.crew import STOP_LIMIT, Crew
from graphmill.engine.limit import Limit, MemoryUse
from graphmill.engine.packing import Packer
from graphmill.engine.parts import Parts
from graphmill.engine.persisting import persist
from graphmill.engine.requirements import LIMITS
from graphmill.engine.run import Run, megabytes
from graphmill.engine.seats import Client
from graphmill.engine.settings import dask_settings
from graphmill.engine.shipping import Numbers
from graphmill.engine.stored import Shelf
from graphmill.engine.stream import Stream
from graphmill.engine.terms import Terms
from graphmill.engine.turns import Turns, Waiting
from graphmill.engine.views import Views
from graphmill.errors import EngineClosed, NotRecorded, PoolError
from graphmill.graph import as_mapping, flatten
from graphmill.loop import Settings, nested_get, reraise, run_graph
from graphmill.memory.block import Encoded
from graphmill.memory.heap import Heap
from graphmill.memory.leftovers import OwnedFolder
from graphmill.scheduler.estimates import Estimates
from graphmill.workers.pool import Pool
from graphmill.workers.signals import InterruptHold

logger = logging.getLogger("graphmill")

#: Seconds that a killed worker may take to be gone.
KILL_LIMIT = 5.0
#: Seconds that idle workers may take to give memory back.
REST_LIMIT = 1.0


class Engine:
    """Worker processes that share memory, to run graphs on.

    Parameters
    ----------
    num_workers : int or "auto", optional
        How many; by default, or by ``"auto"``, as many as there are CPUs for this process, but no more than
        leaves each the memory that the setting `memory_per_worker` says. Then workers for whose tasks there
        is no memory end after two seconds, and come back when there is.
    memory_limit : int or str, optional
        How much memory all of it may take: the arenas, the workers and this process together. Bytes,
        ``"4GB"``, or ``"60%"`` of what there is for this process; by default 80%.
    warm_limit : int or str, optional
        How many bytes of memory that nobody needs are kept at hand when nothing runs, as their next use is
        then ten times faster; while graphs run, as many as were needed at once. 0 gives each page back to the
        system at the moment of release.
    folder : path, optional
        Where files are that stand in for shared memory where there is too little; it must exist. By default
        the system's folder for temporary files.
    spill_folder : path, optional
        Where blocks go when memory is short; by default a temporary folder on a disk of this machine, a
        fast one if there is any.
    spill_limit : int or str, optional
        How many bytes may be there at once; by default as many as the disk has room for. 0 keeps all in
        memory.
    retries : int, optional
        How often a task is run again whose worker has died; 3 by default. Dask's annotation ``retries``
        overrides it, and holds for tasks that raise an exception, too.
    resources : mapping of str to number, optional
        How much there is of what only so many tasks can use at once, such as ``{"gpu": 1}``. Tasks say with
        Dask's annotation ``resources`` what they need. Graphs that need any run one after the other.
    task_timeout : float, optional
        Seconds after which a task is stopped, with a `TaskTimeout`; none by default. The annotation
        ``task_timeout`` overrides it. Tasks that run in this process are not stopped.
    record : bool, optional
        Whether to keep records of all runs, for `report`: some hundred bytes for each task, up to a million.

    Raises
    ------
    ConfigError
        If files cannot be made in `folder` or `spill_folder`, or a limit is none.
    UnsupportedPlatform
        On Windows, where `graphmill.local.get_sync` and `get_async` work.

    Examples
    --------
    >>> from operator import add
    >>> with Engine(num_workers=2) as engine:  # doctest: +SKIP
    ...     engine.get({"x": 1, "y": (add, "x", 2)}, "y")
    3
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
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        task_timeout: float | None = None,
        record: bool = False,
    ) -> None:
        choices = Choices.of(
            memory_limit=memory_limit,
            num_workers=num_workers,
            warm_limit=warm_limit,
            folder=folder,
            spill_folder=spill_folder,
            spill_limit=spill_limit,
            retries=retries,
            resources=resources,
            task_timeout=task_timeout,
        )
        self._choices = choices
        #: The most memory that all of it may take, in bytes.
        self.memory_limit = choices.memory_limit
        #: How many workers there are.
        self.num_workers = choices.num_workers
        #: Decides on that; None where somebody has said how many.
        self._adapting = Adapting(self.num_workers) if choices.adapts else None
        #: Where blocks go when memory is short; None if there is no place.
        self.spill_folder = choices.spill_folder
        #: How often a task is run again whose worker has died.
        self.retries = choices.retries
        #: Held by the run that uses its resources, if any.
        self._resources_lock = threading.RLock()
        self._started = False
        #: The process that it belongs to.
        self.pid = os.getpid()
        #: The runs that go on.
        self._running: list[Run] = []
        #: How many runs and others use it, and whether it is closed once there are none.
        self._runs = 0
        self._retired = False
        #: Who watches its runs, and no others.
        self.watchers: list[Watcher] = []
        self._own_recorder = Recorder(MOST_TASKS) if record else None
        if self._own_recorder is not None:
            self.watchers.append(self._own_recorder)
        #: Who has recorded it last.
        self.recorder: ref[Recorder] | None = None
        self.numbers = Numbers()
        self.estimates = Estimates()
        self.pool = Pool(self.num_workers, serve="graphmill.workers.worker:serve", close_at_exit=False)
        self._turns = Turns()
        self._views: Views
        self._folder: OwnedFolder
        self.blocks: Blocks
        self.crew: Crew
        self.heap: Heap
        self.limit: Limit
        self.shelf: Shelf
        self.packer: Packer
        #: What is to be let go of at the end.
        self._resources = contextlib.ExitStack()
        #: Runs calls outside graphs.
        self.stream = Stream(self)

    # ---- life

    def _start(self) -> None:
        """Make folders and arenas, and start workers, unless that is done; Ctrl-C waits until it is."""
        self._require_own()
        with InterruptHold(), self._turns.lock:
            if self.closed:
                raise EngineClosed("The engine is closed: make another one")
            if self._started:
                if not self._folder.path.is_dir():
                    self.close()
                    raise EngineClosed("The engine's folder is gone, so it was closed: make another one")
                return
            try:
                self._make_ready()
            except BaseException as error:
                self._turns.closed = True
                self.pool.close()
                self._resources.close()
                if isinstance(error, OSError):
                    raise PoolError(f"The engine cannot be started: {error}. {LIMITS}") from error
                raise
            self._started = True
            limit = megabytes(self.memory_limit)
            logger.info("engine started: %d workers, a memory limit of %s", self.num_workers, limit)

    def _make_ready(self) -> None:
        open_engines.opened(self)
        parts = Parts(self, self._choices, self.pool, self._turns, self._resources)
        self._folder, self._views = parts.folder, parts.views
        self.blocks, self.crew, self.limit = parts.blocks, parts.crew, parts.limit
        self.heap, self.shelf, self.packer = parts.heap, parts.shelf, parts.packer

    def _require_own(self) -> None:
        """See that this process made the engine; before any lock, which a fork may have left locked."""
        if os.getpid() != self.pid:
            raise EngineClosed(
                "The engine belongs to the process that this one was forked from: make another one here, or "
                "use graphmill.get, which has one for each process"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and let go of all memory; may be called again.

        Results that were given stay valid.
        """
        self._close(settle=True)

    def _close(self, *, settle: bool) -> None:
        """Close it; `settle` says whether values that handles stand for are to stay valid."""
        if os.getpid() != self.pid:
            self._turns.closed = True
            return
        with InterruptHold(), self._turns.lock:
            if settle and self._started and not self.closed:
                self.shelf.settle()
            if self.closed:
                return
            self._turns.close()
            self.pool.close(self._resources.close)
            if self._started:
                open_engines.closed(self)
            self._resources.close()
            if self._started:
                logger.info("engine closed")
            self._turns.lock.notify_all()
        self.stream.close()
        if self._own_recorder is not None:
            self._own_recorder.close()

    def close_at_exit(self) -> None:
        """Close it at the end of the program, where nobody is left to look at what it keeps."""
        self._close(settle=False)

    @property
    def peak(self) -> tuple[int, int]:
        """The most memory that it took, and its limit, in bytes."""
        return self.limit.peak, self.limit.nbytes

    def abandon(self) -> None:
        """In a process forked from the engine's: touch nothing of it any more.

        Arrays that lie in its memory are still there. When they go here, nobody must give that memory back:
        it is the other process that knows who else looks at it.
        """
        self._turns.abandon()
        if self._started:
            self._views.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._turns.closed

    def retire(self) -> None:
        """Close it once no graph runs on it."""
        with self._turns.lock:
            self._retired = True
            self._close_if_retired()

    def _close_if_retired(self) -> None:
        if self._retired and not self._runs:
            self.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._turns.lock:
            self._runs += 1
        try:
            yield
        finally:
            with self._turns.lock:
                self._runs -= 1
                self._close_if_retired()

    def memory(self) -> MemoryUse:
        """Tell what the engine's memory is used for, and what was the most.

        Raises
        ------
        EngineClosed
            If it is closed.
        """
        self._start()
        with self.access():
            return replace(self.limit.use(), copied=self.packer.copied, passed_on=self.packer.referred)

    def glance(self) -> Glance | None:
        """Look at what it has and does, from any thread; None if it is not running."""
        with self._turns.lock:
            if not self._started or self.closed:
                return None
            with self._turns.undisturbed():
                return self.limit.glance()

    def _repr_html_(self) -> str:
        from graphmill.diagnostics.notebook import engine_html  # noqa: PLC0415 - for notebooks only

        glance = self.glance()
        state = "closed" if self.closed else "not started yet" if glance is None else f"{glance.busy} busy"
        facts = [f"{self.num_workers} workers", state]
        if glance is None:
            facts.append(f"limit {self.memory_limit / 1e9:.1f} GB")
        return engine_html("graphmill engine", facts, glance)

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write a page with pictures of what its runs did, as they were recorded last.

        Parameters
        ----------
        path
            Where to write it: one HTML file that needs nothing else. A file that is there is replaced.

        Raises
        ------
        NotRecorded
            If nothing was recorded: neither was the engine made with ``record=True``, nor was there a
            `graphmill.profile` that is still known to somebody.
        MissingExtra
            If bokeh is not installed.
        """
        recorder = None if self.recorder is None else self.recorder()
        if recorder is None:
            raise NotRecorded(
                "Nothing was recorded on this engine: make it with Engine(record=True), or compute within "
                "`with graphmill.profile() as p:`"
            )
        recorder.report(path, self)

    def start(self) -> None:
        """Start the workers, which the first computation does otherwise.

        Raises
        ------
        EngineClosed
            If it is closed.
        PoolError
            If processes cannot be started here.
        """
        self._start()

    def scale(self, num_workers: int) -> None:
        """Have more or fewer workers from now on, also for graphs and calls that run.

        A worker that is one too many ends when it has done what it was given; results that it made stay.

        Parameters
        ----------
        num_workers
            How many.

        Raises
        ------
        PoolError
            If there cannot be so many.
        EngineClosed
            If it is closed.
        """
        checked(num_workers)
        self._start()
        with self.access():
            self._adapting = None  # now somebody has said a number
            self._have_workers(num_workers)
        self.wake()

    def _have_workers(self, num_workers: int) -> None:
        """Change the number; with access."""
        self.crew.scale(num_workers)
        self.num_workers = num_workers
        for run in list(self._running):  # another thread's may just end
            run.scale(num_workers)

    def adapt(self, idle: int, *, waiting: bool, has_plenty: Callable[[], bool]) -> None:
        """Have fewer workers while memory is short, and more again, unless somebody has said how many.

        Parameters
        ----------
        idle
            How many have nothing to do.
        waiting
            Whether tasks wait for them, or for memory.
        has_plenty
            Tells whether most memory is free; asked only where it matters.
        """
        adapting, number = self._adapting, self.num_workers
        if adapting is None or (adapting.is_calm and not idle and number >= adapting.most):
            return
        with self.access():
            before, adapting = self.num_workers, self._adapting
            if adapting is None:
                return
            waiting = waiting and len(self._running) == 1
            number = adapting.look(time.monotonic(), before, idle, waiting=waiting, plenty=has_plenty())
            if number == before:
                return
            logger.info("%d workers instead of %d, for the memory there is", number, before)
            self._have_workers(number)
        self.wake()

    def bytes_taken(self) -> int:
        """Tell how much memory all of it takes, in bytes, by a look not long ago; 0 once it is closed."""
        if self.closed or not self._started:
            return 0
        with self.access():
            self.limit.look()
            return self.limit.private + self.blocks.occupied()

    def store(self, value: Any) -> Any:
        """Put a value into shared memory; once its handle is collected, it is gone.

        Returns
        -------
        object
            A handle, which tasks and calls are given by reference; or the value itself, if nothing large is
            in it, or if it cannot be pickled.
        """
        with self.begin(), self.access():
            return self.packer.store(value)

    # ---- running graphs

    def get(
        self,
        dsk: Any,
        keys: Any,
        num_workers: int | None = None,
        *,
        cache: MutableMapping[Any, Any] | None = None,
        callbacks: Any = None,
        rerun_exceptions_locally: bool | None = None,
        raise_exception: Callable[..., Any] = reraise,
        **kwargs: Any,  # noqa: ARG002 - meant for other schedulers
    ) -> Any:
        """Compute keys of a graph.

        Parameters
        ----------
        dsk
            A graph of any dialect: a mapping, or an expression with ``__dask_graph__()``.
        keys
            A key, or nested lists of keys.
        num_workers
            At most so many tasks at once; by default as many as there are workers.
        cache
            Values that are there already; results are added to it.
        callbacks
            One callback, or several, instead of those that are registered.
        rerun_exceptions_locally
            Run a task that has failed again in this process, for a debugger.
        raise_exception
            ``raise_exception(exception, traceback)``: raises what a task raised.
        **kwargs
            Ignored: arguments meant for other schedulers.

        Returns
        -------
        object
            The value of `keys`; for lists of keys, tuples of values.

        Raises
        ------
        CycleError, MissingKeyError, MissingDependencyError
            If the graph cannot be run.
        WorkerDied
            If the workers that ran a task died, once more than it is to be run again.
        TaskTimeout
            If a task took longer than it may.
        """
        if rerun_exceptions_locally is None:
            rerun_exceptions_locally = config.get("rerun_exceptions_locally", False)
        settings = Settings(
            callbacks=callbacks,
            rerun_locally=rerun_exceptions_locally,
            raise_exception=raise_exception,
            logger=logger,
        )
        return self._run(dsk, keys, num_workers, settings, cache)

    def persist(self, collections: Any, optimize_graph: bool = True, **kwargs: Any) -> Any:
        """Compute Dask collections, and keep their chunks in shared memory.

        Dask calls it for ``x.persist(scheduler=engine.get)``. Later computations on this engine use the
        chunks where they are; what exceeds the memory limit goes to disk. The memory is given back when the
        collection that is returned, and all that were made from it, are collected.

        Parameters
        ----------
        collections
            A collection, or several in a list or tuple. What they share is computed once.
        optimize_graph
            Whether Dask is to optimise their graphs.
        **kwargs
            As for `get`.

        Returns
        -------
        object
            A collection with the same meaning, or a list of them. They work with other schedulers too.
        """
        arguments = {name: kwargs.pop(name, None) for name in ("num_workers", "callbacks")}
        settings = Settings(callbacks=arguments["callbacks"], logger=logger)

        def compute(dsk: Any, keys: list[Any]) -> Iterable[Any]:
            found: Iterable[Any] = self._run(dsk, keys, arguments["num_workers"], settings, store=True)
            return found

        return persist(collections, optimize_graph, compute, **kwargs)

    def _run(
        self,
        dsk: Any,
        keys: Any,
        num_workers: int | None,
        settings: Settings,
        cache: MutableMapping[Any, Any] | None = None,
        *,
        store: bool = False,
    ) -> Any:
        """Run a graph, and get its results, or handles to them."""
        self._require_own()
        if num_workers is not None:
            checked(num_workers)
        with self._in_use():
            return self._run_within(dsk, keys, num_workers or sys.maxsize, settings, cache, store=store)

    def _run_within(
        self,
        dsk: Any,
        keys: Any,
        most: int,
        settings: Settings,
        cache: MutableMapping[Any, Any] | None,
        *,
        store: bool,
    ) -> Any:
        self._start()
        settings_of_dask = dask_settings()
        with self.access():
            self.crew.settings = settings_of_dask
        choices, log = self._choices, begin_log(self, self.watchers)
        graph = as_mapping(dsk)
        terms = Terms.of(dsk, graph, choices.retries, choices.task_timeout, choices.resources)
        values: dict[Any, Any] = dict(cache or {})
        with self.access():
            run = Run(self, min(most, self.num_workers), terms, log)
            run.most = most
            self._running.append(run)
        try:
            with self._resources_lock if terms.needs else contextlib.nullcontext():
                run_graph(graph, keys, run, values, replace(settings, plan=run.plan))
            if store:
                return [run.store(values[key]) for key in keys]
            results = _Results(run, values)
            nested = nested_get(keys, results)
            if cache is not None:
                cache.update((key, results[key]) for key in flatten([keys]))
            return nested
        finally:
            self._running.remove(run)
            run.close()
            values.clear()  # as the graph, in `Run.close`
            if log is not None:
                log.end()
            if self.pool.failed:
                self.close()  # no other graph could run on it either
            else:
                self._have_all_workers()

    def _have_all_workers(self) -> None:
        """Have those back that had to end while memory was short: the next graph may be another."""
        adapting = self._adapting
        if adapting is None:
            return
        try:
            with self.access():
                if self._adapting is not adapting or self._running:
                    return
                adapting.forget()
                if self.num_workers < adapting.most:
                    self._have_workers(adapting.most)
        except (EngineClosed, PoolError) as error:
            # The graph has its result, or an error of its own; who uses the engine next is told.
            logger.info("there are no more workers: %s", error)

    # ---- what runs need

    def access(self) -> contextlib.AbstractContextManager[None]:
        """Have workers, blocks and memory for oneself; Ctrl-C waits until that is over."""
        return self._turns.access()

    @contextlib.contextmanager
    def begin(self) -> Iterator[None]:
        """See that the engine has started, and have it stay open."""
        with self._in_use():
            self._start()
            settings = dask_settings()
            with self.access():
                self.crew.settings = settings
            yield

    def wait(self, run: Waiting, seconds: float | None = None) -> None:
        """Wait until something has happened to a run, for so many seconds at most; look after all others."""
        self._turns.wait(run, seconds)

    def wake(self) -> None:
        """End waits early, so that whoever has got news sees it; for any thread."""
        self.pool.wake()

    def look(self) -> None:
        """Take in what has happened, without waiting."""
        self._turns.look()

    def rest(self) -> None:
        """Have idle workers give back memory that they have no use for, and wait until they have."""
        with self.access():
            told = self.crew.rest()
            self.blocks.rest()
        # One that stands still is not waited for again.
        self._turns.wait_until(lambda: not any(seat.resting for seat in told), REST_LIMIT)

    def stop(self, run: Client) -> None:
        """Stop the tasks of a run, by force if they do not let themselves be stopped."""
        if self.closed or not self._started:
            return
        try:
            with self.access():
                self.crew.cancel(run)
            self._wait_for_end(run, STOP_LIMIT)
        finally:  # a second Ctrl-C ends the wait, too, or comes as soon as it may, before it
            with self.access():
                for worker in self.crew.busy_with(run):
                    self.crew.kill(worker)
        self._wait_for_end(run, KILL_LIMIT)

    def _wait_for_end(self, run: Client, limit: float) -> None:
        """Wait until no worker has tasks of a run, for so many seconds at most."""
        self._turns.wait_until(lambda: not self.crew.busy_with(run), limit)

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for, over the blocks that it lies in."""
        return self._views.read(value)

    def look_after(self, values: Iterable[Any]) -> None:
        """Forget changes to values that were read."""
        self._views.look_after(values)

    def give_back(self, value: Encoded) -> None:
        """Let go of a value that was kept for a handle: at once if nobody is at work, else soon."""
        self._views.give_back(value)


class _Results:
    """Makes values of what a run has left in its cache, each once."""

    def __init__(self, run: Run, left: dict[Any, Any]) -> None:
        self._run = run
        self._left = left
        self._made: dict[Any, Any] = {}

    def __getitem__(self, key: Any) -> Any:
        if key not in self._made:
            self._made[key] = self._run.value_of(self._left[key])
        return self._made[key]
