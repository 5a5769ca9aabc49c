"""What may be in memory under a limit: which task fits, and which values have to go to disk for it.

A task *needs* room for its output and for what it takes while it runs. Whoever drives the scheduler knows the
limit and what is in memory, and tells now and then how much room is left beside all that runs; in between,
it is counted here.

The values that go to disk are those whose next use is furthest away. That is the best choice there is where
the future is known (Belady), and the static order tells most of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf

from graphmill.scheduler.estimates import Estimates
from graphmill.scheduler.state import State
from graphmill.types import Key, Priority

#: Values below so many bytes stay in memory.
LEAST_SPILLED = 64 << 10
#: So much of the capacity, one in so many, is made free beyond what is needed: looking takes time.
_HEADROOM = 32
#: A task whose need is known may take more than that by one part in so many, or by so many bytes if that is
#: more: what is set aside and not taken has others wait, or puts values on disk, for nothing.
_SPARE = 4
_LEAST_SPARE = 256 << 10
#: What a task is expected to take of whose kind, and inputs, nothing is known, before any has ended: four of
#: the chunks that Dask makes by default. Where there is not that much for each worker, the first is alone.
_AT_FIRST = 512 << 20
#: The least of it afterwards, when it is as much as the largest took: half of a chunk.
_UNKNOWN = 64 << 20
#: How often a task is tried alone that there should be enough memory for.
_TRIES_ALONE = 3


@dataclass(slots=True)
class Room:
    """Memory under a limit; with `free` as None there is none."""

    estimates: Estimates
    #: Static priorities: when a value is used next.
    priority: Priority
    #: The keys asked for, which no task may need any more.
    results: Collection[Key]
    #: Aliases, and whose value each of them really is: that is in memory, or on disk, once.
    aliases: Mapping[Key, Key] = field(default_factory=dict)
    #: Bytes that tasks may take that start now.
    free: int | None = None
    #: Bytes that one task could have if everything else were on disk.
    capacity: int = 0
    #: Whether some values have to go to disk in any case, so that it is of no use to wait with it.
    spills: bool = False
    #: The tasks whose values are on disk.
    on_disk: set[Key] = field(default_factory=set)
    #: What each running task may take.
    given: dict[Key, int] = field(default_factory=dict)
    #: What tasks need that have failed for want of memory.
    found: dict[Key, int] = field(default_factory=dict)
    #: The most that `capacity` has been.
    most: int = 0
    #: The most that a task of the run has taken; None before the first has ended.
    largest: int | None = None
    #: How often tasks have failed for want of memory though they were alone.
    alone: dict[Key, int] = field(default_factory=dict)

    def need(self, key: Key, sizes: Mapping[Key, int], state: State, unknown: int | None = None) -> int:
        """Get how many bytes a task is expected to take besides its inputs.

        Parameters
        ----------
        key
            The task.
        sizes
            The bytes of outputs, as far as they are known.
        state
            What has run, and what each task needs.
        unknown
            What to expect where nothing is known of its kind, nor of its inputs; at most what there is. By
            default what others have taken.
        """
        known = self._known(key)
        if known is None:
            known = sizes.get(key)
        if known is None and key in self.aliases:
            known = 0
        if known is None:
            # Most tasks return what is no larger than their inputs.
            known = max([sizes[dep] for dep in state.dependencies[key] if dep in sizes], default=None)
        if known is not None:
            return known
        if unknown is None:
            unknown = _AT_FIRST if self.largest is None else max(_UNKNOWN, self.largest)
        return min(unknown, self.capacity)

    def _known(self, key: Key) -> int | None:
        """Get what a task has asked for, or others of its kind have taken."""
        found = self.found.get(key)
        return self.estimates.taken(key) if found is None else found

    def fits(self, need: int) -> bool:
        """Say whether a task may start."""
        return self.free is None or need <= self.free

    def start(self, key: Key, need: int, slots: int) -> int | None:
        """Set aside what a task may take; None where there is no limit.

        That is what it needs, and its part of what as many such tasks as can run would leave; where its need
        is known, little more. If there is too little, it must be the only one that runs.
        """
        if self.free is None:
            return None
        spare = max(0, self.free - need * slots) // max(1, slots)
        if self._known(key) is not None:
            spare = min(spare, max(need // _SPARE, _LEAST_SPARE))
        given = need + spare if need <= self.free else max(self.free, min(need, self.capacity))
        self.given[key] = given
        self.free -= given
        return given

    def set(self, free: int | None, capacity: int) -> None:
        """Take in what there is."""
        self.free, self.capacity = free, capacity
        self.most = max(self.most, capacity)

    def may_do_alone(self, key: Key, need: int) -> bool:
        """Say whether a task that was alone, and had too little, may have enough if it is tried again.

        What it had may be free a moment later than its end is told, where threads of a library hold it.
        """
        self.alone[key] = self.alone.get(key, 0) + 1
        return need <= self.most and self.alone[key] < _TRIES_ALONE

    def end(self, key: Key, nbytes: int, taken: int | None = None) -> None:
        """Take back what a task was given, but for its output; take note of what it took, if it is known."""
        if taken is not None:
            self.largest = max(taken, self.largest or 0)
        if self.free is not None:
            self.free += self.given.pop(key, nbytes) - nbytes

    def release(self, key: Key, nbytes: int) -> None:
        """Count a value as gone."""
        source = self.aliases.get(key, key)
        if self.free is not None and nbytes:
            if source in self.on_disk:
                self.on_disk.discard(source)
            else:
                self.free += nbytes

    def stay(self, keys: Collection[Key]) -> None:
        """Count values as in memory that could not move."""
        self.on_disk.difference_update([self.aliases.get(key, key) for key in keys])

    def victims(self, wanted: int, task: Key, sizes: Mapping[Key, int], state: State) -> list[Key]:
        """Choose values to go to disk so that so many bytes are free; all that may go, if that is not enough.

        Inputs of the task itself come last: it can read them from there.
        """
        if self.free is None:
            return []
        source_of = self.aliases.get
        in_use = {source_of(dep, dep) for running in state.running for dep in state.dependencies[running]}
        own = {source_of(dep, dep) for dep in state.dependencies[task]}
        priority, waiting_data = self.priority, state.waiting_data
        #: For each value that may move, its next use, and a key that has it.
        movable: dict[Key, tuple[float, Key]] = {}
        for key in state.cache:
            source = source_of(key, key)
            if sizes.get(source, 0) < LEAST_SPILLED or source in self.on_disk or source in in_use:
                continue
            users = waiting_data.get(key)
            next_use = min(map(priority, users)) if users else inf
            if source not in movable or next_use < movable[source][0]:
                movable[source] = next_use, key
        order = sorted(movable, key=lambda source: (source not in own, movable[source][0]))
        missing = wanted - self.free + self.capacity // _HEADROOM
        chosen = []
        while order and missing > 0:
            source = order.pop()
            missing -= sizes[source]
            chosen.append(movable[source][1])
        return chosen

    def spill(self, key: Key, nbytes: int) -> None:
        """Count a value as on disk."""
        self.on_disk.add(self.aliases.get(key, key))
        if self.free is not None:
            self.free += nbytes
