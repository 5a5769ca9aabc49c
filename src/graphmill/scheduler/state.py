"""The state of a run: who waits for whom, what is held, what is done.

`State` has the nine fields by which Dask's local scheduler is known, and the transitions between them,
each of which touches only the task it is about and its neighbours. Which task is picked next, and what
happens when one fails, is not known here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, MutableMapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from graphmill.errors import InvalidTransition
from graphmill.graph.legacy import NO_KEYS
from graphmill.graph.model import Graph
from graphmill.types import Key, Priority

#: What `Ready.take` gives where no task may start now; any key may be a task's, None too.
NO_TASK: Final = object()


class Ready(Protocol):
    """Where tasks that could run wait to be picked."""

    def push(self, keys: list[Key]) -> None:
        """Add tasks that have just become ready, the best of them last."""

    def take(self) -> Key:
        """Take out the task to start next; `NO_TASK` if none may start now."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Key]: ...


class ReadyStack(list[Key]):
    """Last in, first out: depth before breadth, as the general loop wants it."""

    __slots__ = ()

    push = list.extend

    def take(self) -> Key:
        """Take out the task that came last."""
        return self.pop() if self else NO_TASK


class Listed:
    """Static priorities by which tasks run as they are listed; worked out only where somebody asks.

    Parameters
    ----------
    keys
        The keys, the best first.
    """

    __slots__ = ("_keys", "_ranks")

    def __init__(self, keys: Collection[Key]) -> None:
        self._keys = keys
        self._ranks: dict[Key, int] = {}

    def __call__(self, key: Key) -> int:
        """Get the rank of a key."""
        if not self._ranks:
            self._ranks.update((key, rank) for rank, key in enumerate(self._keys))
        return self._ranks[key]


@dataclass(slots=True, eq=False)
class State:
    """The state of a run. Each field is an attribute, and an item by its name.

    Notes
    -----
    Not safe for use by several threads at once. `cache` may be a mapping of the user's own.

    A set in `waiting` or `waiting_data` is the very one in `dependencies` or `dependents` until something has
    to be taken out of it, which mostly leaves nothing: sets of their own would take half as much memory
    again, and the time to fill it. So these sets are for others to read, unless they call `unshare` first.
    """

    #: {x: what must be there before x}; constant.
    dependencies: Mapping[Key, AbstractSet[Key]]
    #: {a: what needs a}; constant.
    dependents: Mapping[Key, AbstractSet[Key]]
    #: {key: its data, or a reference to it}: what is held now.
    cache: MutableMapping[Key, Any] = field(default_factory=dict)
    #: Keys whose data was seen, used, and is gone.
    released: set[Key] = field(default_factory=set)
    #: Tasks that could run now: a stack, or another order of picking.
    ready: Any = field(default_factory=ReadyStack)
    #: Tasks that run now.
    running: set[Key] = field(default_factory=set)
    #: Tasks that have run.
    finished: set[Key] = field(default_factory=set)
    #: {task: what it still waits for}; tasks that wait for nothing are not in it.
    waiting: dict[Key, AbstractSet[Key]] = field(default_factory=dict)
    #: {key: tasks yet to run that need it}; keys that nobody needs any more are not in it.
    waiting_data: dict[Key, AbstractSet[Key]] = field(default_factory=dict)

    # ---- by name, as Dask's callbacks read it

    def __getitem__(self, name: str) -> Any:
        if name not in FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in FIELDS:
            raise KeyError(name)
        setattr(self, name, value)

    def __contains__(self, name: object) -> bool:
        return name in FIELDS

    def keys(self) -> tuple[str, ...]:
        """Name the fields; with this, ``dict(state)`` works."""
        return FIELDS

    def __eq__(self, other: object) -> bool:
        if isinstance(other, State):
            other = dict(other)
        return dict(self) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    # ---- transitions

    def wake(self, key: Key) -> list[Key]:
        """Tell the dependents of a task that it is done; return those that wait for nothing more."""
        woken = []
        waiting = self.waiting
        for dependent in self.dependents[key]:
            missing = waiting.get(dependent)
            if missing is None:
                continue  # not part of this run: its own value was in the cache
            if len(missing) < 2:  # noqa: PLR2004 - it is the last one, or none is left
                del waiting[dependent]
                woken.append(dependent)
                continue
            if type(missing) is not set:
                missing = waiting[dependent] = set(missing)
            missing.discard(key)
        return woken

    def forget(self, key: Key) -> list[Key]:
        """Take a finished task off its inputs' `waiting_data`; return the inputs nobody waits for."""
        idle = []
        waiting_data = self.waiting_data
        for dep in self.dependencies[key]:
            users: Any = waiting_data.get(dep)
            if users is None:
                continue
            if len(users) < 2:  # noqa: PLR2004 - the same
                del waiting_data[dep]
                idle.append(dep)
                continue
            if users is self.dependents[dep]:
                users = waiting_data[dep] = set(users)
            users.discard(key)
        return idle

    def unshare(self) -> None:
        """Give `waiting` and `waiting_data` sets of their own, for whoever wants to change them."""
        self.waiting = {key: set(missing) for key, missing in self.waiting.items()}
        self.waiting_data = {key: set(users) for key, users in self.waiting_data.items()}

    def release(self, key: Key) -> Any:
        """Let go of a value that nobody waits for; return it, for its owner to free."""
        if key in self.waiting_data:
            raise InvalidTransition(
                f"{key!r} was to be released while {self.waiting_data[key]!r} wait for it"
            )
        self.released.add(key)
        return self.cache.pop(key, None)

    def validate(self) -> None:
        """Check every invariant between the fields.

        Raises
        ------
        InvalidTransition
            Naming the key and the rule that it breaks.
        """
        for key in self.dependencies:
            problem = self._problem(key)
            if problem:
                raise InvalidTransition(f"{key!r} {problem}\n{self.story(key)}")
        listed = list(self.ready)
        if len(set(listed)) != len(listed):
            raise InvalidTransition(f"a task is ready twice: {listed!r}")
        for name in ("dependents", "ready", "running", "finished", "waiting", "waiting_data"):
            strange = [key for key in self[name] if key not in self.dependencies]
            if strange:
                raise InvalidTransition(f"{name} holds keys that are not in the graph: {strange!r}")

    def _problem(self, key: Key) -> str | None:
        """Say which rule a key breaks, if any."""
        deps, users = self.dependencies[key], self.dependents[key]
        jobs = [name for name in ("waiting", "ready", "running", "finished") if key in set(self[name])]
        held, gone = key in self.cache, key in self.released
        missing = self.waiting.get(key)
        needed = {user for user in users if self._is_pending(user)}
        rules = {
            f"is {' and '.join(jobs)} at once": len(jobs) > 1,
            "has been forgotten: no job, no value": not jobs and not held and not gone,
            "is finished, and its value is neither held nor released": "finished" in jobs
            and not held
            and not gone,
            "is held and released at once": held and gone,
            "is released and yet to run": gone and self._is_pending(key),
            "waits for nothing, and is not ready": missing is not None and not missing,
            "waits for something that is there": missing is not None
            and any(dep in self.cache for dep in missing),
            "waits for something it does not need": missing is not None and not missing <= deps,
            "is ready or running without an input": ("ready" in jobs or "running" in jobs)
            and any(dep not in self.cache for dep in deps),
            "waits for less than is missing": missing is not None
            and any(dep not in self.cache and dep not in missing for dep in deps),
            "is needed by others than waiting_data says": self.waiting_data.get(key, NO_KEYS) != needed,
            "is not in the dependents of its inputs": any(key not in self.dependents[dep] for dep in deps),
            "is needed by a task that does not depend on it": any(
                key not in self.dependencies[user] for user in users
            ),
        }
        return next((rule for rule, broken in rules.items() if broken), None)

    def _is_pending(self, key: Key) -> bool:
        return key in self.waiting or key in self.running or key in self.ready

    def story(self, key: Key) -> str:
        """Tell all that the state knows of a key, for an error."""
        return "  " + "\n  ".join(
            (
                f"depends on {set(self.dependencies.get(key, ()))!r}",
                f"needed by {set(self.dependents.get(key, ()))!r}",
                f"waits for {self.waiting.get(key)!r}",
                f"waited for by {self.waiting_data.get(key)!r}",
                *(f"{name}: {key in set(self[name])}" for name in _MEMBERSHIPS),
            )
        )


