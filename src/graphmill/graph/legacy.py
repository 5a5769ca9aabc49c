"""Tuple graphs: tasks written as ``(function, argument, ...)``.

Inside a task, tasks and keys are found at any depth in tuples, lists, sets and the values of
dictionaries; all else is data. Task-spec nodes and futures may stand inside tuples too.

Knows how such tasks are written, what they refer to, and how to run one. Must not know Dask.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, Final

from graphmill.graph.taskspec import Kind, Kinds
from graphmill.types import Key

NO_KEYS: Final[frozenset[Key]] = frozenset()


_NODE_KINDS = (Kind.NODE, Kind.ALIAS, Kind.DATA)


class _NoDefault:
    def __repr__(self) -> str:
        return "<no default>"


#: Stands for an argument that was not given.
no_default: Final = _NoDefault()


def ishashable(x: Any) -> bool:
    """Say whether `x` can be hashed, as a key must.

    Examples
    --------
    >>> ishashable(1), ishashable([1])
    (True, False)
    """
    try:
        hash(x)
    except TypeError:
        return False
    return True


def istask(x: Any) -> bool:
    """Say whether `x` is something to run: a tuple that starts with a callable, or a task-spec node.

    Examples
    --------
    >>> istask((abs, -1)), istask((1, 2)), istask("x")
    (True, False, False)
    """
    if type(x) is tuple:
        return bool(x) and callable(x[0])
    return Kinds()[type(x)] in (Kind.NODE, Kind.ALIAS)


def has_tasks(dsk: Container[Key], x: Any) -> bool:
    """Say whether `x` holds anything to run: a task, or a key of the graph `dsk`, at any depth.

    Examples
    --------
    >>> dsk = {"x": 1}
    >>> has_tasks(dsk, (abs, 1)), has_tasks(dsk, ["x"]), has_tasks(dsk, ["y", 2])
    (True, True, False)
    """
    return Reader(dsk).read(x) is not None


def get_dependencies(
    dsk: Mapping[Key, Any], key: Key = None, task: Any = no_default, as_list: bool = False
) -> Any:
    """Get the keys that a task refers to directly.

    Parameters
    ----------
    dsk
        The graph.
    key
        The key of the task, or
    task
        the task itself.
    as_list
        Give a list that has a key as often as the task refers to it, instead of a set.

    Returns
    -------
    set or list
        The keys.

    Examples
    --------
    >>> dsk = {"x": 1, "y": (abs, "x"), "z": (max, "x", (abs, "y"))}
    >>> get_dependencies(dsk, "y")
    {'x'}
    >>> sorted(get_dependencies(dsk, task=(max, "x", ["y", 3])))
    ['x', 'y']
    """
    if key is None and task is no_default:
        raise ValueError("Give either a key of the graph, or a task")
    found = Reader(dsk).references(dsk[key] if key is not None else task)
    return found if as_list else set(found)


class Reader:
    """Reads what tuple tasks refer to, for one graph.

    Parameters
    ----------
    *known
        Where a name must be found to count as a key: the graph, and the cache where there is one.
    """

    __slots__ = ("_first", "_kinds", "_others")

    def __init__(self, first: Container[Key], *others: Container[Key]) -> None:
        self._first = first
        self._others = others
        self._kinds = Kinds()

    def read(self, value: Any) -> tuple[frozenset[Key], bool] | None:
        """Say what a value of a graph refers to.

        Returns
        -------
        tuple or None
            The keys referred to, and whether there are task-spec nodes or futures inside; None if the
            value is data: nothing in it runs or refers to a key.
        """
        found: list[Key] = []
        tasks, nodes = self._scan([value], found)
        if found:
            return frozenset(found), nodes
        return (NO_KEYS, nodes) if tasks else None

    def references(self, value: Any) -> list[Key]:
        """List the keys that a value refers to, each as often as it does."""
        found: list[Key] = []
        self._scan([value], found)
        return found

    def _scan(self, stack: list[Any], found: list[Key]) -> tuple[bool, bool]:
        """Collect references in `found`; say whether there are tasks, and nodes."""
        kinds, first, others = self._kinds, self._first, self._others
        tasks = nodes = False
        while stack:
            value = stack.pop()
            kind = kinds[type(value)]
            if kind is Kind.NAME:
                if value in first or (others and any(value in keys for keys in others)):
                    found.append(value)
            elif kind is Kind.TUPLE:
                if value and callable(value[0]):
                    tasks = True
                    stack.extend(value[:0:-1])
                elif self._is_key(value):
                    found.append(value)
                else:
                    stack.extend(reversed(value))
            elif kind is Kind.CONTAINER or kind is Kind.NAMED_TUPLE:
                stack.extend(value)
            elif kind is Kind.DICT:
                stack.extend(value.values())
            elif kind is Kind.REFERENCE:
                nodes = True
                found.append(value.key)
            elif kind is not Kind.LITERAL:
                nodes = tasks = True
                found.extend(value.dependencies)
        return tasks, nodes

    def _is_key(self, value: tuple[Any, ...]) -> bool:
        try:
            return value in self._first or any(value in keys for keys in self._others)
        except TypeError:
            return False  # a tuple that holds something unhashable


class TupleTask:
    """A task written as a tuple, or a container of such tasks, as one node.

    Parameters
    ----------
    spec
        What the graph says, as it stands there.
    dependencies
        The keys that it refers to.
    """

    #: Tells `kind_of` that this runs as a task-spec node does.
    __graphmill_node__ = True
    __slots__ = ("dependencies", "spec")

    def __init__(self, spec: Any, dependencies: frozenset[Key]) -> None:
        self.spec = spec
        self.dependencies = dependencies

    def __call__(self, values: Mapping[Key, Any]) -> Any:
        """Run the task on the values of its dependencies."""
        return evaluate(self.spec, values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.spec, self.dependencies)


class MixedTask(TupleTask):
    """A tuple task that holds task-spec nodes or futures."""

    __slots__ = ()

    def __call__(self, values: Mapping[Key, Any]) -> Any:
        """Run the task, and the nodes inside it, on the values of its dependencies."""
        return evaluate(self.spec, values, Kinds())


def evaluate(spec: Any, values: Mapping[Key, Any], kinds: Kinds | None = None) -> Any:
    """Run a tuple task, with every key that it refers to replaced by its value.

    Parameters
    ----------
    spec
        A task, or anything that may stand inside one.
    values
        The values of the keys that it refers to, and of no others.
    kinds
        Given where task-spec nodes and futures may stand inside.

    Examples
    --------
    >>> evaluate((sum, ["x", (abs, -2)]), {"x": 1})
    3
    """
    cls = type(spec)
    if cls is tuple:
        if spec and callable(spec[0]):
            return spec[0](*[evaluate(arg, values, kinds) for arg in spec[1:]])
        try:
            if spec in values:
                return values[spec]
        except TypeError:
            pass  # a tuple that holds something unhashable is no key
        return tuple([evaluate(item, values, kinds) for item in spec])
    if cls is list or cls is set or cls is frozenset:
        return cls([evaluate(item, values, kinds) for item in spec])
    if cls is dict:
        return {name: evaluate(value, values, kinds) for name, value in spec.items()}
    if isinstance(spec, (str, int, float, bytes)):
        return values.get(spec, spec)
    if isinstance(spec, tuple) and hasattr(cls, "_make"):
        return cls._make([evaluate(item, values, kinds) for item in spec])
    if kinds is not None:
        kind = kinds[cls]
        if kind is Kind.REFERENCE:
            return values[spec.key]
        if kind in _NODE_KINDS:
            return spec({dep: values[dep] for dep in spec.dependencies})
    return spec
