"""Reads recipes out of Dask's nodes, so that what thousands of tasks have in common travels once.

To pickle a node of Dask's takes longer than many a task: it says its own key, those of its inputs, and what
can be worked out from the rest. A fused one would, besides, be put in order anew for each task.

What a recipe does is what calling the node does. Wherever that is not certain, there is none, and the node
goes as it is: nodes of other classes than those that are known, futures, keys that nobody has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from graphmill.engine.known import is_constant
from graphmill.errors import EncodeError
from graphmill.types import Key
from graphmill.workers.recipe import Recipe, Step

#: Recipes, and objects that they may have in common, at most; each is looked for at each task.
_MANY = 1_000
#: Types of values that go as they are, in one piece with the message: nobody can change them.
_ATOMS = frozenset({type(None), bool, int, float, complex})
#: The same as long as they are short.
_TEXTS = frozenset({str, bytes})
#: The longest text that is, and the most values of one task or tuple that go so.
_SHORT_TEXT, _FEW = 1_000, 32
#: Dask's classes of nodes that call a function.
_CALLS = ("Task", "List", "Tuple", "Set", "Dict")
#: While a node is read, the numbers of leaves, constants and results begin here; those of inputs at 0.
_LEAF, _CONSTANT, _RESULT = 1 << 20, 2 << 20, 3 << 20


class _Sort(Enum):
    """What a value in a node may be, as far as its class tells."""

    REFERENCE = auto()
    ALIAS = auto()
    DATA = auto()
    CALL = auto()
    #: Nobody can change it, and it is short.
    ATOM = auto()
    #: What it holds, or its length, says whether it is like those.
    MAYBE_ATOM = auto()
    LEAF = auto()
    #: Of a class that nobody knows to be like those above.
    ODD = auto()


#: Members of an enumeration take several times as long to look up, and each node asks for some ten.
_REFERENCE, _ALIAS, _DATA, _CALL, _ATOM, _MAYBE_ATOM, _LEAF_SORT, _ODD = _Sort


class _Odd(Exception):
    """There is no recipe for a node."""


#: What a recipe is made of: steps, and the identities of constants.
_Form: TypeAlias = tuple[tuple[Any, ...], tuple[int, ...]]


class Call(NamedTuple):
    """A task as its recipe has it."""

    recipe: int
    #: What is its own besides its inputs.
    leaves: tuple[Any, ...] | bytes
    #: Its inputs, in the order of the recipe.
    keys: tuple[Key, ...]
    #: Numbers of functions that the recipe refers to, and its own.
    functions: tuple[int, ...]
    #: Whether the leaves are in one piece with the message; else they have to be pickled.
    is_plain: bool


class _Sorts(dict[type, _Sort]):
    """The sort of each class met so far."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(_ATOMS, _Sort.ATOM))
        self.update(dict.fromkeys((*_TEXTS, tuple, slice), _Sort.MAYBE_ATOM))
        spec = sys.modules.get("dask._task_spec")
        self._bases: tuple[type, ...] = ()
        if spec is not None and hasattr(spec, "TaskRef"):
            self._bases = spec.GraphNode, spec.TaskRef
            self[spec.TaskRef] = _Sort.REFERENCE
            self[spec.Alias] = _Sort.ALIAS
            self[spec.DataNode] = _Sort.DATA
            for name in _CALLS:
                if hasattr(spec, name):
                    self[getattr(spec, name)] = _Sort.CALL

    def __missing__(self, cls: type) -> _Sort:
        odd = issubclass(cls, self._bases) or getattr(cls, "__dask_future__", False)
        sort = self[cls] = _Sort.ODD if odd else _Sort.LEAF
        return sort


class _Constants:
    """Objects that tasks may share, as far as they were met."""

    __slots__ = ("_met",)

    def __init__(self) -> None:
        #: Objects by identity, which is theirs while they are kept here; None for one that is not shared, and
        #: that may be large.
        self._met: dict[int, object] = {}

    def has(self, value: Any) -> bool:
        """Tell whether tasks may share an object that was met before, and that is kept here."""
        if id(value) in self._met:
            return self._met[id(value)] is value
        if len(self._met) < _MANY:
            # Numbers of NumPy's and the like may be others for each task, and are soon pickled.
            is_shared = is_constant(value) and (callable(value) or isinstance(value, np.dtype))
            self._met[id(value)] = value if is_shared else None
        return False


