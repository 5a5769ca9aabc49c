"""Calls that come one at a time, outside any graph: runs them on an engine's workers, as they fit.

A thread packs calls, gives each to a worker that is free, and tells futures what became of them; it is there
while there is something to do, and ends with the last call. A worker has one call at a time, never a second
one that waits behind it, since calls may wait for each other in ways that nobody here knows of.

Knows the engine's parts as a run does. Must not know graphs.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import BrokenExecutor, CancelledError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from graphmill.engine.blocks import Blocks
from graphmill.engine.crew import Crew
from graphmill.engine.deaths import describe, died_of
from graphmill.engine.futures import Future
from graphmill.engine.limit import Limit
from graphmill.engine.packing import Obstacle, Packer
from graphmill.engine.run import megabytes
from graphmill.engine.seats import Flight
from graphmill.engine.shipping import Numbers
from graphmill.engine.stored import Shelf
from graphmill.errors import EncodeError, GraphmillError, MemoryLimitError, WorkerDied
from graphmill.memory.block import Encoded
from graphmill.memory.codec import decode
from graphmill.scheduler.estimates import Estimates
from graphmill.tracebacks import decode_exception
from graphmill.workers.calls import Call
from graphmill.workers.messages import Died
from graphmill.workers.warned import warn_again
from graphmill.workers.work import BatchReport, Job, Report, Shipped, Warned

#: Seconds for which the thread waits for another call before it ends.
LINGER = 0.05
#: Seconds that the end of an engine waits for its thread, at most.
_PATIENCE = 1.0
#: Seconds after which a call that waits for memory is looked at again, though nothing has happened.
RETRY = 0.1
#: This part of the memory that a call could have, one in so many, is made free beyond what it needs.
_HEADROOM = 32


class FutureLost(WorkerDied, BrokenExecutor):
    """The workers that ran a call died, time and again; later calls are run all the same."""


class Host(Protocol):
    """The engine, as far as it matters to calls."""

    num_workers: int
    blocks: Blocks
    numbers: Numbers
    crew: Crew
    estimates: Estimates
    limit: Limit
    shelf: Shelf
    packer: Packer
    retries: int

    def begin(self) -> AbstractContextManager[None]:
        """See that the engine has started, and have it stay open."""

    def access(self) -> AbstractContextManager[None]:
        """Have workers, blocks and memory for oneself."""

    def wait(self, run: Any, seconds: float | None = None) -> None:
        """Wait until there is news, for so many seconds at most."""

    def wake(self) -> None:
        """End such a wait early."""

    def stop(self, run: Any) -> None:
        """Stop the calls of a group."""


@dataclass(slots=True, eq=False)
class Group:
    """Calls that can be stopped together: those of one executor. What workers say is the stream's matter."""

    stream: Stream
    #: Whether its calls are not to be begun any more.
    cancelled: bool = False
    #: How many workers may have its calls at once: any number.
    workers: int = sys.maxsize

    def on_report(self, flight: Flight, report: Report | BatchReport, worker: int) -> None:  # noqa: ARG002 - for runs
        """Take in what became of a call."""
        assert type(report) is Report  # calls go one by one
        self.stream.take_in(flight, report)

    def on_lost(self, flight: Flight, died: Died, worker: int) -> None:  # noqa: ARG002 - the same
        """Take in that a worker died while it ran a call."""
        self.stream.take_in(flight, died)


@dataclass(slots=True, eq=False)
class Order:
    """A call that somebody wants, and what is known of it."""

    group: Group
    call: Call
    future: Future
    #: Tells its kind, by which times and sizes are learned: as the key of a task.
    key: Any = None
    #: What errors call it.
    name: str = ""
    #: The call as it is sent, once it is packed.
    packed: Encoded | None = None
    #: Bytes that it may take, and those that it is known to need.
    given: int = 0
    found: int = 0
    #: How often its worker died.
    losses: int = 0
    #: Whether its future says that it runs.
    begun: bool = False


@dataclass(slots=True)
class _End:
    """What became of a call, to be told where no lock is held."""

    future: Future
    #: Makes the result, or raises what is to be raised.
    tell: Callable[[Future], None]
    warned: tuple[Warned, ...] = ()


