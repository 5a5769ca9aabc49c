"""Which part of a value cannot be pickled: looked for once pickling has failed, within bounded time.

The value is taken apart as pickle would do it, and the parts are tried one by one; the search goes on in
the first that fails alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from inspect import getclosurevars
from reprlib import Repr
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from graphmill.errors import EncodeError
from graphmill.memory.reducers import PROTOCOL, Buffers, Pickler

#: Seconds that the search may take; one trial may go over.
PATIENCE = 1.0
#: Levels that the search goes down.
_DEPTH = 50
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})

#: Types whose parts are attributes that they do not show when they are pickled.
_ATTRIBUTES = {MethodType: ("__self__", "__func__"), partial: ("func", "args", "keywords")}
#: Types that `_parts` takes apart in full.
_WHOLE = frozenset({dict, list, tuple, set, frozenset, np.ndarray, FunctionType, type, *_ATTRIBUTES})

_short = Repr()
_short.maxstring = _short.maxother = 40


class _Nowhere:
    """A sink that keeps nothing."""

    __slots__ = ()

    def write(self, data: bytes) -> int:
        return len(data)


def blame(value: Any, name: str, error: Exception) -> EncodeError:
    """Make an error that says which part of a value cannot be pickled, and why.

    Parameters
    ----------
    value
        What could not be pickled.
    name
        What to call it.
    error
        What was raised.
    """
    if isinstance(error, RecursionError) or isinstance(error.__cause__, RecursionError):
        return EncodeError(
            f"Cannot send {name} (a {_name(value)}) to another process: it is nested too deeply"
        )
    path, part, error = _search(value, name, error)
    why = str(error) or type(error).__name__
    return EncodeError(f"Cannot send {path} (a {_name(part)}) to another process: {why}")


def _name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _search(value: Any, path: str, error: Exception) -> tuple[str, Any, Exception]:
    """Go down to the smallest part that fails: its path, itself, and what it raises."""
    deadline = time.monotonic() + PATIENCE
    seen = {id(value)}
    for _ in range(_DEPTH):
        for step, part in _parts(value):
            if time.monotonic() > deadline:
                return path, value, error
            if type(part) in _SIMPLE or id(part) in seen:
                continue
            failure = _try(part)
            if failure is not None:
                path, value, error = path + step, part, failure
                seen.add(id(part))
                break
        else:
            break
    return path, value, error


def _try(value: Any) -> Exception | None:
    try:
        Pickler(_Nowhere(), Buffers(1)).dump(value)
    except Exception as error:  # noqa: BLE001 - any failure is an answer
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """Give the parts of a value, each with the step that leads to it."""
    cls = type(value)
    if isinstance(value, dict):
        yield from _items("", value)
    elif isinstance(value, (list, tuple)):
        yield from _numbered("", value)
    elif isinstance(value, (set, frozenset)):
        yield from ((f" element {_short.repr(part)}", part) for part in value)
    elif cls is np.ndarray:
        yield from _numbered(".flat", value.flat if value.dtype.hasobject else ())
    elif cls is FunctionType:
        yield from _parts_of_function(value)
    elif isinstance(value, type):
        yield from _items(".__dict__", vars(value))
    elif cls in _ATTRIBUTES:
        yield from ((f".{name}", getattr(value, name)) for name in _ATTRIBUTES[cls])
    if cls not in _WHOLE:
        yield from _parts_of_instance(value)


def _items(step: str, mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, part in mapping.items():
        yield f"{step}[{_short.repr(key)}]", part
        yield f"{step} key {_short.repr(key)}", key


def _numbered(step: str, parts: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    return ((f"{step}[{number}]", part) for number, part in enumerate(parts))


def _parts_of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Give what a function that goes by value takes along."""
    yield from _numbered(".__defaults__", function.__defaults__ or ())
    yield from _items(".__kwdefaults__", function.__kwdefaults__ or {})
    try:
        outer = getclosurevars(function)
    except ValueError:  # a closure variable that is not set yet
        return
    yield from _items(".__closure__", outer.nonlocals)
    yield from _items(".__globals__", outer.globals)


def _parts_of_instance(value: Any) -> Iterator[tuple[str, Any]]:
    """Give what an object's own way of being pickled takes along."""
    try:
        reduced = value.__reduce_ex__(PROTOCOL)
    except Exception:  # noqa: BLE001 - then it is the object that fails, and no part of it
        return
    if not isinstance(reduced, tuple):
        return
    _, args, state, *_ = (*reduced, None)
    states = state if isinstance(state, tuple) else (state,)  # of the attributes, of the slots
    for attributes in states:
        if isinstance(attributes, dict):
            yield from ((f".{name}", part) for name, part in attributes.items())
        else:
            yield ".__getstate__()", attributes
    yield from _numbered(".__reduce__()[1]", args)
