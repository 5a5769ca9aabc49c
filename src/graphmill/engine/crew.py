"""The workers of an engine: what each has to do, what it knows, and what is sent to it next.

Turns jobs of any number of runs into messages, and what workers say into calls of the run that a job belongs
to. A worker that dies is replaced; its finished blocks stay where they are.

Knows the pool, arenas and blocks. Must not know graphs, nor how a run goes on.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from multiprocessing.process import current_process
from pathlib import Path
from typing import Any

from graphmill.engine.blocks import Blocks
from graphmill.engine.deaths import describe
from graphmill.engine.seats import Client, Flight, Seat
from graphmill.errors import PoolError
from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId
from graphmill.memory.commons import REST, Commons
from graphmill.memory.leftovers import own_name
from graphmill.memory.mapping import CAN_REVERT
from graphmill.memory.segments import SHARED_MEMORY
from graphmill.memory.units import FIRST_WORKER
from graphmill.workers.claims import Claims
from graphmill.workers.messages import Died
from graphmill.workers.pool import Pool
from graphmill.workers.work import (
    BatchReport,
    Begin,
    Freed,
    Report,
    Rested,
    Shipped,
    Work,
)

logger = logging.getLogger(__name__)

#: So many workers take large memory from one arena: who takes it has a lock for up to 0.1 milliseconds.
GROUP = 16
#: Seconds that tasks have to stop once they are interrupted, before their worker is ended.
STOP_LIMIT = 0.7


class Crew:
    """The workers of one engine.

    Parameters
    ----------
    pool
        The processes.
    blocks
        Counts who needs which block.
    arena_size
        The address space of each arena, in bytes.
    folder
        For arenas in files, and for locks.
    in_files
        Whether all arenas are in files, for want of shared memory.
    warm_limit
        How many bytes of idle pages each worker may keep.

    Notes
    -----
    For one thread at a time.
    """

    def __init__(
        self,
        pool: Pool,
        blocks: Blocks,
        *,
        arena_size: int,
        folder: Path,
        in_files: bool,
        warm_limit: int,
    ) -> None:
        self._pool = pool
        self._blocks = blocks
        self._arena_size = arena_size
        self._folder = folder
        self._in_files = in_files
        #: How many bytes of idle pages each worker may keep.
        self.warm_limit = warm_limit
        #: When idle pages may be looked after again, on the monotonic clock.
        self._next_look = 0.0
        #: The common arenas, by group of workers; None where there is none.
        self._commons: dict[int, Commons | None] = {}
        #: Dask's settings, pickled, as tasks are to see them.
        self.settings: bytes | None = None
        #: Jobs that no worker was given yet: each has one that may last for ever, or stands still.
        self._unplaced: list[Flight] = []
        #: Whether any job had a limit to its time.
        self._timed = False
        self._seats = [Seat(number) for number in range(pool.num_workers)]
        #: Those that are given jobs; the others end when they have none.
        self._in_use = list(self._seats)
        self._arenas: dict[int, Arena] = {}
        #: Their numbers; None once there are others. Collecting them for each message took long.
        self._numbers: frozenset[int] | None = None
        self._next_arena = 0
        #: Which seat an arena belongs to.
        self._owner: dict[int, Seat] = {}

    # ---- arenas

    def new_number(self) -> int:
        """Get the number of the next arena; none is given twice."""
        self._next_arena += 1
        return self._next_arena - 1

    def add_arena(self, arena: Arena) -> None:
        """Take on an arena that workers get to know before they need it."""
        self._arenas[arena.number] = arena
        self._numbers = None

    def new_arena(self, *, in_file: bool) -> Arena:
        """Make an arena, and take it on."""
        number, name = self.new_number(), own_name()
        try:
            return self._make_arena(number, name, in_file=in_file)
        except OSError as error:
            raise PoolError(
                f"Memory for a worker cannot be made: {error}. Limits on open files (ulimit -n) and on the "
                "length of files (ulimit -f) say how much there may be"
            ) from error

    def _make_arena(self, number: int, name: str, *, in_file: bool) -> Arena:
        if in_file or self._in_files:
            arena = Arena.create(number, self._arena_size, self._folder, name)  # it goes with the folder
        else:
            self._pool.guard(SHARED_MEMORY / name)  # before it is there
            arena = Arena.create(number, self._arena_size, name=name)
        self.add_arena(arena)
        return arena

    def commons_of(self, worker: int) -> Commons | None:
        """Get the arena that a worker and others take large memory from; None if it has its own only."""
        group = worker // GROUP
        if group not in self._commons:
            self._commons[group] = self._make_commons()
        return self._commons[group]

    def _make_commons(self) -> Commons | None:
        if self._in_files or not CAN_REVERT:
            return None
        arena = self.new_arena(in_file=False)
        try:
            commons = Commons.create(arena, self._folder / f"common-{arena.number}")
        except OSError as error:
            logger.info("each process has its own memory only: %s", error)
            self.forget_arena(arena.number)
            arena.close()
            arena.unlink()
            return None
        self._blocks.add_commons(commons)
        return commons

    @property
    def arenas(self) -> dict[int, Arena]:
        """All arenas, by number; it grows and shrinks."""
        return self._arenas

    def forget_arena(self, number: int) -> None:
        """Know an arena no more that is gone."""
        arena = self._arenas.pop(number)
        self._numbers = None
        if arena.handle.folder is None:
            self._pool.unguard(SHARED_MEMORY / arena.handle.name)

    def _occupy(self, seat: Seat) -> None:
        """Give a worker process what it needs to begin."""
        own = self.new_arena(in_file=False)
        overflow = None if self._in_files else self.new_arena(in_file=True)
        for arena in (own, overflow):
            if arena is not None:
                self._owner[arena.number] = seat
                self._blocks.add_arena(arena, self._give_back, of_worker=True)
        seat.own = own.number
        seat.overflow = None if overflow is None else overflow.number
        seat.arenas, seat.functions, seat.settings = frozenset(), set(), None
        path = self._folder / f"claims-{self.new_number()}"
        try:
            seat.claims = Claims.create(path)
        except OSError as error:  # some file systems have no pipes: then jobs stay where they are
            logger.info("what a worker has not begun cannot be taken back: %s", error)
        claims = None if seat.claims is None else str(path)
        authkey = bytes(current_process().authkey)
        commons = self.commons_of(seat.number)
        common = None
        if commons is not None:
            common = commons.arena.number, str(commons.path), _number_of(seat)
        begin = Begin(seat.own, seat.overflow, self.warm_limit, str(self._folder), claims, common, authkey)
        seat.warm_limit = self.warm_limit
        self._pool.send(seat.number, begin)

    def _give_back(self, block: BlockId, length: int, warm: bool) -> None:
        self._owner[block.arena].freed.append(Freed(block, length, warm))

    # ---- jobs

    def submit(self, flight: Flight) -> None:
        """Give a job to the worker that will be free first, or to the first that is."""
        self._blocks.hold(flight.extents)
        self._timed = self._timed or flight.limit is not None
        if not self._place(flight):
            self._unplaced.append(flight)

    def _place(self, flight: Flight) -> bool:
        """Give a job to a worker, unless all have something that may last for ever."""
        seat = self._next_free(self._seats_for(flight.client))
        if seat.long:
            return False
        seat.give(flight)
        return True

    def _place_others(self) -> None:
        """Give jobs that wait for a worker to those that have become free."""
        if self._unplaced:
            self._unplaced = [flight for flight in self._unplaced if not self._place(flight)]

    def _next_free(self, seats: list[Seat]) -> Seat:
        for seat in seats:
            if not seat.flights:
                return seat  # nobody is freer, and with many workers it takes long to compare them all
        # What nobody has seen yet may last for ever: no second task that may be long while others have none.
        return min(seats, key=lambda seat: (seat.long, seat.load, len(seat.flights)))

    def _seats_for(self, client: Client) -> list[Seat]:
        """List the workers that may get another job of a run."""
        if client.workers >= len(self._in_use):
            return self._in_use
        at_work = set(self.busy_with(client))
        found = [seat for seat in self._in_use if seat.number in at_work]
        return found if found and len(at_work) >= client.workers else self._in_use

    def flush(self) -> None:
        """Send on what workers are to be told."""
        for seat in self._seats:
            if seat.jobs or seat.cancelled or (seat.own is not None and seat.warm_limit != self.warm_limit):
                self._send(seat)

    def _send(self, seat: Seat, *, rest: bool = False) -> None:
        if seat.own is None:
            self._occupy(seat)
        if self._numbers is None:
            self._numbers = frozenset(self._arenas)
        known, knew = self._numbers, seat.arenas
        functions: dict[int, Shipped] = {}
        for flight in seat.jobs:
            for number in flight.functions:
                if number not in seat.functions:
                    functions[number] = flight.packed[number]
        work = Work(
            settings=self.settings if self.settings != seat.settings else None,
            arenas=() if known is knew else tuple([self._arenas[n].handle for n in sorted(known - knew)]),
            closed=() if known is knew else tuple(sorted(knew - known)),
            freed=tuple(seat.freed),
            functions=tuple(functions.items()),
            forgotten=tuple(seat.forgotten),
            warm_limit=self.warm_limit if self.warm_limit != seat.warm_limit else None,
            rest=rest,
            cancelled=tuple(seat.cancelled),
            claimed=seat.offer(),
            jobs=tuple([flight.job for flight in seat.jobs]),
        )
        seat.arenas, seat.settings, seat.warm_limit = known, self.settings, self.warm_limit
        seat.functions.update(functions)
        for told in (seat.freed, seat.forgotten, seat.cancelled, seat.jobs):
            told.clear()
        self._pool.send(seat.number, work)

    def level(self) -> None:
        """Have workers that have nothing to do take over what others have not begun."""
        idle = [seat for seat in self._in_use if seat.is_idle]
        if not idle or len(idle) == len(self._in_use):
            return
        for seat in sorted(self._seats, key=lambda seat: -len(seat.flights)):
            if any(flight.client.workers < len(self._in_use) for flight in seat.flights.values()):
                continue  # it may be the only one that may have them
            while idle and (flight := seat.take_back()) is not None:
                if flight.client.cancelled:
                    self._blocks.drop(flight.extents)
                else:
                    idle.pop(0).give(flight)
        self.flush()

    def forget_functions(self, numbers: Iterable[int]) -> None:
        """Have workers let go of functions, when they are next told anything."""
        gone = set(numbers)
        for seat in self._seats:
            had = seat.functions & gone
            seat.functions -= had
            seat.forgotten.extend(sorted(had))

    @property
    def warm(self) -> int:
        """Bytes of idle pages that workers keep."""
        return sum([seat.warm for seat in self._seats])

    def rest(self) -> list[Seat]:
        """Have workers that have nothing to do give back all memory that they have no use for.

        Returns
        -------
        list of Seat
            Those that were told to; each is `resting` until it says that it has, or dies.
        """
        told = []
        for seat in self._in_use:
            if seat.is_idle and not (seat.rested or seat.resting) and seat.own is not None:
                seat.resting = True
                self._send(seat, rest=True)
                told.append(seat)
        return told

    def see_to_idle_pages(self) -> None:
        """Have a worker look after the idle pages of its common arena once nothing is taken any more.

        While workers are at work, and for some time after, they do so anyway. But what the user lets go of
        later would stay for ever.
        """
        now = time.monotonic()
        if now < self._next_look or self.busy or not self._blocks.common_warm:
            return
        self._next_look = now + REST / 2
        for group in [group for group, commons in self._commons.items() if commons is not None]:
            seats = self._in_use[group * GROUP : (group + 1) * GROUP]
            seat = next((seat for seat in seats if seat.own is not None and seat.is_idle), None)
            if seat is None:
                self._blocks.rest()
            else:
                self._send(seat)

    def at_work(self) -> Iterator[tuple[int, int]]:
        """Give the processes that have something to do, and the private memory that each had before it."""
        for seat in self._seats:
            if seat.flights and seat.private:
                pid = self._pool.pid(seat.number)
                if pid is not None:
                    yield pid, seat.private

    @property
    def size(self) -> int:
        """How many workers there are to be."""
        return len(self._in_use)

    @property
    def busy(self) -> int:
        """How many workers have something to do."""
        return sum([bool(seat.flights) for seat in self._seats])

    def scale(self, num_workers: int) -> None:
        """Have so many workers from now on; those that are too many end when they have done what they have.

        Raises
        ------
        PoolError
            If there cannot be so many.
        """
        while len(self._seats) < num_workers:
            self._seats.append(Seat(self._pool.add(), gone=True))
        self._in_use = self._seats[:num_workers]
        for seat in self._in_use:
            if seat.gone:
                seat.gone = False
                self._pool.restart(seat.number)
        for seat in self._seats[num_workers:]:
            self._end_if_idle(seat)
        self._place_others()
        self.flush()

    def _end_if_idle(self, seat: Seat) -> None:
        """End a worker that is one too many, once it has nothing to do."""
        if seat.number >= len(self._in_use) and not (seat.flights or seat.killed or seat.gone):
            self.kill(seat.number)

    # ---- what workers say

    def take_in(self, events: Iterable[tuple[int, Any]]) -> None:
        """Pass on what the pool told."""
        for number, message in events:
            seat = self._seats[number]
            if type(message) is Report or type(message) is BatchReport:
                self._on_report(seat, message)
            elif type(message) is Rested:
                self._on_rested(seat, message)
            elif type(message) is Died:
                self._on_died(seat, message)
            else:
                logger.warning("worker %d says what nobody understands, so it is ended", number)
                self.kill(number)

    def _knows(self, report: Report | BatchReport) -> bool:
        """Tell whether there is all memory that a report speaks of."""
        arenas = self._arenas
        return all(extent.arena in arenas for value in values_in(report) for extent in value.extents)

    def _on_report(self, seat: Seat, report: Report | BatchReport) -> None:
        flight = seat.flights.get(report.number)
        if flight is None or not self._knows(report):
            logger.warning("worker %d reports what nobody has asked it for, so it is ended", seat.number)
            self.kill(seat.number)
            return
        seat.remove(flight)
        seat.warm = report.warm
        if isinstance(report, Report) and report.private:
            seat.private = report.private
        seat.since = None
        for value in values_in(report):
            self._blocks.hold(value.extents)
        for block in report.pinned:
            self._blocks.pin(block, seat.number)
        flight.client.on_report(flight, report, seat.number)
        self._blocks.drop(flight.extents)
        for block in report.unpinned:
            self._blocks.unpin(block, seat.number)
        self._place_others()
        self._end_if_idle(seat)

    def _on_rested(self, seat: Seat, rested: Rested) -> None:
        seat.warm = rested.warm
        if seat.resting:
            seat.rested, seat.resting = not seat.flights, False
        for number in (seat.own, seat.overflow):
            if number is not None:
                self._blocks.rested(number, rested.warm)

    def _on_died(self, seat: Seat, died: Died) -> None:
        level = logging.INFO if seat.killed else logging.WARNING
        seat.gone = seat.number >= len(self._in_use)
        then = "it is not needed any more" if seat.gone else "another takes its place"
        logger.log(level, "worker %d has died (%s); %s", seat.number, describe(died), then)
        seat.killed = False
        begun = bool(seat.flights) and next(iter(seat.flights.values())) not in seat.jobs
        for block in self._blocks.pinned_by(seat.number):
            self._blocks.unpin(block, seat.number)
        for number in (seat.own, seat.overflow):
            if number is not None:
                del self._owner[number]
                self._blocks.retire(number)
        commons = self._commons.get(seat.number // GROUP)
        if commons is not None:
            commons.bury(_number_of(seat))
        flights = seat.clear()
        if not seat.gone:
            self._pool.restart(seat.number)
        for at, flight in enumerate(flights):
            # Workers run jobs in the order in which they get them: only the first had begun.
            if at == 0 and begun:
                flight.client.on_lost(flight, died, seat.number)
            elif not flight.client.cancelled:
                self.submit(flight)
            self._blocks.drop(flight.extents)
        self._place_others()

    # ---- an end before time

    def cancel(self, client: Client) -> None:
        """Have workers leave out the jobs of a run, and stop those that they are running."""
        for flight in [flight for flight in self._unplaced if flight.client is client]:
            self._unplaced.remove(flight)
            self._blocks.drop(flight.extents)
        for seat in self._seats:
            mine = [number for number, flight in seat.flights.items() if flight.client is client]
            unsent = {flight.job.number for flight in seat.jobs}
            running = next(iter(seat.flights), None)
            for number in mine:
                if number in unsent:
                    flight = seat.flights[number]
                    seat.remove(flight)
                    seat.jobs.remove(flight)
                    self._blocks.drop(flight.extents)
                    continue
                seat.cancelled.append(number)
                if number == running:
                    # Only one task can be meant at a time; the others are not begun.
                    self._pool.interrupt(seat.number, number)
        self._place_others()
        self.flush()

    def busy_with(self, client: Client) -> list[int]:
        """List the workers that have jobs of a run."""
        return [
            seat.number
            for seat in self._seats
            if any(flight.client is client for flight in seat.flights.values())
        ]

    def kill(self, worker: int) -> None:
        """End a worker that does not let itself be stopped."""
        self._seats[worker].killed = True
        self._pool.kill(worker)

    def keep_to_time_limits(self, now: float) -> float:
        """Interrupt tasks that take longer than they may, and end workers where that is of no use.

        Parameters
        ----------
        now
            Seconds on the monotonic clock.

        Returns
        -------
        float
            Seconds until there may be something to do again.
        """
        if not self._timed:
            return math.inf
        return min(self._keep_to_time_limit(seat, now) for seat in self._seats)

    def _keep_to_time_limit(self, seat: Seat, now: float) -> float:
        flight = next(iter(seat.flights.values()), None)
        # A worker that is just being started has not begun it, however long that takes.
        if flight is None or flight in seat.jobs or self._pool.pid(seat.number) is None:
            return math.inf
        if seat.since is None:
            seat.since = now
        if flight.limit is None:
            return math.inf
        end = seat.since + flight.limit
        if now >= end and not flight.overdue:
            flight.overdue = True
            self._pool.interrupt(seat.number, flight.job.number)
        if flight.overdue:
            end += STOP_LIMIT
        if now >= end:
            self.kill(seat.number)
            return math.inf
        return end - now

    def close(self) -> None:
        """Let go of arenas, whoever needs what lies in them."""
        for seat in self._seats:
            if seat.claims is not None:
                seat.claims.close()
        self._arenas.clear()
        self._commons.clear()
        self._numbers = None


def _number_of(seat: Seat) -> int:
    """Tell which process of its common arena a worker is."""
    return FIRST_WORKER + seat.number % GROUP


def values_in(report: Report | BatchReport) -> list[Shipped]:
    """List the values that came with a report and may have buffers in shared memory."""
    reports = report.outcomes if isinstance(report, BatchReport) else (report,)
    return [
        value
        for each in reports
        if isinstance(each, Report)
        for value in (each.result, each.writes)
        if value is not None and value.extents
    ]
