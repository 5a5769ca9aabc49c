"""Takes any value apart into a small payload and large buffers, and puts it together again.

Where the buffers go is not decided here: `encode` hands each to the caller's `place`, and `decode` is
given memory to build upon. The payload's first byte tells its kind:

=========  ===========================================================================
``0x80``   a pickle; the buffers are those that it wants, in order (0x80 starts any)
``R``      the same, where some buffers are wanted several times: their numbers first
``A``      an array over the buffer
``a``      a small array, with its elements
``S``      an array of which only a small part is distinct (broadcasting), with that
``B``      bytes, which are the buffer
``P``      a large payload: it lies in the last buffer
=========  ===========================================================================
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from graphmill.errors import DecodeError
from graphmill.memory.arrays import (
    Array,
    Bytes,
    array_from,
    array_over,
    is_plain,
    order_of,
    span_of,
)
from graphmill.memory.blame import blame
from graphmill.memory.reducers import PROTOCOL, Buffers, Pickler, Sink

R = TypeVar("R")

#: Bytes from which on a buffer is placed by itself.
THRESHOLD = 16 * 1024
#: Bytes from which on the payload itself is placed: the parent keeps payloads in its own memory.
PAYLOAD_LIMIT = 64 * 1024

#: Types whose values pickle as they are: no pickler of ours has to look inside.
_ATOMS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        *(np.float16, np.float32, np.float64, np.complex64, np.complex128),
    }
)
#: Longest tuple whose items are looked at one by one.
_SHORT = 16
_PICKLE = pickle.PROTO[0]
#: The payload that lies in the last buffer.
PLACED = b"P"


def encode(
    value: Any,
    place: Callable[[Bytes, object], R],
    *,
    threshold: int = THRESHOLD,
    name: str = "value",
    pickler: Callable[[Sink, Buffers], Pickler] = Pickler,
) -> tuple[bytes, list[R]]:
    """Take a value apart.

    Nothing is placed before the whole value is known to be picklable, and nothing that belongs to the
    value is kept afterwards.

    Parameters
    ----------
    value
        Anything.
    place
        Called as ``place(memory, owner)`` for each large buffer, once: a flat array of bytes, and the
        object that it belongs to. It answers with anything that later says where the buffer lies.
    threshold
        Bytes from which on a buffer is placed, at least 1; smaller ones stay in the payload.
    name
        What errors call the value.
    pickler
        Makes the pickler, where the value is not simple enough to do without one.

    Returns
    -------
    payload : bytes
        For `decode`.
    refs : list
        What `place` answered, in the order in which `decode` wants the buffers. With extents in their
        place, this and the payload are an `Encoded`.

    Raises
    ------
    EncodeError
        If some part of the value cannot be pickled; the message names it.
    """
    payload, buffers = _take_apart(value, threshold, name, pickler)
    refs = [place(memory, owner) for memory, owner in buffers]
    if len(payload) >= max(threshold, PAYLOAD_LIMIT):
        refs.append(place(np.frombuffer(payload, np.uint8), payload))
        payload = PLACED
    return payload, refs


def decode(payload: Any, buffers: Sequence[Any] = ()) -> Any:
    """Put a value together.

    Parameters
    ----------
    payload
        From `encode`: bytes, or any object that shows them.
    buffers
        Memory in the order of the refs: objects with the buffer protocol. Arrays lie in it, without a
        copy, and are writable if it is.

    Raises
    ------
    DecodeError
        If the value cannot be rebuilt in this process; what was raised is its cause.
    """
    try:
        kind = payload[0]
        if kind == _PICKLE:
            return pickle.loads(payload, buffers=buffers)  # noqa: S301 - our own processes wrote it
        return _DECODERS[kind](memoryview(payload)[1:], buffers)
    except MemoryError:
        raise
    except Exception as error:
        name = type(error).__name__
        raise DecodeError(f"A value cannot be rebuilt in this process: {name}: {error}") from error


def _take_apart(
    value: Any, threshold: int, name: str, pickler: Callable[[Sink, Buffers], Pickler]
) -> tuple[bytes, list[tuple[Bytes, object]]]:
    kind = type(value)
    if kind is np.ndarray and is_plain(value.dtype):
        return _take_array_apart(value, threshold)
    if kind is bytes and len(value) >= threshold:
        return b"B", [(np.frombuffer(value, np.uint8), value)]
    if kind in _ATOMS or (kind is tuple and len(value) <= _SHORT and _ATOMS.issuperset(map(type, value))):
        return pickle.dumps(value, PROTOCOL), []
    sink = io.BytesIO()
    buffers = Buffers(threshold)
    try:
        pickler(sink, buffers).dump(value)
    except MemoryError:
        raise
    except Exception as error:
        raise blame(value, name, error) from error
    payload = sink.getvalue()
    if buffers.repeats:
        payload = b"R" + pickle.dumps(buffers.order, PROTOCOL) + payload
    return payload, buffers.found


def _take_array_apart(array: Array, threshold: int) -> tuple[bytes, list[tuple[Bytes, object]]]:
    """Do without a pickler, which would take longer than all the rest."""
    shape, name = array.shape, array.dtype.str
    if array.nbytes < threshold:
        order = order_of(array)
        return b"a" + pickle.dumps((array.tobytes(order), name, shape, order), PROTOCOL), []
    span = span_of(array)
    layout = (name, shape, span.strides, span.offset, span.frozen)
    if span.memory.nbytes < threshold:
        return b"S" + pickle.dumps((bytearray(span.memory), *layout), PROTOCOL), []
    return b"A" + pickle.dumps(layout, PROTOCOL), [(span.memory, array)]


def _array(body: memoryview, buffers: Sequence[Any]) -> Any:
    return array_over(buffers[0], np.ndarray, *pickle.loads(body))  # noqa: S301 - as in decode


def _small_array(body: memoryview, buffers: Sequence[Any]) -> Any:  # noqa: ARG001 - as its siblings
    data, *layout = pickle.loads(body)  # noqa: S301 - as in decode
    return array_from(data, np.ndarray, *layout)


def _sparse_array(body: memoryview, buffers: Sequence[Any]) -> Any:  # noqa: ARG001 - as its siblings
    data, *layout = pickle.loads(body)  # noqa: S301 - as in decode
    return array_over(data, np.ndarray, *layout)


def _bytes(body: memoryview, buffers: Sequence[Any]) -> Any:  # noqa: ARG001 - as its siblings
    return memoryview(buffers[0]).tobytes()


def _repeating(body: memoryview, buffers: Sequence[Any]) -> Any:
    stream = io.BytesIO(body)
    order = pickle.load(stream)  # noqa: S301 - as in decode
    return pickle.load(stream, buffers=[buffers[number] for number in order])  # noqa: S301 - as in decode


def _placed_payload(body: memoryview, buffers: Sequence[Any]) -> Any:  # noqa: ARG001 - as its siblings
    return decode(memoryview(buffers[-1]), buffers[:-1])


_DECODERS: dict[int, Callable[[memoryview, Sequence[Any]], Any]] = {
    ord("A"): _array,
    ord("a"): _small_array,
    ord("S"): _sparse_array,
    ord("B"): _bytes,
    ord("R"): _repeating,
    ord("P"): _placed_payload,
}
