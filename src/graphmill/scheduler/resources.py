"""Tasks that need something of which there is only so much, as a GPU or a licence: as many at once as fit.

A task that does not fit is set aside until one that runs has ended, and others start in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from graphmill.scheduler.policy import AdmissionQueue, Ledger
from graphmill.scheduler.room import Room
from graphmill.scheduler.state import NO_TASK
from graphmill.types import Key, Rank

#: How much of what.
Amounts = Mapping[str, float]


class ResourceQueue(AdmissionQueue):
    """Ready tasks, those that do not fit what is left of resources set aside.

    Parameters
    ----------
    priority, ledger, results, room
        As for `AdmissionQueue`.
    resources
        How much there is.
    needs
        What tasks need of it; none more than there is.
    """

    __slots__ = ("_aside", "_left", "_needs", "_running")

    def __init__(
        self,
        priority: Rank,
        ledger: Ledger,
        results: Collection[Key],
        room: Room,
        resources: Amounts,
        needs: Mapping[Key, Amounts],
    ) -> None:
        super().__init__(priority, ledger, results, room)
        self._left = dict(resources)
        self._needs = needs
        #: Tasks that wait for resources, in the order in which they were to start.
        self._aside: dict[Key, None] = {}
        #: Tasks that have some.
        self._running: set[Key] = set()

    def take(self) -> Key:
        """Take out the task to start next; `NO_TASK` if none may start now."""
        while True:
            key = super().take()
            if key is NO_TASK or self._fits_resources(key):
                self._reserve(key)
                return key
            self._aside[key] = None

    def next_for_room(self) -> Key:
        """Find the task that memory should be made free for; `NO_TASK` if it is better to wait."""
        key = super().next_for_room()
        return key if key is NO_TASK or self._fits_resources(key) else NO_TASK

    def start(self, key: Key) -> None:
        """Take out a given task, which starts."""
        super().start(key)
        self._reserve(key)

    def end(self, key: Key) -> None:
        """Take back what a task had that has ended, and have those set aside be looked at again."""
        if key not in self._running:
            return
        self._running.discard(key)
        for name, amount in self._needs[key].items():
            self._left[name] += amount
        aside = list(self._aside)
        self._aside.clear()
        if aside:
            self.push(aside)

    def discard(self, key: Key) -> bool:
        """Take out a given task; say whether it was there."""
        if key in self._aside:
            del self._aside[key]
            return True
        return super().discard(key)

    def _fits_resources(self, key: Key) -> bool:
        needs = self._needs.get(key)
        return needs is None or all(amount <= self._left[name] for name, amount in needs.items())

    def _reserve(self, key: Any) -> None:
        needs = self._needs.get(key)
        if needs:
            self._running.add(key)
            for name, amount in needs.items():
                self._left[name] -= amount

    def __contains__(self, key: object) -> bool:
        return key in self._aside or super().__contains__(key)

    def __len__(self) -> int:
        return super().__len__() + len(self._aside)

    def __iter__(self) -> Iterator[Key]:
        yield from super().__iter__()
        yield from self._aside
