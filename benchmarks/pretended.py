"""Worker processes that are only pretended, on a virtual clock: the rest of the engine is the real one.

They stand in for the pool, so all that the parent does is done for real and takes the time that it takes: the
run loop, the scheduler, the packing of tasks, blocks, limits, messages pickled and read. Its CPU time moves
the clock. Workers take what they are told: a task lasts as long as it says, and its result has as many bytes
as it says, in a range of the worker's arena that nobody ever writes to.

What a worker spends on a task besides is measured: to read it, and to pack its result. What the system takes
for a message is measured before. What is left out: caches and memory buses that are shared, and wake-ups of
processes, whose cost is no CPU time of the parent's.
"""

from __future__ import annotations

import itertools
import pickle
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from graphmill import Engine
from graphmill.memory.arena import PAGE
from graphmill.memory.block import Extent
from graphmill.memory.codec import decode, encode
from graphmill.workers.claims import Claims, JobQueue
from graphmill.workers.work import BatchReport, Begin, Job, Report, Shipped, Work

#: Seconds from one process to another, while nobody sleeps.
LATENCY = 30e-6
#: A worker keeps reports of quick tasks for so many seconds at most.
PAUSE = 0.001
#: How many tasks' own costs are measured, for each worker the same.
SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Pretended:
    """What a pretended task returns: how long it takes and what it leaves behind."""

    seconds: float
    nbytes: int


def pretend(seconds: float, nbytes: int, *inputs: Any) -> Pretended:  # noqa: ARG001 - only their blocks count
    """Stand for a task."""
    return Pretended(seconds, nbytes)


