"""On what terms tasks run: how often again after their worker died, for how long at most, when, and where.

Settings hold for all tasks, annotations of Dask's (``dask.annotate(retries=2, task_timeout=60)``)
for those of a layer. Dask's array optimisation fuses tasks and loses what was said of them: then the
layers of the graph before it still say so, and a fused task takes the largest of its parts' figures.

Knows graphs as far as where annotations stand in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isnan
from numbers import Real
from types import MappingProxyType
from typing import Any, Self

from graphmill.errors import ConfigError
from graphmill.types import Key

#: How often a task is run again whose worker has died, where nobody says otherwise.
RETRIES = 3
_NOTHING: Mapping[str, float] = MappingProxyType({})
#: Annotations that are heeded.
_NAMES = ("retries", "task_timeout", "priority", "executor", "resources")
#: What annotations may call the caller's process, and the workers. On a cluster, "threads" are those of
#: the Dask worker, which is what stands nearest to that process.
_HERE = ("caller", "threads")
_WORKERS = ("default", "processes")


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one graph's tasks."""

    #: How often a task is run again whose worker has died.
    retries: int = RETRIES
    #: Seconds that a task may take; None for any number.
    timeout: float | None = None
    #: What annotations say: how often a task is run again whose worker has died, or that has failed.
    retries_of: Mapping[Key, int] = field(default_factory=dict)
    #: What annotations say: seconds that a task may take.
    timeout_of: Mapping[Key, float] = field(default_factory=dict)
    #: What annotations say: tasks with larger numbers, and what they need, run before others; 0 is usual.
    priority_of: Mapping[Key, float] = field(default_factory=dict)
    #: Tasks that are to run in the caller's process.
    here: frozenset[Key] = frozenset()
    #: How much there is of what tasks may need besides memory, and what they need of it.
    resources: Mapping[str, float] = field(default_factory=dict)
    needs: Mapping[Key, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        dsk: Any,
        graph: Mapping[Key, Any],
        retries: int,
        timeout: float | None,
        resources: Mapping[str, float] = _NOTHING,
    ) -> Self:
        """Read what is said of a graph's tasks.

        Parameters
        ----------
        dsk
            The graph as it was given.
        graph
            The mapping that it stands for.
        retries, timeout
            What holds where nothing is said.
        resources
            How much there is of what tasks may need besides memory.

        Raises
        ------
        ConfigError
            If an annotation is no number that could be meant, or asks for more than there is.
        """
        said = {name: _said(dsk, graph, name) for name in _NAMES}
        for key, value in said["retries"].items():
            checked_retries(value, f"the annotation of {key!r}")
        for key, value in said["task_timeout"].items():
            checked_timeout(value, f"the annotation of {key!r}")
        for key, value in said["priority"].items():
            _check_priority(value, f"the annotation of {key!r}")
        here = [key for key, value in said["executor"].items() if _is_here(value, key)]
        for key, value in said["resources"].items():
            _check_needs(value, key, resources)
        return cls(
            retries,
            timeout,
            said["retries"],
            said["task_timeout"],
            said["priority"],
            frozenset(here),
            resources,
            said["resources"],
        )

    def limit(self, key: Key) -> float | None:
        """Tell how many seconds a task may take; None for any number."""
        return self.timeout_of.get(key, self.timeout)

    def deaths(self, key: Key) -> int:
        """Tell after how many deaths a task is given up."""
        return self.retries_of.get(key, self.retries) + 1

    def may_go_with_others(self, key: Key) -> bool:
        """Tell whether a task may share a report: nobody times it then, and it may run again for others."""
        return self.limit(key) is None and self.deaths(key) > 1


def _check_priority(value: Any, source: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or isnan(value):
        raise ConfigError(f"priority must be a number, but {source} gives {value!r}")


def checked_resources(resources: Any) -> dict[str, float]:
    """See that an engine's resources are names with amounts."""
    if resources is None:
        return {}
    if not isinstance(resources, Mapping) or not all(
        isinstance(name, str) and _is_amount(amount) for name, amount in resources.items()
    ):
        raise ConfigError(
            f"resources must be names with amounts of at least 0, such as {{'gpu': 1}}, got {resources!r}"
        )
    return dict(resources)


def _is_amount(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, Real) and float(value) >= 0


def _check_needs(needs: Any, key: Key, resources: Mapping[str, float]) -> None:
    """See that an engine has what a task needs."""
    if not isinstance(needs, Mapping) or not all(_is_amount(amount) for amount in needs.values()):
        raise ConfigError(
            f"resources must be names with amounts of at least 0, but {key!r} is annotated with {needs!r}"
        )
    for name, amount in needs.items():
        there = resources.get(name, 0)
        if amount > there:
            raise ConfigError(
                f"The task {key!r} needs {amount:g} of {name!r}, and the engine has {there:g}: "
                f"Engine(resources={{{name!r}: {amount:g}}}) says that there is more"
            )


def _is_here(value: Any, key: Key) -> bool:
    """Say whether an executor is the caller's process."""
    if value in _HERE:
        return True
    if value in _WORKERS:
        return False
    raise ConfigError(
        f"The annotation of {key!r} asks for the executor {value!r}; there are {', '.join(map(repr, _HERE))} "
        f"for the calling process, and {', '.join(map(repr, _WORKERS))} for the workers"
    )


def _said(dsk: Any, graph: Mapping[Key, Any], name: str) -> dict[Key, Any]:
    """Collect what annotations of one name say, by key."""
    tell = getattr(dsk, "__dask_annotations__", None)
    if tell is None:
        return {}
    found: dict[Key, Any] = dict(tell().get(name, {}))
    layers = (
        {layer: annotations[name] for layer, annotations in _layers(dsk) if name in annotations}
        if not found
        else {}
    )
    if not layers:
        return found
    for key, node in graph.items():
        values = [
            value(key) if callable(value) else value
            for value in (layers.get(_layer_of(part)) for part in _parts(key, node))
            if value is not None
        ]
        if values:
            found[key] = _largest(values)
    return found


def _largest(values: list[Any]) -> Any:
    """Get the largest of what is said of the parts of a task; of several resources, of each."""
    if not all(isinstance(value, Mapping) for value in values):
        return max(values)
    names = {name for value in values for name in value}
    return {name: max(value.get(name, 0) for value in values) for name in sorted(names)}


def _layers(dsk: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Give the annotations of layers as they are before tasks are fused."""
    for operand in getattr(dsk, "operands", ()):
        for layer, content in getattr(getattr(operand, "hlg", None), "layers", {}).items():
            if content.annotations:
                yield layer, content.annotations


def _layer_of(key: Key) -> Any:
    """Name the layer that a task is of; where it was fused for one block, its name is `layer_.index`."""
    name = key[0] if isinstance(key, tuple) and key else key
    return name.partition("_.")[0] if isinstance(name, str) else name


def _parts(key: Key, node: Any) -> Iterator[Key]:
    """Give the keys of the tasks that were fused into one."""
    yield key
    for argument in getattr(node, "args", ()):
        if isinstance(argument, dict):
            for inner, part in argument.items():
                if hasattr(part, "args"):
                    yield from _parts(inner, part)


def checked_retries(value: Any, source: str = "retries") -> int:
    """See that a number of retries is one."""
    if type(value) is not int or value < 0:
        raise ConfigError(f"retries must be a whole number of at least 0, but {source} gives {value!r}")
    return value


def checked_timeout(value: Any, source: str = "task_timeout") -> float | None:
    """See that a time-out is a number of seconds, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"task_timeout must be a number of seconds above 0, but {source} gives {value!r}")
    return float(value)
