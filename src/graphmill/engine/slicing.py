"""Tasks that only cut a block: their result lies in it already, so nothing has to run, or to be copied.

`x[:10]` of an array in shared memory is another description of the same bytes. It keeps the whole block in
memory, so whether that is worth it is for whoever runs the graph to say.
"""

from __future__ import annotations

import math
import operator
import pickle
from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np

from graphmill.graph.legacy import TupleTask
from graphmill.memory.arrays import reach_of
from graphmill.memory.block import Encoded
from graphmill.memory.codec import THRESHOLD
from graphmill.memory.reducers import PROTOCOL
from graphmill.types import Node

#: What may stand in a basic index.
Index: TypeAlias = int | slice | EllipsisType | None
Sizes: TypeAlias = tuple[int, ...]

#: The kind of payload that is an array over one buffer; what follows is its layout.
_ARRAY = b"A"
_INTEGERS = (int, np.integer)
#: Dask's classes for what refers to another task, and where they have its key.
_REFERENCES = {"TaskRef": "key", "Alias": "target"}


def index_of(node: Node) -> tuple[Index, ...] | None:
    """Get the index of a task that takes a part of its only input, and does no more.

    Returns
    -------
    tuple or None
        None for any other task, and for an index that makes copies, or may.
    """
    if len(node.dependencies) != 1:
        return None
    [source] = node.dependencies
    if type(node) is TupleTask:
        spec = node.spec
        if type(spec) is not tuple or len(spec) != 3 or spec[0] is not operator.getitem:  # noqa: PLR2004
            return None
        _, taken, index = spec
        found = _basic(index)
        # Numbers may be keys, and then those in the index are none. What is not basic compares as it likes.
        if found is None or type(source) not in (str, tuple) or source == index:
            return None
        return found if _is_key(taken) and taken == source else None
    function: Any = getattr(node, "func", None)
    if function is not operator.getitem and not _is_from_dask(function):
        return None
    arguments: Any = node
    if len(arguments.args) != 2 or arguments.kwargs:  # noqa: PLR2004
        return None
    taken, index = arguments.args
    name = _REFERENCES.get(type(taken).__name__)
    if name is None or getattr(taken, name) != source:
        return None
    return _basic(index.value if type(index).__name__ == "DataNode" else index)


def _is_key(taken: Any) -> bool:
    """Tell whether that is a text, or a tuple that holds nothing but what can be part of a key."""
    if type(taken) is tuple:
        return all(type(item) in (str, int, float) or _is_key(item) for item in taken)
    return type(taken) is str


def _is_from_dask(function: Any) -> bool:
    """Tell whether a function is Dask's for parts of chunks: it copies small ones, so that chunks can go."""
    return (
        getattr(function, "__name__", "") == "getitem"
        and getattr(function, "__module__", "") == "dask.array.chunk"
    )


def _basic(index: Any) -> tuple[Index, ...] | None:
    """Make a tuple of an index that gives a view of whatever array it is applied to; None for others."""
    items = index if type(index) is tuple else (index,)
    for item in items:
        if not (item is None or item is ... or type(item) is slice or _is_integer(item)):
            return None
    return items


def _is_integer(item: object) -> bool:
    return isinstance(item, _INTEGERS) and type(item) is not bool


def cut(value: Encoded, index: tuple[Index, ...]) -> Encoded | None:
    """Describe a part of an array as one that lies where the whole does.

    Parameters
    ----------
    value
        Anything.
    index
        From `index_of`.

    Returns
    -------
    Encoded or None
        The part, with the bytes of memory that its elements take. None if `value` is no plain array, or
        small, or if the part is small; if the index does not fit; or if the part has no dimensions or
        elements.
    """
    if value.payload[:1] != _ARRAY:
        return None
    [extent] = value.extents
    name, shape, strides, start, frozen = pickle.loads(value.payload[1:])  # noqa: S301 - our own wrote it
    itemsize = np.dtype(name).itemsize
    try:
        shape, strides, skipped = _indexed(shape, strides or _in_order(shape, itemsize), index)
    except (IndexError, TypeError, ValueError):
        return None  # whoever runs the task finds what is wrong
    if not math.prod(shape):
        return None
    low, length = reach_of(shape, strides, itemsize)
    nbytes = min(itemsize * math.prod(shape), length)  # less where elements are shown several times
    if not shape or nbytes < THRESHOLD:
        return None
    at = extent.offset + start + skipped + low
    layout = name, shape, strides, -low, frozen
    payload = _ARRAY + pickle.dumps(layout, PROTOCOL)
    return Encoded(payload, (extent._replace(offset=at, nbytes=length),), len(payload) + nbytes)


def _in_order(shape: Sizes, itemsize: int) -> Sizes:
    """Get the strides of an array in C order."""
    strides = []
    for n in reversed(shape):
        strides.append(itemsize)
        itemsize *= n
    return tuple(reversed(strides))


def _indexed(shape: Sizes, strides: Sizes, index: tuple[Index, ...]) -> tuple[Sizes, Sizes, int]:
    """Apply a basic index to a layout; give the new one, and how far its first element is from the old one.

    Raises
    ------
    IndexError
        There are too many items, or one is out of bounds.
    """
    given = sum([item is not None and item is not ... for item in index])
    if given > len(shape) or index.count(...) > 1:
        raise IndexError("too many indices")
    rest = (slice(None),) * (len(shape) - given)
    at = index.index(...) if ... in index else len(index)
    items = (*index[:at], *rest, *index[at + 1 :])
    axes = iter(zip(shape, strides, strict=True))
    sizes, steps, skipped = [], [], 0
    for item in items:
        if item is None:
            sizes.append(1)
            steps.append(0)
            continue
        n, stride = next(axes)
        if isinstance(item, slice):
            chosen = range(n)[item]
            sizes.append(len(chosen))
            steps.append(chosen.step * stride)
            skipped += chosen.start * stride
        else:
            assert isinstance(item, _INTEGERS)
            skipped += range(n)[item] * stride
    return tuple(sizes), tuple(steps), skipped
