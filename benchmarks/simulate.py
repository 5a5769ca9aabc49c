"""Runs graphs on the real scheduler with pretended workers, on a virtual clock.

Live bytes are those of outputs: a task's output counts from the moment the task starts, as it must
have room by then, until the scheduler says that nobody waits for it. An alias is the very object that it
stands for: it adds nothing, and the object stays for as long as either is held. A task takes a fixed time
and, for every byte that it reads or writes, a little more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from graphmill.graph import Graph
from graphmill.scheduler import Options, Scheduler
from graphmill.scheduler.events import Release, Run, SlotsChanged, TaskFinished

Key = Hashable


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulated run came to."""

    #: The most bytes that were live at once.
    peak: int
    #: How long it took, in units of one task that moves no bytes.
    makespan: float


def simulate(
    graph: Graph,
    results: list[Key],
    priority: Callable[[Key], int],
    nbytes: Mapping[Key, int],
    workers: int,
    options: Options,
) -> Outcome:
    """Run a graph on pretended workers.

    Parameters
    ----------
    graph
        What to run.
    results
        The keys asked for.
    priority
        Static priorities.
    nbytes
        What each output really weighs, in bytes, whatever the scheduler has been told.
    workers
        How many tasks run at once.
    options
        How the scheduler is to pick tasks.
    """
    scheduler = Scheduler(graph, results, priority, {}, options)
    unit = max(1.0, sum(nbytes.values()) / max(1, len(nbytes)))
    sources = graph.sources()
    holders: Counter[Key] = Counter()
    running: list[tuple[float, int, Key]] = []
    now = 0.0
    live = peak = started = 0
    commands = scheduler.handle(SlotsChanged(workers))
    while True:
        for command in commands:
            if type(command) is Run:
                key = command.key
                moved = (
                    0
                    if key in sources
                    else nbytes[key] + sum(nbytes.get(d, 0) for d in graph.dependencies[key])
                )
                source = sources.get(key, key)
                holders[source] += 1
                if source == key:
                    live += nbytes[key]
                started += 1
                heappush(running, (now + 1.0 + moved / unit, started, key))
            elif type(command) is Release and command.key in graph.tasks:
                source = sources.get(command.key, command.key)
                holders[source] -= 1
                if not holders[source] and source in graph.tasks:
                    live -= nbytes[source]
        # Outputs are released when a task is done and before others start; both happen in one step.
        peak = max(peak, live)
        if not running:
            break
        now, _, key = heappop(running)
        commands = scheduler.handle(TaskFinished(key, None))
    if not scheduler.done:
        raise RuntimeError("the scheduler has stopped with work left to do")
    return Outcome(peak, now)
