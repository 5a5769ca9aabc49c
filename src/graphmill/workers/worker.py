"""What a worker does: runs jobs, one at a time, with their inputs and results in shared memory.

Inputs are views of private, copy-on-write pages: a task may write to them, and nobody sees it. Big arrays
that NumPy makes while a task runs lie in the worker's own arena; those of the result stay there for others,
the rest is used again.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import pickle
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from multiprocessing.process import current_process
from pathlib import Path
from types import TracebackType
from typing import Any

from graphmill.errors import AllowanceSpent, ArenaFull, ChannelClosed, EncodeError, StaysError
from graphmill.footprint import PeakMemory, resident_bytes
from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId, Extent
from graphmill.memory.codec import decode, encode
from graphmill.memory.commons import REST, Commons
from graphmill.memory.heap import Claim, Heap
from graphmill.memory.lease import Reader
from graphmill.memory.numpy_handler import LargeMemory, NumpyHandler
from graphmill.tracebacks import encode_exception
from graphmill.workers import shipped
from graphmill.workers.child import WorkerChannel
from graphmill.workers.claims import Claims, JobQueue
from graphmill.workers.recipe import follow
from graphmill.workers.signals import TaskInterrupts
from graphmill.workers.warned import WarningLog
from graphmill.workers.work import (
    Batch,
    BatchReport,
    Begin,
    Job,
    Report,
    Rested,
    Shipped,
    Work,
)

#: Where nothing is to be kept, the C library is asked to give back what is free once the process has
#: grown by so many bytes.
_WORTH_TRIMMING = 4 << 20
#: Seconds after which reports are sent, though more jobs are at hand, and messages are looked for.
_PAUSE = 0.001
#: Seconds after which a batch ends, whatever is left of it: its tasks take longer than they should, and
#: others have to wait for what it tells.
_TOO_LONG = 0.05
#: So many bytes of them at a time, as a message may come meanwhile.
_PIECE = 32 << 20

_CLOSED = "The engine was closed before this worker had begun"


def serve(channel: WorkerChannel) -> None:
    """Run jobs until the channel ends."""
    first, *more = channel.receive()
    worker = Worker(channel, first)
    try:
        worker.run(more)
    finally:
        worker.close()


class Worker:
    """One worker process.

    Parameters
    ----------
    channel
        To the engine.
    begin
        What it is to begin with.
    """

    def __init__(self, channel: WorkerChannel, begin: Begin) -> None:
        self._channel = channel
        self._begin = begin
        self._pid = os.getpid()
        self._arenas: dict[int, Arena] = {}
        self._reader = Reader(self._arenas)
        #: Made when the arenas are known.
        self._heap: Heap | None = None
        self._commons: Commons | None = None
        self._handler: NumpyHandler | None = None
        self._jobs = _queue_of(begin)
        self._reports: list[Report | BatchReport] = []
        #: Whether the last job was interrupted, so that others may be cancelled.
        self._interrupted = False
        #: Blocks that the engine was told of as looked at.
        self._pinned: set[BlockId] = set()
        #: How many bytes of pages that nobody uses it may keep.
        self._warm_limit = begin.warm_limit
        #: Seconds until it has had nothing to do for long; None once that is dealt with.
        self._patience: float | None = REST
        #: Its private memory after the last job that was not quick, and what it mapped, in bytes.
        self._private, self._mapped = resident_bytes(self._pid)
        self._peak = PeakMemory()
        self._warnings = WarningLog()
        channel.interrupts.shield(LargeMemory.answer)
        current_process().authkey = begin.authkey
        shipped.begin(begin.folder, self._read)

    def close(self) -> None:
        """Leave NumPy as it was."""
        self._jobs.close()
        self._peak.close()
        if self._handler is not None:
            self._handler.close()

    def run(self, messages: list[Work]) -> None:
        """Do what messages say, and wait for more, until there are none."""
        self._warnings.install()
        for message in messages:
            self._take_in(message)
        looked = sent = time.perf_counter()
        while True:
            job = self._jobs.next()
            if job is not None:
                if not job.quick:
                    self._send_reports()
                finish: Any = self._finish_batch if type(job) is Batch else self._finish_job
                self._reports.append(finish(job))
                now = time.perf_counter()
                if now - sent > _PAUSE or not self._jobs:
                    self._send_reports()
                    sent = now
                if now - looked <= _PAUSE and self._jobs and not self._interrupted:
                    continue
                self._interrupted = False
                looked = now
            else:
                self._send_reports()  # of what came before jobs that were taken back
            self._listen()

    def _listen(self) -> None:
        """Follow messages; wait for them if there is nothing to do."""
        messages = self._channel.receive(0 if self._jobs else self._patience)
        for message in messages:
            self._take_in(message)
        if messages or self._jobs:
            self._patience = REST
        else:
            self._rest()

    def _rest(self) -> None:
        """Give idle pages back that only what ran before would have needed, a piece at a time."""
        heap = self._heap
        self._patience = None
        if heap is None:
            return
        heap.forget_most()
        excess = heap.excess(self._warm_limit)
        if excess > 0:
            heap.trim(min(excess, _PIECE))
            self._patience = 0.0
        elif self._commons is not None and (wait := self._commons.rest(_PIECE)) is not None:
            self._patience = wait
        else:
            self._channel.send(Rested(heap.usage().warm))

    def _send_reports(self) -> None:
        if self._reports:
            self._channel.send(*self._reports)
            self._reports.clear()

    def _take_in(self, work: Work) -> None:
        if work.settings is not None:
            _follow(work.settings)
        for handle in work.arenas:
            # One that is gone since the message was sent holds nothing that a job could need.
            with suppress(FileNotFoundError):
                self._arenas[handle.number] = Arena.attach(handle)
        for number in work.closed:
            if number in self._arenas:
                self._arenas.pop(number).close()
        if self._heap is None:
            begin = self._begin
            common, path, number = begin.common or (None, "", 0)
            if not self._arenas.keys() >= {begin.own, begin.overflow, common} - {None}:
                raise ChannelClosed(_CLOSED)
            overflow = None if begin.overflow is None else self._arenas[begin.overflow]
            if common is not None:
                try:
                    self._commons = Commons(self._arenas[common], Path(path), number)
                except FileNotFoundError as error:
                    raise ChannelClosed(_CLOSED) from error
            self._heap = Heap(self._arenas[begin.own], overflow, self._commons)
            self._handler = NumpyHandler.create(self._heap)
        for block, length, warm in work.freed:
            self._heap.give_back(block, length, warm)
        if work.warm_limit is not None:
            self._warm_limit = work.warm_limit
            self._keep_to_limit()
            if not work.warm_limit:
                self._trim()
        if work.rest:
            self._heap.forget_most()
            self._heap.trim(self._heap.usage().warm)
            self._trim()
            self._channel.send(Rested(self._heap.usage().warm))
        shipped.add_functions(work.functions)
        shipped.forget_functions(work.forgotten)
        self._jobs.cancelled.update(work.cancelled)
        self._jobs.add(work.jobs, work.claimed)

    # ---- one job

    def _finish_job(self, job: Job) -> Report:
        """Run a job, and say what became of it; nothing of it is left behind."""
        if job.number in self._jobs.cancelled:
            self._jobs.cancelled.discard(job.number)
            return Report(job.number, None)
        begin = time.perf_counter()
        if not job.quick:
            self._peak.begin(self._private, self._mapped)
        report = self._run_job(job)
        if not job.quick:
            private = max(self._count_private(), self._peak.take())
            report = report._replace(taken=report.taken + private, private=self._private)
        pinned, unpinned = self._tidy()
        return report._replace(
            began=begin,
            seconds=time.perf_counter() - begin,
            pinned=pinned,
            unpinned=unpinned,
            warm=0 if self._heap is None else self._heap.usage().warm,
            warned=self._warnings.take(),
        )

    def _finish_batch(self, batch: Batch) -> BatchReport:
        """Run quick tasks, and say what became of them; nothing of them is left behind."""
        if batch.number in self._jobs.cancelled:
            self._jobs.cancelled.discard(batch.number)
            return BatchReport(batch.number)
        outcomes: list[bytes | int | Report | None] = []
        seconds: list[float] = []
        first = end = time.perf_counter()
        following = len(batch.calls) - batch.followers
        for call, leaves, inputs, allowance in zip(
            batch.calls, batch.leaves, batch.inputs, batch.allowances, strict=True
        ):
            begin = end
            outcome: bytes | Report | None = None
            given: Any = inputs if len(outcomes) < following else _filled(inputs, outcomes)
            if given is not None:
                outcome = self._run_quick(batch.number, call, leaves, given, allowance)
                if isinstance(outcome, Report):
                    outcome = outcome._replace(began=begin)
            end = time.perf_counter()
            outcomes.append(outcome)
            seconds.append(end - begin)
            if self._interrupted or end - first > _TOO_LONG:
                break
        _keep_back(batch, outcomes)
        pinned, unpinned = self._tidy()
        warm = 0 if self._heap is None else self._heap.usage().warm
        return BatchReport(batch.number, tuple(outcomes), tuple(seconds), first, warm, pinned, unpinned)

    def _run_quick(
        self,
        number: int,
        call: int | bytes,
        leaves: tuple[Any, ...] | bytes,
        inputs: tuple[Shipped | bytes, ...],
        allowance: int,
    ) -> bytes | Report:
        """Run a task of a batch; give the payload of its result if that is all there is to tell."""
        heap = self._begin_task(allowance)
        extents = [extent for value in inputs if not isinstance(value, bytes) for extent in value.extents]
        try:
            values = [decode(value) if isinstance(value, bytes) else self._read(value) for value in inputs]
            if type(call) is int:
                recipe = shipped.function(call)
                values += decode(leaves) if type(leaves) is bytes else leaves
                values += recipe.constants
                task = [follow, recipe.steps, values]
            else:
                task = [decode(call), dict(zip(leaves, values, strict=True))]
        except Exception as error:  # noqa: BLE001 - values may do anything when they are rebuilt
            outcome: Shipped | Report = Report(number, None, encode_exception(error), stays=True)
        else:
            del values
            outcome = self._try_task(number, task, extents, heap)
        warned = self._warnings.take()
        if isinstance(outcome, Shipped) and not (outcome.extents or extents or heap.taken or warned):
            return outcome.payload
        return self._report(number, outcome, extents, heap)._replace(warned=warned)

    def _tidy(self) -> tuple[tuple[BlockId, ...], tuple[BlockId, ...]]:
        """See that memory is in order after a job, and find what is looked at now, and what no more."""
        alive = self._reader.alive()
        pinned, unpinned = alive - self._pinned, self._pinned - alive
        if pinned or unpinned:
            self._pinned = alive
        self._keep_to_limit()
        failure = None if self._handler is None else self._handler.take_failure()
        if failure is not None:
            raise failure  # the heap may be in disorder: the worker ends, and another takes its place
        return tuple(pinned), tuple(unpinned)

    def _begin_task(self, allowance: int | None) -> Heap:
        heap = self._heap
        assert heap is not None  # jobs come with the arenas, or after them
        heap.begin(allowance)
        return heap

    def _run_job(self, job: Job) -> Report:
        """Run a job within its allowance."""
        heap = self._begin_task(job.allowance)
        extents = list(_extents_of(job))
        try:
            task = [self._read(job.node), {key: self._read(value) for key, value in job.inputs}]
        except Exception as error:  # noqa: BLE001 - values may do anything when they are rebuilt
            outcome: Shipped | Report = Report(job.number, None, encode_exception(error), stays=True)
        else:
            outcome = self._try_task(job.number, task, extents, heap)
        return self._report(job.number, outcome, extents, heap)

    def _report(
        self, number: int, outcome: Shipped | Report, extents: Iterable[Extent], heap: Heap
    ) -> Report:
        """Say what became of a task, and how much it took."""
        for extent in extents:
            self._reader.drop_dirty(extent.id)
        report = outcome if isinstance(outcome, Report) else Report(number, outcome)
        if report.error is not None and heap.refused:
            # Frames of libraries that stand in cycles hold what the task had, and it may be needed.
            gc.collect()
            self._trim()
            return report._replace(refused=heap.refused)
        return report._replace(taken=heap.taken, copied=heap.copied)

    def _try_task(self, number: int, task: list[Any], extents: list[Extent], heap: Heap) -> Shipped | Report:
        """Call a function, the first of `task`, with the rest; give its result, or say what became of it.

        `task` is empty afterwards: it must hold nothing when it is found out who else holds the result.
        """
        try:
            with self._handler or nullcontext():
                value = self._channel.interrupts.run(number, *task)
            self._peak.note()  # while its inputs are still mapped
            self._end_if_forked()
        except SystemExit as error:
            self._end_if_forked(error.code)
            return Report(number, None, encode_exception(error, _own_frames_off(error.__traceback__)))
        except StaysError as error:
            shipped.take_writes()  # done again where it stays
            return Report(number, None, encode_exception(error), stays=True)
        except BaseException as error:  # noqa: BLE001 - it is raised in the engine's process
            self._end_if_forked(1)
            shipped.take_writes()
            self._interrupted = isinstance(error, KeyboardInterrupt)
            # No name for the traceback: it would be in a cycle with it, which keeps the inputs alive.
            return Report(number, None, encode_exception(error, _own_frames_off(error.__traceback__)))
        finally:
            task.clear()
        writes = shipped.take_writes()
        sending = _Sending(heap, self._reader, extents)
        try:
            result = encode(value, sending.place, name="the result")
            wrote = encode(writes, sending.place, name="what was written") if writes else None
            # Let go of them, so that it can be told who else holds them.
            del value, writes
            sent = sending.settle(result)
            written = None if wrote is None else sending.settle(wrote)
            sending.end()
        except EncodeError as error:
            return Report(number, None, encode_exception(error))
        except (ArenaFull, AllowanceSpent) as error:
            return Report(number, None, encode_exception(error))
        else:
            return sent if written is None else Report(number, sent, writes=written)
        finally:
            sending.close()

    def _end_if_forked(self, code: object = 0) -> None:
        """End a process that a task has forked and that comes back: a channel has one worker."""
        if os.getpid() != self._pid:
            os._exit(code if isinstance(code, int) else int(code is not None))

    def _count_private(self) -> int:
        """Count by how many bytes the process's own memory has grown, and give back what is free of it."""
        before = self._private
        self._private, self._mapped = resident_bytes(self._pid)
        grown = max(0, self._private - before)
        if not self._warm_limit and grown >= _WORTH_TRIMMING:
            self._trim()
        return grown

    def _trim(self) -> None:
        trim_allocator()
        self._private, self._mapped = resident_bytes(self._pid)

    def _keep_to_limit(self) -> None:
        heap = self._heap
        if heap is not None:
            excess = heap.excess(self._warm_limit)
            if excess > 0:
                heap.trim(excess)
            if self._commons is not None and not self._warm_limit:
                self._commons.trim_excess()

    def _read(self, value: Shipped) -> Any:
        return decode(value.payload, [self._reader.view(extent) for extent in value.extents])


