"""How much is spilled under a limit, next to an optimum that knows everything: simulated, in seconds.

For each graph family, a run is simulated on the real scheduler with pretended workers, whose memory is a
share of what the order needs on one worker. What it moves to disk is compared with what Belady's choice
would have had to on the same run (`benchmarks.belady`). Outputs have the sizes that they really have; the
scheduler learns them as it would from an engine.

    python -m benchmarks.spill                       # all families, at a half and an eighth of the peak
    python -m benchmarks.spill rechunk svd --share 0.25 --workers 8
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import product
from math import inf

from benchmarks.belady import optimum
from benchmarks.families import FAMILIES, Case
from benchmarks.trace import Event as Traced
from benchmarks.trace import Finished, Released, Started
from graphmill.engine.budget import Budget
from graphmill.graph import Graph, read_graph
from graphmill.order import measure_order, order_graph
from graphmill.scheduler import Options, Scheduler, Selection
from graphmill.scheduler.estimates import QUICK, Estimates
from graphmill.scheduler.events import (
    Abort,
    BudgetChanged,
    Command,
    Event,
    Release,
    RoomChanged,
    Run,
    SlotsChanged,
    Spill,
    TaskFinished,
    TaskTooBig,
)
from graphmill.types import Key

#: Simulated chunks are some KiB; values as small as that would never be moved.
SCALE = 512


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated run came to."""

    #: Bytes moved to disk.
    spilled: int
    #: Bytes that Belady's choice would have moved on the same run.
    least: int
    #: The most bytes that were in memory, with what running tasks took.
    peak: int
    #: How often a task was run again, for want of memory.
    again: int
    makespan: float


@dataclass(slots=True)
class Machine:
    """Pretended workers under a limit, and an engine that does as `graphmill.engine` does."""

    graph: Graph
    scheduler: Scheduler
    estimates: Estimates
    budget: Budget
    nbytes: Mapping[Key, int]
    #: Bytes that each task takes besides its inputs.
    takes: Mapping[Key, int]
    limit: int
    #: The task whose output each alias really is.
    sources: Mapping[Key, Key]
    held: dict[Key, int] = field(default_factory=dict)
    #: How many keys have each output.
    holders: Counter[Key] = field(default_factory=Counter)
    on_disk: set[Key] = field(default_factory=set)
    #: What running tasks may take.
    given: dict[Key, int] = field(default_factory=dict)
    running: list[tuple[float, int, Key]] = field(default_factory=list)
    #: Memory as it was when all commands had been followed.
    then: RoomChanged | None = None
    trace: list[Traced] = field(default_factory=list)
    now: float = 0.0
    peak: int = 0
    spilled: int = 0
    started: int = 0
    again: int = 0
    #: Bytes that take as long as a task that moves none.
    unit: float = 1.0

    def resident(self) -> int:
        """Count the bytes of values in memory."""
        return sum([size for key, size in self.held.items() if key not in self.on_disk])

    def run(self, slots: int) -> None:
        """Run the graph on so many workers."""
        self.follow(self.scheduler.handle(SlotsChanged(slots)))
        while not self.scheduler.done:
            self.now, _, key = heappop(self.running)
            self.tell(self.end(key))

    def end(self, key: Key) -> Event:
        """Say what becomes of a task."""
        may = self.given.pop(key)
        if key in self.graph.aliases:
            self.holders[self.sources[key]] += 1
            return TaskFinished(key, "an alias")
        takes = self.takes[key]
        if takes > may:
            self.again += 1
            self.estimates.learn(key, taken=takes)
            return TaskTooBig(key, takes, MemoryError(key))
        self.holders[key] = 1
        self.held[key] = self.nbytes[key]
        self.trace.append(Finished(repr(key), {repr(key): self.nbytes[key]}))
        return TaskFinished(key, "a value", self.nbytes[key], seconds=QUICK, taken=takes)

    def tell(self, event: Event) -> None:
        """Tell the scheduler what has happened, the memory as it was before that, and a new budget."""
        events: list[Event] = []
        budget = self.budget.look(1, sum(self.held.values()))
        if budget is not None:
            events.append(BudgetChanged(budget))
        if self.then is not None:
            events.append(self.then)
            self.then = None
        events.append(event)
        commands: list[Command] = []
        for left, each in zip(range(len(events) - 1, -1, -1), events, strict=True):
            commands += self.scheduler.handle(each, more=left > 0)
        self.follow(commands)

    def follow(self, commands: list[Command]) -> None:
        """Do what the scheduler says."""
        for command in commands:
            if type(command) is Run:
                self.start(command)
            elif type(command) is Spill:
                source = self.sources.get(command.key, command.key)
                self.on_disk.add(source)
                self.spilled += self.held[source]
            elif type(command) is Release:
                self.release(self.sources.get(command.key, command.key))
            elif type(command) is Abort:
                raise command.error
        taken = sum(min(may, self.takes.get(key, 0)) for key, may in self.given.items())
        self.peak = max(self.peak, self.resident() + taken)
        self.then = self.room()

    def release(self, source: Key) -> None:
        """Let go of an output once no key has it any more."""
        self.holders[source] -= 1
        if not self.holders[source] and source in self.held:
            del self.held[source]
            self.trace.append(Released(repr(source)))
            self.on_disk.discard(source)

    def room(self) -> RoomChanged:
        """Tell how much memory there is."""
        free = self.limit - self.resident() - sum(self.given.values())
        return RoomChanged(free, self.limit, self.budget.peak > self.limit)

    def start(self, command: Run) -> None:
        """Begin a task."""
        key = command.key
        self.given[key] = command.allowance or 0
        inputs = {self.sources.get(dep, dep) for dep in self.graph.dependencies[key]}
        moved = 0
        if key not in self.graph.aliases:
            moved = self.nbytes[key] + sum(self.nbytes.get(dep, 0) for dep in inputs)
            self.trace.append(Started(repr(key), tuple(sorted(map(repr, inputs)))))
        self.started += 1
        heappush(self.running, (self.now + 1.0 + moved / self.unit, self.started, key))


