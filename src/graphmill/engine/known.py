"""What picklers of tasks have found out about functions and types: it takes longer than all else they do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import numpy as np

#: Objects that are looked out for, at most.
_MANY = 1_000
#: Nobody can change what such a thing is.
_CONSTANT = (
    *(type(None), bool, int, float, complex, str, bytes, slice, type, FunctionType),
    *(np.dtype, np.generic, np.ufunc, type(np.sum)),
)
#: The types of toolz of this sort.
_TOOLZ = ("Compose", "curry")


def _composed() -> frozenset[type]:
    """Get the types of partial and composed functions, of libraries that are in use."""
    toolz = sys.modules.get("toolz.functoolz")
    return frozenset({functools.partial, *[getattr(toolz, name) for name in _TOOLZ if hasattr(toolz, name)]})


@dataclass(slots=True)
class Known:
    """What earlier values of one run have shown."""

    #: Types whose values pickle takes apart by itself.
    plain: set[type] = field(default_factory=set)
    #: Functions and classes that can be imported, by identity, which is theirs while they are kept here.
    importable: dict[int, object] = field(default_factory=dict)
    #: Types of what is called like a function, and made of functions.
    composed: frozenset[type] = field(default_factory=_composed)
    #: Such objects that were met, by identity, and whether tasks may share them.
    _met: dict[int, tuple[object, bool]] = field(default_factory=dict)

    def meets_again(self, function: Any) -> bool:
        """Tell whether a composed function was met before, and holds nothing that tasks might change.

        Then it is most likely part of many tasks, and best sent once.
        """
        met = self._met.get(id(function))
        if met is not None:
            return met[1]
        if len(self._met) < _MANY:
            self._met[id(function)] = function, is_constant(function)
        return False


def is_constant(value: Any) -> bool:
    """Tell whether something is sure to stay as it is, whoever gets it.

    Examples
    --------
    >>> is_constant(functools.partial(max, 1, key=len)), is_constant(functools.partial(max, [1]))
    (True, False)
    """
    if type(value) in _composed():
        if hasattr(value, "first"):
            return _are_constant((value.first, *value.funcs))
        return _are_constant((value.func, *value.args, *value.keywords.values()))
    if type(value) is tuple or type(value) is frozenset:
        return _are_constant(value)
    if isinstance(value, BuiltinFunctionType):
        # The same type has methods: of a list, say.
        return isinstance(value.__self__, ModuleType) or is_constant(value.__self__)
    return isinstance(value, _CONSTANT)


def _are_constant(values: Iterable[Any]) -> bool:
    return all(is_constant(value) for value in values)