#: The names of the nine fields, constant ones first.
FIELDS = tuple(State.__dataclass_fields__)
_MEMBERSHIPS = ("cache", "released", "ready", "running", "finished")


def start_state(
    graph: Graph,
    cache: MutableMapping[Key, Any],
    priority: Priority,
    ready: Any = None,
) -> State:
    """Lay out the state of a graph before anything has run.

    Parameters
    ----------
    graph
        The graph, as far as it is needed.
    cache
        Values that are there already; the graph's own data is added to it.
    priority
        Static priorities, the smallest first.
    ready
        Where ready tasks wait; a last-in-first-out stack by default.
    """
    dependencies, dependents = graph.dependencies, graph.dependents()
    cache.update(graph.data)
    waiting: dict[Key, AbstractSet[Key]]
    if len(dependencies) == len(graph.tasks):
        # Every key is a task: nothing that is waited for can be there yet.
        waiting = {key: deps for key, deps in dependencies.items() if deps}
        fresh = [key for key, deps in dependencies.items() if not deps]
    else:
        waiting, fresh = {}, []
        for key in graph.tasks:
            deps = dependencies[key]
            missing = [dep for dep in deps if dep not in cache]
            if not missing:
                fresh.append(key)
            else:
                waiting[key] = deps if len(missing) == len(deps) else set(missing)
    waiting_data: dict[Key, AbstractSet[Key]] = {key: users for key, users in dependents.items() if users}
    if isinstance(priority, Listed):
        fresh.reverse()
    else:
        fresh.sort(key=priority, reverse=True)
    ready = ReadyStack() if ready is None else ready
    ready.push(fresh)
    return State(dependencies, dependents, cache, ready=ready, waiting=waiting, waiting_data=waiting_data)