class _Dialect:
    """How Dask writes what is not an ordinary call."""

    __slots__ = ("fused", "makers")

    def __init__(self) -> None:
        spec = sys.modules.get("dask._task_spec")
        #: What calls the tasks within a fused one.
        self.fused: object = getattr(spec, "_execute_subgraph", None)
        #: What makes containers of arguments, and the name of the argument that says of what type.
        self.makers: dict[object, str] = {}
        for owner, name, argument in (
            (spec, "_identity_cast", "typ"),
            (getattr(spec, "NestedContainer", None), "to_container", "constructor"),
        ):
            if hasattr(owner, name):
                self.makers[getattr(owner, name)] = argument


@dataclass(slots=True)
class _Scope:
    """What names mean within a fused task: its own tasks, and what comes from outside."""

    tasks: Mapping[Key, Any]
    #: Where results are; None while one is being read.
    found: dict[Key, int | None]


class _Reading:
    """Reads one node.

    Numbers stand for inputs in the order in which the node refers to them, leaves, constants, and results.
    """

    __slots__ = ("_constants", "_dialect", "_sorts", "constants", "is_plain", "keys", "leaves", "steps")

    def __init__(self, sorts: _Sorts, constants: _Constants, dialect: _Dialect) -> None:
        self._sorts, self._constants, self._dialect = sorts, constants, dialect
        self.keys: dict[Key, int] = {}
        self.leaves: list[Any] = []
        #: Whether all leaves are atoms, or made of them.
        self.is_plain = True
        self.constants: list[Any] = []
        #: The function, its arguments, the names of the last of them or whether they go together.
        self.steps: list[tuple[int, tuple[int, ...], tuple[str, ...] | Literal[True]]] = []

    def call(self, node: Any, scope: _Scope | None) -> int:
        """Read a node that calls a function; get the number of its result."""
        function, arguments, kwargs = node.func, node.args, node.kwargs
        dialect = self._dialect
        if function is dialect.fused and not kwargs:
            return self._fused(*arguments, scope=scope)
        numbers = [self._number(value, scope) for value in arguments]
        names: tuple[str, ...] | Literal[True] = ()
        if kwargs:
            maker = kwargs.get(dialect.makers.get(function)) if len(kwargs) == 1 else None
            if maker is not None and self._sorts[type(maker)] is _LEAF_SORT:
                function, names = maker, True
            else:
                names = tuple(kwargs)
                numbers += [self._number(value, scope) for value in kwargs.values()]
        self.steps.append((self._own(function, self._sorts[type(function)]), tuple(numbers), names))
        return _RESULT + len(self.steps) - 1

    def _number(self, value: Any, scope: _Scope | None) -> int:
        """Get the number of what an argument stands for."""
        sort = self._sorts[type(value)]
        if sort is _REFERENCE:
            return self._reference(value.key, scope)
        if sort is _ALIAS:
            return self._reference(value.target, scope)
        if sort is _CALL:
            return self.call(value, scope)
        if sort is _DATA:
            value = value.value
            sort = self._sorts[type(value)]
        elif sort is _ODD:
            raise _Odd
        return self._own(value, sort)

    def _own(self, value: Any, sort: _Sort) -> int:
        """Get the number of a value that the node holds."""
        if sort is not _ATOM and not (sort is _MAYBE_ATOM and is_plain(value)):
            if sort is _LEAF_SORT and self._constants.has(value):
                self.constants.append(value)
                return _CONSTANT + len(self.constants) - 1
            self.is_plain = False
        self.leaves.append(value)
        return _LEAF + len(self.leaves) - 1

    def _reference(self, key: Key, scope: _Scope | None) -> int:
        if scope is None:
            return self.keys.setdefault(key, len(self.keys))
        if key in scope.found:
            number = scope.found[key]
            if number is None:
                raise _Odd  # a circle
            return number
        node = scope.tasks[key]
        scope.found[key] = None
        number = scope.found[key] = self._number(node, scope)
        return number

    def _fused(
        self,
        tasks: Mapping[Key, Any],
        result: Key,
        inputs: tuple[Key, ...],
        *values: Any,
        scope: _Scope | None,
    ) -> int:
        """Read a fused task: each task within it once, after those that it needs."""
        if type(tasks) is not dict or type(inputs) is not tuple:
            raise _Odd  # releases of Dask before 2025 have other arguments
        found: dict[Key, int | None] = {
            key: self._number(value, scope) for key, value in zip(inputs, values, strict=True)
        }
        number = self._reference(result, _Scope(tasks, found))
        if len(found) != len(tasks) + len(inputs):
            raise _Odd  # tasks that nobody needs would be run too
        return number


