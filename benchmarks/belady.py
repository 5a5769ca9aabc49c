"""How little a run could have spilled, had everything been known beforehand.

Given the order in which tasks began and ended, and what came of them, blocks are written to disk only when
there is no room, and then the one first whose next use is furthest away (Belady). A task's inputs, and room
for its result, must be there while it runs. A block that was read back is still on disk: to put it out again
costs nothing. For blocks of one size nothing reads back less.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

from benchmarks.trace import Event, Finished, Released, Started


@dataclass(frozen=True, slots=True)
class Optimum:
    """What it takes at least."""

    #: Bytes written to disk.
    spilled: int
    #: Bytes read from there, each time they are.
    read_back: int
    #: The most bytes that were in memory at once: more than the budget only if tasks that ran at the same
    #: time needed more.
    peak: int


def optimum(events: Sequence[Event], budget: int) -> Optimum:
    """Work out what a run could have done with.

    Parameters
    ----------
    events : sequence of Event
        What happened. What was spilled then does not matter.
    budget : int
        Bytes that blocks may take.
    """
    story, memory = tell(events), Memory(budget)
    begins = {end: begin for begin, end in story.ends.items()}
    for number in range(len(events)):
        if number in story.ends:
            memory.begin(story.needs[number])
        elif number in begins:
            memory.end(story.needs[begins[number]])
        for block in story.drops.get(number, ()):
            memory.drop(block)
    return Optimum(memory.spilled, memory.read_back, memory.peak)


@dataclass(slots=True, eq=False)
class Block:
    """A block, from the first result that lies in it until the last of these is released."""

    nbytes: int
    #: When tasks begin that need it, and the one that makes it: numbers of events.
    uses: deque[int]
    #: How many results lie in it that are not released.
    holders: int = 0
    #: How many tasks that run read or make it.
    pins: int = 0
    in_memory: bool = False
    on_disk: bool = False

    @property
    def next_use(self) -> float:
        """The event at which it is needed next; never, for what was asked for."""
        return self.uses[0] if self.uses else inf


@dataclass(slots=True)
class Story:
    """What a trace says about blocks rather than keys, by the numbers of its events."""

    #: When each task ended, by when it began.
    ends: dict[int, int]
    #: When a task begins: the blocks that it reads and makes.
    needs: dict[int, list[Block]] = field(default_factory=dict)
    #: When a result is released: the blocks that nobody holds any more.
    drops: dict[int, list[Block]] = field(default_factory=dict)


def tell(events: Sequence[Event]) -> Story:
    """Follow the blocks of a trace. Tasks that never ended, as their worker died, count for nothing."""
    story = Story(_ends(events))
    begins = {end: begin for begin, end in story.ends.items()}
    there: dict[str, Block] = {}
    results: dict[str, tuple[str, ...]] = {}
    for number, event in enumerate(events):
        if type(event) is Started and number in story.ends:
            names = dict.fromkeys(name for key in event.inputs for name in results.get(key, ()))
            for name in names:
                there[name].uses.append(number)
            story.needs[number] = [there[name] for name in names]
        elif type(event) is Finished:
            begin = begins[number]
            new = {
                name: Block(nbytes, deque([begin]))
                for name, nbytes in event.blocks.items()
                if name not in there
            }
            there.update(new)
            story.needs[begin].extend(new.values())
            results[event.key] = tuple(event.blocks)
            for name in event.blocks:
                there[name].holders += 1
        elif type(event) is Released:
            story.drops[number] = list(_release(results.pop(event.key), there))
    return story


def _ends(events: Sequence[Event]) -> dict[int, int]:
    running: dict[str, int] = {}
    ends: dict[int, int] = {}
    for number, event in enumerate(events):
        if type(event) is Started:
            running[event.key] = number
        elif type(event) is Finished:
            ends[running.pop(event.key)] = number
    return ends


def _release(names: Iterable[str], there: dict[str, Block]) -> Iterable[Block]:
    for name in names:
        block = there[name]
        block.holders -= 1
        if not block.holders:
            yield there.pop(name)


class Memory:
    """So many bytes of memory, and a disk."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self.peak = self.spilled = self.read_back = 0
        #: Blocks that may be put out, the furthest next use first; void where it is another by now.
        self._victims: list[tuple[float, int, Block]] = []
        self._entries = 0

    def begin(self, blocks: Iterable[Block]) -> None:
        """Have blocks there for a task."""
        for block in blocks:
            block.uses.popleft()
            block.pins += 1
            if not block.in_memory:
                block.in_memory = True
                self._used += block.nbytes
                self.read_back += block.nbytes if block.on_disk else 0
        while self._used > self._budget and self._victims:
            use, _, block = heappop(self._victims)
            if block.in_memory and not block.pins and -use == block.next_use:
                self._put_out(block)
        self.peak = max(self.peak, self._used)

    def end(self, blocks: Iterable[Block]) -> None:
        """Let blocks be put out again."""
        for block in blocks:
            block.pins -= 1
            if not block.pins:
                self._entries += 1
                heappush(self._victims, (-block.next_use, self._entries, block))

    def drop(self, block: Block) -> None:
        """Forget a block."""
        if block.in_memory:
            block.in_memory = False
            self._used -= block.nbytes

    def _put_out(self, block: Block) -> None:
        if not block.on_disk:
            block.on_disk = True
            self.spilled += block.nbytes
        self.drop(block)
