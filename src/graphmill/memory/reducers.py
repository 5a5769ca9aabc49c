"""How values of any type are taken apart: a pickler that leaves large buffers out of its stream.

Functions and classes that another process cannot import go by value, through cloudpickle. Arrays go as
the memory that they show, wherever in the value they are. What is left out is only listed here; the
codec decides where it goes, once it is known that the whole value can be pickled.
"""

from __future__ import annotations

import copyreg
import importlib
import pickle
import random
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, Protocol

import cloudpickle
import numpy as np

from graphmill.memory.arrays import (
    Array,
    Bytes,
    Order,
    address_of,
    array_from,
    array_over,
    is_bytes,
    name_of,
    order_of,
    span_of,
)
from graphmill.memory.memmaps import file_view, open_view

PROTOCOL = 5
#: cloudpickle chains its own table of reducers to the general one; looking into a chain takes longer than
#: pickling a small object, so each pickler has them in one.
_CLOUD_TABLE = cloudpickle.Pickler.dispatch_table.maps[0]
#: What cloudpickle calls where a class by value arrives.
_make_class = cloudpickle.cloudpickle._make_skeleton_class  # noqa: SLF001 - it has no other name
#: Where NumPy has the class of its old sources of random numbers; it is only imported when it is used.
_NUMPY_RANDOM = "numpy.random.mtrand"
#: Sources of random numbers that each process has one of: the module, and their name there.
_RANDOM_SOURCES = (("random", "_inst"), (_NUMPY_RANDOM, "_rand"))
#: All else is left to pickle; a single check, for it is made for each object of a value.
_LOOKED_AT = (np.ndarray, FunctionType, type)


class Sink(Protocol):
    """Where a pickler writes."""

    def write(self, data: bytes, /) -> Any:
        """Take some bytes."""


class Buffers:
    """The large buffers of a value: each piece of memory once, however often it is met.

    Called by the pickler with every buffer that it meets; answers whether to write it into the stream.
    """

    __slots__ = ("_numbers", "found", "order", "threshold")

    def __init__(self, threshold: int) -> None:
        #: Bytes from which on a buffer is left out of the stream.
        self.threshold = threshold
        #: The distinct buffers, and whose they are.
        self.found: list[tuple[Bytes, object]] = []
        #: For each buffer that the stream wants, its number in `found`.
        self.order: list[int] = []
        #: The number of a buffer by its address and length.
        self._numbers: dict[tuple[int, int], int] = {}

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Take in a buffer, or answer that it belongs into the stream."""
        view = buffer.raw()
        if view.nbytes < self.threshold:
            return True
        memory = np.frombuffer(view, np.uint8)
        number = self._numbers.setdefault((address_of(memory), view.nbytes), len(self.found))
        if number == len(self.found):
            self.found.append((memory, view.obj))
        self.order.append(number)
        return False

    @property
    def repeats(self) -> bool:
        """Whether the stream wants some buffer more than once."""
        return len(self.order) > len(self.found)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    """Pickles into a sink, and large buffers into a list.

    Parameters
    ----------
    sink
        Takes the stream.
    buffers
        Takes the buffers. It must not refer to the pickler: that would be a cycle, which keeps the
        value alive until the garbage collector comes by.
    """

    def __init__(self, sink: Sink, buffers: Buffers) -> None:
        self.dispatch_table = {
            **copyreg.dispatch_table,
            **_CLOUD_TABLE,
            CodeType: _reduce_code,
            random.Random: _reduce_random,
        }
        if (numpy_random := sys.modules.get(_NUMPY_RANDOM)) is not None:
            self.dispatch_table[numpy_random.RandomState] = _reduce_random
        super().__init__(sink, PROTOCOL, buffers)
        self._threshold = buffers.threshold

    def reducer_override(self, obj: Any) -> Any:
        """Take apart what pickle should not; called for each object that is not of a simple builtin type."""
        if not isinstance(obj, _LOOKED_AT):
            return NotImplemented
        if isinstance(obj, np.ndarray):
            reduce = _reduce_array if type(obj) is np.ndarray else _reduce_subclass
            return reduce(obj, self._threshold)
        if type(obj) is FunctionType and obj in _OWN:
            return NotImplemented
        return _with_slots(obj, super().reducer_override(obj))

    def by_value(self, obj: Any) -> Any:
        """Take apart a function or class that cloudpickle would take for one that can be imported."""
        if isinstance(obj, FunctionType):
            return self._dynamic_function_reduce(obj)
        reduced = cloudpickle.cloudpickle._dynamic_class_reduce(obj)  # noqa: SLF001 - it has no other way
        return _with_slots(obj, reduced)


def _with_slots(obj: Any, reduced: Any) -> Any:
    """Have a class that goes by value be made with its slots."""
    # cloudpickle makes it without, so its objects get a `__dict__`, which those of the original cannot take.
    slots = obj.__dict__.get("__slots__")
    if reduced is NotImplemented or slots is None or reduced[0] is not _make_class:
        return reduced
    if issubclass(obj, tuple):
        return reduced  # can have none but the empty ones, which `NamedTuple` does not want to be told
    make, (meta, name, bases, namespace, *rest), *more = reduced
    return make, (meta, name, bases, {**namespace, "__slots__": slots}, *rest), *more


def _reduce_code(code: CodeType) -> Any:
    # cloudpickle drops the name of the file, without which a traceback shows no source.
    _, parts = _CLOUD_TABLE[CodeType](code)
    return code_from, (code.co_filename, *parts)


def code_from(filename: str, *parts: Any) -> CodeType:
    """Make compiled code of its parts, and say where its source is."""
    return CodeType(*parts).replace(co_filename=filename)


def _reduce_random(source: Any) -> Any:
    # `random.random` and `np.random.rand` are methods of a source of random numbers that each process has.
    # Sent with its state, it would give every task the same numbers.
    for module, name in _RANDOM_SOURCES:
        if source is getattr(sys.modules.get(module), name, None):
            return own_random, (module, name)
    return source.__reduce_ex__(PROTOCOL)


def own_random(module: str, name: str) -> Any:
    """Get this process's own source of random numbers."""
    return getattr(importlib.import_module(module), name)


