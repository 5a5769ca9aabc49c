"""The template: a process with one thread that imports once, and then forks the workers.

It is told by the parent whom to fork, interrupt and kill, and tells who has ended, and how. When the
parent ends without a goodbye, in whatever way, the template kills the workers and removes the files
that it was told to guard.

Started by `workers/template_handle.py` with nothing but `sys.path` and a descriptor; everything else comes
in the first message.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import mmap
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from graphmill.errors import PoolError
from graphmill.workers import leftovers
from graphmill.workers.channel import DescriptorChannel
from graphmill.workers.child import FAILURE, Child, Serve, flush_output, lead_group
from graphmill.workers.deferred import deferring
from graphmill.workers.messages import (
    AllEnded,
    EndWorkers,
    Exited,
    Failed,
    Fork,
    Forked,
    Goodbye,
    Guard,
    Importing,
    Interrupt,
    Kill,
    NotForked,
    Prepare,
    Ready,
    Spoilt,
    Unguard,
)
from graphmill.workers.signals import TaskInterrupts

#: Seconds that workers have to end by themselves after a goodbye.
GRACE: Final = 0.5
#: Seconds from the end of the parent's descriptors to its own, at most.
_ORPHAN_LIMIT: Final = 5.0
#: Seconds that the system has to end a process after SIGKILL.
_KILL_LIMIT: Final = 5.0
#: Seconds that a thread may still be about to end before a fork.
_SETTLE_LIMIT: Final = 0.2

#: From <malloc.h>.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
#: What glibc keeps at the top of the heap instead of returning it.
_KEEP: Final = 256 << 20
#: Larger requests are mapped, and so touched for the first time each time. Older glibc allows 32 MiB.
_MAP_FROM: Final = (1 << 30, 32 << 20)

#: Bytes per worker of the memory that says which task to interrupt: two integers, a line of cache.
_SLOT: Final = 64
_SLOT_USED: Final = 16


def main(descriptor: int) -> NoReturn:
    """Be the template, and in the processes that it forks, be a worker; never returns.

    Parameters
    ----------
    descriptor : int
        The control channel.
    """
    code = FAILURE
    try:
        gc.disable()  # whatever is collected here would be touched, and so copied, in every worker
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.set_inheritable(descriptor, False)
        template = Template(DescriptorChannel(socket.socket(fileno=descriptor)))
        child = template.run()
        code = 0 if child is None else child.run()
    except BaseException:  # noqa: BLE001 - nobody is left above who could handle it
        traceback.print_exc()
    finally:
        flush_output()
        # Not exit: what the libraries registered for the end belongs to a process that used them.
        os._exit(code)


@dataclass(slots=True)
class Imports:
    """What became of the modules to import beforehand."""

    #: The number of threads without them.
    threads: int = 1
    #: Imported without starting a thread.
    clean: list[str] = field(default_factory=list)
    #: Imported while the number of threads grew.
    blamed: list[str] = field(default_factory=list)
    #: Imported when others had started threads already.
    unclear: list[str] = field(default_factory=list)
    #: Could not be imported, with the reason.
    failed: list[tuple[str, str]] = field(default_factory=list)

    def load(self, name: str) -> None:
        """Import a module, and note what came of it."""
        before = count_threads()
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the module's own; tasks may do without it
            self.failed.append((name, f"{type(error).__name__}: {error}"))
        if count_threads() > before:
            self.blamed.append(name)
        elif self.blamed:
            self.unclear.append(name)
        else:
            self.clean.append(name)

    def spoilt(self) -> Spoilt | None:
        """Say what to leave out, if there are more threads than without, and they do not end."""
        loaded = [*self.clean, *self.blamed, *self.unclear]
        if not loaded or settled(self.threads):
            return None
        if self.blamed:
            return Spoilt(tuple(self.blamed), tuple(self.clean))
        return Spoilt(tuple(loaded), ())


class _Unwanted(BaseException):
    """The parent has ended while something was imported for it; not for the code that is imported."""


class Template:
    """The process that forks.

    Parameters
    ----------
    control : DescriptorChannel
        To the parent.
    """

    __slots__ = (
        "_children",
        "_control",
        "_guarded",
        "_imports",
        "_over",
        "_parent",
        "_plan",
        "_selector",
        "_serve",
        "_signals",
        "_slots",
        "_useless",
    )

    def __init__(self, control: DescriptorChannel) -> None:
        self._control = control
        #: Process ids of the workers that have not been reaped, and their numbers.
        self._children: dict[int, int] = {}
        self._guarded: set[str] = set()
        self._imports = Imports()
        #: What the parent said first, and what follows from it.
        self._plan: Prepare | None = None
        self._serve: Serve | None = None
        self._slots = memoryview(b"")
        #: Nothing more can be done for the parent: it has been told why.
        self._over = False
        #: It forks nobody any more, and stays to clean up for the parent until another template does.
        self._useless = False
        #: A descriptor of the parent's process, where the system has such.
        self._parent: int | None = None
        #: Bytes come out of the first when a child has ended.
        self._signals = socket.socketpair()
        for end in self._signals:
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(self._signals[1].fileno(), warn_on_full_buffer=False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._signals[0], selectors.EVENT_READ)

    def run(self) -> Child | None:
        """Do as the parent says until it ends.

        Returns
        -------
        Child or None
            In a new worker, what it is to be; None in the template, at its end.
        """
        while not self._over:
            gone = False
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    self._control.flush()
                elif key.fileobj is self._signals[0]:
                    self._reap()
                else:
                    gone = True  # the parent's process has ended
            messages = self._control.receive()
            if gone:
                # All that it had said: what it guarded may stand in a message that was not received yet.
                messages += self._control.drain()
                self._useless = self._control.ended = True
            for message in messages:
                child = self._obey(message)
                if child is not None:
                    return child
            if self._control.broken is not None and not self._over:
                # Nothing more will be heard, its end neither: another template is to take its place.
                traceback.print_exception(self._control.broken)
                self._control.ended = True
            if self._control.ended and not self._over:
                self._clean_up()
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._control.unsent else 0)
            self._selector.modify(self._control, events)
        self._control.flush()
        return None

    def _obey(self, message: object) -> Child | None:
        match message:
            case Fork():
                return self._fork(message.worker)
            case Interrupt():
                self._interrupt(message)
            case Kill():
                self._signal(message.worker, signal.SIGKILL)
            case Guard():
                self._guarded.update(message.paths)
            case Unguard():
                self._guarded.difference_update(message.paths)
            case Prepare():
                self._prepare(message)
            case EndWorkers():
                self._end_workers(GRACE)
                self._control.send(AllEnded())
            case Goodbye():
                self._end(GRACE)
            case _:
                raise PoolError(f"The template process does not understand {message!r}")
        return None

    # ---- before the first worker

    def _prepare(self, plan: Prepare) -> None:
        self._plan = plan
        self._watch(plan.parent)
        sys.argv = list(plan.argv)
        size = max(plan.workers, 1) * _SLOT
        self._slots = memoryview(mmap.mmap(-1, size))  # shared with whom we fork
        try:
            self._serve = resolve(plan.serve)
        except (Exception, SystemExit):  # noqa: BLE001 - whatever its module raises: the parent is told
            self._give_up(Failed(traceback.format_exc()))
            return
        self._imports.threads = count_threads()
        with self._hearing_the_end(), deferring(plan.deferred):
            for name in plan.preload:
                if os.getppid() != plan.parent:
                    raise _Unwanted  # nobody is left to import it for, and there is to be cleaned up
                self._control.send(Importing(name))
                self._imports.load(name)
        if self._useless:
            return
        tune_allocator()
        if not self._give_up_if_spoilt():
            self._control.send(Ready(tuple(self._imports.failed)))

    @contextlib.contextmanager
    def _hearing_the_end(self) -> Iterator[None]:
        """Have imports end in the middle if the parent does: they take seconds, and it has left things."""
        descriptor = self._control.fileno()

        def look(signum: int, frame: object) -> None:  # noqa: ARG001 - a handler
            poll = select.poll()
            poll.register(descriptor, 0)
            if any(events & select.POLLHUP for _, events in poll.poll(0)):
                raise _Unwanted

        before = signal.signal(signal.SIGIO, look)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
        try:
            yield
        except _Unwanted:
            self._useless = True
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
            signal.signal(signal.SIGIO, before)

    def _watch(self, parent: int) -> None:
        """Learn of the parent's end even if a process that it forked keeps its sockets open."""
        if sys.platform == "linux":
            # Older kernels have no such descriptors, sandboxes forbid them: then the channel's end must do.
            with contextlib.suppress(OSError):
                self._parent = os.pidfd_open(parent)
                self._selector.register(self._parent, selectors.EVENT_READ)

    def _give_up_if_spoilt(self) -> bool:
        spoilt = self._imports.spoilt()
        if spoilt is None:
            return False
        self._give_up(spoilt)
        return True

    def _give_up(self, why: Spoilt | Failed) -> None:
        """Fork nobody any more, but guard what there is: the parent may die before another template does."""
        self._end_workers(0)
        self._useless = True
        self._control.send(why)

    # ---- workers

    def _fork(self, worker: int) -> Child | None:
        """Fork a worker; its part is returned in the new process."""
        descriptor = self._control.take_descriptor()
        if descriptor is None:
            self._control.send(NotForked(worker, "too many open files"))
            return None
        if self._useless or self._give_up_if_spoilt():
            os.close(descriptor)
            return None
        assert self._plan is not None
        assert self._serve is not None
        slot = self._slot(worker)
        # Made here: an interrupt that comes before the worker is ready must not pass for an old one.
        child = Child(
            worker, descriptor, self._plan.setup, self._serve, TaskInterrupts(slot), template=os.getpid()
        )
        flush_output()  # or each worker would print it again
        gc.freeze()
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._control.send(NotForked(worker, str(error)))
            return None
        if pid == 0:
            self._leave()
            return child
        os.close(descriptor)
        lead_group(pid)  # so does the worker itself: whichever comes first
        self._children[pid] = worker
        self._control.send(Forked(worker, pid))
        return None

    def _slot(self, worker: int) -> memoryview:
        begin = worker * _SLOT
        return self._slots[begin : begin + _SLOT_USED].cast("q")

    def _leave(self) -> None:
        """In a new worker: close all that is the template's."""
        signal.set_wakeup_fd(-1)
        self._control.close()
        self._selector.close()
        for end in self._signals:
            end.close()
        if self._parent is not None:
            os.close(self._parent)

    def _interrupt(self, message: Interrupt) -> None:
        slot = self._slot(message.worker)
        slot[1] = message.task
        slot[0] += 1  # last: it says that the task stands there
        self._signal(message.worker, signal.SIGINT)

    def _signal(self, worker: int, signum: int) -> None:
        # Whoever is in this table has not been reaped: the number cannot be another process's yet.
        for pid, number in self._children.items():
            if number == worker:
                os.kill(pid, signum)

    def _reap(self) -> None:
        """Tell the parent who has ended."""
        with contextlib.suppress(BlockingIOError):
            self._signals[0].recv(4096)
        for pid, worker in list(self._children.items()):
            status = _reap(pid)
            if status is not None:
                del self._children[pid]
                self._control.send(Exited(worker, pid, os.waitstatus_to_exitcode(status)))

    # ---- the end

    def _end(self, grace: float) -> None:
        """End, with all workers."""
        self._over = True
        self._end_workers(grace)

    def _end_workers(self, grace: float) -> None:
        """End all workers, by force after some seconds."""
        self._reap_until(time.monotonic() + grace)
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        self._reap_until(time.monotonic() + _KILL_LIMIT)

    def _reap_until(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals[0], selectors.EVENT_READ)
            self._reap()
            while self._children and (left := deadline - time.monotonic()) > 0:
                selector.select(left)
                self._reap()

    def _clean_up(self) -> None:
        """Do what the parent would have done, had it lived."""
        self._end(0)
        # A parent that lives has only lost this process, and needs its files.
        if self._plan is not None and _orphaned(self._plan.parent, time.monotonic() + _ORPHAN_LIMIT):
            for path in self._guarded:
                leftovers.remove(path, self._plan.parent)


