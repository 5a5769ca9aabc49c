"""The run loop: tells the pure scheduler what happened, and has an executor do what it answers.

One loop serves every executor: the calling thread, any pool with `apply_async`, worker processes. It reads
and orders the graph, calls the callbacks at the moments that Dask's users know, and sees to it that an
executor whose run has failed hears of that.

Knows the scheduler's events and commands. Must not know where tasks run, nor whether what stands for a
value is the value or a reference to it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from graphmill.callbacks import CallbackTuple, local_callbacks, unpack_callbacks
from graphmill.collector import collector_paused
from graphmill.graph import Graph, as_mapping, flatten, read_graph
from graphmill.order import order_graph
from graphmill.release_log import ReleaseLog
from graphmill.scheduler import Listed, Options, Scheduler, State
from graphmill.scheduler.events import (
    Abort,
    BudgetChanged,
    Release,
    RoomChanged,
    Run,
    SlotsChanged,
    Spill,
    TaskFailed,
    TaskFinished,
    TaskLost,
    TaskTooBig,
)
from graphmill.types import Key, Node, Priority

logger = logging.getLogger(__name__)


#: What an executor may tell.
News: TypeAlias = (
    TaskFinished | TaskFailed | TaskLost | TaskTooBig | SlotsChanged | BudgetChanged | RoomChanged
)


class Executor(Protocol):
    """Where tasks run. What it gives for a value may be a reference that only it understands."""

    @property
    def slots(self) -> int:
        """How many tasks may be under way at first; later changes are told by `SlotsChanged`."""

    def begin(self, state: State, *, shows: bool) -> None:
        """Get to know the state of the run, which is for the scheduler to change, before the first task.

        `shows` says whether each value will be shown to callbacks.
        """

    def submit(self, key: Key, task: Node, values: dict[Key, Any], allowance: int | None) -> News | None:
        """Take on a task; tell what became of it if that is known, instead of telling it later.

        Parameters
        ----------
        key
            The task's key. It may come again after the executor has told that the task was lost or failed.
        task
            What to run.
        values
            Its inputs, as the executor gave them, or as the graph or the cache had them.
        allowance
            Bytes that it may take besides its inputs; None where the plan sets no limit to memory.
        """

    def spill(self, key: Key, value: Any) -> None:
        """Move what a value holds to disk, before what is submitted next begins; for plans with a limit."""

    def release(self, key: Key, value: Any) -> None:
        """Let go of what the executor gave for a value, or the graph or cache had: no task needs it now."""

    def flush(self) -> None:
        """Send on what was submitted and released since the last time; more may follow only after `wait`."""

    def wait(self, ready: int) -> Sequence[News]:
        """Wait until something has happened, and tell all that has.

        Exactly one of `TaskFinished`, `TaskFailed`, `TaskLost` and `TaskTooBig` is told for each task
        submitted. A signal that arrives meanwhile must be able to interrupt the wait.

        Parameters
        ----------
        ready
            How many tasks could run as far as their inputs go, and are held back.
        """

    def value_of(self, value: Any) -> Any:
        """Turn what stands for a value into the value; asked where a callback wants to see it."""

    def cancel(self) -> None:
        """Stop what runs: the run has failed, nothing more is submitted, and nothing given is needed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """In what order the tasks of one graph are to run, and under which limits."""

    #: Static priorities, the smallest first; no two tasks may share one.
    priority: Priority
    #: How the scheduler picks tasks, what their outputs weigh, how often it tries again.
    options: Options = field(default_factory=Options)


#: Makes the plan for a graph that has been read, and the keys asked for. It may still change the graph's
#: nodes and data, but not which keys there are.
Planner: TypeAlias = Callable[[Graph, Collection[Key]], Plan]


def plan_order(graph: Graph, results: Collection[Key]) -> Plan:
    """Plan by the static order alone: last in, first out, with no limits, and each task tried once."""
    if not any(graph.dependencies.values()):
        return Plan(Listed(graph.dependencies))  # nothing waits for anything: no order is better
    return Plan(order_graph(graph, results=results).priorities.__getitem__)


def reraise(exc: BaseException, tb: Any = None) -> None:
    """Raise an exception with the traceback that it had."""
    if exc.__traceback__ is not tb:
        raise exc.with_traceback(tb)
    raise exc


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


@dataclass(frozen=True, slots=True)
class Settings:
    """How a run goes about its graph, whatever executes it."""

    #: Orders the graph and sets limits.
    plan: Planner = plan_order
    #: One callback, or several, instead of those that are registered.
    callbacks: Any = None
    #: Whether a task that has failed is run again in this thread, for a debugger.
    rerun_locally: bool = False
    #: Called with an exception and its traceback, to raise it here.
    raise_exception: Callable[..., Any] = reraise
    #: Where releases are told of while debugging is on.
    logger: logging.Logger = logger


