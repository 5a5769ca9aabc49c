"""Which ready task is next, and whether it may start.

Selection is *last in, first out*, which suits any static order, or by *priority*, which is leaner where the
order was made for it. Admission holds back tasks that grow memory once a budget of bytes is used up.

Policies choose; `machine` acts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from heapq import heapify, heappop, heappush
from typing import Any

from graphmill.scheduler.estimates import Estimates, batch_of
from graphmill.scheduler.room import Room
from graphmill.scheduler.state import NO_TASK, State
from graphmill.types import Key, Rank


class Selection(Enum):
    """How the next of the ready tasks is picked."""

    #: The task that became ready last; of several, the one of best priority.
    LIFO = "lifo"
    #: The task of best priority, whenever it became ready.
    PRIORITY = "priority"


class ReadyQueue:
    """Ready tasks by priority, the best first.

    Parameters
    ----------
    priority
        Static priorities; no two tasks may share one.
    """

    __slots__ = ("_heap", "_keys", "_priority")

    def __init__(self, priority: Rank) -> None:
        self._priority = priority
        #: Ranks, the smallest first; those of tasks that were discarded stay until they come up.
        self._heap: list[float] = []
        self._keys: dict[float, Key] = {}

    def push(self, keys: list[Key]) -> None:
        """Add tasks, in any order."""
        heap, by_rank, priority = self._heap, self._keys, self._priority
        if not heap:
            by_rank.update((priority(key), key) for key in keys)
            heap.extend(by_rank)
            heapify(heap)
            return
        for key in keys:
            rank = priority(key)
            by_rank[rank] = key
            heappush(heap, rank)

    def take(self) -> Key:
        """Take out the task of best priority; `NO_TASK` if there is none."""
        rank = self.best()
        if rank is None:
            return NO_TASK
        heappop(self._heap)
        return self._keys.pop(rank)

    def best(self) -> float | None:
        """Get the rank of the task that `take` would give."""
        heap, by_rank = self._heap, self._keys
        while heap and heap[0] not in by_rank:
            heappop(heap)
        return heap[0] if heap else None

    def peek(self) -> Key:
        """Get the task that `take` would give; there must be one."""
        self.best()
        return self._keys[self._heap[0]]

    def discard(self, key: Key) -> bool:
        """Take out a given task; say whether it was there."""
        return self._keys.pop(self._priority(key), None) is not None

    def clear(self) -> None:
        """Take out all tasks."""
        self._heap.clear()
        self._keys.clear()

    def __contains__(self, key: Key) -> bool:
        return self._priority(key) in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())


#: The share of the budget, one in so many, by which tasks may exceed it that will give more back than they
#: take: with less they hold each other up, with more a fan-in at 32 workers peaks higher than with no budget.
_SLACK = 128
#: How often a ready task may be looked at again, on average, because other sizes are expected: where each
#: task is of a kind of its own, all that are ready would otherwise be looked at for each one that ends.
_LOOKS = 16


@dataclass(slots=True)
class Ledger:
    """The bytes that are live: the outputs held, and those that running tasks are about to give."""

    #: The size of each task's output in bytes, known or expected; corrected as tasks finish.
    sizes: dict[Key, int]
    #: How many bytes a budget allows; None for any number.
    budget: int | None = None
    #: What is known of outputs that `sizes` does not have.
    estimates: Estimates | None = None
    #: Aliases, and the task whose output each of them really is: it is counted once.
    aliases: Mapping[Key, Key] = field(default_factory=dict)
    #: Bytes live now.
    live: int = 0
    #: The most bytes that were ever live at once.
    peak: int = 0
    #: How many keys hold an output; one, where it is not here.
    _holders: dict[Key, int] = field(default_factory=dict)

    def start(self, key: Key) -> None:
        """Count the output of a task that is being started."""
        if key in self.aliases:
            source = self.aliases[key]
            self._holders[source] = self._holders.get(source, 1) + 1
            return
        nbytes = self.sizes.get(key)
        if nbytes is None:
            nbytes = self._estimate(key)
            if nbytes:
                self.sizes[key] = nbytes  # so that what is taken off later is what was added
        self.live += nbytes
        self.peak = max(self.peak, self.live)

    def _estimate(self, key: Key) -> int:
        return 0 if self.estimates is None else self.estimates.nbytes(key) or 0

    def finish(self, key: Key, nbytes: int | None) -> None:
        """Put the size that an output turned out to have in the place of the expected one."""
        if nbytes is not None and key not in self.aliases:
            self.live += nbytes - self.sizes.get(key, 0)
            self.sizes[key] = nbytes
            self.peak = max(self.peak, self.live)

    def release(self, key: Key) -> None:
        """Count an output, or one that will not come, as gone."""
        source = self.aliases.get(key, key)
        left = self._holders.get(source, 1) - 1
        if left:
            self._holders[source] = left
        else:
            self._holders.pop(source, None)
            self.live -= self.sizes.get(source, 0)

    def expected(self, key: Key) -> int:
        """Get the bytes that the output of a task will add."""
        if key in self.aliases:
            return 0
        nbytes = self.sizes.get(key)
        return self._estimate(key) if nbytes is None else nbytes

    def freed(self, key: Key) -> int:
        """Get the bytes that would be given back if nobody waited for a value any more."""
        source = self.aliases.get(key, key)
        return 0 if self._holders.get(source, 1) > 1 else self.sizes.get(source, 0)

    def fits(self, key: Key, *, slack: bool = False) -> bool:
        """Say whether the output of a task fits the budget, or the budget and a little more."""
        if self.budget is None:
            return True
        allowed = self.budget + self.budget // _SLACK if slack else self.budget
        return self.live + self.expected(key) <= allowed


class AdmissionQueue:
    """Ready tasks by priority, those that would grow memory past the budget held back.

    A task grows memory where its output is larger than the inputs that are let go when it is done. Tasks
    that do not grow memory may exceed the budget a little, as their output is there before their inputs go;
    and any task may start while nothing runs, so that a budget that is too small costs time but never stops
    the run.

    Parameters
    ----------
    priority
        Static priorities; no two tasks may share one.
    ledger
        The live bytes, and the budget for them.
    results
        The keys asked for, whose values stay.
    room
        The memory that tasks may take.
    """

    __slots__ = (
        "_growing",
        "_ledger",
        "_looks",
        "_results",
        "_room",
        "_shrinking",
        "_stale",
        "held_back",
        "state",
    )

    #: The state whose tasks these are; set once it is laid out.
    state: State

    def __init__(self, priority: Rank, ledger: Ledger, results: Collection[Key], room: Room) -> None:
        self._growing = ReadyQueue(priority)
        self._shrinking = ReadyQueue(priority)
        self._ledger = ledger
        self._results = results
        self._room = room
        #: Kinds of tasks of which another size is expected than when they were sorted.
        self._stale: set[Any] = set()
        #: How many tasks may be looked at again for that.
        self._looks = 0
        #: How often a task was passed over, or nothing was started, for want of memory.
        self.held_back = 0

    def push(self, keys: list[Key]) -> None:
        """Add tasks, in any order."""
        self._looks += _LOOKS * len(keys)
        shrinking = [key for key in keys if self.growth(key) <= 0]
        self._shrinking.push(shrinking)
        if len(shrinking) < len(keys):
            shrinks = set(shrinking)
            self._growing.push([key for key in keys if key not in shrinks])

    def take(self) -> Key:
        """Take out the task to start next; `NO_TASK` if none may start now."""
        best, other = self._growing.best(), self._shrinking.best()
        if best is not None and (other is None or best < other):
            if self._fits(self._growing.peek()):
                return self._growing.take()
            self.held_back += 1
        if other is not None:
            if self._fits(self._shrinking.peek(), slack=True):
                return self._shrinking.take()
            self.held_back += 1
        if self.state.running:
            return NO_TASK
        # Nothing runs that could give memory back: go on, whatever the budget says.
        queue = self._growing if other is None else self._shrinking
        return queue.take() if self._room.fits(self.need(queue.peek())) else NO_TASK

    def _fits(self, key: Key, *, slack: bool = False) -> bool:
        return self._ledger.fits(key, slack=slack) and self._room.fits(self.need(key))

    def need(self, key: Key) -> int:
        """Get how many bytes a task is expected to take besides its inputs."""
        room = self._room
        return 0 if room.free is None else room.need(key, self._ledger.sizes, self.state)

    def least_need(self, key: Key) -> int:
        """Get how many bytes have to be made free for a task that runs alone; none where nothing is known."""
        return self._room.need(key, self._ledger.sizes, self.state, unknown=0)

    def next_for_room(self) -> Key:
        """Find the task that memory should be made free for; `NO_TASK` if it is better to wait.

        Where values have to go to disk in any case, that is the best one which the budget allows, else the
        one that would run if nothing else does.
        """
        best, other = self._growing.best(), self._shrinking.best()
        if self.state.running and not self._room.spills:
            return NO_TASK
        if best is not None and (other is None or best < other):
            key = self._growing.peek()
            if self._ledger.fits(key):
                return key
        if other is not None:
            return self._shrinking.peek()
        return NO_TASK if self.state.running or best is None else self._growing.peek()

    def start(self, key: Key) -> None:
        """Take out a given task, which starts."""
        self.discard(key)

    def discard(self, key: Key) -> bool:
        """Take out a given task; say whether it was there."""
        return self._growing.discard(key) or self._shrinking.discard(key)

    def expect_other_size(self, kind: Any) -> None:
        """Take note that outputs of a kind are expected to have another size: `look_again` sorts them."""
        self._stale.add(kind)

    def look_again(self) -> None:
        """Tell anew which tasks grow memory, of kinds whose size is expected to be another one."""
        if not self._stale or self._looks < len(self):
            return
        self._looks -= len(self)
        shrinking = [key for key in self._stale_in(self._growing) if self.growth(key) <= 0]
        growing = [key for key in self._stale_in(self._shrinking) if self.growth(key) > 0]
        for keys, before, after in (
            (shrinking, self._growing, self._shrinking),
            (growing, self._shrinking, self._growing),
        ):
            for key in keys:
                before.discard(key)
            after.push(keys)
        self._stale.clear()

    def _stale_in(self, queue: ReadyQueue) -> list[Key]:
        return [key for key in queue if batch_of(key) in self._stale]

    def reconsider(self, key: Key) -> None:
        """Look again at a task that has become the only one to wait for one of its inputs."""
        if key in self._growing and self.growth(key) <= 0:
            self._growing.discard(key)
            self._shrinking.push([key])

    def growth(self, key: Key) -> int:
        """Count by how many bytes more will be live once a task is done."""
        state, ledger = self.state, self._ledger
        grown = ledger.expected(key)
        for dep in state.dependencies[key]:
            if len(state.waiting_data[dep]) == 1 and dep not in self._results:
                grown -= ledger.freed(dep)
        return grown

    def __contains__(self, key: Key) -> bool:
        return key in self._growing or key in self._shrinking

    def __len__(self) -> int:
        return len(self._growing) + len(self._shrinking)

    def __iter__(self) -> Iterator[Key]:
        yield from self._growing
        yield from self._shrinking
