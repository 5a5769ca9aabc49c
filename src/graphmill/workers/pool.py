"""The parent's side of the worker processes: starts, feeds, watches, restarts and ends them.

Knows nothing of tasks: it carries messages, and tells who has died. Nothing here waits for a process
except `poll`, which the caller gives a limit, and `close`, which has its own. How the template is started
that workers are forked from is the matter of `template_handle`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import selectors
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeAlias
from weakref import WeakSet

from graphmill.errors import ChannelClosed, PoolError, UnsupportedPlatform
from graphmill.workers import leftovers
from graphmill.workers.channel import PollChannel
from graphmill.workers.descriptors import socket_pair
from graphmill.workers.handle import Handle, Phase
from graphmill.workers.messages import (
    ANY_TASK,
    Died,
    Exited,
    Failed,
    Fork,
    Forked,
    Guard,
    Hello,
    Interrupt,
    Kill,
    NotForked,
    Unguard,
)
from graphmill.workers.place import Surroundings
from graphmill.workers.preload import Preloads
from graphmill.workers.signals import InterruptHold
from graphmill.workers.template_handle import TemplateHandle

logger = logging.getLogger(__name__)

#: Seconds from the end of a worker's channel to the end of its process, or from the template's end
#: to that of its workers; then force is used, and after as many again they are taken for dead.
END_LIMIT: Final = 2.0
#: What `Pool.poll` gives: the worker's number, and a message of its or `Died`.
Event: TypeAlias = tuple[int, Any]

#: Pools to be closed when the interpreter ends, and let go of after a fork.
_open_pools: WeakSet[Pool] = WeakSet()


class Pool:
    """Worker processes on this machine.

    All methods are for one thread at a time, save `wake`. A process forked from this one cannot use
    the pool, and does not disturb it.

    Parameters
    ----------
    num_workers : int
        How many.
    serve : str
        What each of them runs until its channel ends, as `module:name`; it is called with a
        `graphmill.workers.child.WorkerChannel`.
    setup : object, optional
        A small record that pickles; each worker finds it as `channel.setup`.
    preload : sequence of str, optional
        Modules that are imported before workers are forked, as far as they can be. By default those
        of a list of well-known libraries that this process has imported.

    Raises
    ------
    UnsupportedPlatform
        On Windows.

    Examples
    --------
    >>> with Pool(2, serve="mypackage.mymodule:serve") as pool:  # doctest: +SKIP
    ...     pool.send(0, "ping")
    ...     pool.poll(timeout=10)
    [(0, 'pong')]
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_deadlines",
        "_events",
        "_failure",
        "_guarded",
        "_pid",
        "_selector",
        "_serve",
        "_surroundings",
        "_template",
        "_trouble",
        "_wake_ends",
        "_woken",
        "_workers",
    )

    def __init__(
        self,
        num_workers: int,
        *,
        serve: str,
        setup: object = None,
        preload: Sequence[str] | None = None,
    ) -> None:
        self._closed = True  # until there is something to close
        if sys.platform == "win32":
            raise UnsupportedPlatform(
                "The shared-memory pool of worker processes needs Linux or macOS; on Windows, "
                "graphmill.local.get_sync and graphmill.local.get_async run the same graphs"
            )
        if num_workers < 1:
            raise ValueError(f"A pool needs at least one worker; got {num_workers}")
        self._serve = serve
        packed = pickle.dumps(setup, pickle.HIGHEST_PROTOCOL)
        self._template = TemplateHandle(serve, packed, Preloads(preload), num_workers)
        self._workers = [Handle(number) for number in range(num_workers)]
        self._guarded: dict[str, None] = {}
        self._events: list[Event] = []
        #: Why the pool cannot be used any more.
        self._failure: str | None = None
        #: What the next poll must raise.
        self._trouble: str | None = None
        #: When to stop waiting for the end of workers that should have ended, by number.
        self._deadlines: dict[int, float] = {}
        self._surroundings = Surroundings()
        self._pid = os.getpid()
        self._selector: selectors.BaseSelector | None = None
        self._wake_ends: tuple[socket.socket, socket.socket] | None = None
        self._woken = False
        self._closed = False

    # ---- life

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            if self._selector is not None and os.getpid() == self._pid:
                warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._selector is None else "started"
        return f"<Pool of {len(self._workers)} workers, {state}>"

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    @property
    def template_pid(self) -> int | None:
        """The process that workers are forked from; None while there is none."""
        return self._template.pid

    @property
    def left_out(self) -> dict[str, str]:
        """Modules that workers do not share, and why: each that needs one imports it for itself."""
        return dict(self._template.preloads.left_out)

    def pid(self, worker: int) -> int | None:
        """Give a worker's process id; None while it starts, before its first message, and once it is dead."""
        return self._workers[worker].pid

    def start(self) -> None:
        """Start the workers, unless they are; returns at once, while they are still on their way.

        `send` and `poll` do it by themselves.

        Raises
        ------
        PoolError
            If processes cannot be started here, or the pool is closed, or belongs to another process.
        """
        self._require_usable()
        if self._selector is not None:
            return
        with InterruptHold():
            self._selector = selectors.DefaultSelector()
            self._wake_ends = socket_pair()
            for end in self._wake_ends:
                end.setblocking(False)
            self._selector.register(self._wake_ends[0], selectors.EVENT_READ)
            try:
                self._start_template()
            except BaseException:
                self._close_descriptors()
                raise
            _remember(self)
            for worker in self._workers:
                self._start_worker(worker)

    def close(self) -> None:
        """End all workers, whatever they do, and let go of everything; may be called again.

        It takes as long as processes need to end, and no longer than `template_handle.CLOSE_LIMIT` and some.
        """
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._abandon()
            return
        self._closed = True
        if self._selector is None:
            return  # it never started
        with InterruptHold():
            _open_pools.discard(self)
            for worker in self._workers:
                self._forget(worker)
            self._template.end()
            self._close_descriptors()
            self._events.clear()

    def restart(self, worker: int) -> None:
        """Start a worker anew, after its `Died` was told.

        Raises
        ------
        PoolError
            If it is not dead.
        """
        self._require_usable()
        place = self._workers[worker]
        if self._selector is None or place.phase is not Phase.DEAD:
            raise PoolError(f"Worker {worker} cannot be started again: it is not dead")
        with InterruptHold():
            if self._template.channel is None:
                self._start_template()
            self._start_worker(place)

    # ---- messages

    def send(self, worker: int, *messages: object) -> None:
        """Send messages to a worker, in one piece; never waits.

        What does not go out at once is sent during `poll`. Messages to a worker that is dying go
        nowhere: its `Died` is on the way.

        Parameters
        ----------
        worker : int
            Its number.
        *messages
            Anything that pickles.

        Raises
        ------
        PoolError
            If the worker's death was told, and it was not started again.
        """
        self.start()
        place = self._workers[worker]
        channel = place.channel
        if channel is None:
            raise PoolError(f"Worker {worker} is dead; restart it first")
        with InterruptHold():
            here = self._surroundings.here()
            try:
                if place.place is not here:
                    channel.send(here)
                    place.place = here
                channel.send(*messages)
            except BaseException as error:
                if not self._lose(place, channel, error):
                    raise
            place.watch(self._registry())

    def poll(self, timeout: float) -> list[Event]:
        """Wait for messages of workers, and for deaths.

        Ctrl-C ends the wait at any time, and loses nothing: what has arrived is given by the next call.
        To be safe from Ctrl-C also between this call and the use of what it gives, hold it back with
        an `InterruptHold` around both: it still ends the wait in here.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most; 0 takes what is there.

        Returns
        -------
        list of (int, object)
            The worker's number, and either a message or `Died`. A worker's messages come in the order
            in which it sent them, its `Died` after the last of them, once. Empty if the time was up, or
            after `wake`.

        Raises
        ------
        PoolError
            If workers cannot be started.
        """
        self.start()
        deadline = time.monotonic() + timeout
        with InterruptHold() as hold:
            while True:
                now = time.monotonic()
                ready = self._events or self._woken or self._failure or self._trouble
                left = 0 if ready else max(deadline - now, 0)
                self._step(hold, min(left, self._time_to_next_limit(now)))
                if self._events:
                    break
                self._raise_trouble()
                if self._woken or time.monotonic() >= deadline:
                    break
            self._woken = False
        # Only now: a Ctrl-C that was held back is raised above, and then the next call gives these.
        events, self._events = self._events, []
        return events

    def wake(self) -> None:
        """End the `poll` that goes on, or else the next one, early; for use from any thread."""
        self._woken = True
        ends = self._wake_ends
        if ends is not None:
            try:
                ends[1].send(b"\0")
            except (BlockingIOError, BrokenPipeError):
                pass  # woken often enough already
            except OSError:
                if not self._closed:
                    raise

    # ---- power over workers

    def interrupt(self, worker: int, task: int = ANY_TASK) -> None:
        """Raise KeyboardInterrupt in a task, if the worker runs it.

        It takes effect between two steps of Python code: a long call into C ends first, and a task
        may catch it. Nothing tells whether it had an effect but what the worker sends.

        Parameters
        ----------
        worker : int
            The worker's number.
        task : int, optional
            The number that the worker gives to `TaskInterrupts.run`. If the task has ended, nothing
            happens; if it has not begun, it is interrupted when it does. Without it, whichever task
            runs is meant, and none if none does.
        """
        self._tell(Interrupt(worker, task))

    def kill(self, worker: int) -> None:
        """End a worker's process at once; `Died` will follow."""
        self._tell(Kill(worker))

    # ---- leftovers

    def guard(self, *paths: str | os.PathLike[str]) -> None:
        """Have files and folders removed if this process dies without closing the pool.

        Parameters
        ----------
        *paths
            Absolute paths whose last part begins with `graphmill-<this process>-`. They need not exist
            yet, so tell them before they do.

        Raises
        ------
        ValueError
            If a path could mean anything but a file or folder that this process made for itself.
        """
        names = tuple(os.fspath(path) for path in paths)
        for name in names:
            if not leftovers.is_own(name, self._pid):
                raise ValueError(
                    f"{name!r} will not be removed for anybody: only an absolute path whose last part begins "
                    f"with {leftovers.mark(self._pid)!r} is sure to be this process's own"
                )
        self._tell(Guard(names))
        self._guarded.update(dict.fromkeys(names))

    def unguard(self, *paths: str | os.PathLike[str]) -> None:
        """Guard files and folders no more."""
        names = tuple(os.fspath(path) for path in paths)
        for name in names:
            self._guarded.pop(name, None)
        self._tell(Unguard(names))

    # ---- the template

    def _start_template(self) -> None:
        self._template.start(self._registry(), self._surroundings.here(), self._guarded)

    def _tell(self, message: object, descriptor: int | None = None) -> None:
        """Send a message to the template, if there is one."""
        self._require_usable()
        with InterruptHold():
            self._template.send(message, descriptor)

    def _on_template(self, channel: PollChannel) -> None:
        for message in self._template.receive(channel):
            self._hear(message)
        if channel.ended:
            self._template_ended()

    def _hear(self, message: object) -> None:
        match message:
            case Forked(worker=number, pid=pid):
                self._workers[number].began(pid)
            case Exited(worker=number, pid=pid, code=code):
                if self._workers[number].pid == pid:
                    died = Died(pid, code, None) if code >= 0 else Died(pid, None, -code)
                    self._bury(self._workers[number], died)
            case NotForked(worker=number, reason=reason):
                self._forget(self._workers[number])
                self._trouble = f"Worker {number} cannot be started: {reason}"
            case Failed(reason=reason):
                self._failure = f"Workers cannot run {self._serve}:\n{reason}"
            case _:
                raise PoolError(f"The template process said what nobody understands: {message!r}")

    def _template_ended(self) -> None:
        """The template is gone: its workers go with it, those that it had not begun do not."""
        was_ready = self._template.ready
        self._template.died()
        waiting = False
        for worker in self._workers:
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
        if waiting and self._failure is None:
            self._start_again()

    def _start_again(self) -> None:
        """Start another template for workers that none has forked yet."""
        if self._template.hopeless:
            self._failure = (
                "The template process ended again and again before it could fork a worker; "
                "what it printed may say why"
            )
            return
        try:
            self._start_template()
        except PoolError as error:
            self._failure = str(error)
            return
        for worker in self._workers:
            if worker.phase is Phase.STARTING and worker.far_end is not None:
                self._tell(Fork(worker.number), worker.far_end.fileno())

    # ---- workers

    def _start_worker(self, worker: Handle) -> None:
        descriptor = worker.open(self._registry(), self._template.place)
        self._tell(Fork(worker.number), descriptor)

    def _on_worker(self, worker: Handle, channel: PollChannel, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                channel.flush()
            if events & selectors.EVENT_READ:
                self._listen(worker, channel.receive())
        except BaseException as error:
            if not self._lose(worker, channel, error):
                raise
        worker.watch(self._registry())
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
                self._events.append((worker.number, message))

    def _lose(self, worker: Handle, channel: PollChannel, error: BaseException) -> bool:
        """End a worker whose channel has lost its place: nobody could hear of it any more.

        Returns
        -------
        bool
            Whether the error says no more than that.
        """
        if channel.lost and not channel.ended:
            logger.warning("The channel to worker %d is lost: %s", worker.number, error)
            channel.ended = True
            worker.watch(self._registry())
            self._force(worker)
        return isinstance(error, ChannelClosed)

    def _force(self, worker: Handle) -> None:
        """End a worker that should have ended; its last deadline begins."""
        worker.forced = True
        self._deadlines[worker.number] = time.monotonic() + END_LIMIT
        if not worker.orphaned:
            self._tell(Kill(worker.number))
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
            self._events.append((worker.number, died))
            self._forget(worker)

    def _forget(self, worker: Handle) -> None:
        """Let go of a worker."""
        self._deadlines.pop(worker.number, None)
        worker.clear(self._registry())

    # ---- waiting

    def _step(self, hold: InterruptHold, timeout: float) -> None:
        """Wait once, and deal with what happened."""
        hold.open_window()
        try:
            ready = self._registry().select(timeout)
        finally:
            hold.close_window()
        for key, events in ready:
            source = key.fileobj
            worker: Handle | None = key.data
            if worker is not None:
                channel = worker.channel
                # What came before in this list may have let go of it.
                if channel is not None and source is channel:
                    self._on_worker(worker, channel, events)
            elif source is self._template.channel:
                self._on_template(source)
            elif self._wake_ends is not None and source is self._wake_ends[0]:
                self._wake_ends[0].recv(4096)
                self._woken = True
        self._check_limits()

    def _time_to_next_limit(self, now: float) -> float:
        """Count the seconds until something that is waited for has taken too long."""
        limit = self._template.limit
        if self._deadlines:
            limit = min(limit, *self._deadlines.values())
        return max(limit - now, 0)

    def _check_limits(self) -> None:
        if self._time_to_next_limit(now := time.monotonic()) > 0:
            return
        for number, deadline in list(self._deadlines.items()):
            if deadline <= now:
                worker = self._workers[number]
                if worker.forced:
                    self._bury(worker, Died(worker.pid, None, signal.SIGKILL))
                else:
                    self._force(worker)
        self._template.check_limit(now)

    # ---- parts

    def _registry(self) -> selectors.BaseSelector:
        assert self._selector is not None
        return self._selector

    def _require_usable(self) -> None:
        if os.getpid() != self._pid:
            raise PoolError("The pool belongs to the process that made it, and this is another one")
        if self._closed:
            raise PoolError("The pool is closed")

    def _raise_trouble(self) -> None:
        trouble, self._trouble = self._trouble, None
        if self._failure or trouble:
            raise PoolError(self._failure or trouble)

    def _close_descriptors(self) -> None:
        selector, self._selector = self._selector, None
        if selector is not None:
            selector.close()
        ends, self._wake_ends = self._wake_ends, None
        for end in ends or ():
            end.close()

    def _abandon(self) -> None:
        """In a process forked from the pool's: close what was inherited, and touch nothing else.

        Not even the selector's entries, which are the same ones as the parent's. The template must
        see its channel end when the parent does.
        """
        self._closed = True
        for worker in self._workers:
            worker.abandon()
        self._template.abandon()
        with contextlib.suppress(OSError):  # some systems do not pass on the selector's descriptor
            self._close_descriptors()


def _remember(pool: Pool) -> None:
    """See that a pool is closed at the end of the interpreter, and left alone by forked processes."""
    global _hooked  # noqa: PLW0603 - once in a process, for there is no way to take a fork hook back
    if not _hooked:
        _hooked = True
        atexit.register(_close_all)
        os.register_at_fork(after_in_child=_abandon_all)
    _open_pools.add(pool)


_hooked = False


def _close_all() -> None:
    # The program ends as it is: another Ctrl-C has nothing left to stop.
    with contextlib.suppress(KeyboardInterrupt), InterruptHold():
        for pool in list(_open_pools):
            pool.close()


def _abandon_all() -> None:
    for pool in list(_open_pools):
        pool._abandon()  # noqa: SLF001 - the same module
    _open_pools.clear()
