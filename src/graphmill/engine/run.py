"""One call of `get`: the run loop's executor on the workers of an engine.

What stands for a value in the run's cache is an `Encoded`, whose blocks are held until the scheduler releases
it; or the value itself, where the graph or a task in this process had it.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any, Protocol

import numpy as np

from graphmill import config
from graphmill.diagnostics.log import RunLog, Series
from graphmill.engine.ahead import Ahead, finished, size
from graphmill.engine.blocks import Blocks
from graphmill.engine.budget import Budget
from graphmill.engine.crew import Crew, values_in
from graphmill.engine.deaths import describe, took_too_long, worker_died
from graphmill.engine.here import Here, Rest, failed
from graphmill.engine.limit import Limit
from graphmill.engine.packing import Packer
from graphmill.engine.persisting import take_stored
from graphmill.engine.rereading import Rereading
from graphmill.engine.seats import Flight
from graphmill.engine.sending import FOLLOWER_ALLOWANCE, Bundle, Sender, Task
from graphmill.engine.shipping import Numbers
from graphmill.engine.slicing import cut, index_of
from graphmill.engine.staying import find_targets, stays
from graphmill.engine.stored import Shelf, Stored
from graphmill.engine.terms import Terms
from graphmill.errors import EncodeError, MemoryLimitError, StaysError
from graphmill.graph import Graph
from graphmill.loop import News, Plan
from graphmill.memory.block import Encoded
from graphmill.memory.heap import Heap
from graphmill.order import order_graph
from graphmill.order.raised import raised
from graphmill.scheduler import Options, Selection, State
from graphmill.scheduler.estimates import QUICK, Estimates
from graphmill.scheduler.events import (
    BudgetChanged,
    RoomChanged,
    SlotsChanged,
    TaskFinished,
    TaskLost,
    TaskTooBig,
)
from graphmill.tracebacks import decode_exception
from graphmill.types import Key, Node, Priority
from graphmill.workers import shipped
from graphmill.workers.messages import Died
from graphmill.workers.work import Batch, BatchReport, Report, Shipped

logger = logging.getLogger("graphmill")

#: One part of the memory that tasks can have, in so many, is kept free of values that nobody needs now.
_KEPT_FREE = 4
#: Parts of blocks lie where the blocks do while those take no more than one part in so many of that memory.
_MUCH = 4


class Host(Protocol):
    """The engine, as far as it matters to a run."""

    heap: Heap
    blocks: Blocks
    numbers: Numbers
    crew: Crew
    estimates: Estimates
    limit: Limit
    shelf: Shelf
    packer: Packer

    def access(self) -> AbstractContextManager[None]:
        """Have workers, blocks and memory for oneself."""

    def wait(self, run: Run, seconds: float | None = None) -> None:
        """Wait until something is in the run's inbox, or to be run here."""

    def look(self) -> None:
        """Take in what has happened, without waiting."""

    def rest(self) -> None:
        """Have idle workers give back memory that they have no use for, and wait until they have."""

    def adapt(self, idle: int, *, waiting: bool, has_plenty: Callable[[], bool]) -> None:
        """Take note of how many workers have nothing to do, of tasks that wait, and of memory."""

    def stop(self, run: Run) -> None:
        """Stop the tasks of a run."""

    def read(self, value: Encoded) -> Any:
        """Make the value that an encoded one stands for."""

    def look_after(self, values: Iterable[Any]) -> None:
        """Forget changes to values that were read."""