def run_graph(
    dsk: Any,
    result: Any,
    executor: Executor,
    cache: MutableMapping[Key, Any],
    settings: Settings = Settings(),
) -> Any:
    """Compute keys of a graph on an executor.

    Parameters
    ----------
    dsk
        A graph of any dialect: a mapping, or an expression with ``__dask_graph__()``.
    result
        A key, or nested lists of keys.
    executor
        Where tasks run. It is told to cancel if anything is raised here, before `finish` callbacks are
        called. It is not closed.
    cache
        Where values, or what stands for them, are kept while they are needed; keys that it has at the start
        are not computed again.
    settings
        How to go about it.

    Returns
    -------
    object
        What the cache then has for `result`: for lists of keys, tuples.

    Raises
    ------
    CycleError
        If tasks wait for each other; a `ValueError`.
    MissingKeyError, MissingDependencyError
        If the graph lacks a key.
    """
    asked = list(flatten(result)) if isinstance(result, list) else [result]
    dsk = as_mapping(dsk)
    with local_callbacks(settings.callbacks) as listeners:
        if any(listener[0] for listener in listeners):
            dsk = dict(dsk)  # `start` may change it, and it is the caller's
        state: Any = {}
        started: list[CallbackTuple] = []
        failed = True
        try:
            for listener in listeners:
                if listener[0]:
                    listener[0](dsk)
                started.append(listener)
            drive = _lay_out(dsk, asked, executor, cache, settings)
            state = drive.scheduler.state
            drive.listen(listeners)
            drive.run()
            failed = False
        except BaseException:
            executor.cancel()
            raise
        finally:
            with ExitStack() as stack:  # it calls all, whichever of them raise
                for *_, finish in reversed(started):
                    if finish:
                        stack.callback(finish, dsk, state, failed)
    return nested_get(result, cache)


def _lay_out(
    dsk: Mapping[Key, Any],
    asked: list[Key],
    executor: Executor,
    cache: MutableMapping[Key, Any],
    settings: Settings,
) -> _Drive:
    with collector_paused(len(dsk)):
        # In the order asked for, which mostly is the graph's: a graph read across takes half as long again.
        graph = read_graph(dsk, asked, cache)
        results = frozenset(asked)
        plan = settings.plan(graph, results)
        scheduler = Scheduler(graph, results, plan.priority, cache, plan.options)
    log = ReleaseLog.if_wanted(cache, settings.logger)
    return _Drive(dsk, graph, scheduler, executor, settings, log)


@dataclass(slots=True)
class _Drive:
    """One run, from its first task to its last."""

    #: The graph as the caller gave it, for callbacks.
    dsk: Mapping[Key, Any]
    graph: Graph
    scheduler: Scheduler
    executor: Executor
    settings: Settings
    log: ReleaseLog | None
    pretask: list[Callable[..., Any]] = field(default_factory=list)
    posttask: list[Callable[..., Any]] = field(default_factory=list)

    def listen(self, listeners: Collection[CallbackTuple]) -> None:
        """Tell callbacks of the state as it is now, and later of each task."""
        _, start_state, self.pretask, self.posttask, _ = unpack_callbacks(listeners)
        for function in start_state:
            function(self.dsk, self.scheduler.state)

    def run(self) -> None:
        """Start tasks and take in what happens until all is done, or raise what ended it."""
        scheduler, executor = self.scheduler, self.executor
        executor.begin(scheduler.state, shows=bool(self.posttask))
        events: deque[News] = deque([SlotsChanged(executor.slots)])
        while True:
            while events:
                event = events.popleft()
                events.extend(self._take_in(event, more=bool(events)))
            executor.flush()
            if scheduler.done:
                return
            events.extend(executor.wait(len(scheduler.state.ready)))

    def _take_in(self, event: News, *, more: bool = False) -> list[News]:
        """Tell the scheduler of an event, and do what it answers; give what is known at once of tasks."""
        executor, state = self.executor, self.scheduler.state
        known: list[News] = []
        commands = self.scheduler.handle(event, more=more)
        if type(event) is TaskFinished:
            if self.log:
                self.log.add(event.key, event.value)
            if self.posttask:
                self._tell_end(event)
        for command in commands:
            if type(command) is Run:
                key = command.key
                for function in self.pretask:
                    function(key, self.dsk, state)
                cache = state.cache
                values = {dep: cache[dep] for dep in state.dependencies[key]}
                news = executor.submit(key, self.graph.tasks[key], values, command.allowance)
                if news is not None:
                    known.append(news)
            elif type(command) is Spill:
                executor.spill(command.key, command.value)
            elif type(command) is Release:
                executor.release(command.key, command.value)
                if self.log:
                    self.log.release(command.key, command.by)
            elif type(command) is Abort:
                self._fail(command, event)
        return known

    def _tell_end(self, event: TaskFinished) -> None:
        value = self.executor.value_of(event.value)
        for function in self.posttask:
            function(event.key, value, self.dsk, self.scheduler.state, event.worker)

    def _fail(self, abort: Abort, event: News) -> None:
        """Raise what ended the run."""
        error = abort.error
        if type(event) is not TaskFailed:
            raise error
        note = f"raised by the task {abort.key!r}"
        error.add_note(note)
        if self.settings.rerun_locally:
            self._rerun(abort.key, note)
            error.add_note("run again in this process, the task raised nothing")
        self.settings.raise_exception(error, event.traceback)
        raise error  # whatever raise_exception does, there is no result to go on with

    def _rerun(self, key: Key, note: str) -> None:
        state = self.scheduler.state
        values = {dep: self.executor.value_of(state.cache[dep]) for dep in state.dependencies[key]}
        try:
            self.graph.tasks[key](values)
        except BaseException as e:
            e.add_note(f"{note}, run again in this process")
            raise
