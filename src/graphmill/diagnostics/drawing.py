"""Where the tasks of a small graph lie in its picture: one column for each step, few crossings.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from graphmill.types import Key

#: How often columns are sorted by their neighbours; more changes little.
_SWEEPS = 4


def place_tasks(
    keys: Sequence[Key], dependencies: Mapping[Key, Iterable[Key]]
) -> dict[Key, tuple[float, float]]:
    """Give each task a place.

    Parameters
    ----------
    keys
        The tasks.
    dependencies
        What each needs; keys that are not among the tasks are passed over.

    Returns
    -------
    dict
        For each task, its column, from 0, and its height, around 0.
    """
    known = set(keys)
    needs = {key: [dep for dep in dependencies.get(key, ()) if dep in known] for key in keys}
    users: dict[Key, list[Key]] = {key: [] for key in keys}
    for key, deps in needs.items():
        for dep in deps:
            users[dep].append(key)
    columns = _columns(keys, needs, users)
    height = {key: at - (len(column) - 1) / 2 for column in columns for at, key in enumerate(column)}
    for sweep in range(_SWEEPS):
        neighbours = users if sweep % 2 else needs
        for column in reversed(columns) if sweep % 2 else columns:
            _sort_column(column, neighbours, height)
    return {key: (float(at), height[key]) for at, column in enumerate(columns) for key in column}


def _columns(
    keys: Sequence[Key], needs: Mapping[Key, list[Key]], users: Mapping[Key, list[Key]]
) -> list[list[Key]]:
    """Put each task one column after the last of what it needs."""
    left = {key: len(needs[key]) for key in keys}
    level = dict.fromkeys(keys, 0)
    free = [key for key in keys if not left[key]]
    for key in free:  # it grows
        for user in users[key]:
            level[user] = max(level[user], level[key] + 1)
            left[user] -= 1
            if not left[user]:
                free.append(user)
    columns: list[list[Key]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for key in keys:
        columns[level[key]].append(key)
    return columns


def _sort_column(column: list[Key], neighbours: Mapping[Key, list[Key]], height: dict[Key, float]) -> None:
    def middle(key: Key) -> float:
        near = neighbours[key]
        return sum(height[each] for each in near) / len(near) if near else height[key]

    column.sort(key=middle)
    for at, key in enumerate(column):
        height[key] = at - (len(column) - 1) / 2
