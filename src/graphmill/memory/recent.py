"""The most of something in the last seconds: what is needed now and again, but not what was needed once."""

from __future__ import annotations

import time
from typing import Final

#: Seconds for which a value is remembered at least; at most twice as long.
WINDOW: Final = 3.0


class RecentMost:
    """The largest of the numbers that were noted lately."""

    __slots__ = ("_before", "_now", "_until")

    def __init__(self) -> None:
        #: The largest of this window and of the one before it, and when this one ends.
        self._now = self._before = 0
        self._until = time.monotonic() + WINDOW

    def note(self, number: int) -> None:
        """Take note of a number."""
        self._go_on()
        self._now = max(self._now, number)

    def start_with(self, number: int) -> None:
        """Forget all others."""
        self._now, self._before = number, 0
        self._until = time.monotonic() + WINDOW

    @property
    def most(self) -> int:
        """The largest of those noted lately."""
        self._go_on()
        return max(self._now, self._before)

    def _go_on(self) -> None:
        now = time.monotonic()
        if now >= self._until:
            self._before = self._now if now < self._until + WINDOW else 0
            self._now, self._until = 0, now + WINDOW