class Recipes:
    """The recipes of one run.

    Parameters
    ----------
    pack
        Packs a recipe: gives its number, and those of all that a worker must have to follow it.
    """

    __slots__ = ("_met", "_pack", "_parts", "_recipes")

    def __init__(self, pack: Callable[[Recipe], tuple[int, tuple[int, ...]]]) -> None:
        self._pack = pack
        self._parts = _Sorts(), _Constants(), _Dialect()
        #: What nodes are made of that were met once.
        self._met: set[_Form] = set()
        #: What recipes are packed as, by what they are made of; None for one that cannot be.
        self._recipes: dict[_Form, tuple[int, tuple[int, ...]] | None] = {}

    def read(self, node: Any) -> Call | None:
        """Read a node; None if there is no recipe for it.

        The first node of its form has none: there may be no other.
        """
        if self._parts[0][type(node)] is not _CALL:
            return None
        reading = _Reading(*self._parts)
        try:
            last = reading.call(node, None)
        except (_Odd, KeyError, TypeError, ValueError, RecursionError):
            return None  # whatever it is, running it shows
        counts = len(reading.keys), len(reading.leaves), len(reading.constants), len(reading.steps)
        if last != _RESULT + counts[-1] - 1 or max(counts) > _LEAF:
            return None
        packed = self._recipe(reading)
        if packed is None:
            return None
        number, functions = packed
        is_plain = reading.is_plain and len(reading.leaves) <= _FEW
        return Call(number, tuple(reading.leaves), tuple(reading.keys), functions, is_plain)

    def _recipe(self, reading: _Reading) -> tuple[int, tuple[int, ...]] | None:
        """Get what a recipe is packed as."""
        form = tuple(reading.steps), tuple(map(id, reading.constants))
        if form in self._recipes:
            return self._recipes[form]
        if form not in self._met:
            if len(self._met) < _MANY:
                self._met.add(form)
            return None
        try:
            self._recipes[form] = self._pack(_recipe_of(reading))
        except EncodeError:
            self._recipes[form] = None
        return self._recipes[form]


def is_plain(value: Any) -> bool:
    """Tell whether a value is made of atoms, and small.

    Examples
    --------
    >>> is_plain((0, slice(1, 2), ("x", None))), is_plain(([], 1))
    (True, False)
    """
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind in _TEXTS:
        return len(value) <= _SHORT_TEXT
    if kind is slice:
        return is_plain((value.start, value.stop, value.step))
    return kind is tuple and len(value) <= _FEW and all(map(is_plain, value))


def _recipe_of(reading: _Reading) -> Recipe:
    """Make a recipe of what was read, with all values in one list."""
    leaves = len(reading.keys)
    constants = leaves + len(reading.leaves)
    results = constants + len(reading.constants)
    begins = (0, leaves, constants, results)

    def position(number: int) -> int:
        sort, at = divmod(number, _LEAF)
        return begins[sort] + at

    last_use = {
        number: at
        for at, (_, arguments, _) in enumerate(reading.steps)
        for number in arguments
        if number >= _RESULT
    }
    steps = []
    for at, (function, arguments, way) in enumerate(reading.steps):
        names = () if way is True else way
        places = tuple(map(position, arguments))
        end = len(places) - len(names)
        done = tuple([position(number) for number, use in last_use.items() if use == at])
        steps.append(Step(position(function), places[:end], places[end:], names, way is True, done))
    return Recipe(tuple(steps), tuple(reading.constants))
