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


@dataclass(slots=True)
class Room:
    """Memory under a limit; with `free` as None there is none."""

    estimates: Estimates
    #: Static priorities: when a value is used next.
    priority: Priority
    #: The keys asked for, which no task may need any more.
    results: Collection[Key]
    #: Bytes that tasks may take that start now.
    free: int | None = None
    #: Bytes that one task could have if everything else were on disk.
    capacity: int = 0
    #: Whether some values have to go to disk in any case, so that it is of no use to wait with it.
    spills: bool = False
    #: Values that are on disk.
    on_disk: set[Key] = field(default_factory=set)
    #: What each running task may take.
    given: dict[Key, int] = field(default_factory=dict)
    #: What tasks need that have failed for want of memory.
    found: dict[Key, int] = field(default_factory=dict)

    def need(self, key: Key, sizes: Mapping[Key, int], state: State) -> int:
        """Get how many bytes a task is expected to take besides its inputs."""
        known = self.found.get(key)
        if known is None:
            known = self.estimates.taken(key)
        if known is None:
            known = sizes.get(key)
        if known is None:
            # Most tasks return what is no larger than their inputs.
            known = max((sizes.get(dep, 0) for dep in state.dependencies[key]), default=0)
        return known

    def fits(self, need: int) -> bool:
        """Say whether a task may start."""
        return self.free is None or need <= self.free

    def start(self, key: Key, need: int, slots: int) -> int | None:
        """Set aside what a task may take; None where there is no limit.

        That is what it needs, as far as that is known, and its part of what as many such tasks as can run
        would leave. If there is too little, it must be the only one that runs.
        """
        if self.free is None:
            return None
        spare = max(0, self.free - need * slots) // max(1, slots)
        given = need + spare if need <= self.free else max(self.free, min(need, self.capacity))
        self.given[key] = given
        self.free -= given
        return given

    def end(self, key: Key, nbytes: int) -> None:
        """Take back what a task was given, but for its output."""
        if self.free is not None:
            self.free += self.given.pop(key, nbytes) - nbytes

    def release(self, key: Key, nbytes: int) -> None:
        """Count a value as gone."""
        if self.free is not None:
            if key in self.on_disk:
                self.on_disk.discard(key)
            else:
                self.free += nbytes

    def victims(self, wanted: int, task: Key, sizes: Mapping[Key, int], state: State) -> list[Key]:
        """Choose values to go to disk so that so many bytes are free; all that may go, if that is not enough.

        Inputs of the task itself come last: it can read them from there.
        """
        if self.free is None:
            return []
        in_use = {dep for running in state.running for dep in state.dependencies[running]}
        own = state.dependencies[task]
        movable = [
            key
            for key in state.cache
            if sizes.get(key, 0) >= LEAST_SPILLED and key not in self.on_disk and key not in in_use
        ]
        priority, waiting_data = self.priority, state.waiting_data

        def next_use(key: Key) -> float:
            users = waiting_data.get(key)
            return min(map(priority, users)) if users else inf

        movable.sort(key=lambda key: (key not in own, next_use(key)))
        missing = wanted - self.free + self.capacity // _HEADROOM
        chosen = []
        while movable and missing > 0:
            key = movable.pop()
            missing -= sizes[key]
            chosen.append(key)
        return chosen

    def spill(self, key: Key, nbytes: int) -> None:
        """Count a value as on disk."""
        self.on_disk.add(key)
        if self.free is not None:
            self.free += nbytes