def simulate(case: Case, takes: Mapping[Key, int], *, workers: int, limit: int) -> Outcome:
    """Run a graph on pretended workers with so much memory.

    Parameters
    ----------
    case
        The graph, and the size of each output in bytes.
    takes
        Bytes that each task takes besides its inputs, with its output.
    workers
        How many tasks run at once.
    limit
        Bytes of memory.
    """
    graph = read_graph(case.dsk, case.keys)
    priorities = order_graph(graph, results=case.keys).priorities
    estimates = Estimates()
    budget = Budget(graph, priorities, case.keys, estimates, workers)
    budget.began = -inf  # the time here is pretended: as if there were plenty
    room = RoomChanged(limit, limit, spills=False)
    options = Options(Selection.PRIORITY, estimates=estimates, room=room)
    scheduler = Scheduler(graph, case.keys, priorities.__getitem__, {}, options)
    machine = Machine(graph, scheduler, estimates, budget, case.nbytes, takes, limit, graph.sources())
    machine.unit = max(1.0, sum(case.nbytes.values()) / max(1, len(case.nbytes)))
    machine.run(workers)
    least = optimum(machine.trace, limit).spilled
    return Outcome(machine.spilled, least, machine.peak, machine.again, machine.now)


def scaled(name: str) -> Case:
    """Build a family with blocks as large as those that move to disk."""
    case = FAMILIES[name]()
    return replace(case, nbytes={key: size * SCALE for key, size in case.nbytes.items()})


def sequential_peak(case: Case) -> int:
    """Get the most bytes that are live at once on one worker."""
    graph = read_graph(case.dsk, case.keys)
    priorities = order_graph(graph, results=case.keys).priorities
    return measure_order(graph, priorities, case.nbytes, case.keys).peak


def working_set(case: Case, takes: Mapping[Key, int]) -> int:
    """Get the most bytes that one task takes, inputs included."""
    return max(
        takes[key] + sum([case.nbytes.get(dep, 0) for dep in deps]) for key, deps in case.dependencies.items()
    )


def row(name: str, workers: int, share: float, limit: int, out: Outcome) -> str:
    """Lay out one run."""
    ratio = out.spilled / out.least if out.least else 1.0 if not out.spilled else inf
    return (
        f"{name:<22}{workers:>3}{share:7.2f}{out.spilled / 1e6:9.0f}{out.least / 1e6:8.0f}{ratio:7.2f}"
        f"{out.peak / limit:7.2f}{out.again:7}{out.makespan:8.0f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate, and print a line for each run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.spill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("families", nargs="*", choices=[[], *FAMILIES], help="some of them")
    parser.add_argument("--share", type=float, nargs="+", default=[0.5, 0.125], help="of the order's peak")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--scratch", type=float, default=0.3, help="what tasks take besides, in outputs")
    given = parser.parse_args(arguments)
    print(
        f"{'family':<22}{'W':>3}{'share':>7}{'spilled':>9}{'least':>8}{'ratio':>7}{'peak':>7}{'again':>7}"
        f"{'time':>8}  (MB; peak in limits)"
    )
    total = Counter[str]()
    for name in given.families or FAMILIES:
        case = scaled(name)
        takes = {key: int(size * (1 + given.scratch)) for key, size in case.nbytes.items()}
        peak, most = sequential_peak(case), working_set(case, takes)
        for workers, share in product(given.workers, given.share):
            # With less than that, no choice is left.
            limit = max(int(share * peak), workers * most * 5 // 4)
            out = simulate(case, takes, workers=workers, limit=limit)
            total.update(spilled=out.spilled, least=out.least)
            print(row(name, workers, limit / peak, limit, out), flush=True)
    spilled, least = total["spilled"], total["least"]
    print(f"all: {spilled / 1e6:.0f} MB, at least {least / 1e6:.0f} MB; ratio {spilled / max(1, least):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
