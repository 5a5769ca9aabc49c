"""What happened on an engine, as plain data: tasks, memory, moves to disk, deaths.

Times are seconds since the recording began. Lists make rows that pandas takes:
``DataFrame(p.tasks.to_records())``.

Knows logs. Must not know engines, nor pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from graphmill.diagnostics.log import Entry, Outcome, RunLog, kind_of
from graphmill.diagnostics.watch import Glance
from graphmill.scheduler.estimates import batch_of
from graphmill.types import Key

Record = TypeVar("Record", bound="TaskRecord | MemoryRecord | SpillRecord | DeathRecord")


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One go at a task; a task that had to be run again has several."""

    key: Key
    #: The name of its layer, without the token.
    kind: str
    #: The number of the run, from 0.
    run: int
    #: The number of the worker, from 0; -1 for the caller's own process.
    worker: int
    #: When it began and ended.
    start: float
    end: float
    #: The size of its result, in bytes.
    output_bytes: int
    #: The size of the results that it was given, in bytes; they are read where they lie.
    input_bytes: int
    #: The most memory that it took besides its inputs, with its result, in bytes.
    taken_bytes: int
    #: Bytes of its result that had to be copied; the others were born in place, or belong to an input.
    copied_bytes: int
    #: How many goes came before this one.
    retry: int
    #: ``"done"``, ``"failed"``, ``"refused"`` (it needed more memory, and is run again with more) or
    #: ``"stayed"`` (it cannot be sent to a worker, and is run in the caller's process).
    outcome: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """What an engine's memory was used for at one moment, in bytes."""

    time: float
    #: The most that all of it may take.
    limit: int
    #: All of it: `private` and `arenas`.
    total: int
    #: The private memory of all processes.
    private: int
    #: What arenas took: results, what tasks work with, pages kept for the next ones.
    arenas: int
    #: Results that are needed, in memory.
    live: int
    #: Pages of arenas that nobody needs now.
    warm: int
    #: Results on disk.
    on_disk: int
    #: Results ever moved to disk, and what was read of them, since the engine started.
    spilled: int
    read_back: int
    #: Workers that had something to do.
    busy: int
    #: The most that `total` was since the engine started: engines look more often than records are made.
    peak: int


@dataclass(frozen=True, slots=True)
class SpillRecord:
    """A result that was moved to disk."""

    key: Key
    kind: str
    time: float
    #: How long it took.
    seconds: float
    #: Its size, in bytes.
    nbytes: int


@dataclass(frozen=True, slots=True)
class DeathRecord:
    """A worker that died while it ran a task."""

    key: Key
    kind: str
    time: float
    worker: int
    #: How it ended, in words.
    cause: str


class Records(list[Record]):
    """A list of records that can be had as rows."""

    def to_records(self) -> list[dict[str, Any]]:
        """Make a row of each: a dictionary by field."""
        names = [each.name for each in fields(self[0])] if self else []
        return [{name: getattr(record, name) for name in names} for record in self]


