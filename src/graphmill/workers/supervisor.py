"""What becomes of a pool's processes: they start, speak, fall silent, die, and are told of.

One supervisor has the workers' handles and the template's, and knows what each event on their channels means.
It waits for nothing and nobody: whoever has the selector calls it with what happened there, and looks at
`events` afterwards.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import time
from typing import Any, Final, TypeAlias

from graphmill.errors import ChannelClosed, PoolError
from graphmill.workers.channel import PollChannel
from graphmill.workers.handle import Handle, Phase
from graphmill.workers.messages import Died, Exited, Failed, Fork, Forked, Hello, Kill, NotForked
from graphmill.workers.place import Surroundings
from graphmill.workers.template_handle import TemplateHandle

_LIMITS: Final = (
    "Limits on processes (ulimit -u), open files (ulimit -n) and memory say how many workers there may be"
)

logger = logging.getLogger(__name__)

#: Seconds from the end of a worker's channel to the end of its process, or from the template's end
#: to that of its workers; then force is used, and after as many again they are taken for dead.
END_LIMIT: Final = 2.0
#: How often a system that has no process to give is asked again, until it is given up; and after how many
#: seconds at first. Each time it is twice as long.
MOST_REFUSALS: Final = 5
FIRST_PAUSE: Final = 0.1
#: What `Pool.poll` gives: the worker's number, and a message of its or `Died`.
Event: TypeAlias = tuple[int, Any]


class Supervisor:
    """Looks after the processes of one pool.

    Parameters
    ----------
    template
        The hold on the process that workers are forked from.
    serve
        What workers run, to be named in errors.
    num_workers
        How many there are to be.
    """

    __slots__ = (
        "_deadlines",
        "_postponed",
        "_serve",
        "events",
        "failure",
        "guarded",
        "selector",
        "surroundings",
        "template",
        "trouble",
        "workers",
    )

    def __init__(self, template: TemplateHandle, serve: str, num_workers: int) -> None:
        self._serve = serve
        self.template = template
        self.workers = [Handle(number) for number in range(num_workers)]
        #: What the template removes if this process dies.
        self.guarded: dict[str, None] = {}
        #: What has happened and was not told yet.
        self.events: list[Event] = []
        #: Why the pool cannot be used any more.
        self.failure: str | None = None
        #: What the next poll must raise.
        self.trouble: str | None = None
        #: When to stop waiting for the end of workers that should have ended, by number.
        self._deadlines: dict[int, float] = {}
        #: When to ask again for workers that could not be forked, by number.
        self._postponed: dict[int, float] = {}
        self.surroundings = Surroundings()
        #: Looks at all channels; None while nothing is started.
        self.selector: selectors.BaseSelector | None = None

    def registry(self) -> selectors.BaseSelector:
        """Get the selector, which is there once the pool has started."""
        assert self.selector is not None
        return self.selector

    def raise_trouble(self) -> None:
        """Raise what keeps the pool from going on, if something does.

        Raises
        ------
        PoolError
            Each trouble once; a failure every time.
        """
        trouble, self.trouble = self.trouble, None
        if self.failure or trouble:
            raise PoolError(self.failure or trouble)

    # ---- the template

    def start_template(self) -> None:
        """Start a template; workers are asked for separately."""
        self.template.start(self.registry(), self.surroundings.here(), self.guarded)

    def tell(self, message: object, descriptor: int | None = None) -> None:
        """Send a message to the template, if there is one."""
        self.template.send(message, descriptor)

    def on_template(self, channel: PollChannel) -> None:
        """Take in what the template says, or that it is gone."""
        for message in self.template.receive(channel):
            self._hear(message)
        if channel.ended:
            self._template_ended()

    def _hear(self, message: object) -> None:
        match message:
            case Forked(worker=number, pid=pid):
                self.template.refusals = 0
                self.workers[number].began(pid)
            case Exited(worker=number, pid=pid, code=code):
                if self.workers[number].pid == pid:
                    died = Died(pid, code, None) if code >= 0 else Died(pid, None, -code)
                    self._bury(self.workers[number], died)
            case NotForked(worker=number, reason=reason):
                self._not_forked(self.workers[number], reason)
            case Failed(reason=reason):
                self.failure = f"Workers cannot run {self._serve}:\n{reason}"
            case _:
                raise PoolError(f"The template process said what nobody understands: {message!r}")

    def _template_ended(self) -> None:
        """The template is gone: its workers go with it, those that it had not begun do not."""
        was_ready = self.template.ready
        self.template.died()
        waiting = False
        for worker in self.workers:
            if worker.phase is Phase.DEAD:
                continue
            if worker.phase is Phase.STARTING and not was_ready:
                waiting = True
                continue
            worker.orphaned = True
            self._deadlines[worker.number] = time.monotonic() + END_LIMIT
            # If its process is not known, it may have begun all the same, and have read some of its
            # messages: they cannot be sent anew. Without this end, the channel's end shows when it is gone.
            worker.hand_over()
            if worker.channel is not None and worker.channel.ended:
                self._bury(worker, Died(worker.pid, None, signal.SIGKILL))
        if waiting and self.failure is None:
            self._start_again()

    def _start_again(self) -> None:
        """Start another template for workers that none has forked yet."""
        if self.template.hopeless:
            self.failure = (
                "The template process ended again and again before it could fork a worker; "
                "what it printed may say why"
            )
            return
        try:
            self.start_template()
        except PoolError as error:
            self.failure = str(error)
            return
        for worker in self.workers:
            if worker.phase is Phase.STARTING and worker.far_end is not None:
                self.tell(Fork(worker.number), worker.far_end.fileno())

    # ---- workers

    def start_worker(self, worker: Handle) -> None:
        """Ask the template for a worker."""
        try:
            descriptor = worker.open(self.registry(), self.template.place)
        except OSError as error:
            self.failure = f"Worker {worker.number} cannot be started: {error}. {_LIMITS}"
            return
        self.tell(Fork(worker.number), descriptor)

    def on_worker(self, worker: Handle, channel: PollChannel, events: int) -> None:
        """Send to a worker, and take in what it says, as its channel allows."""
        try:
            if events & selectors.EVENT_WRITE:
                channel.flush()
            if events & selectors.EVENT_READ:
                self._listen(worker, channel.receive())
                if channel.broken is not None:
                    self.lose(worker, channel, channel.broken)
        except BaseException as error:
            if not self.lose(worker, channel, error):
                raise
        worker.watch(self.registry())
        if channel.ended:
            if worker.orphaned:
                self._bury(worker, Died(worker.pid, None, signal.SIGKILL))
            else:
                self._deadlines.setdefault(worker.number, time.monotonic() + END_LIMIT)

    def _listen(self, worker: Handle, messages: list[Any]) -> None:
        for message in messages:
            if type(message) is Hello:
                worker.began(message.pid)
            else:
                self.events.append((worker.number, message))

    def lose(self, worker: Handle, channel: PollChannel, error: BaseException) -> bool:
        """End a worker whose channel has lost its place: nobody could hear of it any more.

        Returns
        -------
        bool
            Whether the error says no more than that.
        """
        if channel.lost and not channel.ended:
            logger.warning("The channel to worker %d is lost, so it is ended: %r", worker.number, error)
            channel.ended = True
            worker.watch(self.registry())
            self._force(worker)
        return isinstance(error, ChannelClosed)

    def _force(self, worker: Handle) -> None:
        """End a worker that should have ended; its last deadline begins."""
        worker.forced = True
        self._deadlines[worker.number] = time.monotonic() + END_LIMIT
        if not worker.orphaned:
            self.tell(Kill(worker.number))
        elif worker.pid is not None:
            # Its channel is open, so that the process exists, and the number is not another's.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)

    def _bury(self, worker: Handle, died: Died) -> None:
        """Tell a worker's death, after all that it had sent."""
        channel = worker.channel
        try:
            if channel is not None:
                self._listen(worker, channel.drain())
        finally:
            self.events.append((worker.number, died))
            self.forget(worker)

    def _not_forked(self, worker: Handle, reason: str) -> None:
        """Try again later where the system had no process to give; give up after some times."""
        if self.template.refusals >= MOST_REFUSALS:
            self.forget(worker)
            self.failure = f"Worker {worker.number} cannot be started: {reason}. {_LIMITS}"
            return
        pause = FIRST_PAUSE * 2**self.template.refusals
        self.template.refusals += 1
        logger.warning("worker %d cannot be started now (%s): tried again soon", worker.number, reason)
        self._postponed[worker.number] = time.monotonic() + pause

    def forget(self, worker: Handle) -> None:
        """Let go of a worker."""
        self._deadlines.pop(worker.number, None)
        self._postponed.pop(worker.number, None)
        worker.clear(self.registry())

    # ---- limits

    def time_to_next_limit(self, now: float) -> float:
        """Count the seconds until something that is waited for has taken too long."""
        limit = self.template.limit
        limit = min([limit, *self._deadlines.values(), *self._postponed.values()])
        return max(limit - now, 0)

    def check_limits(self) -> None:
        """Act where something has taken too long."""
        if self.time_to_next_limit(now := time.monotonic()) > 0:
            return
        for number, deadline in list(self._deadlines.items()):
            if deadline <= now:
                worker = self.workers[number]
                if worker.forced:
                    self._bury(worker, Died(worker.pid, None, signal.SIGKILL))
                else:
                    self._force(worker)
        for number, moment in list(self._postponed.items()):
            far_end = self.workers[number].far_end
            if moment <= now:
                del self._postponed[number]
                if far_end is not None:
                    self.tell(Fork(number), far_end.fileno())
        self.template.check_limit(now)
