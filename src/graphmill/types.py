"""The few types that every layer shares. Knows nothing of graphs, schedulers or Dask."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Protocol, TypeAlias, runtime_checkable

#: The name of a task or of a piece of data in a graph: a string, a number, bytes, or a tuple of them.
Key: TypeAlias = Hashable

#: Static priorities: the task with the smallest number is the best one to run next.
Priority: TypeAlias = Callable[[Key], int]

#: The same, where ranks may lie between two others.
Rank: TypeAlias = Callable[[Key], float]


@runtime_checkable
class Node(Protocol):
    """Something to run: our own tuple tasks, and Dask's task-spec nodes as they are."""

    @property
    def dependencies(self) -> AbstractSet[Key]:
        """The keys whose values the node must be given."""

    def __call__(self, values: Mapping[Key, Any]) -> Any:
        """Run the task on the values of its dependencies."""
