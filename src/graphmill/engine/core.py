"""The engine: worker processes, shared memory, and any number of runs at a time.

The only place where processes, memory and scheduling are wired together. Several threads may call `get` at
once; whichever of them has nothing else to do looks after the workers for all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import ref

from graphmill import config
from graphmill.diagnostics.recorder import MOST_TASKS, Recorder
from graphmill.diagnostics.watch import Glance, Watcher, begin_log
from graphmill.engine import open_engines
from graphmill.engine.blocks import PARENT, Blocks
from graphmill.engine.choices import Choices, checked
from graphmill.engine.crew import STOP_LIMIT, Client, Crew
from graphmill.engine.limit import Limit, MemoryUse
from graphmill.engine.packing import Packer
from graphmill.engine.persisting import persist
from graphmill.engine.requirements import (
    LIMITS,
    lacks_shared_memory,
    require_descriptors,
    tell_what_is_not_seen,
)
from graphmill.engine.run import Run, megabytes
from graphmill.engine.settings import dask_settings
from graphmill.engine.shipping import Numbers
from graphmill.engine.stored import Shelf, Stored
from graphmill.engine.stream import Stream
from graphmill.engine.terms import Terms
from graphmill.errors import EngineClosed, NotRecorded, PoolError, SpillError
from graphmill.graph import as_mapping, flatten
from graphmill.loop import Settings, nested_get, reraise, run_graph
from graphmill.machine import physical_memory
from graphmill.memory.arena import fitting_size, shared_memory_room
from graphmill.memory.block import BlockId, Encoded, Extent
from graphmill.memory.codec import decode
from graphmill.memory.heap import Heap
from graphmill.memory.lease import Reader
from graphmill.memory.leftovers import OwnedFolder, own_name, remove_leftovers
from graphmill.memory.spill import SpillFile
from graphmill.scheduler.estimates import Estimates
from graphmill.workers.pool import Pool
from graphmill.workers.signals import InterruptHold

logger = logging.getLogger("graphmill")

#: Seconds that a killed worker may take to be gone.
KILL_LIMIT = 5.0
#: Longest time between two looks at what else might have happened, in seconds.
PULSE = 1.0


class Engine:
    """Worker processes that share memory, to run graphs on.

    Parameters
    ----------
    num_workers : int, optional
        How many; by default as many as there are CPUs for this process, but no more than leaves each the
        memory that the setting `memory_per_worker` says.
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
        num_workers: int | None = None,
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
        #: Where blocks go when memory is short; None if there is no place.
        self.spill_folder = choices.spill_folder
        #: How often a task is run again whose worker has died.
        self.retries = choices.retries
        #: Held by the run that uses its resources, if any.
        self._resources_lock = threading.RLock()
        self._condition = threading.Condition(threading.RLock())
        #: Whether some thread waits for what the pool has to tell.
        self._polling = False
        #: How many threads want the pool.
        self._wanting = 0
        #: How deep the thread that has the lock is in what must not be disturbed.
        self._depth = 0
        #: Blocks of which a view has gone since anybody looked.
        self._unseen: deque[BlockId] = deque()
        #: Values whose handles have gone since.
        self._given_back: deque[Encoded] = deque()
        self._started = False
        self._closed = False
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
        self.blocks: Blocks
        self.crew: Crew
        self.heap: Heap
        self._reader: Reader
        self.limit: Limit
        self.shelf: Shelf
        self.packer: Packer
        self._folder: OwnedFolder
        #: What is to be let go of at the end.
        self._resources = contextlib.ExitStack()
        #: Runs calls outside graphs.
        self.stream = Stream(self)

    # ---- life

    def _start(self) -> None:
        """Make folders and arenas, and start workers, unless that is done; Ctrl-C waits until it is."""
        self._require_own()
        with InterruptHold(), self._condition:
            if self._closed:
                raise EngineClosed("The engine is closed: make another one")
            if self._started:
                if not self._folder.path.is_dir():
                    self.close()
                    raise EngineClosed("The engine's folder is gone, so it was closed: make another one")
                return
            try:
                self._make_ready()
            except BaseException as error:
                self._closed = True
                self.pool.close()
                self._resources.close()
                if isinstance(error, OSError):
                    raise PoolError(f"The engine cannot be started: {error}. {LIMITS}") from error
                raise
            self._started = True
            limit = megabytes(self.memory_limit)
            logger.info("engine started: %d workers, a memory limit of %s", self.num_workers, limit)

    def _make_ready(self) -> None:
        """Make all that an engine has; first what removes it, since a program may be killed at any time."""
        require_descriptors(self.num_workers)
        open_engines.opened(self)
        remove_leftovers(*{self._choices.folder, self.spill_folder or self._choices.folder})
        self.pool.start()
        name = own_name()
        self.pool.guard(self._choices.folder / name)
        self._folder = OwnedFolder(self._choices.folder, name)
        self._resources.callback(self._folder.close)
        in_files = self._lacks_shared_memory()
        tell_what_is_not_seen()
        self.blocks = Blocks(self._choices.warm_limit, self._forget_arena, self._open_spill)
        # Address space, not memory: in a container too, there may be more in files than in its memory.
        size = fitting_size(physical_memory(), 3 * self.num_workers + 2)
        self._resources.callback(self.blocks.close)
        self.crew = Crew(
            self.pool,
            self.blocks,
            arena_size=size,
            folder=self._folder.path,
            in_files=in_files,
            warm_limit=self._choices.warm_limit // self.num_workers,
        )
        self._resources.callback(self.crew.close)
        self.limit = Limit(self.memory_limit, self._pids, self.blocks, self.crew)
        own = self.crew.new_arena(in_file=False)
        overflow = None if in_files else self.crew.new_arena(in_file=True)
        self.heap = Heap(own, overflow)
        for arena in (own, overflow):
            if arena is not None:
                self.blocks.add_arena(arena, self.heap.give_back)
        self._reader = Reader(self.crew.arenas, self._on_view_gone)
        self._resources.callback(self._reader.close)
        self.shelf = Shelf(self, self.blocks)
        self.packer = Packer(self.heap, self.blocks, self.shelf, self, self._locate)

    def _require_own(self) -> None:
        """See that this process made the engine; before any lock, which a fork may have left locked."""
        if os.getpid() != self.pid:
            raise EngineClosed(
                "The engine belongs to the process that this one was forked from: make another one here, or "
                "use graphmill.get, which has one for each process"
            )

    def _pids(self) -> list[int]:
        pids = [self.pid, self.pool.template_pid]
        pids += [self.pool.pid(worker) for worker in range(self.pool.num_workers)]
        return [pid for pid in pids if pid is not None]

    def _lacks_shared_memory(self) -> bool:
        free = shared_memory_room()
        if free is None or not lacks_shared_memory(self._folder.path):
            return False
        logger.warning(
            "There are only %d MB of shared memory here: blocks are kept in files in %s instead. "
            "In a container, more can be had with --shm-size.",
            free >> 20,
            self._folder.path,
        )
        return True

    def _open_spill(self) -> SpillFile:
        if self.spill_folder is None:
            raise SpillError(
                "blocks cannot be moved to disk: no temporary folder is on one; "
                "Engine(spill_folder=...) takes any folder"
            )
        name = own_name()
        self.pool.guard(self.spill_folder.absolute() / name)  # before it is there
        file = SpillFile(self.spill_folder, self.crew.new_number(), self._choices.spill_limit, name)
        self.crew.add_arena(file.arena)
        logger.info("memory is short: blocks move to disk, to %s", file.folder)
        return file

    def _forget_arena(self, number: int) -> None:
        self.crew.forget_arena(number)

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
            self._closed = True
            return
        with InterruptHold(), self._condition:
            if settle and self._started and not self._closed:
                self.shelf.settle()
            if self._closed:
                return
            self._closed = True
            self.pool.wake()
            deadline = time.monotonic() + PULSE
            while self._polling and time.monotonic() < deadline:
                self._condition.wait(0.1)
            self.pool.close(self._resources.close)
            if self._started:
                open_engines.closed(self)
            self._resources.close()
            if self._started:
                logger.info("engine closed")
            self._condition.notify_all()
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
        self._closed = True
        # Whoever had it locked is not in this process.
        self._condition = threading.Condition(threading.RLock())
        if self._started:
            self._reader.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def retire(self) -> None:
        """Close it once no graph runs on it."""
        with self._condition:
            self._retired = True
            self._close_if_retired()

    def _close_if_retired(self) -> None:
        if self._retired and not self._runs:
            self.close()

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._condition:
            self._runs += 1
        try:
            yield
        finally:
            with self._condition:
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
        """Look at what it has and does, from any thread; None if it is not running.

        Whoever polls the workers is not disturbed: blocks and workers change only under the lock, and that
        is free meanwhile.
        """
        with self._condition:
            if not self._started or self._closed:
                return None
            self._depth += 1  # a view that dies here must change nothing that is looked at
            try:
                return self.limit.glance()
            finally:
                self._depth -= 1
                if not self._polling:
                    self._unpin()

    def _repr_html_(self) -> str:
        from graphmill.diagnostics.notebook import engine_html  # noqa: PLC0415 - for notebooks only

        glance = self.glance()
        state = "closed" if self._closed else "not started yet" if glance is None else f"{glance.busy} busy"
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
            self.crew.scale(num_workers)
            self.num_workers = num_workers
            for run in self._running:
                run.scale(num_workers)
        self.wake()

    def bytes_taken(self) -> int:
        """Tell how much memory all of it takes, in bytes, by a look not long ago; 0 once it is closed."""
        if self._closed or not self._started:
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
        run = Run(self, min(most, self.num_workers), terms, log)
        run.most = most
        values: dict[Any, Any] = dict(cache or {})
        with self.access():
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

    # ---- what runs need

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Have workers, blocks and memory for oneself; Ctrl-C waits until that is over."""
        condition = self._condition
        with InterruptHold(), condition:
            self._wanting += 1
            try:
                while self._polling:
                    self.pool.wake()
                    condition.wait(PULSE)
                if self._closed:
                    raise EngineClosed("The engine was closed while a graph ran")
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    self._unpin()
            finally:
                self._wanting -= 1
                if not self._wanting:
                    condition.notify_all()

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
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._condition:
            while not run.has_news:
                left = PULSE if deadline is None else min(PULSE, deadline - time.monotonic())
                if left <= 0:
                    return
                self._turn(left)

    def wake(self) -> None:
        """End waits early, so that whoever has got news sees it; for any thread."""
        self.pool.wake()

    def look(self) -> None:
        """Take in what has happened, without waiting."""
        with self._condition:
            if not self._polling:
                self._turn(0)

    def _turn(self, timeout: float) -> None:
        """Wait for what the pool tells, or for the thread that does; Ctrl-C comes through only then."""
        with InterruptHold() as hold:
            if self._closed:
                raise EngineClosed("The engine was closed while a graph ran")
            if self._polling or self._wanting:
                hold.open_window()
                self._condition.wait(timeout)
                hold.close_window()
                return
            timeout = min(timeout, self.crew.keep_to_time_limits(time.monotonic()))
            self._polling = True
            self._condition.release()
            try:
                events = self.pool.poll(timeout)
            finally:
                self._condition.acquire()
                self._polling = False
                self._condition.notify_all()
            if self._closed:
                raise EngineClosed("The engine was closed while a graph ran")
            if events:
                with self.access():
                    self.crew.take_in(events)
                    self.crew.flush()
            else:
                self.limit.look()  # so that it is known what a task took that ends its worker

    def stop(self, run: Client) -> None:
        """Stop the tasks of a run, by force if they do not let themselves be stopped."""
        if self._closed or not self._started:
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
        deadline = time.monotonic() + limit
        with self._condition:
            while self.crew.busy_with(run) and (left := deadline - time.monotonic()) > 0:
                self._turn(left)

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for, over the blocks that it lies in."""
        if not value.extents:
            return decode(value.payload)
        with self.access():
            buffers = [self._reader.view(extent) for extent in value.extents]
            for extent in value.extents:
                self.blocks.pin(extent.id, PARENT)
        return decode(value.payload, buffers)

    def look_after(self, values: Iterable[Any]) -> None:
        """Forget changes to values that were read."""
        with self.access():
            for value in values:
                encoded = value.encoded if isinstance(value, Stored) else value
                if isinstance(encoded, Encoded):
                    for extent in encoded.extents:
                        self._reader.drop_dirty(extent.id)

    def _locate(self, address: int, nbytes: int) -> Extent | None:
        """Find where memory of this process lies in shared memory, if nobody here has changed it."""
        extent = self._reader.locate(address, nbytes)
        return extent if extent is not None and self._reader.is_clean(extent) else None

    def _on_view_gone(self, block: BlockId) -> None:
        """Give memory back that the user has let go of: at once if nobody is at work, else soon.

        Called by the interpreter whenever an array dies, so also in the middle of anything else.
        """
        self._unseen.append(block)
        self._unpin_soon()

    def give_back(self, value: Encoded) -> None:
        """Let go of a value that was kept for a handle, in the same way."""
        if not self._closed:
            self._given_back.append(value)
            self._unpin_soon()

    def _unpin_soon(self) -> None:
        if self._condition.acquire(blocking=False):
            try:
                if not (self._depth or self._polling or self._closed):
                    self._unpin()
            finally:
                self._condition.release()

    def _unpin(self) -> None:
        """Let go of blocks that nobody in this process looks at any more, and of values without a handle."""
        if self._depth or not (self._unseen or self._given_back):
            return
        self._depth += 1
        try:
            while self._given_back:
                self.shelf.remove(self._given_back.popleft())
            while self._unseen:
                block = self._unseen.popleft()
                if not self._reader.sees(block):
                    self.blocks.unpin(block, PARENT)
        finally:
            self._depth -= 1


class Waiting(Protocol):
    """Whoever waits for workers."""

    @property
    def has_news(self) -> bool:
        """Whether there is something to look at."""


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
