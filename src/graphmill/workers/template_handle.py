"""The parent's hold on the template: its process, its channel, and how it is started until it is ready.

The only module that starts a program. Knows nothing of single workers: what the template says of them is for
the pool.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from graphmill.errors import ChannelClosed, PoolError
from graphmill.workers import launch
from graphmill.workers.channel import PollChannel
from graphmill.workers.descriptors import STDERR, STDOUT, is_standard, socket_pair
from graphmill.workers.messages import (
    AllEnded,
    EndWorkers,
    Goodbye,
    Guard,
    Importing,
    Place,
    Prepare,
    Ready,
    Spoilt,
)
from graphmill.workers.preload import Preloads

logger = logging.getLogger(__name__)

#: Seconds that a template may take to import everything; then it is started with less.
START_LIMIT: Final = 120.0
#: Templates that end before they are ready, until it is given up.
_START_ATTEMPTS: Final = 4
#: Seconds that a template has to end after a goodbye; it has limits of its own, which are shorter.
CLOSE_LIMIT: Final = 8.0
#: Seconds from the end of its channel to the end of its process; then it is killed.
END_LIMIT: Final = 2.0


class TemplateHandle:
    """The present template of a pool, if there is one.

    Parameters
    ----------
    serve : str
        What workers run, as `module:name`.
    setup : bytes
        What they are told to begin with, pickled.
    preloads : Preloads
        What the template imports.
    num_workers : int
        How many it may have to fork.
    """

    __slots__ = (
        "_attempts",
        "_events",
        "_given_up",
        "_num_workers",
        "_parent",
        "_predecessor",
        "_process",
        "_selector",
        "_serve",
        "_setup",
        "channel",
        "place",
        "preloads",
        "ready",
        "refusals",
        "start_deadline",
    )

    def __init__(self, serve: str, setup: bytes, preloads: Preloads, num_workers: int) -> None:
        self._serve = serve
        self._setup = setup
        self._num_workers = num_workers
        self._parent = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._selector: selectors.BaseSelector | None = None
        #: What the selector looks for on the channel; 0 if it is not registered.
        self._events = 0
        #: Whether it has said that it forks nobody any more.
        self._given_up = False
        #: One that has, and still guards what there is until its successor does.
        self._predecessor: tuple[PollChannel, subprocess.Popen[bytes]] | None = None
        #: How many templates were started since one was ready.
        self._attempts = 0
        #: How often it could not fork a worker since it last could.
        self.refusals = 0
        self.preloads = preloads
        #: The channel to it; None while there is no template.
        self.channel: PollChannel | None = None
        #: Whether it has everything imported, or had when it ended.
        self.ready = False
        #: When it must be ready.
        self.start_deadline = 0.0
        #: Where its workers look for modules and files.
        self.place = Place((), None)

    @property
    def pid(self) -> int | None:
        """Its process; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def limit(self) -> float:
        """Until when to wait for what it has to do now."""
        return self.start_deadline if self.channel is not None and not self.ready else math.inf

    @property
    def hopeless(self) -> bool:
        """Whether so many have ended before they were ready that no other is started."""
        return self._attempts >= _START_ATTEMPTS

    def start(self, selector: selectors.BaseSelector, place: Place, guarded: Iterable[str]) -> None:
        """Start a template, while there is none.

        Parameters
        ----------
        selector
            Looks for what it says.
        place
            Where it looks for modules and files.
        guarded
            What it removes if this process dies.

        Raises
        ------
        PoolError
            If no process can be started here.
        """
        near, far = socket_pair()
        last_attempt = self._attempts == _START_ATTEMPTS - 1
        plan = Prepare(
            parent=self._parent,
            serve=self._serve,
            setup=self._setup,
            preload=self.preloads.plan(sys.modules, nothing=last_attempt),
            deferred=self.preloads.deferred,
            argv=tuple(getattr(sys, "argv", ())),
            workers=self._num_workers,
        )
        try:
            with far:
                self.place = place
                self._process = subprocess.Popen(  # noqa: S603 - the interpreter that runs this
                    launch.command(far.fileno(), place.path),
                    env=launch.environment(os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=_inherited(STDOUT),
                    stderr=_inherited(STDERR),
                    pass_fds=(far.fileno(),),
                    start_new_session=True,
                )
        except OSError as error:
            near.close()
            raise PoolError(f"The template process cannot be started: {error}") from error
        except BaseException:
            near.close()
            raise
        self._attempts += 1
        self.ready = False
        self.start_deadline = time.monotonic() + START_LIMIT
        self.channel = PollChannel(near)
        self._selector = selector
        self._events = selectors.EVENT_READ
        selector.register(self.channel, selectors.EVENT_READ)
        self.send(plan)
        self.send(Guard(tuple(guarded)))
        self._dismiss_predecessor()  # not before: whoever kills this process leaves it to one of them

    # ---- messages

    def send(self, message: object, descriptor: int | None = None) -> None:
        """Send it a message, if there is one; never waits."""
        if self.channel is not None:
            self.channel.send(message, descriptor=descriptor)
            self._watch(self.channel)

    def _watch(self, channel: PollChannel) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)
        if events != self._events:
            self._registry().modify(channel, events)
            self._events = events

    def receive(self, channel: PollChannel) -> list[Any]:
        """Send what is unsent, and get what it says of workers; whether it has ended, the channel tells."""
        messages: list[Any] = []
        try:
            channel.flush()
            messages = channel.receive()
            if channel.broken is not None and self._process is not None:
                logger.warning("The template process says what cannot be read: %r", channel.broken)
                self._process.kill()
                channel.ended = True
        except ChannelClosed:
            channel.ended = True
        except BaseException:
            if channel.lost and self._process is not None:
                self._process.kill()  # so that the next poll finds the channel's end
            raise
        if not channel.ended:
            self._watch(channel)
        left = [message for message in messages if not self._hear(message)]
        if self._given_up:
            channel.ended = True  # it has nothing more to say
        return left

    def _hear(self, message: object) -> bool:
        """Take in what it says of itself; False if that is something else."""
        match message:
            case Importing(module=module):
                self.preloads.importing(module)
            case Ready(failed=failed):
                self.ready = True
                self._attempts = 0
                self.preloads.done(failed)
            case Spoilt(blamed=blamed, innocent=innocent):
                self._given_up = True
                self.preloads.started_threads(blamed, innocent, again=self._attempts > 1)
            case _:
                return False
        return True

    # ---- the end

    def check_limit(self, now: float) -> None:
        """Kill it if it should have been ready: what it imports does not end. Another is started without."""
        if self._process is not None and self.limit <= now:
            self._process.kill()
            self.start_deadline = now + START_LIMIT

    def end(self, meanwhile: Callable[[], object]) -> None:
        """Have it end, with all workers, and wait for that; whatever else it says is of no interest any more.

        Parameters
        ----------
        meanwhile
            Called once there are no workers any more, while the template still guards what there is to guard.
        """
        deadline = time.monotonic() + CLOSE_LIMIT
        self.send(EndWorkers())
        self._wait_for(AllEnded, deadline)
        try:
            meanwhile()
        finally:
            self.send(Goodbye())
            self._wait_for(None, deadline)
            self.let_go()

    def _wait_for(self, answer: type | None, deadline: float) -> None:
        """Wait for a message of a kind, or for the channel's end."""
        channel = self.channel
        while channel is not None and not channel.ended and (left := deadline - time.monotonic()) > 0:
            self._watch(channel)
            if not any(key.fileobj is channel for key, _ in self._registry().select(left)):
                continue
            channel.flush()
            if any(type(message) is answer for message in channel.receive()) or channel.lost:
                return

    def died(self) -> None:
        """Let go of it after its channel's end."""
        if self._given_up:
            self._retire()
        else:
            self.let_go()
        if not self.ready:
            self.preloads.died(again=self._attempts > 1)

    def _retire(self) -> None:
        """Let it stay as a guard until it has a successor."""
        self._given_up = False
        channel, process = self.channel, self._process
        self.channel = self._process = None
        if channel is not None and process is not None:
            self._unregister(channel)
            self._predecessor = channel, process

    def _dismiss_predecessor(self) -> None:
        predecessor, self._predecessor = self._predecessor, None
        if predecessor is not None:
            channel, process = predecessor
            channel.send(Goodbye())
            channel.close()
            _wait_for_end(process)

    def _unregister(self, channel: PollChannel) -> None:
        if self._events:
            self._registry().unregister(channel)
        self._events = 0

    def let_go(self) -> None:
        """Close its channel, and see that its process ends; may be called again."""
        self._given_up = False
        channel, self.channel = self.channel, None
        if channel is not None:
            self._unregister(channel)
            channel.close()
        process, self._process = self._process, None
        if process is not None:
            _wait_for_end(process)
        self._dismiss_predecessor()

    def abandon(self) -> None:
        """Close what a forked process has inherited, and touch nothing that it shares with its parent."""
        ends: list[tuple[PollChannel | None, subprocess.Popen[bytes] | None]] = [
            (self.channel, self._process)
        ]
        if self._predecessor is not None:
            ends.append(self._predecessor)
        for channel, process in ends:
            if channel is not None:
                channel.close()
            if process is not None:
                process.returncode = 0  # it is not this process's child

    def _registry(self) -> selectors.BaseSelector:
        assert self._selector is not None
        return self._selector


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    """See that a process ends whose channel was closed, by force if it has to be."""
    try:
        process.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            logger.warning("The template process %d does not end, though it was killed", process.pid)


def _inherited(descriptor: int) -> int | None:
    """Say what a child gets as its standard output or error: ours, or none if we have none."""
    return None if is_standard(descriptor) else subprocess.DEVNULL
