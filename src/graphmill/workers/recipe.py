"""What many tasks have in common, sent once: which functions are called, and what each is called with.

A task of a batch then is the number of its recipe, its inputs without their keys, and what else is its own.
Knows nothing of graphs or of Dask; `engine/recipes.py` reads recipes out of nodes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple


class Step(NamedTuple):
    """A call. All that it refers to are positions in the list of values of one task."""

    #: The function.
    function: int
    #: Its arguments.
    arguments: tuple[int, ...]
    #: Its keyword arguments, and their names.
    named: tuple[int, ...]
    names: tuple[str, ...]
    #: Whether it takes its arguments as one tuple, as `list` does.
    together: bool
    #: Results of other steps that nobody needs afterwards.
    done: tuple[int, ...]


class Recipe(NamedTuple):
    """What to do with the values of a task: its inputs, then what is its own, then what all have in common.

    Each step adds its result at the end; that of the last is the task's.
    """

    steps: tuple[Step, ...]
    #: What all tasks have in common; they cannot change it.
    constants: tuple[Any, ...]


def follow(steps: Iterable[Step], values: list[Any]) -> Any:
    """Run a task.

    Parameters
    ----------
    steps
        Of its recipe.
    values
        What the recipe begins with; results are added.
    """
    at = values.__getitem__
    result = None
    for function, arguments, named, names, together, done in steps:
        if names:
            result = at(function)(*map(at, arguments), **dict(zip(names, map(at, named), strict=True)))
        elif together:
            result = at(function)(tuple(map(at, arguments)))
        else:
            result = at(function)(*map(at, arguments))
        values.append(result)
        for position in done:
            values[position] = None
    return result
