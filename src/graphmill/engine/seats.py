"""A worker's place: what it has been given, what it knows, and what it is to be told next.

Knows jobs and their claims. Must not know processes, nor what becomes of a job.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphmill.memory.block import Extent
from graphmill.scheduler.estimates import SOON_OVER
from graphmill.workers.claims import Claims
from graphmill.workers.messages import Died
from graphmill.workers.work import Batch, BatchReport, Freed, Job, Report, Shipped


class Client(Protocol):
    """A run, as far as workers matter to it."""

    #: Whether its jobs are not to be begun any more.
    cancelled: bool
    #: How many workers may have jobs of it at once.
    workers: int

    def on_report(self, flight: Flight, report: Report | BatchReport, worker: int) -> None:
        """Take in what became of a job, or of a batch."""

    def on_lost(self, flight: Flight, died: Died, worker: int) -> None:
        """Take in that a worker died while it ran a job."""


@dataclass(slots=True, eq=False)
class Flight:
    """A job that was given to a worker, or waits for one."""

    #: The run that it belongs to.
    client: Client
    job: Job | Batch
    #: Functions that the worker must have.
    functions: tuple[int, ...]
    #: What functions are packed as, by number.
    packed: dict[int, Shipped]
    #: Seconds that it is expected to take.
    expected: float
    #: All that the worker reads.
    extents: tuple[Extent, ...]
    #: What the run wants to know again.
    about: Any
    #: Seconds that it may take; None for any number.
    limit: float | None = None
    #: Whether it has taken longer, and was interrupted.
    overdue: bool = False

    @property
    def may_be_long(self) -> bool:
        """Whether nothing should wait behind it."""
        return self.expected >= SOON_OVER and not isinstance(self.job, Batch)


@dataclass(slots=True)
class Seat:
    """A worker's place."""

    #: Its number, from 0.
    number: int
    #: The arena of the process that has the place, and that in a file; None while nobody has.
    own: int | None = None
    overflow: int | None = None
    #: The arenas that it knows.
    arenas: AbstractSet[int] = frozenset()
    #: By which it and the engine agree who has a job; None while nobody has the place.
    claims: Claims | None = None
    #: The functions that it has.
    functions: set[int] = field(default_factory=set)
    #: What it is to be told next.
    freed: list[Freed] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    jobs: list[Flight] = field(default_factory=list)
    #: What it has been given and has not reported, by number, in the order in which it runs them.
    flights: dict[int, Flight] = field(default_factory=dict)
    #: Seconds that those are expected to take.
    load: float = 0.0
    #: How many of them may be long.
    long: int = 0
    #: When it was first seen to have begun the first of them, on the monotonic clock.
    since: float | None = None
    #: Dask's settings as it has them.
    settings: bytes | None = None
    #: How many bytes of idle pages it has.
    warm: int = 0
    #: How many bytes of private memory its process had after the last job that was not quick; 0 before one.
    private: int = 0
    #: How many bytes of idle pages it may keep, as far as it knows.
    warm_limit: int = 0
    #: Whether it has had no job since it gave back all memory that it has no use for, or is to do so now.
    rested: bool = True
    resting: bool = False
    #: Whether its process was ended on purpose.
    killed: bool = False
    #: Whether there is none, and none is wanted.
    gone: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to do and may be given something."""
        return not (self.flights or self.killed or self.gone)

    def give(self, flight: Flight) -> None:
        """Have it do a job once it has done what it has."""
        self.rested = False
        self.flights[flight.job.number] = flight
        self.load += flight.expected
        self.long += flight.may_be_long
        self.jobs.append(flight)

    def remove(self, flight: Flight) -> None:
        """Take note that it has a job no more."""
        del self.flights[flight.job.number]
        self.load = max(0.0, self.load - flight.expected) if self.flights else 0.0
        self.long -= flight.may_be_long

    def offer(self) -> tuple[int, ...]:
        """Say which of the jobs that are about to be sent it has to claim: those that wait behind another."""
        claims = self.claims
        first = next(iter(self.flights), None)
        waiting = [flight.job.number for flight in self.jobs if flight.job.number != first]
        return tuple([number for number in waiting if claims is not None and claims.offer(number)])

    def take_back(self) -> Flight | None:
        """Get a job that it has not begun, and never will; None if it has begun all that it has."""
        if len(self.flights) <= 1:
            return None
        number = None if self.claims is None else self.claims.claim()
        flight = None if number is None else self.flights.get(number)
        if flight is not None:
            self.remove(flight)
        return flight

    def clear(self) -> list[Flight]:
        """Take note that its process has died; give the jobs that it had."""
        for told in (self.freed, self.forgotten, self.cancelled, self.jobs):
            told.clear()
        flights, self.flights = list(self.flights.values()), {}
        if self.claims is not None:
            self.claims.close()
        self.own = self.overflow = self.since = self.claims = None
        self.load = 0.0
        self.rested, self.resting = True, False
        self.long = self.warm = self.private = 0
        return flights
