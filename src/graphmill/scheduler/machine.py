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
from graphmill.scheduler.estimates import Estimates, batch_of
from graphmill.scheduler.events import (
    Abort,
    BudgetChanged,
    Cancelled,
    Command,
    Event,
    Release,
    RoomChanged,
    Run,
    SlotsChanged,
    Spill,
    TaskFailed,
    TaskFinished,
    TaskLost,
    TaskTooBig,
)
from graphmill.scheduler.policy import AdmissionQueue, Ledger, ReadyQueue, Selection
from graphmill.scheduler.recompute import Recompute
from graphmill.scheduler.resources import ResourceQueue
from graphmill.scheduler.room import Room
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
    #: What is learned of tasks while they run. With it, a task that is over soon takes only a part of a slot,
    #: and bytes are counted though no `sizes` are known.
    estimates: Estimates | None = None
    #: The room there is at the start, if memory is limited; needs `estimates`, and selection by priority.
    room: RoomChanged | None = None
    #: Says whether a value is better made again than moved to disk and back. Its task must give the same
    #: each time, and need only data of the graph; None if there is no such value.
    recompute: Callable[[Key], bool] | None = None
    #: How much there is of what tasks may need besides memory, and how much of it they need; no task needs
    #: more than there is. Needs `estimates`, and selection by priority.
    resources: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)
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
        "_estimates",
        "_handlers",
        "_keeps_all",
        "_options",
        "_priority",
        "_recompute",
        "_shares",
        "_taken",
        "ledger",
        "results",
        "room",
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
        self._estimates = estimates = options.estimates
        self.ledger: Ledger | None = None
        if options.sizes is not None or estimates is not None:
            self.ledger = Ledger(dict(options.sizes or {}), options.budget, estimates, graph.sources())
        aliases = {} if self.ledger is None else self.ledger.aliases
        self.room = Room(estimates or Estimates(), priority, self.results, aliases)
        if options.room is not None:
            self._set_room(options.room)
        #: How much of the slots running tasks take: all together, and those that take less than a whole one.
        self._taken = 0.0
        self._shares: dict[Key, float] = {}
        self._options = options
        self._priority = priority
        self._recompute = Recompute(priority, options.recompute)
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
            TaskTooBig: self._on_too_big,
            BudgetChanged: self._on_budget,
            RoomChanged: self._on_room,
            Cancelled: self._on_cancelled,
        }

    def _ready_by_policy(self) -> Ready:
        if self._options.selection is Selection.LIFO:
            return ReadyStack()
        if self.ledger is None or (self.ledger.budget is None and self._estimates is None):
            return ReadyQueue(self._priority)
        rank = self._priority if self._options.recompute is None else self._recompute.rank
        queue = rank, self.ledger, self.results, self.room
        if self._options.needs:
            return ResourceQueue(*queue, self._options.resources, self._options.needs)
        return AdmissionQueue(*queue)

    @property
    def done(self) -> bool:
        """Whether nothing is left to be run or waited for."""
        state = self.state
        if self.stopped:
            return not state.running
        return not (state.running or state.waiting or state.ready)

    def handle(self, event: Event, *, more: bool = False) -> list[Command]:
        """Take in an event.

        Parameters
        ----------
        event
            What happened.
        more
            Whether something else has happened that is told next: nothing is started before.

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
        if not self.stopped and not more:
            self._start_tasks(commands)
        return commands

    def _start_tasks(self, commands: list[Command]) -> None:
        state, ledger, slots = self.state, self.ledger, self.slots
        running, ready = state.running, state.ready
        while ready and self._taken < slots:
            key = ready.take()
            if key is NO_TASK:
                key = self._make_room(commands)
            if key is NO_TASK:
                return
            allowance = None
            if isinstance(ready, AdmissionQueue):
                need = ready.need(key)
                if not running and not self.room.fits(need):
                    need = ready.least_need(key)
                allowance = self.room.start(key, need, slots)
            running.add(key)
            if ledger is not None:
                ledger.start(key)
            self._taken += self._share(key)
            commands.append(Run(key, allowance))

    def _make_room(self, commands: list[Command]) -> Key:
        """Have values moved to disk for the task that should run next; return it if it may run then."""
        ready, room, ledger = self.state.ready, self.room, self.ledger
        if room.free is None or ledger is None or not isinstance(ready, AdmissionQueue):
            return NO_TASK
        key = ready.next_for_room()
        if key is NO_TASK:
            return NO_TASK
        need = ready.need(key) if self.state.running else ready.least_need(key)
        kept = self.results | self.state.dependencies[key]
        for victim in room.victims(need, key, ledger.sizes, self.state):
            if victim not in kept and ledger.freed(victim) and self._recompute.allows(victim, self.state):
                value = self._recompute.let_go(victim, self.state, ready)
                room.release(victim, ledger.freed(victim))
                ledger.release(victim)
                commands.append(Release(victim, value, key))
                continue
            commands.append(Spill(victim, self.state.cache[victim]))
            room.spill(victim, ledger.sizes[ledger.aliases.get(victim, victim)])
        if self.state.running and not room.fits(need):
            return NO_TASK
        # With nothing else in memory it gets all there is; whether that is enough, only it can show.
        ready.start(key)
        return key

    def _share(self, key: Key) -> float:
        """Tell how much of a slot a task takes that starts."""
        if self._estimates is None:
            return 1.0
        share = self._estimates.share(key)
        if share < 1:
            self._shares[key] = share
        return share

    def _on_finished(self, event: TaskFinished, commands: list[Command]) -> None:
        key, state = event.key, self.state
        self._stop_running(key)
        state.finished.add(key)
        state.cache[key] = event.value
        if self.ledger is not None:
            self.ledger.finish(key, event.nbytes)
            self.room.end(key, self.ledger.expected(key), event.taken)
        if self._estimates is not None and self._estimates.learn(
            key, event.seconds, event.nbytes, event.taken
        ):
            self._expect_other_size(key)
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
            state.ready.look_again()

    def _let_go(self, idle: list[Key], by: Key, commands: list[Command]) -> None:
        """Release values that nobody waits for, unless they were asked for."""
        state, ledger = self.state, self.ledger
        if len(idle) > 1:
            idle.sort(key=self._priority)
        for key in idle:
            if key in self.results:
                continue
            if ledger is not None:
                self.room.release(key, ledger.freed(key))
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
        self._put_back(key)
        attempts = self._attempts[key] = self._attempts.get(key, 0) + 1
        if attempts > limit and not self.stopped:
            self.stopped = True
            commands.append(Abort(key, event.error))

    def _put_back(self, key: Key) -> None:
        """Let a task that was running be ready again."""
        self._stop_running(key)
        if self.ledger is not None:
            self.ledger.release(key)
        self.room.end(key, 0)
        self.state.ready.push([key])

    def _on_too_big(self, event: TaskTooBig, commands: list[Command]) -> None:
        key, room = event.key, self.room
        given = room.given.get(key, 0)
        if event.capacity is not None:
            room.set(room.free, event.capacity)
        # Told in one piece after the other: the next one may be too much again, so more than asked for.
        need = max(event.need, given + given // 2)
        if event.need <= room.capacity and given < room.capacity:
            need = min(need, room.capacity)
        elif len(self.state.running) == 1 and not self.stopped and not room.may_do_alone(key, event.need):
            self.stopped = True
            commands.append(Abort(key, event.error))
        # Else it is tried again once nothing else runs: what others have for themselves is not there for it.
        room.found[key] = need
        self._put_back(key)

    def _on_room(self, event: RoomChanged, _: list[Command]) -> None:
        self._set_room(event)

    def _set_room(self, event: RoomChanged) -> None:
        self.room.set(event.free, event.capacity)
        self.room.spills = event.spills
        self.room.stay(event.stayed)

    def _on_slots(self, event: SlotsChanged, _: list[Command]) -> None:
        self.slots = event.slots

    def _on_budget(self, event: BudgetChanged, _: list[Command]) -> None:
        if self.ledger is not None:
            self.ledger.budget = event.budget

    def _expect_other_size(self, key: Key) -> None:
        if isinstance(self.state.ready, AdmissionQueue):
            self.state.ready.expect_other_size(batch_of(key))

    def _on_cancelled(self, _: Cancelled, __: list[Command]) -> None:
        self.stopped = True

    def _stop_running(self, key: Key) -> None:
        running = self.state.running
        try:
            running.remove(key)
            if isinstance(self.state.ready, ResourceQueue):
                self.state.ready.end(key)
            self._taken -= self._shares.pop(key, 1.0)
            if not running:
                self._taken = 0.0  # sums of fractions drift
        except KeyError:
            raise InvalidTransition(
                f"{key!r} has ended, but was not running\n{self.state.story(key)}"
            ) from None