def _reduce_array(array: Array, threshold: int, cls: type[Array] = np.ndarray) -> Any:
    dtype = array.dtype
    if not is_bytes(dtype):
        return NotImplemented
    if array.nbytes < threshold:
        order: Order = order_of(array)
        return array_from, (array.tobytes(order), cls, name_of(dtype), array.shape, order)
    span = span_of(array)
    memory = pickle.PickleBuffer(span.memory)
    return array_over, (memory, cls, name_of(dtype), array.shape, span.strides, span.offset, span.frozen)


def _reduce_subclass(array: Array, threshold: int) -> Any:
    cls = type(array)
    if cls is np.memmap:
        place = file_view(array)
        if place is not None:
            return open_view, place
        return _reduce_array(array, threshold, cls)
    if cls is np.ma.MaskedArray:
        return _reduce_masked(array)
    if isinstance(array, np.memmap) or not _reduces_as_array(cls):
        return NotImplemented
    reduced = _reduce_array(array, threshold, cls)
    if reduced is NotImplemented or not (state := getattr(array, "__dict__", None)):
        return reduced
    return *reduced, state, None, None, _set_attributes


def _reduces_as_array(cls: type[Array]) -> bool:
    """Tell whether a subclass has nothing to say about how it is pickled."""
    plain = np.ndarray
    return (
        cls.__reduce_ex__ is plain.__reduce_ex__
        and cls.__reduce__ is plain.__reduce__
        and cls.__setstate__ is plain.__setstate__
        and cls not in copyreg.dispatch_table
    )


def _set_attributes(obj: Any, state: dict[str, Any]) -> None:
    obj.__dict__.update(state)


def _reduce_masked(array: Any) -> Any:
    # The fill value stays unset if it is: asking for it would set it.
    parts = (array.data, array.mask, array._fill_value, array.hardmask)  # noqa: SLF001 - see above
    return masked_over, parts


def masked_over(data: Array, mask: Any, fill_value: Any, hard: bool) -> Any:
    """Make a masked array over its parts, without a copy."""
    array: Any = np.ma.MaskedArray(data, mask=mask, hard_mask=hard, copy=False)
    if fill_value is not None:
        array.fill_value = fill_value
    return array


#: Functions that rebuild; importable for certain, so that nobody has to find that out.
_OWN: frozenset[Callable[..., Any]] = frozenset(
    {array_from, array_over, code_from, masked_over, open_view, own_random, _set_attributes}
)