class Stream:
    """Runs the calls of any number of groups on one engine.

    Parameters
    ----------
    engine
        Whose workers run them.
    """

    def __init__(self, engine: Host) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        #: The thread there was last, which may be about to end.
        self._latest: threading.Thread | None = None
        self._changed = threading.Event()
        #: Calls to begin, in this order.
        self._queue: deque[Order] = deque()
        #: What workers have said.
        self._arrived: deque[tuple[Flight, Report | Died]] = deque()
        #: What workers are at, by the number of the job.
        self._running: dict[int, Order] = {}
        #: Groups to be stopped.
        self._stopping: deque[Group] = deque()
        #: Whether there is something to look at.
        self.has_news = False
        #: Whether a call waits for memory.
        self._is_short = False
        self._warned: set[Warned] = set()

    # ---- for any thread

    def submit(self, orders: Iterable[Order]) -> None:
        """Take on calls; returns at once.

        Raises
        ------
        RuntimeError
            If the program is at its end, so that no thread can be started.
        """
        with self._lock:
            before = len(self._queue)
            self._queue.extend(orders)
            try:
                self._see_to_thread()
            except RuntimeError:
                while len(self._queue) > before:
                    self._queue.pop()
                raise
        self._wake()

    def stop(self, group: Group) -> None:
        """Stop the calls of a group, those too that run."""
        group.cancelled = True
        with self._lock:
            self._stopping.append(group)
            self._see_to_thread()
        self._wake()

    def close(self) -> None:
        """Wait until its thread has ended, now that the engine is closed, unless this is called on it."""
        with self._lock:
            thread = self._latest
        if thread is not None and thread is not threading.current_thread():
            self._changed.set()
            # One that is in somebody's callback may need what the caller of this holds.
            thread.join(_PATIENCE)

    def take_in(self, flight: Flight, what: Report | Died) -> None:
        """Take in what a worker said, on whatever thread; the engine's lock is held."""
        self._arrived.append((flight, what))
        self.has_news = True

    def _see_to_thread(self) -> None:
        if self._thread is None:
            # Not a daemon: the program ends when the last call has, as with any executor.
            thread = threading.Thread(target=self._drive, name="graphmill-calls")
            thread.start()
            self._thread = self._latest = thread

    def _wake(self) -> None:
        # Set before the thread looks, which clears it first: so nothing is overlooked.
        self.has_news = True
        self._changed.set()
        if self._running:
            self._engine.wake()

    # ---- the thread

    def _drive(self) -> None:
        while True:
            try:
                with self._engine.begin():
                    while self._turn():
                        pass
            except BaseException as error:  # noqa: BLE001 - whoever waits for a call must hear of it
                self._fail_all(error)
            with self._lock:
                if not (self._queue or self._arrived or self._stopping):
                    self._thread = None
                    return

    def _turn(self) -> bool:
        """Do what there is to do, or wait; False if nothing was left for a while."""
        self.has_news = False
        self._changed.clear()
        while self._stopping:
            self._stop(self._stopping.popleft())
        if self._work():
            return True  # who was told may have asked for more
        if self._running:
            self._engine.wait(self, RETRY if self._is_short else None)
            return True
        if self._is_short:
            self._changed.wait(RETRY)
            return True
        return self._changed.wait(LINGER)

    def _work(self) -> bool:
        """Take in what has arrived, and begin what can be; say whether anybody was told."""
        ends: list[_End] = []
        engine = self._engine
        with engine.access():
            while self._arrived:
                self._look_at(*self._arrived.popleft(), ends)
            engine.limit.look()
            engine.limit.keep_warm_or_not()
            self._begin(ends)
            engine.crew.flush()
        for end in ends:
            self._tell(end)
        return bool(ends)

    def _tell(self, end: _End) -> None:
        try:
            warn_again(end.warned, self._warned)
            end.tell(end.future)
        except BaseException as error:  # noqa: BLE001 - the caller's code: a filter of warnings, a pickle
            if not end.future.done():
                end.future.set_exception(error)

    # ---- beginning calls

    def _begin(self, ends: list[_End]) -> None:
        """Give workers calls, as many as there is room for."""
        self._is_short = False
        while self._queue and len(self._running) < self._engine.num_workers:
            order = self._queue[0]
            if not order.begun and order.future.cancelled():
                self._queue.popleft()
                order.future.set_running_or_notify_cancel()
                self._forget(order)
            elif order.group.cancelled:
                self._queue.popleft()
                ends.append(self._stopped(order))
            elif not self._pack(order, ends):
                self._queue.popleft()
            elif (given := self._allowance(order)) is None:
                self._is_short = True
                return
            else:
                self._queue.popleft()
                self._send(order, given)

    def _pack(self, order: Order, ends: list[_End]) -> bool:
        """Pack a call; False if it is not to be begun, now or ever."""
        if order.packed is not None:
            return True
        if order.key is None:
            function = order.call.function
            name = getattr(function, "__qualname__", type(function).__qualname__)
            order.key = f"{getattr(function, '__module__', None)}.{name}", self._engine.numbers.next()
            order.name = order.name or f"a call of {order.key[0]}"
        try:
            packed = self._engine.packer.pack(order.call, order.name)
        except BaseException as error:  # noqa: BLE001 - it is the caller's code that was called
            if not isinstance(error, Exception):
                error = EncodeError(f"{order.name} cannot be pickled: {error!r} was raised")
            packed = Obstacle(None, error)
        if isinstance(packed, Obstacle):
            self._put_off(order, packed, ends)
            return False
        order.packed = packed
        return True

    def _put_off(self, order: Order, obstacle: Obstacle, ends: list[_End]) -> None:
        """Have a call wait for a future, or tell its own what keeps it from being begun."""
        if obstacle.unfinished is not None:
            obstacle.unfinished.add_done_callback(_Parked(self, order))
        elif obstacle.failure is not None and order.future.set_running_or_notify_cancel():
            ends.append(_End(order.future, _raising(obstacle.failure)))

    def _allowance(self, order: Order) -> int | None:
        """Find how many bytes a call may take; None if it has to wait for memory."""
        engine, limit = self._engine, self._engine.limit
        assert order.packed is not None
        need = order.found or engine.estimates.taken(order.key)
        if need is None:
            need = order.packed.nbytes
        if need > limit.free:
            engine.shelf.make_room(need - limit.free + limit.capacity // _HEADROOM)
        free, slots = limit.free, max(1, engine.num_workers - len(self._running))
        if need <= free:
            return need + max(0, free - need * slots) // slots
        # With nothing under way it gets all there is; whether that is enough, only it can show.
        return None if limit.given > 0 else max(free, min(need, limit.capacity))

    def _send(self, order: Order, given: int) -> None:
        engine = self._engine
        assert order.packed is not None
        if not order.begun and not order.future.set_running_or_notify_cancel():
            self._forget(order)
            return
        order.begun = order.future.sent = True
        order.given = given
        engine.limit.given += given
        number = engine.numbers.next()
        extents = order.packed.extents
        engine.limit.read_back += engine.blocks.bytes_on_disk(extents)
        job = Job(number, Shipped(order.packed.payload, extents), (), quick=False, allowance=given)
        expected = engine.estimates.seconds(order.key)
        self._running[number] = order
        engine.crew.submit(Flight(order.group, job, (), {}, expected, extents, order))

    # ---- the ends of calls

    def _look_at(self, flight: Flight, what: Report | Died, ends: list[_End]) -> None:
        order = self._running.pop(flight.job.number, None)
        if order is None:
            if isinstance(what, Report) and what.result is not None:
                self._engine.blocks.drop(what.result.extents)
            return
        self._engine.limit.given -= order.given
        if isinstance(what, Died):
            self._on_lost(order, what, ends)
        elif what.refused:
            self._on_refused(order, what, ends)
        else:
            self._on_end(order, what, ends)

    def _on_end(self, order: Order, report: Report, ends: list[_End]) -> None:
        if report.writes is not None:
            self._engine.blocks.drop(report.writes.extents)
        order.future.stays = report.stays
        if report.result is None:
            end = self._stopped(order) if order.group.cancelled or report.error is None else None
            ends.append(end or _End(order.future, _raising_packed(report.error or b""), report.warned))
        else:
            value = Encoded.of(report.result.payload, report.result.extents)
            self._engine.estimates.learn(order.key, report.seconds, value.nbytes, report.taken)
            tell = _giving_small(value.payload)
            if value.extents:
                stored = self._engine.shelf.add(value)
                tell = lambda future: future.set_stored(stored)  # noqa: E731 - one of several of a kind
            self._engine.blocks.drop(report.result.extents)
            ends.append(_End(order.future, tell, report.warned))
        self._forget(order)

    def _on_refused(self, order: Order, report: Report, ends: list[_End]) -> None:
        """Run a call again with more memory, as it has asked for more than it was given."""
        limit = self._engine.limit
        self._engine.estimates.learn(order.key, taken=report.refused)
        if report.refused <= limit.capacity and order.given < limit.capacity:
            # Told in one piece after the other: the next one may be too much again.
            order.found = min(max(report.refused, order.given + order.given // 2), limit.capacity)
            self._queue.appendleft(order)
            return
        error = MemoryLimitError(
            f"{order.name} needs {megabytes(report.refused)} or more besides its arguments. All "
            f"that it could have is {megabytes(limit.capacity)}: the memory limit is "
            f"{megabytes(limit.nbytes)}, and processes take {megabytes(limit.at_rest)} of it. Pass smaller "
            "arrays, or choose a larger memory_limit."
        )
        ends.append(_End(order.future, _raising(error)))
        self._forget(order)

    def _on_lost(self, order: Order, died: Died, ends: list[_End]) -> None:
        order.losses += 1
        if order.group.cancelled:
            ends.append(self._stopped(order))
        elif order.losses > self._engine.retries:
            error = FutureLost(
                f"A worker died while it ran {order.name} ({describe(died)}); "
                f"it was run {order.losses} times. {died_of(died)}"
            )
            ends.append(_End(order.future, _raising(error)))
            self._forget(order)
        else:
            self._queue.appendleft(order)

    def _stopped(self, order: Order) -> _End:
        self._forget(order)
        return _End(order.future, _cancelling if order.begun else _cancel)

    def _forget(self, order: Order) -> None:
        """Let go of what a call refers to."""
        if order.packed is not None:
            self._engine.blocks.drop(order.packed.extents)
            order.packed = None

    # ---- an end before time

    def _stop(self, group: Group) -> None:
        self._engine.stop(group)
        ends: list[_End] = []
        with self._engine.access():
            while self._arrived:
                self._look_at(*self._arrived.popleft(), ends)
            for number, order in list(self._running.items()):
                if order.group is group:
                    del self._running[number]
                    self._engine.limit.given -= order.given
                    ends.append(self._stopped(order))
        for end in ends:
            self._tell(end)

    def _fail_all(self, error: BaseException) -> None:
        """Tell all that wait that there is nothing to wait for: the engine cannot be used any more."""
        with self._lock:
            orders = [*self._running.values(), *self._queue]
            self._running.clear()
            self._queue.clear()
            self._arrived.clear()
            self._stopping.clear()
        with suppress(GraphmillError), self._engine.access():
            for order in orders:
                self._engine.limit.given -= order.given if order.begun else 0
                self._forget(order)
        for order in orders:
            if order.begun or order.future.set_running_or_notify_cancel():
                order.future.set_exception(error)


class _Parked:
    """A call that waits for a future: begun when that is done, and then no longer held by it."""

    __slots__ = ("_orders", "_stream")

    def __init__(self, stream: Stream, order: Order) -> None:
        self._stream = stream
        self._orders = [order]

    def __call__(self, _: object) -> None:
        orders, self._orders = self._orders, []
        self._stream.submit(orders)


def _raising(error: BaseException) -> Callable[[Future], None]:
    return lambda future: future.set_exception(error)


def _raising_packed(packed: bytes) -> Callable[[Future], None]:
    return lambda future: future.set_exception(decode_exception(packed))


def _giving_small(payload: bytes) -> Callable[[Future], None]:
    return lambda future: future.set_result(decode(payload))


def _cancelling(future: Future) -> None:
    future.set_exception(CancelledError("The call was stopped"))


def _cancel(future: Future) -> None:
    future.cancel()
    future.set_running_or_notify_cancel()
