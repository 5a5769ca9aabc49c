"""What a worker does before and around its function: the child's side of a fork of the template.

A worker has one thread. It begins as a copy of the template; what must not be shared or alike is
undone first: descriptors, signals, random states.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import pickle
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from graphmill.errors import ChannelClosed
from graphmill.workers.channel import WaitChannel
from graphmill.workers.messages import Hello, Place
from graphmill.workers.place import follow
from graphmill.workers.signals import TaskInterrupts

#: From <linux/prctl.h>.
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15

#: What a process exits with after an exception that nobody caught, as Python does.
FAILURE: Final = 1


class WorkerChannel(WaitChannel):
    """A worker's link to the parent, and all that it knows of itself.

    Attributes
    ----------
    number : int
        The worker's number, from 0; the process that replaces a dead worker takes over its number.
    setup : object
        The record that the pool was made with.
    interrupts : TaskInterrupts
        Runs what the parent may interrupt.
    """

    __slots__ = ("interrupts", "number", "setup")

    def __init__(self, sock: socket.socket, number: int, setup: Any, interrupts: TaskInterrupts) -> None:
        super().__init__(sock)
        self.number = number
        self.setup = setup
        self.interrupts = interrupts

    def send(self, *messages: object) -> None:
        """Send messages in one frame; what was printed before is there before them.

        Raises
        ------
        ChannelClosed
            If the parent is gone.
        """
        flush_output()
        super().send(*messages)

    def receive(self, timeout: float | None = None) -> list[Any]:
        """Wait for messages, and give all that are there, as `WaitChannel.receive` does."""
        while True:
            received = super().receive(timeout)
            messages = [message for message in received if not _settled(message)]
            if messages or not received:
                return messages


#: What a worker runs until its channel ends. An exception ends the process.
Serve: TypeAlias = Callable[[WorkerChannel], None]


@dataclass(frozen=True, slots=True)
class Child:
    """What the template hands to a worker that it has just forked."""

    #: The worker's number.
    number: int
    #: Its end of the channel.
    descriptor: int
    #: The record that the pool was made with, pickled.
    setup: bytes
    #: What it runs.
    serve: Serve
    #: Handles SIGINT.
    interrupts: TaskInterrupts
    #: The template's process id.
    template: int

    def run(self) -> int:
        """Be the worker, to the end.

        Returns
        -------
        int
            What the process should exit with.
        """
        try:
            self._become_worker()
            setup = pickle.loads(self.setup)  # noqa: S301 - the parent's
            with socket.socket(fileno=self.descriptor) as sock:
                channel = WorkerChannel(sock, self.number, setup, self.interrupts)
                channel.send(Hello(os.getpid()))
                self.serve(channel)
        except ChannelClosed:
            return 0  # the parent wants no more of this worker, or is gone
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001 - nobody is left above who could handle it
            traceback.print_exc()
            return FAILURE
        finally:
            atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does; of what tasks have registered
        return 0

    def _become_worker(self) -> None:
        atexit._clear()  # noqa: SLF001 - what the template's libraries registered is not for this process
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.interrupts.install()
        lead_group(0)
        _die_with_parent(self.template, f"graphmill-{self.number}")
        _reseed()
        gc.enable()


def lead_group(pid: int) -> None:
    """Give a worker a process group, so that what its tasks start can be ended with it."""
    # It may have ended already, or have become another program.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, 0)


def _die_with_parent(parent: int, name: str) -> None:
    """Have the system kill this process when the template ends (Linux), and name it for `ps` and `top`."""
    if sys.platform != "linux":
        return
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    if os.getppid() != parent:
        raise ChannelClosed("The template process died while it forked this one")


def _reseed() -> None:
    """Give each worker random numbers of its own."""
    random.seed()
    # If it is not loaded yet, it takes a seed from the system when it is.
    legacy = sys.modules.get("numpy.random")
    if legacy is not None:
        legacy.seed()


def flush_output() -> None:
    """Pass on what was printed."""
    for stream in (sys.stdout, sys.stderr):
        # Nobody may listen any more, or a task may have closed it: not the worker's business.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _settled(message: object) -> bool:
    """Deal with a message of the pool's own; False if it is none."""
    if not isinstance(message, Place):
        return False
    follow(message)
    return True
