"""The scheduler: an event in, commands out.

The driver tells what happened (`events`), and does what it is told: run a task, give a value back, give up.
The scheduler keeps the `State`, picks the next task by the chosen policy, releases each value as soon as
nobody waits for it, and counts attempts. It starts no task that it has no slot for, and none after a
failure.

Pure: no clock, no randomness, no I/O. The same events give the same commands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from graphmill.errors import InvalidTransition
from graphmill.graph.model import Graph
from graphmill.scheduler.events import (
    Abort,
    Cancelled,
    Command,
    Event,
    Release,
    Run,
    SlotsChanged,
    TaskFailed,
    TaskFinished,
    TaskLost,
)
from graphmill.scheduler.policy import AdmissionQueue, Ledger, ReadyQueue, Selection
from graphmill.scheduler.state import NO_TASK, Ready, ReadyStack, start_state
from graphmill.types import Key, Priority


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is scheduled."""

    #: How the next of the ready tasks is picked.
    selection: Selection = Selection.LIFO
    #: The size of each task's output in bytes, as far as it is known; without it, bytes are not counted.
    sizes: Mapping[Key, int] | None = None
    #: How many bytes may be live before tasks that grow memory are held back; needs `sizes`, and
    #: selection by priority.
    budget: int | None = None
    #: How often a task may be run again after it was lost or has failed.
    retries: Mapping[Key, int] = field(default_factory=dict)
    #: The same for tasks that `retries` does not name.
    lost_retries: int = 0


class Scheduler:
    """Drives one graph from its start to its results.

    Parameters
    ----------
    graph
        What to run.
    results
        The keys asked for, whose values are kept; all of them keys of the graph.
    priority
        Static priorities, the smallest first; no two tasks may share one.
    cache
        Values that are there already, and where the others are put.
    options
        How to pick tasks, what their outputs weigh, how often to try again.
    """

    __slots__ = (
        "_attempts",
        "_handlers",
        "_keeps_all",
        "_options",
        "_priority",
        "ledger",
        "results",
        "slots",
        "state",
        "stopped",
    )

    def __init__(
        self,
        graph: Graph,
        results: Collection[Key],
        priority: Priority,
        cache: MutableMapping[Key, Any],
        options: Options = Options(),
    ) -> None:
        self.results = frozenset(results)
        self.slots = 0
        #: Nothing new is started any more: the run has failed or was cancelled.
        self.stopped = False
        self.ledger = (
            None if options.sizes is None else Ledger(dict(options.sizes), options.budget, graph.sources())
        )
        self._options = options
        self._priority = priority
        self._attempts: dict[Key, int] = {}
        #: Every value was asked for, so that none is ever let go.
        self._keeps_all = len(self.results) == len(graph.dependencies)
        ready = self._ready_by_policy()
        if isinstance(ready, AdmissionQueue):
            # Which tasks grow memory can only be told once the state is there.
            self.state = ready.state = start_state(graph, cache, priority)
            fresh, self.state.ready = self.state.ready, ready
            ready.push(fresh)
        else:
            self.state = start_state(graph, cache, priority, ready)
        if self.ledger is not None:
            for key in graph.dependencies:
                if key not in graph.tasks:
                    self.ledger.start(key)  # values that are there from the start weigh too
        self._handlers: dict[type, Callable[[Any, list[Command]], None]] = {
            TaskFinished: self._on_finished,
            TaskFailed: self._on_failed,
            TaskLost: self._on_lost,
            SlotsChanged: self._on_slots,
            Cancelled: self._on_cancelled,
        }

    def _ready_by_policy(self) -> Ready:
        if self._options.selection is Selection.LIFO:
            return ReadyStack()
        if self.ledger is None or self.ledger.budget is None:
            return ReadyQueue(self._priority)
        return AdmissionQueue(self._priority, self.ledger, self.results)

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run or waited for."""
        state = self.state
        if self.stopped:
            return not state.running
        return not (state.running or state.waiting or state.ready)

    def handle(self, event: Event) -> list[Command]:
        """Take in an event.

        Parameters
        ----------
        event
            What happened.

        Returns
        -------
        list of Command
            What to do now, in this order.

        Raises
        ------
        InvalidTransition
            If the event cannot happen in the present state: a bug in the driver.
        """
        commands: list[Command] = []
        self._handlers[type(event)](event, commands)
        if not self.stopped:
            self._start_tasks(commands)
        return commands

    def _start_tasks(self, commands: list[Command]) -> None:
        state, ledger, slots = self.state, self.ledger, self.slots
        running, ready = state.running, state.ready
        while ready and len(running) < slots:
            key = ready.take()
            if key is NO_TASK:
                return
            running.add(key)
            if ledger is not None:
                ledger.start(key)
            commands.append(Run(key))

    def _on_finished(self, event: TaskFinished, commands: list[Command]) -> None:
        key, state = event.key, self.state
        self._stop_running(key)
        state.finished.add(key)
        state.cache[key] = event.value
        if self.ledger is not None:
            self.ledger.finish(key, event.nbytes)
        if state.waiting_data:
            idle = state.forget(key)
            if idle:
                self._let_go(idle, key, commands)
        if not self._keeps_all and key not in state.waiting_data:
            self._let_go([key], key, commands)
        if state.waiting:
            woken = state.wake(key)
            if woken:
                if len(woken) > 1:
                    woken.sort(key=self._priority, reverse=True)
                state.ready.push(woken)
        if isinstance(state.ready, AdmissionQueue):
            self._reconsider_last_users(state.ready, key)

    def _let_go(self, idle: list[Key], by: Key, commands: list[Command]) -> None:
        """Release values that nobody waits for, unless they were asked for."""
        state, ledger = self.state, self.ledger
        if len(idle) > 1:
            idle.sort(key=self._priority)
        for key in idle:
            if key in self.results:
                continue
            if ledger is not None:
                ledger.release(key)
            commands.append(Release(key, state.release(key), by))

    def _reconsider_last_users(self, ready: AdmissionQueue, key: Key) -> None:
        waiting_data = self.state.waiting_data
        for dep in self.state.dependencies[key]:
            users = waiting_data.get(dep)
            if users is not None and len(users) == 1:
                ready.reconsider(*users)

    def _on_failed(self, event: TaskFailed, commands: list[Command]) -> None:
        self._try_again(event, self._options.retries.get(event.key, 0), commands)

    def _on_lost(self, event: TaskLost, commands: list[Command]) -> None:
        limit = self._options.retries.get(event.key, self._options.lost_retries)
        self._try_again(event, limit, commands)

    def _try_again(self, event: TaskFailed | TaskLost, limit: int, commands: list[Command]) -> None:
        key = event.key
        self._stop_running(key)
        if self.ledger is not None:
            self.ledger.release(key)
        self.state.ready.push([key])
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        if attempts > limit and not self.stopped:
            self.stopped = True
            commands.append(Abort(key, event.error))

    def _on_slots(self, event: SlotsChanged, _: list[Command]) -> None:
        self.slots = event.slots

    def _on_cancelled(self, _: Cancelled, __: list[Command]) -> None:
        self.stopped = True

    def _stop_running(self, key: Key) -> None:
        try:
            self.state.running.remove(key)
        except KeyError:
            raise InvalidTransition(
                f"{key!r} has ended, but was not running\n{self.state.story(key)}"
            ) from None