@dataclass(slots=True)
class _Sending:
    """Places the buffers of one result."""

    heap: Heap
    reader: Reader
    #: Where the job's inputs lie.
    inputs: list[Extent]
    #: Claims that are neither settled nor abandoned.
    claims: list[Claim] = field(default_factory=list)
    #: What was published, until all is.
    published: dict[BlockId, Extent] = field(default_factory=dict)

    def place(self, memory: Any, owner: object) -> Claim | Extent:  # noqa: ARG002 - the codec's
        """Find where a buffer lies, or copy it to where others can see it."""
        address = memory.__array_interface__["data"][0]
        nbytes = memory.nbytes
        claim = self.heap.claim(address, nbytes)
        if claim is not None:
            self.claims.append(claim)
            return claim
        if self.inputs:
            extent = self.reader.locate(address, nbytes)
            if extent is not None and 2 * nbytes >= extent.length and self.reader.is_clean(extent):
                return extent
        return self._publish(self.heap.copy_in(memory))

    def _publish(self, extent: Extent) -> Extent:
        self.published[extent.id] = extent
        return extent

    def settle(self, taken_apart: tuple[bytes, list[Any]]) -> Shipped:
        """Turn claims into extents, now that the value is gone."""
        payload, refs = taken_apart
        extents = []
        for ref in refs:
            if isinstance(ref, Extent):
                extents.append(ref)
            else:
                extents.append(self._publish(self.heap.settle(ref)))
                self.claims.remove(ref)
        return Shipped(payload, tuple(extents))

    def end(self) -> None:
        """Take note that all is settled."""
        self.published.clear()

    def close(self) -> None:
        """Give up what was not settled; where not all was, nobody will hear of the rest either."""
        while self.claims:
            self.heap.abandon(self.claims.pop())
        while self.published:
            self.heap.take_back(self.published.popitem()[1])


