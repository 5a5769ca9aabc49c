"""Telling what kind of thing a value in a graph is, Dask's task-spec nodes among them.

Dask is not imported: a class is known by the name of the module that defines it, so that graphs made
without Dask never need it. Dask's nodes answer `dependencies` and run by being called with a mapping of
values, which is all that graphmill asks of a node.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Any

_MODULE = "dask._task_spec"


class Kind(Enum):
    """What a value in a graph may be, as far as its class tells."""

    #: Neither a key nor anything that can hold one.
    LITERAL = auto()
    #: Of a type that keys have: a reference if the graph has such a key.
    NAME = auto()
    #: A plain tuple: a task, a key, or a container.
    TUPLE = auto()
    #: A list, set or frozen set. (Their subclasses are data: nobody knows how to build one anew.)
    CONTAINER = auto()
    #: A tuple with named fields.
    NAMED_TUPLE = auto()
    #: A dictionary, whose values may hold tasks and keys.
    DICT = auto()
    #: A task-spec node that runs.
    NODE = auto()
    #: A task-spec node that stands for another key.
    ALIAS = auto()
    #: A task-spec node that holds data.
    DATA = auto()
    #: Something with a `key` that stands for that key's value: a `TaskRef`, or a future.
    REFERENCE = auto()


_PLAIN: dict[type, Kind] = {
    tuple: Kind.TUPLE,
    list: Kind.CONTAINER,
    set: Kind.CONTAINER,
    frozenset: Kind.CONTAINER,
    dict: Kind.DICT,
}
_NODES = {"GraphNode": Kind.NODE, "Alias": Kind.ALIAS, "DataNode": Kind.DATA}


class Kinds(dict[type, Kind]):
    """The kind of each class met so far; to be kept no longer than one graph is being read."""

    def __missing__(self, cls: type) -> Kind:
        kind = self[cls] = kind_of(cls)
        return kind


def kind_of(cls: type[Any]) -> Kind:
    """Classify a class.

    Examples
    --------
    >>> [kind_of(cls).name for cls in (str, tuple, dict, object)]
    ['NAME', 'TUPLE', 'DICT', 'LITERAL']
    """
    if cls in _PLAIN:
        return _PLAIN[cls]
    if getattr(cls, "__graphmill_node__", False):
        return Kind.NODE  # one of our own
    for base in cls.__mro__:
        if base.__module__ == _MODULE and base.__name__ in _NODES:
            return _NODES[base.__name__]
    if getattr(cls, "__dask_future__", False) or _is_task_ref(cls):
        return Kind.REFERENCE
    if issubclass(cls, tuple) and hasattr(cls, "_make"):
        return Kind.NAMED_TUPLE
    if issubclass(cls, (str, int, float, bytes)):
        return Kind.NAME
    return Kind.LITERAL


def _is_task_ref(cls: type[Any]) -> bool:
    return any(base.__module__ == _MODULE and base.__name__ == "TaskRef" for base in cls.__mro__)
