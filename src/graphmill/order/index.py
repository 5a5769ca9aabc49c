"""A graph as numbers: what the ordering algorithms work on.

Tasks are numbered as the graph lists them; data has no number, since it is there anyway and weighs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from graphmill.graph.model import Graph
from graphmill.types import Key


@dataclass(slots=True)
class Index:
    """The tasks of a graph by number."""

    #: The key of each task.
    keys: list[Key]
    #: The tasks that each task needs.
    deps: list[list[int]]
    #: The tasks that need each task.
    users: list[list[int]]
    #: What each task's output weighs, in bytes; one where nothing is known, until it is guessed.
    sizes: list[int]
    #: 1 for tasks whose output is asked for and stays, else 0.
    kept: list[int]
    #: Tasks that only hand on another's output: whose it is, None if that is data.
    sources: dict[int, int | None] = field(default_factory=dict)

    def hold_sources(self) -> None:
        """Let what uses an alias hold on to what it stands for; the alias itself weighs nothing."""
        held_by: dict[int, dict[int, None]] = {}
        for alias, source in self.sources.items():
            self.sizes[alias] = 0
            if source is None:
                continue
            self.kept[source] |= self.kept[alias]
            for user in self.users[alias]:
                held_by.setdefault(user, {})[source] = None
        for user, sources in held_by.items():
            known = set(self.deps[user])
            for source in sources:
                if source not in known:
                    self.deps[user].append(source)
                    self.users[source].append(user)


def index_graph(
    graph: Graph,
    sizes: Mapping[Key, int] | None = None,
    results: Collection[Key] | None = None,
) -> Index:
    """Number the tasks of a graph.

    Parameters
    ----------
    graph
        The graph.
    sizes
        Bytes of each task's output, as far as known. Unknown ones are taken to be of middling size.
    results
        The keys asked for; by default those that no other task needs.
    """
    # `dependencies` is in the order of the user's graph, which `tasks` need not be.
    keys = [key for key in graph.dependencies if key in graph.tasks]
    has_data = len(keys) < len(graph.dependencies)
    number = {key: i for i, key in enumerate(keys)}
    dependencies = graph.dependencies
    deps: list[list[int]] = []
    users: list[list[int]] = [[] for _ in keys]
    for i, key in enumerate(keys):
        if has_data:
            found = [number[dep] for dep in dependencies[key] if dep in number]
        else:
            found = [number[dep] for dep in dependencies[key]]
        if len(found) > 1:
            found.sort()
        deps.append(found)
        for d in found:
            users[d].append(i)
    kept = [0 if of else 1 for of in users]
    for key in results or ():
        if key in number:
            kept[number[key]] = 1
    index = Index(keys, deps, users, _weights(keys, sizes), kept)
    sources = graph.sources()
    if sources:
        # In the graph's own order: that of the walk that found them changes from process to process.
        index.sources = {i: number.get(sources[key]) for i, key in enumerate(keys) if key in sources}
    return index


def _weights(keys: list[Key], sizes: Mapping[Key, int] | None) -> list[int]:
    if not sizes:
        return [1] * len(keys)
    known = sorted(sizes[key] for key in keys if key in sizes)
    middling = known[len(known) // 2] if known else 1
    return [sizes.get(key, middling) for key in keys]