def _queue_of(begin: Begin) -> JobQueue:
    if begin.claims is None:
        return JobQueue(None)
    try:
        return JobQueue(Claims.attach(Path(begin.claims)))
    except FileNotFoundError as error:
        raise ChannelClosed(_CLOSED) from error


def _filled(
    inputs: tuple[Shipped | bytes | int, ...], outcomes: list[bytes | int | Report | None]
) -> tuple[Any, ...] | None:
    """Put in what earlier tasks of a batch gave; None if one of them gave nothing, or has more to tell."""
    # In pickled form, as from anywhere else: who changes an input must not change that of others.
    filled = tuple([outcomes[each] if isinstance(each, int) else each for each in inputs])
    return filled if all(type(each) is bytes or type(each) is Shipped for each in filled) else None


def _keep_back(batch: Batch, outcomes: list[bytes | int | Report | None]) -> None:
    """Leave out of a report what only tasks needed that are done, too."""
    if not batch.inner:
        return
    done = Counter(
        each
        for inputs, outcome in zip(batch.inputs, outcomes, strict=False)
        if isinstance(outcome, bytes)
        for each in inputs
        if isinstance(each, int)
    )
    for place, users in batch.inner:
        outcome = outcomes[place] if place < len(outcomes) else None
        if isinstance(outcome, bytes) and done[place] == users:
            outcomes[place] = len(outcome)


def _extents_of(job: Job) -> Iterable[Extent]:
    yield from job.node.extents
    for _, value in job.inputs:
        yield from value.extents


def _follow(settings: bytes) -> None:
    """Have Dask's settings be those of the engine's process; computations within a task stay in it."""
    config: Any = importlib.import_module("dask.config")
    config.config.clear()
    config.config.update(pickle.loads(settings), scheduler="synchronous")  # noqa: S301 - from the engine


def trim_allocator() -> None:
    """Have the C library's allocator give memory that is free to the system, where it can be asked to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _own_frames_off(tb: TracebackType | None) -> TracebackType | None:
    """Leave out the frames from this module to the task, which say nothing about it."""
    while tb is not None and tb.tb_next is not None and tb.tb_frame.f_code in _OWN_CODE:
        tb = tb.tb_next
    return tb


#: What is on the stack between this module and the task.
_OWN_CODE = frozenset(
    [
        each.__code__
        for each in (Worker._try_task, TaskInterrupts.run, TaskInterrupts._call, follow)  # noqa: SLF001
    ]
)
