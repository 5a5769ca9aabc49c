"""Tasks that go along with those that they wait for.

A worker that is given quick tasks gets with them others that can run once those are done. So a chain or a
tree of small tasks takes one message where it would take one for each step. The scheduler knows nothing of
it: when it says that such a task is to be run, what became of it is there already.

A value that only tasks in the same batch need never leaves their worker.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from graphmill.engine.seats import Flight
from graphmill.memory.block import Encoded
from graphmill.scheduler.events import TaskFinished
from graphmill.scheduler.state import State
from graphmill.types import Key, Priority
from graphmill.workers.work import Report

#: Tasks with more users, and users that wait for more tasks, are not looked at: that would take long.
_MOST = 32


class Ahead:
    """What one run has sent along, and what became of it.

    Parameters
    ----------
    state
        The run's; only looked at.
    results
        The keys asked for.
    priority
        Of two tasks that could go along, the one with the smaller figure does.
    seconds
        How long a task is expected to take; None if it cannot go along.
    shows
        Whether all values will be wanted here.
    """

    def __init__(
        self,
        state: State,
        results: Collection[Key],
        priority: Priority,
        seconds: Callable[[Key], float | None],
        *,
        shows: bool,
    ) -> None:
        self._state = state
        self._results = results
        self._priority = priority
        self._seconds = seconds
        self._shows = shows
        #: Of tasks that were run, and are yet to be asked for.
        self._news: dict[Key, TaskFinished] = {}
        self._reports: dict[Key, tuple[Flight, Report, int]] = {}
        #: Tasks that a worker may have died of.
        self._suspects: set[Key] = set()

    def followers(
        self, tasks: Collection[Key], seconds: float, most: int, *, in_line: bool
    ) -> Iterator[tuple[Key, float]]:
        """Find tasks that can run once others are done, one after the other.

        Parameters
        ----------
        tasks
            The others. They are about to be sent to one worker.
        seconds
            How long what is found may take, all in all.
        most
            How many there may be.
        in_line
            Whether only tasks count that no other worker could run at the same time: where others have
            nothing to do.

        Yields
        ------
        Key, float
            A task, and the seconds that it is expected to take. It needs nothing but what is there, `tasks`,
            and what came before it.
        """
        waiting, users_of = self._state.waiting, self._state.waiting_data
        inside = set(tasks)
        turn = list(tasks)
        for key in turn:  # it gets longer meanwhile
            users = users_of.get(key, ())
            if len(users) > (1 if in_line else _MOST):
                continue
            for user in sorted(users, key=self._priority) if len(users) > 1 else users:
                missing = waiting.get(user)
                if user in inside or missing is None or len(missing) > _MOST or not missing <= inside:
                    continue
                takes = None if user in self._suspects else self._seconds(user)
                if takes is None:
                    continue
                seconds -= takes
                if seconds < 0 or len(turn) >= len(tasks) + most:
                    return
                inside.add(user)
                turn.append(user)
                yield user, takes

    def inner(self, places: dict[Key, int], followers: Collection[Key]) -> tuple[tuple[int, int], ...]:
        """Find values that nobody needs but tasks of the same batch: their places there, and by how many."""
        if self._shows:
            return ()
        found = []
        for key, place in places.items():
            users = self._state.waiting_data.get(key, ())
            if not 0 < len(users) <= _MOST or key in self._results:
                continue
            if all(user in followers for user in users):
                found.append((place, len(users)))
        return tuple(found)

    def inputs(self, key: Key) -> tuple[Collection[Key], dict[Key, Any]]:
        """Get the keys of a task's inputs, and what stands for those that are there."""
        needs, cache = self._state.dependencies[key], self._state.cache
        return needs, {dep: cache[dep] for dep in needs if dep in cache}

    # ---- what became of them

    def suspect(self, keys: Iterable[Key]) -> None:
        """Take note that a worker died when it had tasks that went along: they do so no more."""
        self._suspects.update(keys)

    def is_suspect(self, key: Key) -> bool:
        """Tell whether a task must be by itself, so that it shows whether its worker dies of it."""
        return key in self._suspects

    def keep(
        self, key: Key, outcome: bytes | int | Report, flight: Flight, worker: int, seconds: float
    ) -> None:
        """Take note of what became of a task that was sent along."""
        if not isinstance(outcome, Report):
            self._news[key] = finished(key, outcome, worker, seconds)
        elif not outcome.refused:  # else it is to be run with as much memory as it wants
            self._reports[key] = flight, outcome._replace(seconds=seconds), worker

    def news(self, key: Key) -> TaskFinished | None:
        """Get the news of a task that is to be run, if there is nothing to tell but its value."""
        return self._news.pop(key, None) if self._news else None

    def report(self, key: Key) -> tuple[Flight, Report, int] | None:
        """Get the report of a task that is to be run, and from which worker, if there is one."""
        return self._reports.pop(key, None) if self._reports else None

    def left(self) -> list[Report]:
        """Get the reports that nobody has asked for; may be called again."""
        left = [report for _, report, _ in self._reports.values()]
        self._reports.clear()
        return left


def finished(key: Key, told: bytes | int, worker: int, seconds: float) -> TaskFinished:
    """Make the news of a task of which there is nothing to tell but its value, or the size of that."""
    # A value that nobody needs any more is never read.
    payload, nbytes = (b"", told) if isinstance(told, int) else (told, len(told))
    return TaskFinished(key, Encoded(payload, (), nbytes), nbytes, worker, seconds, 0)


def size(outcome: bytes | int | Report | None) -> int | None:
    """Get the size of a value, where nothing else is to be told of its task."""
    if isinstance(outcome, int):
        return outcome
    return len(outcome) if isinstance(outcome, bytes) else None
