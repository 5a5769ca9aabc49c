"""How long tasks take: learned by their kind, which Dask writes into their keys."""

from __future__ import annotations

from typing import Any

from graphmill.types import Key

#: Seconds that a task of unknown kind is taken to last.
UNKNOWN = 0.01
#: Seconds below which a task is quick: reports of others may wait for its end, and a worker may have more of
#: them at hand.
QUICK = 0.001
#: Kinds that are remembered.
_KINDS = 10_000
#: How much the last task of a kind counts.
_LAST = 0.25


class Pace:
    """What is known of how long tasks take."""

    def __init__(self) -> None:
        self._seconds: dict[Any, float] = {}

    def expected(self, key: Key) -> float:
        """Get how many seconds a task is expected to take, by others of its layer, else of its name."""
        layer = layer_of(key)
        seconds = self._seconds.get(layer)
        if seconds is None:
            seconds = self._seconds.get(name_of(layer), UNKNOWN)
        return seconds

    def learn(self, key: Key, seconds: float) -> None:
        """Take in how long a task took."""
        if len(self._seconds) > _KINDS:
            self._seconds.clear()
        layer = layer_of(key)
        for kind in (layer, name_of(layer)):
            before = self._seconds.get(kind, seconds)
            self._seconds[kind] = before + _LAST * (seconds - before)


def layer_of(key: Key) -> Any:
    """Get what the tasks of one layer have in common.

    Examples
    --------
    >>> layer_of(("add-1f3a", 0, 2)), layer_of("load-77"), layer_of(3)
    ('add-1f3a', 'load-77', <class 'int'>)
    """
    if type(key) is tuple and key:
        return key[0]
    return key if type(key) is str else type(key)


def name_of(layer: Any) -> Any:
    """Get what layers of the same function have in common: their name without its token.

    Examples
    --------
    >>> name_of("getitem-1f3a"), name_of("sum-aggregate-77"), name_of("x")
    (('getitem',), ('sum-aggregate',), ('x',))
    """
    if type(layer) is not str:
        return layer
    name, dash, _ = layer.rpartition("-")
    return (name if dash else layer,)
