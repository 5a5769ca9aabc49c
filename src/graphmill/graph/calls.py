"""Tasks that are calls, in the least form that another process needs to run them.

Dask's nodes carry their key, those of their inputs, and what they were found to be; and each is taken apart
and put together by Python code. For a task that takes microseconds, that is most of the work. Here a task is
what it calls, with what, and which arguments are inputs, by number. An argument may be a call in its turn;
a fused task is calls one after the other, each of which may use what those before it gave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from graphmill.graph.legacy import TupleTask
from graphmill.graph.taskspec import Kind, Kinds, NodeForm, form_of
from graphmill.types import Key, Node

#: The function, its arguments, the named ones, and which of both are not there yet: their position or name,
#: and the number of an input or the parts of a call.
Parts: TypeAlias = tuple[Any, tuple[Any, ...], dict[str, Any] | None, tuple[tuple[Any, Any], ...]]

_LITERALS = frozenset({int, float, bool, complex, str, bytes, type(None)})
_NODES = frozenset({Kind.NODE, Kind.ALIAS, Kind.DATA, Kind.REFERENCE})


class _MoreToIt(Exception):
    """A task is more than calls."""


class Calls:
    """Turns tasks of one graph into calls, those that are no more than that."""

    __slots__ = ("_forms", "_kinds")

    def __init__(self) -> None:
        self._kinds = Kinds()
        self._forms: dict[type, NodeForm] = {}

    def parts(self, node: Node, inputs: Iterable[Key]) -> Parts | None:
        """Take a task apart.

        Parameters
        ----------
        node
            The task.
        inputs
            The keys that it refers to, in the order in which they are numbered.

        Returns
        -------
        tuple or None
            What `Call` takes; None if there is more to the task, such as nodes of other kinds in it.

        Examples
        --------
        >>> Calls().parts(TupleTask((max, "x", 3), frozenset({"x"})), ["x"])
        (<built-in function max>, (None, 3), None, ((0, 0),))
        """
        numbers = {key: number for number, key in enumerate(inputs)}
        try:
            if type(node) is TupleTask:
                return _parts_of_tuple(node.spec, numbers)
            return self._parts_of_node(node, numbers)
        except (_MoreToIt, KeyError, TypeError):
            return (
                None  # also where something unhashable stands for a key: the node itself says what is wrong
            )

    def _form(self, cls: type) -> NodeForm:
        form = self._forms.get(cls)
        if form is None:
            form = self._forms[cls] = form_of(cls)
        return form

    def _parts_of_node(self, node: Any, numbers: Mapping[Key, int]) -> Parts:
        form = self._form(type(node))
        if form is NodeForm.TASK:
            if getattr(node.func, "__name__", None) == "_execute_subgraph":
                return self._parts_of_fused(node, numbers)
            missing: list[tuple[Any, Any]] = []
            arguments = tuple(self._arguments(enumerate(node.args), numbers, missing))
            named = None
            if node.kwargs:
                values = self._arguments(node.kwargs.items(), numbers, missing)
                named = dict(zip(node.kwargs, values, strict=True))
            return node.func, arguments, named, tuple(missing)
        if form is NodeForm.LIST or form is NodeForm.TUPLE:
            missing = []
            arguments = tuple(self._arguments(enumerate(node.args), numbers, missing))
            return as_list if form is NodeForm.LIST else as_tuple, arguments, None, tuple(missing)
        raise _MoreToIt

    def _arguments(
        self, arguments: Iterable[tuple[Any, Any]], numbers: Mapping[Key, int], missing: list[tuple[Any, Any]]
    ) -> list[Any]:
        """Put None in the place of arguments that are not there yet, and note what they will be."""
        kinds = self._kinds
        left: list[Any] = []
        for place, argument in arguments:
            cls = type(argument)
            if cls in _LITERALS or kinds[cls] not in _NODES:
                left.append(argument)
                continue
            form = self._form(cls)
            if form is NodeForm.DATA:
                left.append(argument.value)
                continue
            if form is NodeForm.REFERENCE:
                missing.append((place, numbers[argument.key]))
            elif form is NodeForm.ALIAS:
                missing.append((place, numbers[argument.target]))
            else:
                missing.append((place, self._parts_of_node(argument, numbers)))
            left.append(None)
        return left

    def _parts_of_fused(self, node: Any, numbers: Mapping[Key, int]) -> Parts:
        """Put the calls of a fused task one after the other."""
        inner, wanted, names, *given = node.args
        missing: list[tuple[Any, Any]] = []
        arguments = self._arguments(enumerate(given, 1), numbers, missing)
        inside = {name: number for number, name in enumerate(names)}
        if node.kwargs or len(names) != len(given) or wanted in inside:
            raise _MoreToIt
        steps: list[Parts] = []
        stack = [wanted]
        while stack:
            key = stack[-1]
            if key in inside:
                stack.pop()
                continue
            before = [dep for dep in inner[key].dependencies if dep not in inside]
            if before:
                if len(stack) > len(inner):
                    raise _MoreToIt  # a cycle
                stack.extend(before)
                continue
            stack.pop()
            if self._form(type(inner[key])) is NodeForm.ALIAS and key != wanted:
                inside[key] = inside[inner[key].target]
            else:
                steps.append(self._parts_of_node(inner[key], inside))
                inside[key] = len(names) + len(steps) - 1
        return in_steps, (tuple(steps), *arguments), None, tuple(missing)


def _parts_of_tuple(spec: Any, numbers: Mapping[Key, int]) -> Parts:
    if type(spec) is not tuple or not spec or not callable(spec[0]):
        raise _MoreToIt
    missing: list[tuple[Any, Any]] = []
    left: list[Any] = []
    for place, argument in enumerate(spec[1:]):
        cls = type(argument)
        if cls not in _LITERALS and cls is not tuple:
            raise _MoreToIt
        number = numbers.get(argument)
        if number is not None:
            missing.append((place, number))
            left.append(None)
        elif cls is tuple:
            raise _MoreToIt
        else:
            left.append(argument)
    return spec[0], tuple(left), None, tuple(missing)


def as_list(*items: Any) -> list[Any]:
    """Make a list of arguments."""
    return list(items)


def as_tuple(*items: Any) -> tuple[Any, ...]:
    """Make a tuple of arguments."""
    return items


def in_steps(steps: Sequence[Parts], *inputs: Any) -> Any:
    """Run calls one after the other, each on inputs and what those before it gave; give the last result."""
    values = list(inputs)
    for step in steps:
        values.append(run(step, values))
    return values[-1]


def run(parts: Parts, values: Mapping[int, Any] | Sequence[Any]) -> Any:
    """Run a call on the values of inputs, by number."""
    function, left, named, missing = parts
    arguments: Sequence[Any] = left
    if missing:
        arguments = list(left)
        for place, what in missing:
            value = values[what] if type(what) is int else run(what, values)
            if type(place) is int:
                arguments[place] = value
            elif named is not None:
                named[place] = value
    return function(*arguments) if named is None else function(*arguments, **named)


class Call:
    """A task that is a call, to be run once.

    Parameters
    ----------
    parts
        As `Calls.parts` gives them.
    """

    #: Tells `kind_of` that this runs as a task-spec node does.
    __graphmill_node__ = True
    __slots__ = ("_parts",)

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __call__(self, values: Mapping[int, Any]) -> Any:
        """Run the task on the values of its inputs, by number."""
        return run(self._parts, values)
