"""Arrays as bytes: what of memory an array shows, and an array again over such bytes.

Knows NumPy's plain arrays and their subclasses. Knows neither pickle nor shared memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

#: Any array; its dtype is the user's.
Array: TypeAlias = npt.NDArray[Any]
#: A run of memory, as a flat array of bytes.
Bytes: TypeAlias = npt.NDArray[np.uint8]
Order: TypeAlias = Literal["C", "F"]

#: An array goes with all the memory between its first and last byte if it shows one part in this many.
WORTHWHILE = 2

#: Kinds of elements that a dtype's short name, such as ``<f8``, describes fully.
_PLAIN_TYPES = frozenset(
    {
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.longlong, np.intc),
        *(np.uint8, np.uint16, np.uint32, np.uint64, np.ulonglong, np.uintc),
        *(np.float16, np.float32, np.float64, np.longdouble),
        *(np.complex64, np.complex128, np.clongdouble),
        *(np.datetime64, np.timedelta64, np.bytes_, np.str_, np.void),
    }
)
#: NumPy's own dtypes that are nothing but bytes have numbers below this one.
_BUILTIN_NUMBERS = 24
#: What `dtype.isbuiltin` says of dtypes that extension modules have registered.
_REGISTERED = 2


@dataclass(slots=True)
class Span:
    """The memory that an array shows, and how it lies there."""

    #: From the array's first byte in memory to its last: `Bytes`, which have no type as a buffer.
    memory: Any
    #: Bytes per step along each axis; None if in C order without gaps.
    strides: tuple[int, ...] | None = None
    #: Where in the memory the first element starts.
    offset: int = 0
    #: Whether the array is to be read only: elements share memory, and it was so before.
    frozen: bool = False


@dataclass(frozen=True, slots=True)
class _Memory:
    """Offers memory to NumPy as writable bytes, whatever the flags of the array that it belongs to."""

    __array_interface__: dict[str, Any]
    #: Keeps the memory alive.
    owner: Array


def is_plain(dtype: np.dtype[Any]) -> bool:
    """Tell whether a dtype's short name says all of it, and its elements are bytes."""
    return (
        dtype.type in _PLAIN_TYPES and dtype.names is None and dtype.metadata is None and dtype.itemsize > 0
    )


def is_bytes(dtype: np.dtype[Any]) -> bool:
    """Tell whether elements of a dtype are nothing but bytes: no references to memory elsewhere."""
    number = dtype.num
    known = 0 <= number < _BUILTIN_NUMBERS or dtype.isbuiltin == _REGISTERED
    return known and not dtype.hasobject and dtype.itemsize > 0


def name_of(dtype: np.dtype[Any]) -> str | np.dtype[Any]:
    """Get the shortest thing that says which dtype it is."""
    return dtype.str if is_plain(dtype) else dtype


def order_of(array: Array) -> Order:
    """Get the order in which a copy of an array should lie."""
    return "F" if array.flags.fnc else "C"


def span_of(array: Array) -> Span:
    """Find the memory that an array shows.

    Arrays that show but a small part of it are copied; what is shown many times (broadcasting) never
    becomes larger. The flags of the array do not matter: its memory comes as writable bytes.

    Parameters
    ----------
    array
        An array of at least one element, of which `is_bytes` holds.
    """
    if array.flags.c_contiguous:
        flat: Any = np.ndarray.view(array, np.ndarray).reshape(-1).view(np.uint8)
        return Span(_bytes_of(array, 0, array.nbytes) if memoryview(flat).readonly else flat)
    shape, strides, itemsize = array.shape, array.strides, array.itemsize
    low, length = reach_of(shape, strides, itemsize)
    repeated = [stride == 0 for stride in strides]
    distinct = itemsize * math.prod(n for n, again in zip(shape, repeated, strict=True) if not again)
    frozen = _may_overlap(shape, strides, itemsize) and bool(array.__array_interface__["data"][1])
    if distinct * WORTHWHILE >= length:
        return Span(_bytes_of(array, low, length), strides, -low, frozen)
    core = np.ndarray.view(array, np.ndarray)[tuple(0 if again else slice(None) for again in repeated)]
    core = core.copy("K")
    steps = iter(core.strides)
    strides = tuple(0 if again else next(steps) for again in repeated)
    return Span(_bytes_of(core, 0, core.nbytes), strides, 0, frozen)


def array_over(
    memory: Any,
    cls: type[Array],
    dtype: Any,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    frozen: bool = False,
) -> Array:
    """Make an array over memory, without a copy; the inverse of `span_of`."""
    array: Array = np.ndarray.__new__(cls, shape, dtype, memory, offset, strides)
    if frozen:
        array.flags.writeable = False
    return array


def array_from(data: bytes, cls: type[Array], dtype: Any, shape: tuple[int, ...], order: Order) -> Array:
    """Make an array that owns a copy of some bytes."""
    source: Array = np.ndarray(shape, dtype, data, order=order)
    if cls is np.ndarray:
        return source.copy(order)
    array: Array = np.ndarray.__new__(cls, shape, dtype, order=order)
    np.copyto(np.ndarray.view(array, np.ndarray), source)
    return array


def address_of(memory: Bytes) -> int:
    """Get where a run of memory starts."""
    address: int = memory.__array_interface__["data"][0]
    return address


def reach_of(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Get how far before its first element an array's memory starts (0 or less), and its length."""
    low, high = 0, itemsize
    for n, stride in zip(shape, strides, strict=True):
        if stride < 0:
            low += (n - 1) * stride
        else:
            high += (n - 1) * stride
    return low, high - low


def _may_overlap(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Tell whether two elements may share memory; True where that is hard to say."""
    reach = itemsize
    for step, n in sorted((abs(stride), n) for n, stride in zip(shape, strides, strict=True) if n > 1):
        if step < reach:
            return True
        reach += (n - 1) * step
    return False


def _bytes_of(array: Array, low: int, length: int) -> Bytes:
    """Get the bytes around an array's first element, writable in any case."""
    start = array.__array_interface__["data"][0] + low
    interface = {"data": (start, False), "shape": (length,), "typestr": "|u1", "version": 3}
    return np.asarray(_Memory(interface, array))