@dataclass(slots=True)
class Ranges:
    """Gives out ranges of an arena, used ones first."""

    arena: int
    end: int = 0
    free: dict[int, list[int]] = field(default_factory=dict)

    def take(self, nbytes: int) -> Extent:
        """Find room for a block."""
        length = -(-nbytes // PAGE) * PAGE
        again = self.free.get(length)
        if again:
            start = again.pop()
        else:
            start, self.end = self.end, self.end + length
        return Extent(self.arena, start, 0, nbytes, length)

    def give_back(self, start: int, length: int) -> None:
        """Take a range back."""
        self.free.setdefault(length, []).append(start)


@dataclass(slots=True)
class PretendedWorker:
    """One worker."""

    ranges: Ranges | None = None
    jobs: JobQueue | None = None
    #: Whether it runs a task, and until when it did.
    busy: bool = False
    free_at: float = 0.0
    reports: list[Report | BatchReport] = field(default_factory=list)
    sent_at: float = 0.0
    #: Seconds that its tasks have taken, as they should.
    worked: float = 0.0


class PretendedPool:
    """What an engine takes for its pool.

    Parameters
    ----------
    num_workers : int
        How many workers there are to be.
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.template_pid = None
        #: It never does.
        self.failed = False
        self.workers = [PretendedWorker() for _ in range(num_workers)]
        #: The time, in seconds.
        self.now = 0.0
        #: When the first job was sent; None until then.
        self.first_job: float | None = None
        #: How much of it the parent has computed.
        self.parent = 0.0
        self.messages = 0
        self._message_cost = cost_of_message()
        self._task_costs: list[float] = []
        self._events: list[tuple[float, int, int, Any]] = []
        self._numbers = itertools.count()
        self._resumed = time.thread_time()

    # ---- the clock

    def _stop_clock(self) -> None:
        """Let what the parent has computed since count; what follows is the pretence's own work."""
        spent = time.thread_time() - self._resumed
        self.now += spent
        self.parent += spent

    def _resume_clock(self) -> None:
        self._resumed = time.thread_time()

    def restart_clock(self) -> None:
        """Measure from now on."""
        self._stop_clock()
        self.parent = 0.0
        self.first_job = None
        for worker in self.workers:
            worker.worked = 0.0
        self._resume_clock()

    def read_clock(self) -> float:
        """Tell the time."""
        self._stop_clock()
        self._resume_clock()
        return self.now

    # ---- what engines call

    def start(self) -> None:
        """Start nothing."""

    def close(self, meanwhile: Callable[[], object] = list) -> None:
        """End nothing, and have what was guarded removed."""
        for worker in self.workers:
            if worker.jobs is not None:
                worker.jobs.close()
        meanwhile()

    def wake(self) -> None:
        """Disturb nobody."""

    def guard(self, *paths: Any) -> None:
        """Guard nothing: engines remove their own."""

    def unguard(self, *paths: Any) -> None:
        """Guard nothing."""

    def pid(self, worker: int) -> None:
        """Give no process."""

    def send(self, worker: int, *messages: Any) -> None:
        """Take messages to a worker; what it costs to pickle them is the parent's."""
        pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        self._stop_clock()
        self._pay_for_message()
        for message in messages:
            heappush(self._events, (self.now + LATENCY, next(self._numbers), worker, message))
            if self.first_job is None and type(message) is Work and message.jobs:
                self.first_job = self.now
        self._resume_clock()

    def poll(self, timeout: float) -> list[tuple[int, Any]]:
        """Let workers work until one has something to tell; what it costs to read that is the parent's."""
        self._stop_clock()
        told: list[tuple[int, bytes]] = []
        while self._events and (self._events[0][0] <= self.now or not told):
            if timeout == 0 and self._events[0][0] > self.now:
                break
            at, _, number, what = heappop(self._events)
            self.now = max(self.now, at)
            if type(what) is bytes:
                told.append((number, what))
            else:
                self._happens(number, what, at)
        for _ in told:
            self._pay_for_message()
        if not told and timeout:
            raise RuntimeError("the engine waits, and no worker has anything to do")
        self._resume_clock()
        return [(number, report) for number, packed in told for report in pickle.loads(packed)]

    def _pay_for_message(self) -> None:
        self.messages += 1
        self.now += self._message_cost
        self.parent += self._message_cost

    # ---- what workers do

    def _happens(self, number: int, what: Any, at: float) -> None:
        worker = self.workers[number]
        if type(what) is Begin:
            worker.ranges = Ranges(what.own)
            assert what.claims is not None
            worker.jobs = JobQueue(Claims.attach(Path(what.claims)))
        elif type(what) is Work:
            assert worker.ranges is not None
            assert worker.jobs is not None
            for freed in what.freed:
                worker.ranges.give_back(freed.block.offset, freed.length)
            worker.jobs.add(what.jobs, what.claimed)
            if not worker.busy:
                self._begin_next(number, worker, at)
        else:
            self._end(number, worker, what, at)

    def _begin_next(self, number: int, worker: PretendedWorker, at: float) -> None:
        job = None if worker.jobs is None else worker.jobs.next()
        worker.busy = job is not None
        if job is None:
            self._send_reports(number, worker, at)
            return
        if not job.quick:
            self._send_reports(number, worker, at)
        report: Report | BatchReport
        if isinstance(job, Job):
            report = self._run(worker, job.number, job.node.payload, [key for key, _ in job.inputs])
            seconds = report.seconds
        else:
            # Tuple tasks have no recipes: each goes as its node, with the keys of its inputs.
            calls = zip(job.calls, job.leaves, strict=True)
            reports = [self._run(worker, job.number, node, keys) for node, keys in calls]
            report = BatchReport(
                job.number,
                tuple([each if each.taken else payload_of(each) for each in reports]),
                tuple([each.seconds for each in reports]),
            )
            seconds = sum(report.seconds)
        heappush(self._events, (at + seconds, next(self._numbers), number, report))

    def _run(self, worker: PretendedWorker, number: int, node: Any, keys: Iterable[Any]) -> Report:
        """Do what a worker does for a task, and say what it would."""
        assert worker.ranges is not None
        begin = time.thread_time()
        value = decode(node)(dict.fromkeys(keys))
        payload, _ = encode(value.nbytes, lambda _memory, _owner: None)
        cost = time.thread_time() - begin
        extents = (worker.ranges.take(value.nbytes),) if value.nbytes else ()
        worker.worked += value.seconds
        seconds = value.seconds + self._cost_of_task(cost)
        return Report(number, Shipped(payload, extents), seconds=seconds, taken=value.nbytes)

    def _cost_of_task(self, cost: float) -> float:
        """Give the median of what was measured: a virtual clock must not depend on a single pause."""
        if len(self._task_costs) < SAMPLE:
            self._task_costs.append(cost)
            self._task_costs.sort()
        return self._task_costs[len(self._task_costs) // 2]

    def _end(self, number: int, worker: PretendedWorker, report: Report | BatchReport, at: float) -> None:
        worker.reports.append(report)
        if not worker.jobs or at - worker.sent_at > PAUSE:
            self._send_reports(number, worker, at)
        self._begin_next(number, worker, at)

    def _send_reports(self, number: int, worker: PretendedWorker, at: float) -> None:
        if worker.reports:
            packed = pickle.dumps(worker.reports, pickle.HIGHEST_PROTOCOL)
            heappush(self._events, (at + LATENCY, next(self._numbers), number, packed))
            worker.reports = []
            worker.sent_at = at


def payload_of(report: Report) -> bytes:
    """Get what a worker sends of a result that lies nowhere else."""
    assert report.result is not None
    return report.result.payload


def cost_of_message() -> float:
    """Measure what the system takes to send a short message, or to receive one: the mean, in seconds."""
    here, there = socket.socketpair()
    with here, there:
        begin, count = time.thread_time(), 2000
        for _ in range(count):
            here.send(bytes(1000))
            there.recv(4096)
        return (time.thread_time() - begin) / count / 2


def pretended_engine(workers: int) -> tuple[Engine, PretendedPool]:
    """Make an engine with pretended workers."""
    pool = PretendedPool(workers)
    engine = Engine(workers, warm_limit=0)
    engine.pool = pool  # type: ignore[assignment]
    return engine, pool
