"""Values that are let go before their last use, and made again when that comes.

Where a value can be made again from what lies on disk anyway, and faster than it could be moved there and
back, it need not move. Its task goes back among those that are ready, with a rank just before the task that
needs it next: with its own it would be the next to run.

A value is let go so only once. If memory is short again, it moves to disk as others do; else two values that
a task needs at once could push each other out for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from graphmill.scheduler.state import State
from graphmill.types import Key, Priority

#: Ranks of tasks that run again lie so far apart; many fit between two whole numbers.
_STEP = 2.0**-20


class Waiting(Protocol):
    """Ready tasks, as far as it matters here."""

    def discard(self, key: Key) -> bool:
        """Take out a given task; say whether it was there."""

    def push(self, keys: list[Key]) -> None:
        """Add tasks."""


@dataclass(slots=True)
class Recompute:
    """Which values are made again, and when."""

    #: Static priorities.
    priority: Priority
    #: Says whether a value is better made again than moved to disk; None if none is.
    is_better: Callable[[Key], bool] | None = None
    #: The rank of each task that has run and is to run again.
    ranks: dict[Key, float] = field(default_factory=dict)

    def rank(self, key: Key) -> float:
        """Get the rank of a task among those that are ready."""
        rank = self.ranks.get(key) if self.ranks else None
        return self.priority(key) if rank is None else rank

    def allows(self, key: Key, state: State) -> bool:
        """Say whether a value may be let go, and is better made again than moved.

        Its users and inputs must be there as they were before its task ran. That no other key has the same
        value, and that nobody asked for it, is for the caller to know.
        """
        return (
            self.is_better is not None
            and key not in self.ranks
            and bool(state.waiting_data.get(key))
            and key in state.finished
            and state.dependencies[key] <= state.cache.keys()
            and self.is_better(key)
        )

    def let_go(self, key: Key, state: State, ready: Waiting) -> Any:
        """Let go of a value, and have its task run again; return the value, for its owner to free."""
        users = state.waiting_data[key]
        self.ranks[key] = min(map(self.priority, users)) - 0.5 - _STEP * len(self.ranks)
        for user in users:
            if ready.discard(user):
                state.waiting[user] = {key}
            else:
                state.waiting[user] = {*state.waiting[user], key}
        for dep in state.dependencies[key]:
            state.waiting_data[dep] = {*state.waiting_data.get(dep, ()), key}
        state.finished.discard(key)
        value = state.cache.pop(key)
        ready.push([key])
        return value
