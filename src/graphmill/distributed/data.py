"""What a Dask worker holds, with large values in shared memory.

Whoever asks for a value gets it, over the shared memory; nothing is copied. While nobody looks at a value
the engine may move it to disk, so Dask needs no spilling of its own. What comes over the network, or from a
thread, enters shared memory at once: values that came in one message have one piece of memory, which stays as
long as any of them needs it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from dask.sizeof import sizeof

from graphmill.engine import Engine
from graphmill.engine.futures import Future
from graphmill.engine.stored import Stored
from graphmill.workers.answers import unwrap

#: Values below so many bytes go with each task that needs them.
_SMALL = 64 << 10


class Spilled(NamedTuple):
    """Bytes of values on disk: as they would be in memory, and as they are."""

    memory: int
    disk: int


class SharedData(MutableMapping[Any, Any]):
    """The values of a Dask worker, by key.

    Parameters
    ----------
    engine
        Whose shared memory it is.

    Notes
    -----
    For the thread of the worker's event loop, but for what enters shared memory meanwhile.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: For changes to the values.
        self._lock = threading.Lock()
        #: Values, or handles to them.
        self._values: dict[Any, Any] = {}
        #: Values that somebody looks at.
        self._made: WeakValueDictionary[Any, Any] = WeakValueDictionary()
        #: Values on their way into shared memory.
        self._entering: dict[Any, Future] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="graphmill-data")

    def close(self) -> None:
        """Take nothing more into shared memory."""
        self._thread.shutdown(wait=True)

    @property
    def spilled_total(self) -> Spilled:
        """Tell Dask how much is on disk."""
        on_disk = self._engine.blocks.on_disk
        return Spilled(on_disk, on_disk)

    def __getitem__(self, key: Any) -> Any:
        value = self._values[key]
        if type(value) is not Stored:
            return value
        made = self._made.get(key)
        if made is None:
            made = unwrap(value.value())
            # What has no weak references, such as a tuple, is made again when it is needed again.
            with contextlib.suppress(TypeError):
                self._made[key] = made
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        with self._lock:
            self._forget(key)
            self._values[key] = value
        self._see_to(key, value)

    def __delitem__(self, key: Any) -> None:
        with self._lock:
            del self._values[key]
            self._forget(key)

    def _forget(self, key: Any) -> None:
        self._made.pop(key, None)
        self._entering.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def stored(self, key: Any) -> Stored | None:
        """Get the handle to a value in shared memory; None where it does not lie there."""
        held = self._values.get(key)
        return held if type(held) is Stored else None

    def reference(self, key: Any, value: Any) -> Any:
        """Get what stands for a value on its way to a process.

        Parameters
        ----------
        key
            Its key.
        value
            The value, for what is not held here.
        """
        held = self._values.get(key, value)
        if type(held) is Stored:
            return held
        if key in self._values and key not in self._entering:
            self._see_to(key, held)
        return self._entering.get(key, held)

    def _see_to(self, key: Any, value: Any) -> None:
        """Have a large value enter shared memory, on a thread beside the worker's own."""
        if type(value) is Stored or sizeof(value) < _SMALL:
            return
        entering = self._entering[key] = Future()
        try:
            self._thread.submit(self._enter, key, value, entering)
        except RuntimeError:
            del self._entering[key]  # this is closed, and it stays where it is

    def _enter(self, key: Any, value: Any, future: Future) -> None:
        """Put a value into shared memory, and let go of the one outside."""
        future.set_running_or_notify_cancel()
        try:
            stored = self._engine.store(value)
        except BaseException as error:  # noqa: BLE001 - whoever needs the value hears of it
            with self._lock:
                if self._entering.get(key) is future:
                    del self._entering[key]  # the next one who needs it may have more luck
            future.set_exception(error)
            return
        if type(stored) is not Stored:
            future.set_result(value)
            return
        with self._lock:
            # By now it may be gone, or be another one.
            if self._values.get(key) is value:
                self._values[key] = stored
                self._entering.pop(key, None)
        future.set_stored(stored)