def _reap(pid: int) -> int | None:
    """Take in how a worker has ended, and end what its tasks have left running; None if it lives."""
    if hasattr(os, "waitid"):  # not on macOS before Python 3.13
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        _kill_group(pid)  # before it is reaped: until then, the number cannot be another's
        return os.waitpid(pid, 0)[1]
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        _kill_group(pid)
    return status if done else None


def _kill_group(leader: int) -> None:
    # Nobody is left in it; of those who are dead but not reaped, macOS says that one has no right to.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _orphaned(parent: int, deadline: float) -> bool:
    """Tell whether the parent is gone; its descriptors go a moment before its children are told."""
    while os.getppid() == parent:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _ignore(signum: int, frame: object) -> None:
    """Do nothing: with a handler of Python's, the signal is written to the wake-up descriptor."""


def resolve(name: str) -> Serve:
    """Import a function by its name, `module:name`."""
    module, _, attribute = name.partition(":")
    serve: Any = importlib.import_module(module)
    for part in attribute.split("."):
        serve = getattr(serve, part)
    if not callable(serve):
        raise TypeError(f"{name} cannot be called: {serve!r}")
    return serve  # type: ignore[no-any-return] # only its call can show the rest


def count_threads() -> int:
    """Count the threads of this process, those that Python does not know of too (Linux)."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # no /proc: count Python's own
            return len(list(Path("/proc/self/task").iterdir()))
    return threading.active_count()


def settled(threads: int) -> bool:
    """Wait shortly until there are no more threads than so many."""
    deadline = time.monotonic() + _SETTLE_LIMIT
    while count_threads() > threads:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def tune_allocator() -> None:
    """Have the allocator of C keep memory that is given back, for the next array or buffer (glibc).

    By default it would return it, and each new one would be touched for the first time: twice the time of a
    simple operation. And threads that a library starts get no heaps of their own: what is free in one could
    be used by no other thread, and could not be given back, 50 MB for each thread that decodes chunks of 32.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # not glibc
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_TRIM_THRESHOLD, _KEEP)
    any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MAP_FROM)
