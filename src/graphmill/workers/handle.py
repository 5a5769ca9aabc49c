"""The parent's hold on one worker: its channel, its process, and what is known of both."""

from __future__ import annotations

import selectors
import socket
from dataclasses import dataclass
from enum import Enum, auto

from graphmill.workers.channel import PollChannel
from graphmill.workers.descriptors import socket_pair
from graphmill.workers.messages import Place


class Phase(Enum):
    """Where a worker stands."""

    #: Asked for; its process is not known yet.
    STARTING = auto()
    #: Its process runs, as far as is known.
    RUNNING = auto()
    #: Its process is gone, and that has been told.
    DEAD = auto()


@dataclass(slots=True)
class Handle:
    """A place for a worker, and who has it now."""

    #: From 0.
    number: int
    phase: Phase = Phase.DEAD
    #: Our end of its channel, until its death was told.
    channel: PollChannel | None = None
    #: Its end, until it is known to have it.
    far_end: socket.socket | None = None
    #: Its process, once known.
    pid: int | None = None
    #: Where it looks for modules and files, as far as it was told.
    place: Place | None = None
    #: What the selector looks for on the channel; 0 if it is not registered.
    events: int = 0
    #: Its template is gone, and nobody will tell how it ended.
    orphaned: bool = False
    #: It was ended by force, since its time was up.
    forced: bool = False

    def open(self, selector: selectors.BaseSelector, place: Place) -> int:
        """Make a channel for a new worker, and give the descriptor of its end."""
        near, far = socket_pair()
        self.channel, self.far_end = PollChannel(near), far
        self.phase = Phase.STARTING
        self.place = place
        self.orphaned = self.forced = False
        self.watch(selector)
        return far.fileno()

    def began(self, pid: int) -> None:
        """Note that a process has the place."""
        self.pid = pid
        self.phase = Phase.RUNNING
        self.hand_over()

    def hand_over(self) -> None:
        """Close the end of the channel that the worker has got."""
        far_end, self.far_end = self.far_end, None
        if far_end is not None:
            far_end.close()

    def watch(self, selector: selectors.BaseSelector) -> None:
        """Have the selector look for what can happen to the channel."""
        channel = self.channel
        if channel is None or channel.ended:
            events = 0  # it would be readable for ever
        else:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.unsent else 0)
        if events == self.events or channel is None:
            return
        if not events:
            selector.unregister(channel)
        elif self.events:
            selector.modify(channel, events, self)
        else:
            selector.register(channel, events, self)
        self.events = events

    def clear(self, selector: selectors.BaseSelector) -> None:
        """Let go of the worker."""
        self.hand_over()
        channel, self.channel = self.channel, None
        if channel is not None:
            if self.events:
                selector.unregister(channel)
            self.events = 0
            channel.close()
        self.pid = None
        self.phase = Phase.DEAD

    def abandon(self) -> None:
        """Close what a forked process has inherited, and touch nothing that it shares with its parent."""
        for end in (self.channel, self.far_end):
            if end is not None:
                end.close()
