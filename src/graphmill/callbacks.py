"""Callbacks: what a run tells to whoever listens, by the protocol of Dask's local schedulers.

A callback is five functions, any of which may be missing: ``start(dsk)``,
``start_state(dsk, state)``, ``pretask(key, dsk, state)``,
``posttask(key, value, dsk, state, worker_id)`` and ``finish(dsk, state, failed)``. Objects made for
Dask work as they are, and so does their registration with Dask, which need not be installed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableSet
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias

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

    def __enter__(self) -> Self:
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
        if len(callback) != len(_FIELDS):
            raise TypeError(f"A callback has five functions; got a tuple of {len(callback)}")
        return callback
    functions = getattr(callback, "_callback", None)
    if isinstance(functions, tuple):
        return functions
    raise TypeError(
        f"Callbacks must be Callback objects or tuples of five functions; got {type(callback).__name__}"
    )


def unpack_callbacks(callbacks: Iterable[CallbackTuple]) -> list[list[Callable[..., Any]]]:
    """Turn callbacks into five lists: all `start` functions, all `start_state`, and so on.

    Examples
    --------
    >>> unpack_callbacks([(abs, None, max, None, None), (None, None, min, None, None)])
    [[<built-in function abs>], [], [<built-in function max>, <built-in function min>], [], []]
    """
    columns = list(zip(*callbacks, strict=True)) or [()] * len(_FIELDS)
    return [[function for function in column if function] for column in columns]


class Told(frozenset[CallbackTuple]):
    """Callbacks that are told of a run already; they stay in their process."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Told, ()


#: What enclosing runs tell already: schedulers that their tasks call need not tell it again. Set by
#: each run, and wherever one of its tasks runs.
told: ContextVar[Told] = ContextVar("graphmill_told", default=Told())  # noqa: B039 - frozen


@contextmanager
def local_callbacks(callbacks: Any = None) -> Iterator[tuple[CallbackTuple, ...]]:
    """Settle who listens to a run: those given, or else those registered.

    Those that an enclosing run tells are left out, and so they are for Dask's own schedulers where
    tasks call them.
    """
    if callbacks is not None:
        given = [callbacks] if _is_one_callback(callbacks) else callbacks
        yield tuple(normalize_callback(callback) for callback in given)
        return
    with _dask_callbacks.behind_curtain() as registered:
        heard = told.get()
        listeners = (*(Callback.active - heard), *(registered - heard))
        token = told.set(Told(heard.union(listeners)))
        try:
            yield listeners
        finally:
            told.reset(token)


def _is_one_callback(callbacks: Any) -> bool:
    if hasattr(callbacks, "_callback"):
        return True
    return (
        isinstance(callbacks, tuple)
        and len(callbacks) == len(_FIELDS)
        and all(f is None or callable(f) for f in callbacks)
    )


class _Curtain(MutableSet[CallbackTuple]):
    """Dask's registered callbacks, without those that an enclosing run of ours tells already."""

    __slots__ = ("behind",)

    def __init__(self, behind: set[CallbackTuple]) -> None:
        #: All that are registered.
        self.behind = behind

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        return set(it)

    def __contains__(self, callback: object) -> bool:
        return callback in self.behind and callback not in told.get()

    def __iter__(self) -> Iterator[CallbackTuple]:
        return iter(self.behind - told.get())

    def __len__(self) -> int:
        return len(self.behind - told.get())

    def add(self, callback: CallbackTuple) -> None:
        self.behind.add(callback)

    def discard(self, callback: CallbackTuple) -> None:
        self.behind.discard(callback)

    def remove(self, callback: CallbackTuple) -> None:
        self.behind.remove(callback)

    def update(self, *others: Iterable[CallbackTuple]) -> None:
        self.behind.update(*others)


@dataclass(slots=True)
class _DaskCallbacks:
    """The registry of Dask's callbacks, behind a curtain while runs of ours go on in any thread."""

    #: How many runs go on.
    runs: int = 0
    #: The curtain, while any do.
    curtain: _Curtain | None = None
    #: Runs begin and end in several threads.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def behind_curtain(self) -> Iterator[set[CallbackTuple]]:
        """Draw the curtain; give what is registered."""
        module = sys.modules.get("dask.callbacks")
        if module is None:
            yield set()
            return
        registry = module.Callback
        with self.lock:
            registered = self._begin(registry)
        try:
            yield registered
        finally:
            with self.lock:
                self._end(registry)

    def _begin(self, registry: Any) -> set[CallbackTuple]:
        if self.curtain is None:
            active = registry.active
            # A scheduler of Dask's, begun under an earlier curtain, may have put that one back.
            self.curtain = active if isinstance(active, _Curtain) else _Curtain(active)
            registry.active = self.curtain
        self.runs += 1
        # While a scheduler of Dask's is at work, another set stands in the place of the curtain.
        return self.curtain.behind.union(registry.active)

    def _end(self, registry: Any) -> None:
        self.runs -= 1
        if self.runs == 0:
            if registry.active is self.curtain and self.curtain is not None:
                registry.active = self.curtain.behind
            self.curtain = None


_dask_callbacks = _DaskCallbacks()
