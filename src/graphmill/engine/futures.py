"""Results that are yet to come, and that stay in shared memory until somebody looks at them."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any, Final, NoReturn

from graphmill.engine.stored import Stored
from graphmill.errors import GraphmillError

#: The result of a future, as far as its base class knows, if that lies in shared memory.
_IN_MEMORY: Final = object()


class Future(concurrent.futures.Future[Any]):
    """What a call of `Executor.submit` will return.

    A result with large arrays stays in shared memory. `result` gives arrays that lie there; a future that is
    itself an argument of another call stands for its result, which then goes by reference.
    """

    def __init__(self) -> None:
        super().__init__()
        #: The result, if it lies in shared memory.
        self.stored: Stored | None = None
        #: Whether its call was given to a worker.
        self.sent = False
        #: Whether no worker could read the call, so that it has not begun.
        self.stays = False
        #: Told what the call raised, before anybody else is.
        self.on_failure: Callable[[BaseException | None], None] | None = None
        self._opening = threading.Lock()
        self._opened: list[Any] = []

    def set_stored(self, stored: Stored) -> None:
        """Have the future be done, with a result that lies in shared memory."""
        self.stored = stored
        self.set_result(_IN_MEMORY)

    def set_exception(self, exception: BaseException | None) -> None:
        """Have the future be done, with what was raised instead of a result."""
        told, self.on_failure = self.on_failure, None
        if told is not None:
            told(exception)
        super().set_exception(exception)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the result.

        Parameters
        ----------
        timeout
            Seconds to wait at most; None for any time.

        Returns
        -------
        object
            Always the same object. Arrays in it may be written to; what calls and other futures see of them
            does not change by that, unless the array itself is passed on.

        Raises
        ------
        TimeoutError
            If the time is up.
        concurrent.futures.CancelledError
            If the future was cancelled.
        Exception
            What the call raised.
        """
        value = super().result(timeout)
        return self._open() if value is _IN_MEMORY else value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end, and tell what the call raised; None if it has a result. Raises as `result`."""
        error = super().exception(timeout)
        if error is None and self.stored is not None:
            try:
                self._open()
            except GraphmillError as unreadable:
                return unreadable
        return error

    def _open(self) -> Any:
        with self._opening:
            if not self._opened:
                assert self.stored is not None
                self._opened.append(self.stored.value())
            return self._opened[0]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "A future can be an argument of a call on the engine that it belongs to; elsewhere, pass its "
            "result()"
        )