@dataclass(frozen=True, slots=True)
class Recording:
    """All that was recorded of one engine."""

    #: How many workers it has.
    workers: int
    tasks: Records[TaskRecord] = field(default_factory=Records)
    memory: Records[MemoryRecord] = field(default_factory=Records)
    spills: Records[SpillRecord] = field(default_factory=Records)
    deaths: Records[DeathRecord] = field(default_factory=Records)
    #: What each key needs, by the number of the run.
    dependencies: tuple[Mapping[Key, Iterable[Key]], ...] = ()
    #: From when to when there were runs.
    start: float = 0.0
    end: float = 0.0

    @property
    def summary(self) -> Summary:
        """The figures that matter most."""
        done = [task for task in self.tasks if task.outcome == Outcome.DONE.value]
        return Summary(
            seconds=self.end - self.start,
            tasks=len(done),
            peak=highest(self.memory),
            limit=self.memory[-1].limit if self.memory else 0,
            spilled=sum(spill.nbytes for spill in self.spills),
            retries=sum(task.outcome == Outcome.REFUSED.value for task in self.tasks) + len(self.deaths),
            deaths=len(self.deaths),
            read_in_place=sum(task.input_bytes for task in done if task.worker >= 0),
            born_in_place=sum(max(0, task.output_bytes - task.copied_bytes) for task in done),
            copied=sum(task.copied_bytes for task in done),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """What a recording comes to; amounts are bytes."""

    #: From the beginning of the first run to the end of the last.
    seconds: float
    #: Tasks that gave a result.
    tasks: int
    #: The most memory that was seen at once, and the limit.
    peak: int
    limit: int
    #: What was moved to disk.
    spilled: int
    #: Goes at tasks that had to be repeated, and workers that died.
    retries: int
    deaths: int
    #: Inputs that workers read where they lay, which other processes would have been sent copies of.
    read_in_place: int
    #: Results that lay in shared memory from the start, and those that had to be copied there.
    born_in_place: int
    copied: int


def record_runs(workers: int, logs: Iterable[RunLog], glances: Iterable[Glance], origin: float) -> Recording:
    """Make records of what runs have left.

    Parameters
    ----------
    workers
        How many the engine has.
    logs
        Of runs on one engine, in the order in which they began; those with entries, ended or not.
    glances
        At that engine, in time.
    origin
        When the recording began, in seconds of `time.perf_counter`; times are counted from there.
    """
    logs = list(logs)
    tasks: Records[TaskRecord] = Records()
    spills: Records[SpillRecord] = Records()
    deaths: Records[DeathRecord] = Records()
    kinds: dict[Any, str] = {}

    def named(key: Key) -> str:
        batch = batch_of(key)
        kind = kinds.get(batch)
        if kind is None:
            kind = kinds[batch] = kind_of(batch)
        return kind

    for number, log in enumerate(logs):
        tasks.extend(_tasks_of(log, number, origin, named))
        spills += [
            SpillRecord(move.key, named(move.key), move.time - origin, move.seconds, move.nbytes)
            for move in list(log.moves)
        ]
        deaths += [
            DeathRecord(loss.key, named(loss.key), loss.time - origin, loss.worker, loss.cause)
            for loss in list(log.losses)
        ]
    memory = Records(_memory_of(glance, origin) for glance in glances)
    latest = max([task.end for task in tasks] + [record.time for record in memory[-1:]], default=0.0)
    return Recording(
        workers,
        tasks,
        memory,
        spills,
        deaths,
        tuple(_needs_of(log) for log in logs),
        start=min((log.began - origin for log in logs), default=0.0),
        end=max((latest if log.ended is None else log.ended - origin for log in logs), default=0.0),
    )


def _needs_of(log: RunLog) -> Mapping[Key, Iterable[Key]]:
    """Tell which tasks each needs: where it needs an alias, that is the one whose value it has."""
    aliases = log.aliases
    if not aliases:
        return log.dependencies
    return {key: {aliases.get(dep, dep) for dep in deps} for key, deps in log.dependencies.items()}


def _tasks_of(log: RunLog, number: int, origin: float, named: Any) -> Iterable[TaskRecord]:
    entries: list[Entry] = list(log.all_entries())
    sizes = {entry.key: entry.nbytes for entry in entries if entry.nbytes}
    for alias, source in log.aliases.items():
        sizes[alias] = sizes.get(source, 0)
    goes = Counter(loss.key for loss in list(log.losses))
    for entry in entries:
        key = entry.key
        yield TaskRecord(
            key,
            named(key),
            number,
            entry.worker,
            entry.began - origin,
            entry.began - origin + entry.seconds,
            entry.nbytes,
            sum([sizes.get(dep, 0) for dep in log.dependencies.get(key, ())]),
            entry.taken,
            entry.copied,
            goes[key],
            entry.outcome.value,
        )
        if entry.outcome is not Outcome.DONE:
            goes[key] += 1


def highest(samples: Sequence[MemoryRecord] | Sequence[Glance]) -> int:
    """Find the most memory that was taken while samples were: at one of them, or in between."""
    seen = max((sample.total for sample in samples), default=0)
    if samples and samples[-1].peak > samples[0].peak:
        return max(seen, samples[-1].peak)
    return seen


def _memory_of(glance: Glance, origin: float) -> MemoryRecord:
    return MemoryRecord(
        glance.time - origin,
        glance.limit,
        glance.total,
        glance.private,
        glance.arenas,
        glance.live - glance.on_disk,
        glance.warm,
        glance.on_disk,
        glance.spilled,
        glance.read_back,
        glance.busy,
        glance.peak,
    )
