"""SIGINT, where it can do no harm: Ctrl-C in the parent, interrupts of tasks in a worker.

Python runs the handler of a signal between any two steps of the main thread, and the usual handler
raises KeyboardInterrupt right there: after bytes were received and before anybody knows it, say.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, Self

from graphmill.workers.messages import ANY_TASK

#: With so many Ctrl-C held back, the user means it: it goes through at once.
_PATIENCE: Final = 3

_NO_TASK: Final = -2

#: Set and get a handler, by the functions that `signal` wraps: to make enumeration members of their numbers
#: takes twenty times as long as they do (9 and 0.5 us), and each task takes six of both.
_set_handler: Final = getattr(sys.modules.get("_signal"), "signal", signal.signal)
_get_handler: Final = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)

#: The outermost hold that is in place; set and read in the main thread only. Asking the signal module
#: for its handler instead takes longer than sending a message.
_in_place: InterruptHold | None = None


class InterruptHold:
    """Holds Ctrl-C back while the enclosed code runs, except where a window is open.

    What came meanwhile is handed to the previous handler when a window opens, or at the end. Where
    holds are nested, the outermost counts. Outside the main thread, where no handler ever runs, and
    where SIGINT has no handler of Python's, a hold does nothing. Each is for one use.

    Examples
    --------
    >>> with InterruptHold() as hold:
    ...     hold.open_window()  # Ctrl-C is raised here, if at all
    ...     hold.close_window()
    """

    __slots__ = ("_open", "_outermost", "_pending", "_previous")

    def __init__(self) -> None:
        #: The handler in whose place this hold's stands; None while that is not in place.
        self._previous: Callable[[int, FrameType | None], Any] | None = None
        #: The hold that counts.
        self._outermost: InterruptHold = self
        #: How many Ctrl-C were held back.
        self._pending = 0
        self._open = False

    def __enter__(self) -> Self:
        global _in_place  # noqa: PLW0603 - a process has one handler of SIGINT, too
        if threading.get_ident() != threading.main_thread().ident:
            return self
        if _in_place is not None:
            self._outermost = _in_place
            return self
        handler = _get_handler(signal.SIGINT)
        if callable(handler):
            self._previous = handler
            _set_handler(signal.SIGINT, self._handle)
            _in_place = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _in_place  # noqa: PLW0603 - as above
        previous = self._previous
        if previous is None:
            return
        # Whoever has put another handler in place of ours meant to keep it.
        if getattr(_get_handler(signal.SIGINT), "__self__", None) is self:
            _set_handler(signal.SIGINT, previous)
        _in_place = None
        self._previous = None
        if self._pending:
            previous(signal.SIGINT, None)

    def open_window(self) -> None:
        """Let Ctrl-C through from here on, first of all one that was held back."""
        outermost = self._outermost
        outermost._open = True  # noqa: SLF001 - of this class
        if outermost._pending:  # noqa: SLF001 - of this class
            outermost._deliver(None)  # noqa: SLF001 - of this class

    def close_window(self) -> None:
        """Hold it back again."""
        self._outermost._open = False  # noqa: SLF001 - of this class

    def _handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        self._pending += 1
        if self._open or self._pending >= _PATIENCE:
            self._deliver(frame)

    def _deliver(self, frame: FrameType | None) -> None:
        # First: the previous handler most likely raises.
        self._open = False
        self._pending = 0
        if self._previous is not None:
            self._previous(signal.SIGINT, frame)


class TaskInterrupts:
    """Makes SIGINT end the task that is meant, and nothing else.

    The template writes into a slot of memory that it shares with the worker which task to interrupt,
    and then sends the signal. The handler raises only if that task runs, and only while its function
    is on the stack: an interrupt that comes late, or that nobody announced, changes nothing. One that
    comes early is found when its task begins, so numbers of tasks must never be used again in a
    process.

    Parameters
    ----------
    slot : memoryview
        Two integers: how many interrupts there were, and the task that the last one is meant for.
    """

    __slots__ = ("_running", "_seen", "_shielded", "_slot")

    def __init__(self, slot: memoryview) -> None:
        self._slot = slot
        #: How many interrupts are dealt with.
        self._seen: int = slot[0]
        #: The task that runs.
        self._running = _NO_TASK
        #: Code that must not be left by an exception.
        self._shielded: set[CodeType] = set()

    def install(self) -> None:
        """Handle SIGINT from now on."""
        signal.signal(signal.SIGINT, self._handle)

    def shield(self, function: Callable[..., Any]) -> None:
        """Never raise while a function runs, such as a callback of a library in C.

        An interrupt that comes just then is passed over: whoever waits for it sends another.

        Parameters
        ----------
        function
            A function written in Python; what it calls is covered too.
        """
        self._shielded.add(function.__code__)

    def run(self, task: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function that may be interrupted.

        Parameters
        ----------
        task : int
            Its number, 0 or more.
        function
            What to call, with the arguments that follow.

        Raises
        ------
        KeyboardInterrupt
            If the task was interrupted, now or before it began.
        """
        self._running = task
        try:
            return self._call(function, args, kwargs)
        finally:
            self._running = _NO_TASK

    def _call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function; the handler looks for this frame on the stack."""
        announced, task = self._slot
        if announced != self._seen and task in (ANY_TASK, self._running):
            self._seen = announced
            if task == self._running:
                raise KeyboardInterrupt
        return function(*args, **kwargs)

    def _handle(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as signal calls it
        announced, task = self._slot
        if announced == self._seen:
            return
        if not self._in_task(frame):
            if task == ANY_TASK:
                self._seen = announced  # there is none: the next one must not be hit
            return
        if task not in (ANY_TASK, self._running) or self._in_shielded(frame):
            return
        self._seen = announced
        raise KeyboardInterrupt

    def _in_task(self, frame: FrameType | None) -> bool:
        return _runs(frame, {TaskInterrupts._call.__code__})

    def _in_shielded(self, frame: FrameType | None) -> bool:
        return bool(self._shielded) and _runs(frame, self._shielded)


def _runs(frame: FrameType | None, code: set[CodeType]) -> bool:
    while frame is not None:
        if frame.f_code in code:
            return True
        frame = frame.f_back
    return False
