"""Looks at engines at regular times, on a thread of its own that ends with its owner.

Knows glances. Must not know what they are for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

#: The most samples that are kept; beyond, every other one is dropped, and they are taken half as often.
MOST = 20_000


class Ticker:
    """Calls a function again and again, on a thread of its own.

    Parameters
    ----------
    function
        What to call.
    interval
        Seconds from one call to the next, at least.
    share
        The part of the time that calls may take; where they are slow, they come less often.

    Notes
    -----
    The thread is started by `start` and ended by `stop`, which waits for it; both may be called again. It
    does not keep the program from ending.
    """

    def __init__(self, function: Callable[[], None], interval: float, share: float) -> None:
        self.interval = interval
        self._function = function
        self._share = share
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun or is over."""
        with self._lock:
            if self._thread is None and not self._over.is_set():
                self._thread = threading.Thread(target=self._run, name="graphmill-watch", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self._over.set()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            begin = time.thread_time()
            self._function()
            pause = max(self.interval, (time.thread_time() - begin) / self._share)


def thinned(samples: list[Any]) -> bool:
    """Drop every other sample where there are too many; say whether that was so."""
    if len(samples) <= MOST:
        return False
    del samples[1::2]
    return True
