"""Whose turn it is: one thread at a time has an engine's workers and memory, and one waits for all others.

An engine has no thread of its own. Whichever thread has nothing else to do polls the workers, and takes in
what they say for every run; the others wait for that thread, or for their own news.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from graphmill.engine.crew import Crew
from graphmill.engine.limit import Limit
from graphmill.errors import EngineClosed
from graphmill.workers.pool import Pool
from graphmill.workers.signals import InterruptHold

#: Longest time between two looks at what else might have happened, in seconds.
PULSE = 1.0


class Waiting(Protocol):
    """Whoever waits for workers."""

    @property
    def has_news(self) -> bool:
        """Whether there is something to look at."""


class Turns:
    """Gives threads their turns at the pool, and at all that must be in order when another looks at it.

    Attributes
    ----------
    lock
        Held by whoever changes anything; told when a thread ends to poll or to have access.
    closed
        Whether there are no more turns.
    tidy
        Called when nobody has access any more, to do what had to wait for that.
    """

    def __init__(self) -> None:
        self._pool: Pool
        self._crew: Crew
        self._limit: Limit
        self.lock = threading.Condition(threading.RLock())
        self.closed = False
        self.tidy: Callable[[], None] = _nothing
        #: Whether some thread waits for what the pool has to tell.
        self._polling = False
        #: How many threads want the pool.
        self._wanting = 0
        #: How deep the thread that has the lock is in what must not be disturbed.
        self._depth = 0

    def begin(self, pool: Pool, crew: Crew, limit: Limit) -> None:
        """Know which processes to poll, who hears what they tell, and who looks after memory meanwhile."""
        self._pool, self._crew, self._limit = pool, crew, limit

    @contextlib.contextmanager
    def access(self) -> Iterator[None]:
        """Have workers, blocks and memory for oneself; Ctrl-C waits until that is over."""
        lock = self.lock
        with InterruptHold(), lock:
            self._wanting += 1
            try:
                while self._polling:
                    self._pool.wake()
                    lock.wait(PULSE)
                if self.closed:
                    raise EngineClosed("The engine was closed while a graph ran")
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                    self._tidy_up()
            finally:
                self._wanting -= 1
                if not self._wanting:
                    lock.notify_all()

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Look at everything and change nothing, whoever polls; the lock is held.

        Blocks and workers change only under the lock, and that is free while a thread polls.
        """
        self._depth += 1  # a view that dies here must change nothing that is looked at
        try:
            yield
        finally:
            self._depth -= 1
            if not self._polling:
                self._tidy_up()

    def tidy_soon(self) -> None:
        """Tidy up at once if nobody is at work, else soon; at any moment, on any thread."""
        if self.lock.acquire(blocking=False):
            try:
                if not (self._polling or self.closed):
                    self._tidy_up()
            finally:
                self.lock.release()

    def _tidy_up(self) -> None:
        if self._depth:
            return
        self._depth += 1
        try:
            self.tidy()
        finally:
            self._depth -= 1

    def wait(self, who: Waiting, seconds: float | None = None) -> None:
        """Wait until somebody has news, for so many seconds at most; look after all others meanwhile."""
        self.wait_until(lambda: who.has_news, seconds)

    def wait_until(self, done: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait for something that what the pool tells may bring about, for so many seconds at most."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self.lock:
            while not done():
                left = PULSE if deadline is None else min(PULSE, deadline - time.monotonic())
                if left <= 0:
                    return
                self._turn(left)

    def look(self) -> None:
        """Take in what has happened, without waiting."""
        with self.lock:
            if not self._polling:
                self._turn(0)

    def _turn(self, timeout: float) -> None:
        """Wait for what the pool tells, or for the thread that does; Ctrl-C comes through only then."""
        with InterruptHold() as hold:
            if self.closed:
                raise EngineClosed("The engine was closed while a graph ran")
            if self._polling or self._wanting:
                hold.open_window()
                self.lock.wait(timeout)
                hold.close_window()
                return
            with self.access():
                self._crew.level()  # all has been given out that there was
            timeout = min(timeout, self._crew.keep_to_time_limits(time.monotonic()))
            self._polling = True
            self.lock.release()
            try:
                events = self._pool.poll(timeout)
            finally:
                self.lock.acquire()
                self._polling = False
                self.lock.notify_all()
            if self.closed:
                raise EngineClosed("The engine was closed while a graph ran")
            if events:
                with self.access():
                    self._crew.take_in(events)
                    self._crew.flush()
            else:
                self._limit.look()  # so that it is known what a task took that ends its worker

    def close(self) -> None:
        """Give no more turns, and have whoever polls come back; the lock is held."""
        self.closed = True
        if self._polling:
            self._pool.wake()
        deadline = time.monotonic() + PULSE
        while self._polling and time.monotonic() < deadline:
            self.lock.wait(0.1)

    def abandon(self) -> None:
        """In a forked process: give no more turns; whoever had the lock is not in this process."""
        self.closed = True
        self.lock = threading.Condition(threading.RLock())


def _nothing() -> None:
    """Do what there is to tidy up before there is anything."""
