"""The parent's side of the worker processes: starts, feeds, watches, restarts and ends them.

Knows nothing of tasks: it carries messages, and tells who has died. Nothing here waits for a process
except `poll`, which the caller gives a limit, and `close`, which has its own. How the template is started
that workers are forked from is the matter of `template_handle`; what becomes of them, that of `supervisor`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import selectors
import socket
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

from graphmill.errors import PoolError, UnsupportedPlatform
from graphmill.workers import leftovers
from graphmill.workers.descriptors import socket_pair
from graphmill.workers.handle import Handle, Phase
from graphmill.workers.messages import (
    ANY_TASK,
    Guard,
    Interrupt,
    Kill,
    Unguard,
)
from graphmill.workers.preload import Preloads
from graphmill.workers.signals import InterruptHold
from graphmill.workers.supervisor import Event, Supervisor
from graphmill.workers.template_handle import TemplateHandle

#: A pool can grow to so many workers, or to what it started with if that is more; each costs a few bytes.
MOST_WORKERS: Final = 256

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
    close_at_exit : bool, optional
        Whether to close the pool when the interpreter ends. Not where others may use it still, on other
        threads: whoever knows of them closes it then.

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
        "_close_at_exit",
        "_closed",
        "_most",
        "_pid",
        "_supervisor",
        "_template",
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
        close_at_exit: bool = True,
    ) -> None:
        self._closed = True  # until there is something to close
        if sys.platform == "win32":
            raise UnsupportedPlatform(
                "The shared-memory pool of worker processes needs Linux or macOS; on Windows, "
                "graphmill.local.get_sync and graphmill.local.get_async run the same graphs"
            )
        if num_workers < 1:
            raise ValueError(f"A pool needs at least one worker; got {num_workers}")
        packed = pickle.dumps(setup, pickle.HIGHEST_PROTOCOL)
        self._most = max(num_workers, MOST_WORKERS)
        self._template = TemplateHandle(serve, packed, Preloads(preload), self._most)
        self._supervisor = Supervisor(self._template, serve, num_workers)
        self._workers = self._supervisor.workers
        self._pid = os.getpid()
        self._close_at_exit = close_at_exit
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
            if self._supervisor.selector is not None and os.getpid() == self._pid:
                warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "new" if self._supervisor.selector is None else "started"
        return f"<Pool of {len(self._workers)} workers, {state}>"

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        return len(self._workers)

    def add(self) -> int:
        """Have a place for one more worker, which `restart` starts; get its number.

        Raises
        ------
        PoolError
            If there are as many as there can be.
        """
        self._require_usable()
        number = len(self._workers)
        if number >= self._most:
            raise PoolError(f"A pool has {self._most} workers at most")
        self._workers.append(Handle(number))
        return number

    @property
    def template_pid(self) -> int | None:
        """The process that workers are forked from; None while there is none."""
        return self._template.pid

    @property
    def failed(self) -> bool:
        """Whether it cannot be used any more: each `poll` raises why."""
        return self._supervisor.failure is not None

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
        if self._supervisor.selector is not None:
            return
        with InterruptHold():
            try:
                selector = self._supervisor.selector = selectors.DefaultSelector()
                self._wake_ends = socket_pair()
                for end in self._wake_ends:
                    end.setblocking(False)
                selector.register(self._wake_ends[0], selectors.EVENT_READ)
                self._supervisor.start_template()
            except BaseException as error:
                self._close_descriptors()
                if isinstance(error, OSError):
                    raise PoolError(f"Worker processes cannot be started: {error}") from error
                raise
            _remember(self)
            for worker in self._workers:
                self._supervisor.start_worker(worker)

    def close(self, meanwhile: Callable[[], object] = list) -> None:
        """End all workers, whatever they do, and let go of everything; may be called again.

        It takes as long as processes need to end, and no longer than `template_handle.CLOSE_LIMIT` and some.

        Parameters
        ----------
        meanwhile : callable, optional
            Removes what is guarded: called once no worker is left, and while somebody still does it if this
            process is killed. Not called if the pool was never started.
        """
        if self._closed:
            return
        if os.getpid() != self._pid:
            self._abandon()
            return
        self._closed = True
        if self._supervisor.selector is None:
            return  # it never started
        with InterruptHold():
            _open_pools.discard(self)
            for worker in self._workers:
                self._supervisor.forget(worker)
            self._template.end(meanwhile)
            self._close_descriptors()
            self._supervisor.events.clear()

    def restart(self, worker: int) -> None:
        """Start a worker anew, after its `Died` was told.

        Raises
        ------
        PoolError
            If it is not dead.
        """
        self._require_usable()
        place = self._workers[worker]
        if self._supervisor.selector is None or place.phase is not Phase.DEAD:
            raise PoolError(f"Worker {worker} cannot be started again: it is not dead")
        with InterruptHold():
            if self._template.channel is None:
                self._supervisor.start_template()
            self._supervisor.start_worker(place)

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
            here = self._supervisor.surroundings.here()
            try:
                if place.place is not here:
                    channel.send(here)
                    place.place = here
                channel.send(*messages)
            except BaseException as error:
                if not self._supervisor.lose(place, channel, error):
                    raise
            place.watch(self._supervisor.registry())

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
                supervisor = self._supervisor
                ready = supervisor.events or self._woken or supervisor.failure or supervisor.trouble
                left = 0 if ready else max(deadline - now, 0)
                self._step(hold, min(left, self._supervisor.time_to_next_limit(now)))
                if self._supervisor.events:
                    break
                self._supervisor.raise_trouble()
                if self._woken or time.monotonic() >= deadline:
                    break
            self._woken = False
        # Only now: a Ctrl-C that was held back is raised above, and then the next call gives these.
        supervisor = self._supervisor
        events, supervisor.events = supervisor.events, []
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
        self._supervisor.guarded.update(dict.fromkeys(names))

    def unguard(self, *paths: str | os.PathLike[str]) -> None:
        """Guard files and folders no more."""
        names = tuple(os.fspath(path) for path in paths)
        for name in names:
            self._supervisor.guarded.pop(name, None)
        self._tell(Unguard(names))

    def _tell(self, message: object) -> None:
        """Send a message to the template, if there is one."""
        self._require_usable()
        with InterruptHold():
            self._supervisor.tell(message)

    # ---- parts

    def _step(self, hold: InterruptHold, timeout: float) -> None:
        """Wait once, and deal with what happened."""
        hold.open_window()
        try:
            ready = self._supervisor.registry().select(timeout)
        finally:
            hold.close_window()
        for key, events in ready:
            source = key.fileobj
            worker: Handle | None = key.data
            if worker is not None:
                channel = worker.channel
                # What came before in this list may have let go of it.
                if channel is not None and source is channel:
                    self._supervisor.on_worker(worker, channel, events)
            elif source is self._template.channel:
                self._supervisor.on_template(source)
            elif self._wake_ends is not None and source is self._wake_ends[0]:
                self._wake_ends[0].recv(4096)
                self._woken = True
        self._supervisor.check_limits()

    def _require_usable(self) -> None:
        if os.getpid() != self._pid:
            raise PoolError("The pool belongs to the process that made it, and this is another one")
        if self._closed:
            raise PoolError("The pool is closed")

    def _close_descriptors(self) -> None:
        supervisor = self._supervisor
        selector, supervisor.selector = supervisor.selector, None
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
            if pool._close_at_exit:  # noqa: SLF001 - the same module
                pool.close()


def _abandon_all() -> None:
    for pool in list(_open_pools):
        pool._abandon()  # noqa: SLF001 - the same module
    _open_pools.clear()
