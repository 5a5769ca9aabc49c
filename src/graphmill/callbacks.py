"""Callbacks: what a run tells to whoever listens, by the protocol of Dask's local schedulers.

A callback is five functions, any of which may be missing: ``start(dsk)``, ``start_state(dsk, state)``,
``pretask(key, dsk, state)``, ``posttask(key, value, dsk, state, worker_id)`` and
``finish(dsk, state, failed)``. Objects made for Dask work as they are, and so does their registration with
Dask, which need not be installed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

CallbackTuple: TypeAlias = tuple[Callable[..., Any] | None, ...]

_FIELDS = ("_start", "_start_state", "_pretask", "_posttask", "_finish")


class Callback:
    """Base class for listeners: a context manager, or registered for good.

    Parameters
    ----------
    start, start_state, pretask, posttask, finish
        The functions to call; or subclass, and define them with a leading underscore.

    Examples
    --------
    >>> from graphmill.local import get_sync
    >>> with Callback(pretask=lambda key, dsk, state: print("computing", key)):
    ...     get_sync({"x": 1, "y": (abs, "x")}, "y")
    computing y
    1
    """

    active: ClassVar[set[CallbackTuple]] = set()

    def __init__(
        self,
        start: Callable[..., Any] | None = None,
        start_state: Callable[..., Any] | None = None,
        pretask: Callable[..., Any] | None = None,
        posttask: Callable[..., Any] | None = None,
        finish: Callable[..., Any] | None = None,
    ) -> None:
        given = (start, start_state, pretask, posttask, finish)
        for name, function in zip(_FIELDS, given, strict=True):
            if function is not None:
                setattr(self, name, function)

    @property
    def _callback(self) -> CallbackTuple:
        return tuple(getattr(self, name, None) for name in _FIELDS)

    def __enter__(self) -> Callback:
        self.register()
        return self

    def __exit__(self, *exc_info: object) -> None:
        Callback.active.discard(self._callback)

    def register(self) -> None:
        """Listen to every run from now on."""
        Callback.active.add(self._callback)

    def unregister(self) -> None:
        """Listen no more; `KeyError` if it did not."""
        Callback.active.remove(self._callback)


def normalize_callback(callback: Any) -> CallbackTuple:
    """Turn a callback object, Dask's or ours, into its five functions."""
    if isinstance(callback, tuple):
        return callback
    functions = getattr(callback, "_callback", None)
    if isinstance(functions, tuple):
        return functions
    raise TypeError(
        "Callbacks must be Callback objects or tuples of five functions; "
        f"got {type(callback).__name__}"
    )


def unpack_callbacks(callbacks: Iterable[CallbackTuple]) -> list[list[Callable[..., Any]]]:
    """Turn callbacks into five lists: all `start` functions, all `start_state` functions, and so on.

    Examples
    --------
    >>> unpack_callbacks([(abs, None, max, None, None), (None, None, min, None, None)])
    [[<built-in function abs>], [], [<built-in function max>, <built-in function min>], [], []]
    """
    columns = list(zip(*callbacks, strict=True)) or [()] * len(_FIELDS)
    return [[function for function in column if function] for column in columns]


@contextmanager
def local_callbacks(callbacks: Any = None) -> Iterator[tuple[CallbackTuple, ...]]:
    """Settle who listens to a run: those given, or else those registered, if no run encloses this one.

    While a run goes on, Dask's registered callbacks are hidden from schedulers that its tasks may call.
    """
    if callbacks is not None:
        given = [callbacks] if not isinstance(callbacks, (list, set)) else callbacks
        given = [callbacks] if _is_one_callback(callbacks) else given
        yield tuple(normalize_callback(callback) for callback in given)
        return
    if _inside_run.get():
        yield ()
        return
    token = _inside_run.set(True)
    try:
        with _hidden.hide() as dask_callbacks:
            yield (*Callback.active, *dask_callbacks)
    finally:
        _inside_run.reset(token)


def _is_one_callback(callbacks: Any) -> bool:
    if hasattr(callbacks, "_callback"):
        return True
    return isinstance(callbacks, tuple) and all(f is None or callable(f) for f in callbacks)


_inside_run: ContextVar[bool] = ContextVar("graphmill_inside_run", default=False)


@dataclass(slots=True)
class _HiddenCallbacks:
    """Dask's registered callbacks, taken away from Dask while runs of ours go on, in any thread."""

    #: How many runs go on.
    runs: int = 0
    #: What was registered with Dask when the first of them began.
    callbacks: set[CallbackTuple] = field(default_factory=set)
    #: Runs begin and end in several threads.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def hide(self) -> Iterator[tuple[CallbackTuple, ...]]:
        module = sys.modules.get("dask.callbacks")
        if module is None:
            yield ()
            return
        theirs = module.Callback
        with self.lock:
            if self.runs == 0:
                self.callbacks, theirs.active = theirs.active, set()
            self.runs += 1
            # What was registered since the first run began counts for those that begin now.
            visible = (*self.callbacks, *(theirs.active - self.callbacks))
        try:
            yield visible
        finally:
            with self.lock:
                self.runs -= 1
                if self.runs == 0:
                    theirs.active, self.callbacks = self.callbacks | theirs.active, set()


_hidden = _HiddenCallbacks()