class Run:
    """Runs the tasks of one graph.

    Parameters
    ----------
    engine
        Whose workers run them.
    limit
        How many tasks may run at once.
    terms
        How often tasks are run again, and how long they may take.
    log
        What is to be written for those who watch; None if nobody does.
    """

    def __init__(self, engine: Host, limit: int, terms: Terms, log: RunLog | None = None) -> None:
        self._engine = engine
        self._limit = limit
        self._terms = terms
        #: How many workers have died of tasks.
        self._deaths: dict[Key, int] = {}
        self._graph = Graph()
        self._results: Collection[Key] = ()
        self._priority: Priority
        self._budget: Budget
        self._sender = Sender(engine, self, terms)
        #: Another takes its place once the run begins.
        self._ahead = Ahead(State({}, {}), (), hash, lambda _: None, shows=False)
        #: For each task, those that need its result.
        self._dependents: Mapping[Key, Collection[Key]] = {}
        self._submitted: list[Task] = []
        self._spills: list[tuple[Key, Any]] = []
        #: Bytes of results that are held.
        self._live = 0
        #: The memory there was once all was done that the scheduler had asked for.
        self._room_then: RoomChanged | None = None
        #: What tasks under way may take, in bytes.
        self._given: dict[Key, int] = {}
        self._log = log
        if log is not None:
            log.under_way = self._given
        self._released: list[tuple[Key, Any]] = []
        #: What workers reported, and was not looked at by the thread whose run it is.
        self._arrived: deque[tuple[Flight, Report | BatchReport, int]] = deque()
        self._closed = False
        #: Whether its jobs are not to be begun any more.
        self.cancelled = False
        #: How many workers may have jobs of it at once.
        self.workers = limit
        #: How many the caller wants at most, if there are so many.
        self.most = limit
        #: Quick tasks that are to go together, and the seconds that each is expected to take.
        self._quick: list[tuple[Task, float]] = []
        #: What is to be done in this process, by the thread that called `get`: the code is the user's.
        self._here = Here(engine, log)
        #: What has happened and was not told yet.
        self.inbox: list[News] = []
        #: Tasks that read from objects of this process to which others store.
        self._readers: Collection[Key] = ()
        #: Values that tasks gave, which hold blocks.
        self._held: dict[int, Encoded] = {}
        #: Values that the engine keeps for handles, by key.
        self._stored: dict[Key, Stored] = {}
        #: Values that were shown. They die while Ctrl-C waits: raised where memory is given back, it is lost.
        self._shown: list[Any] = []

    # ---- the executor that the run loop knows

    @property
    def slots(self) -> int:
        """How many tasks may be under way, where they take long."""
        return self._limit

    def scale(self, num_workers: int) -> None:
        """Take note that there are so many workers now; the engine's lock is held."""
        self._limit = self.workers = min(num_workers, self.most)
        self.inbox.append(SlotsChanged(self._limit))

    def plan(self, graph: Graph, results: Collection[Key]) -> Plan:
        """Order a graph, and find what must stay in this process."""
        self._graph, self._results = graph, results
        self._stored = take_stored(graph, self._engine)
        if self._log is not None:
            self._log.plan(graph)
        targets = find_targets(graph)
        self._readers = targets.readers
        for target in targets.objects.values():
            number = self._engine.numbers.next()
            self._here.aim(number, target)
            form = (target.obj.shape, target.obj.dtype) if type(target.obj) is np.ndarray else None
            self._sender.shipper.stand_ins[id(target.obj)] = shipped.target, (number, form)
        for lock in targets.unneeded_locks():
            self._sender.shipper.stand_ins[id(lock)] = bool, (False,)
        priorities = order_graph(graph, results=results).priorities
        if self._terms.priority_of:
            priorities = raised(priorities, graph, self._terms.priority_of)
        self._priority = priorities.__getitem__
        self._expect_stored(priorities)
        estimates = self._engine.estimates
        self._budget = Budget(graph, priorities, results, estimates, self._limit)
        with self._engine.access():
            room = self._room()
        limit = self._engine.limit
        if not limit.capacity:
            raise MemoryLimitError(
                f"The memory limit is {megabytes(limit.nbytes)}; processes take {megabytes(limit.at_rest)} "
                "of it already: choose a larger memory_limit, or let go of arrays of this program"
            )
        again = Rereading(graph, targets.elsewhere, estimates, self._engine.blocks)
        options = Options(
            Selection.PRIORITY,
            estimates=estimates,
            room=room,
            recompute=again if config.get("recompute", True) else None,
            retries=self._terms.retries_of,
            lost_retries=self._terms.retries,
            resources=self._terms.resources,
            needs=self._terms.needs,
        )
        return Plan(self._priority, options)

    def _expect_stored(self, priorities: dict[Key, int]) -> None:
        """Note when values that are kept are needed first."""
        uses: dict[Key, float] = {}
        for user, deps in self._graph.dependencies.items() if self._stored else ():
            for dep in deps:
                if dep in self._stored:
                    uses[dep] = min(uses.get(dep, inf), priorities[user])
        with self._engine.access():
            for key, use in uses.items():
                self._engine.shelf.expect(self._stored[key].encoded, use)

    def _room(self, stayed: tuple[Key, ...] = ()) -> RoomChanged:
        limit = self._engine.limit
        limit.look()
        limit.keep_warm_or_not()
        # What jobs may take is mostly more than they do.
        missing = limit.capacity // _KEPT_FREE - limit.free - limit.given
        if missing > 0:
            self._engine.shelf.make_room(missing)
        return RoomChanged(limit.free, limit.capacity, self._budget.must_exceed(limit.capacity), stayed)

    def begin(self, state: State, *, shows: bool) -> None:
        """Get to know which tasks wait for which."""
        self._dependents = state.dependents
        self._ahead = Ahead(state, self._results, self._priority, self._seconds_ahead, shows=shows)

    def _seconds_ahead(self, key: Key) -> float | None:
        """Tell how long a task takes that could go along with those that it waits for; None if it cannot."""
        estimates = self._engine.estimates
        seconds = estimates.seconds(key)
        node = self._graph.tasks[key]
        if (
            seconds >= QUICK
            or estimates.nbytes(key) != 0
            or (estimates.taken(key) or 0) > FOLLOWER_ALLOWANCE
            or key in self._terms.needs
            or self._stays(key, node)
            or key in self._graph.aliases
            or key in self._readers
            or not self._terms.may_go_with_others(key)
        ):
            return None
        return seconds

    def _stays(self, key: Key, node: Node) -> bool:
        return key in self._terms.here or stays(key, node, self._graph, self._results)

    def submit(self, key: Key, task: Node, values: dict[Key, Any], allowance: int | None) -> News | None:
        """Take on a task; tell what became of it if it went along with others, and that is all."""
        news = self._ahead.news(key)
        if news is not None:
            self._live += news.nbytes or 0
            return news
        self._submitted.append(Task(key, task, values, allowance or 0))
        return None

    def spill(self, key: Key, value: Any) -> None:
        """Have a value moved to disk."""
        self._spills.append((key, value))

    def release(self, key: Key, value: Any) -> None:
        """Let go of a value."""
        self._released.append((key, value))

    def _let_go(self, key: Key, value: Any) -> None:
        if type(value) is Encoded:
            self._live -= value.nbytes
        if type(value) is Encoded and self._held.pop(id(value), None) is not None:
            self._engine.blocks.let_go(value)
        elif type(value) is Stored:
            self._engine.shelf.expect_no_more(value.encoded)
        self._sender.forget(key)

    def flush(self) -> None:
        """Give back what was released, and give workers what was submitted."""
        submitted, self._submitted = self._submitted, []
        released, self._released = self._released, []
        spills, self._spills = self._spills, []
        if not submitted and not released and not spills and not self._shown:
            return
        if self._shown:
            # What was shown cannot move while it is looked at, which shows once access ends.
            with self._engine.access():
                self._shown.clear()
        limit = self._engine.limit
        # Before values go to disk, and come back, for what idle workers keep for the next task.
        rests = spills and submitted and not self._given and not self._budget.must_exceed(limit.capacity)
        if rests:
            self._engine.rest()
        with self._engine.access():
            for key, value in released:
                self._let_go(key, value)
            missing = inf
            if rests:
                limit.look(again=True)
                missing = sum([task.allowance for task in submitted]) - limit.free
            stayed = self._move_all(spills, missing)
            for task in submitted:
                self._given[task.key] = task.allowance
                limit.given += task.allowance
                self._begin(task)
            self._begin_quick()
            self._engine.crew.flush()
            self._room_then = self._room(stayed)

    def _move_all(self, spills: list[tuple[Key, Any]], missing: float) -> tuple[Key, ...]:
        """Move values to disk until so many bytes have gone; give the keys of those that are in memory."""
        blocks, stayed = self._engine.blocks, []
        for key, value in spills:
            before = blocks.resident
            if missing > 0:
                self._move(key, value)
            missing -= before - blocks.resident
            if type(value) is not Encoded or blocks.in_memory(value.extents):
                stayed.append(key)
        return tuple(stayed)

    def _move(self, key: Key, value: Any) -> None:
        """Move a value to disk, if it is one that tasks gave."""
        blocks = self._engine.blocks
        if id(value) not in self._held:
            return
        began = time.perf_counter()
        moved = blocks.spill(value)
        if moved and self._log is not None:
            self._log.moved(key, began, moved)

    def wait(self, ready: int) -> Sequence[News]:
        """Wait until something has happened."""
        while True:
            if self._here:
                self._engine.look()
                news, writes = self._here.do_next()
                self.inbox.append(news)
                if writes is not None:
                    self.release(news.key, writes)
            elif not self._arrived and not self.inbox:
                began, idle = time.perf_counter(), self._limit - self._engine.crew.busy if ready else 0
                self._engine.wait(self)
                if idle > 0 and self._has_plenty():
                    self._budget.idle(idle * (time.perf_counter() - began))
                waiting = ready > 0 and not self._terms.needs
                self._engine.adapt(idle, waiting=waiting, has_plenty=self._has_plenty)
            with self._engine.access():
                while self._arrived:
                    self._look_at(*self._arrived.popleft())
                if self.inbox:
                    told, self.inbox = self.inbox, []
                    return self._with_limits(told)
                self._engine.crew.flush()

    def _has_plenty(self) -> bool:
        """Tell whether most memory is free, so that a few blocks more bring none of them to disk."""
        limit = self._engine.limit
        return 2 * limit.free > limit.capacity

    def _with_limits(self, told: list[News]) -> list[News]:
        """Add to what has happened how much memory there was when it was last in order, and which budget."""
        limit = self._engine.limit
        for event in told:
            limit.given -= self._given.pop(getattr(event, "key", None), 0)
            if type(event) is TaskFinished and type(event.value) is Encoded:
                self._live += event.value.nbytes
        budget = self._budget.look(len(told), self._live)
        news: list[News] = []
        if budget is not None:
            news.append(BudgetChanged(budget))
            if self._budget.result > limit.capacity:
                raise MemoryLimitError(_too_big_result(self._budget.result, limit))
        # First, since what has happened is yet to be counted on top of it.
        if self._room_then is not None:
            news.append(self._room_then)
            self._room_then = None
        return news + told

    @property
    def has_news(self) -> bool:
        """Whether there is something to do for the thread that waits."""
        return bool(self.inbox or self._here or self._arrived)

    def value_of(self, value: Any) -> Any:
        """Make the value that is meant, for whoever looks at it before the next `flush`."""
        made = self._here.value_of(value)
        self._shown.append(made)
        return made

    def store(self, value: Any) -> Any:
        """Have a value of the run's cache kept, and get a handle; a small one is given itself."""
        engine = self._engine
        if type(value) is Stored:
            return value
        with engine.access():
            if type(value) is Encoded:
                if value.extents:
                    return engine.shelf.add(Encoded(value.payload, value.extents, value.nbytes))
            else:
                return engine.packer.store(value)
        return self._here.value_of(value)

    def cancel(self) -> None:
        """Stop what runs."""
        self.cancelled = True
        self._submitted.clear()
        self._here.cancel()
        self._engine.stop(self)

    # ---- beginning tasks

    def _begin(self, task: Task) -> None:
        key, values = task.key, task.values
        known = self._ahead.report(key)
        if known is not None:
            flight, report, worker = known
            self._look_at_task(flight, task, report, worker)
            return
        if key in self._graph.aliases:
            value = values[self._graph.aliases[key]]
            if type(value) is Encoded:
                value = self._hold(Encoded(value.payload, value.extents, value.nbytes))
            self.inbox.append(TaskFinished(key, value))
            return
        if self._stays(key, task.node):
            self._here.add(task)
            return
        if key in self._readers:
            self._here.keep(task, StaysError("it reads from an object that lives here"))
            return
        if (part := self._cut(task)) is not None:
            self.inbox.append(TaskFinished(key, self._hold(part), part.nbytes))
            return
        seconds = self._engine.estimates.seconds(key)
        if seconds < QUICK and self._terms.may_go_with_others(key) and not self._ahead.is_suspect(key):
            self._quick.append((task, seconds))
        else:
            self._begin_alone(task)

    def _cut(self, task: Task) -> Encoded | None:
        """Describe the result of a task that only cuts a block, if it may lie where that does; else None.

        The block stays for as long as any part of it is needed. So it is done where parts make up most of
        it, or where it stays anyway, and only while there is plenty of memory.
        """
        index = index_of(task.node)
        if index is None or task.key in self._results:
            return None  # the caller may have it for long
        [source] = task.node.dependencies
        value = task.values[source]
        is_kept = type(value) is Stored or source in self._results
        value = value.encoded if type(value) is Stored else value
        blocks, limit = self._engine.blocks, self._engine.limit
        if (
            type(value) is not Encoded
            or not blocks.in_memory(value.extents)
            or _MUCH * blocks.resident > limit.capacity
            or self._budget.must_exceed(limit.capacity)
        ):
            return None
        part = cut(value, index)
        if part is None or is_kept:
            return part
        # The block, of which the value itself may be a part.
        [extent] = part.extents
        return part if 2 * part.nbytes * len(self._dependents[source]) >= extent.length else None

    def _begin_alone(self, task: Task) -> None:
        try:
            flight = self._sender.alone(task)
        except EncodeError as error:
            self._here.keep(task, error)
        else:
            self._engine.crew.submit(flight)

    def _begin_quick(self) -> None:
        """Give workers the quick tasks, several at a time."""
        quick, self._quick = self._quick, []
        for what in self._sender.together(quick, self._limit, self._graph.tasks, self._ahead):
            if isinstance(what, Task):
                self._begin_alone(what)
            else:
                self._engine.crew.submit(what)

    def _hold(self, value: Encoded) -> Encoded:
        if value.extents:
            self._held[id(value)] = value
            self._engine.blocks.keep(value)
        return value

    # ---- the ends of tasks

    def on_report(self, flight: Flight, report: Report | BatchReport, worker: int) -> None:
        """Take in what became of a job, on whatever thread; the run's own looks at it later."""
        if self._closed:
            self._drop_report(report)
        else:
            self._arrived.append((flight, report, worker))

    def _drop_report(self, report: Report | BatchReport) -> None:
        for value in values_in(report):
            self._engine.blocks.drop(value.extents)

    def _look_at(self, flight: Flight, report: Report | BatchReport, worker: int) -> None:
        """Turn a report into news."""
        if isinstance(report, BatchReport):
            self._look_at_batch(flight, report, worker)
        else:
            task, node = flight.about
            self._sender.shipper.forget(node)
            self._look_at_task(flight, task, report, worker)

    def _look_at_batch(self, flight: Flight, batch: BatchReport, worker: int) -> None:
        bundle: Bundle = flight.about
        tasks, followers = bundle
        inbox, ends = self.inbox, list(zip(batch.outcomes, batch.seconds, strict=True))
        if self._log is not None and batch.outcomes:
            keys = [*[task.key for task in tasks], *followers][: len(ends)]
            sizes = list(map(size, batch.outcomes))
            self._log.report_series(Series(keys, worker, batch.began, batch.seconds, sizes))
        for task, (outcome, seconds) in zip(tasks, ends, strict=False):
            if isinstance(outcome, Report):
                self._look_at_task(flight, task, outcome._replace(seconds=seconds), worker)
            elif outcome is not None:
                inbox.append(finished(task.key, outcome, worker, seconds))
        for key, (outcome, seconds) in zip(followers, ends[len(tasks) :], strict=False):
            if outcome is not None:
                self._ahead.keep(key, outcome, flight, worker, seconds)
        if not self.cancelled:
            for task in tasks[len(batch.outcomes) :]:
                self._begin_alone(task)

    def _look_at_task(self, flight: Flight, task: Task, report: Report, worker: int) -> None:
        if self._log is not None:
            self._log.report(task.key, report, worker)
        if report.result is not None:
            value = self._take(report.result)
            writes = None if report.writes is None else self._take(report.writes)
            rest = Rest(task.key, value, writes, report.warned, worker, report.seconds, report.taken)
            if writes is None and not report.warned:
                self.inbox.append(rest.finished(value))
            else:
                self._here.add(rest)
        elif report.error is None:
            pass  # cancelled: nobody waits for it
        elif report.refused:
            self._engine.estimates.learn(task.key, taken=report.refused)
            limit = self._engine.limit
            limit.look(again=True)  # what the task itself had taken is free again
            too_big = MemoryLimitError(_too_big(task.key, report.refused, limit))
            self.inbox.append(TaskTooBig(task.key, report.refused, too_big, limit.capacity))
        elif report.stays:
            self._here.keep(task, decode_exception(report.error))
        else:
            error = decode_exception(report.error)
            if flight.overdue and flight.limit is not None:
                error = took_too_long(task.key, task.node, flight.limit)
            self._here.add(Rest(task.key, error, None, report.warned, worker, report.seconds, 0))

    def on_lost(self, flight: Flight, died: Died, worker: int) -> None:
        """Take in that a worker died while it ran a job."""
        if isinstance(flight.job, Batch):
            # Whichever it was that the worker died of: run by itself, it shows.
            self._ahead.suspect(flight.about.followers)
            if not self.cancelled:
                for task in flight.about.tasks:
                    self._begin_alone(task)
            return
        task, node = flight.about
        self._sender.shipper.forget(node)
        if self._log is not None:
            self._log.lost(task.key, worker, describe(died))
        if flight.overdue and flight.limit is not None:
            self.inbox.append(failed(task.key, took_too_long(task.key, task.node, flight.limit)))
            return
        deaths = self._deaths[task.key] = self._deaths.get(task.key, 0) + 1
        memory = None if died.pid is None else self._engine.limit.memory_of(died.pid)
        if deaths < self._terms.deaths(task.key):
            logger.info("the task %r is run again, since its worker has died", task.key)
        self.inbox.append(TaskLost(task.key, worker_died(task.key, task.node, died, deaths, memory)))

    def _take(self, given: Shipped) -> Encoded:
        """Hold what a worker sent, instead of the crew, which held it until now."""
        value = self._hold(Encoded.of(given.payload, given.extents))
        self._engine.blocks.drop(given.extents)
        return value

    def close(self) -> None:
        """Let go of everything; may be called again."""
        with self._engine.access():
            self._closed = True
            self._shown.clear()
            while self._arrived:
                self._drop_report(self._arrived.popleft()[1])
            for report in self._ahead.left():
                self._drop_report(report)
            for value in self._held.values():
                self._engine.blocks.let_go(value)
            self._held.clear()
            for stored in self._stored.values():
                self._engine.shelf.expect_no_more(stored.encoded)
            self._engine.limit.given -= sum(self._given.values())
            self._given.clear()
            self._sender.close()
            self._engine.crew.forget_functions(self._sender.shipper.packed)
        self._here.close()
        # The scheduler is part of a cycle, and may live on for long: what it knows must not.
        self._stored.clear()
        self._graph.tasks.clear()
        self._graph.data.clear()


def _too_big(key: Key, need: int, limit: Limit) -> str:
    if not limit.capacity:
        return (
            f"There is no memory for the task {key!r}: processes alone take {megabytes(limit.at_rest)}, and "
            f"the memory limit is {megabytes(limit.nbytes)}. Use a larger memory_limit, or fewer workers."
        )
    return (
        f"The task {key!r} needs {megabytes(need)} or more besides its inputs. All that it could have is "
        f"{megabytes(limit.capacity)}: the memory limit is {megabytes(limit.nbytes)}, and processes take "
        f"{megabytes(limit.at_rest)} of it. Use smaller chunks, or a larger memory_limit."
    )


def _too_big_result(nbytes: int, limit: Limit) -> str:
    return (
        f"The result has {megabytes(nbytes)}, and there is room for {megabytes(limit.capacity)}: the memory "
        f"limit is {megabytes(limit.nbytes)}, and processes take {megabytes(limit.at_rest)} of it. Store it "
        "in parts, with to_zarr or store, or reduce it further before compute()."
    )


def megabytes(nbytes: int) -> str:
    """Write a number of bytes as people read it."""
    return f"{nbytes / 1e6:,.0f} MB"
