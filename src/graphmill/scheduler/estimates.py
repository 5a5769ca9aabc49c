"""What tasks take, learned from others of their kind: the layer or name, which Dask writes into their keys.

Pure: whoever drives the scheduler measures, and tells with the end of each task.
"""

from __future__ import annotations

from functools import lru_cache
from math import isfinite
from typing import Any

from graphmill.types import Key

#: Seconds that a task of unknown kind is taken to last.
UNKNOWN = 1.0
#: Seconds below which a task is quick: reports of others may wait for its end, and a worker may have more of
#: them at hand.
QUICK = 0.001
#: Seconds of work that each worker is given ahead, so that it need not wait for the next message.
AHEAD = 0.004
#: Seconds below which another task may wait behind one, so that a worker has it at hand: from a report to the
#: next message takes about a millisecond, and two where all cores are busy. Behind a longer one it could wait
#: while other workers have nothing to do.
SOON_OVER = 0.1
#: The least share of a worker that a task takes: the inverse of how many it may have at hand.
_LEAST_SHARE = 1 / 1024
#: The share of one that is soon over: another may wait behind it.
_WAITING_SHARE = 0.5
#: Kinds that are remembered.
_KINDS = 10_000
_DIGITS = "0123456789"
#: How much the last task of a kind counts.
_LAST = 0.25
#: Outputs below so many bytes weigh nothing: not even a thousand of them matter.
SMALL = 4096
#: By so much, up or down, the size of a kind has to change to be worth another look at tasks that wait.
_CHANGED = 1.25
#: Where dashes stand in a string that ends with a UUID, counted from its end, and how long its last part is.
_UUID_DASHES = (-37, -28, -23, -18)
_DASHES = ["-"] * len(_UUID_DASHES)
_UUID_END = 12


class Estimates:
    """What is known of how long tasks take, and how much memory."""

    __slots__ = ("_nbytes", "_seconds", "_taken", "changes")

    def __init__(self) -> None:
        self._seconds: dict[Any, float] = {}
        self._nbytes: dict[Any, int] = {}
        self._taken: dict[Any, int] = {}
        #: How often another size was expected than before, or one of a kind of which none was known.
        self.changes = 0

    def seconds(self, key: Key) -> float:
        """Get how many seconds a task is expected to take, by others of its layer, else of its name."""
        layer = layer_of(key)
        seconds = self._seconds.get(layer)
        if seconds is None:
            seconds = self._seconds.get(name_of(layer), UNKNOWN)
        return seconds

    def share(self, key: Key) -> float:
        """Get how much of a worker a task takes: 1 where it may be long, less where several are at hand."""
        seconds = self.seconds(key)
        return 1.0 if seconds >= SOON_OVER else min(_WAITING_SHARE, max(_LEAST_SHARE, seconds / AHEAD))

    def nbytes(self, key: Key) -> int | None:
        """Get how many bytes the output of a task is expected to have; None if nothing is known."""
        return self._nbytes.get(batch_of(key))

    def taken(self, key: Key) -> int | None:
        """Get how many bytes a task is expected to take besides its inputs, with its output."""
        return self._taken.get(batch_of(key))

    def learn(
        self, key: Key, seconds: float | None = None, nbytes: int | None = None, taken: int | None = None
    ) -> bool:
        """Take in what a task took.

        Parameters
        ----------
        key
            The task.
        seconds
            How long it took; None if nobody knows.
        nbytes
            The size of its output; None if nobody knows.
        taken
            The most bytes that it took besides its inputs, with its output; None if nobody knows.

        Returns
        -------
        bool
            Whether the size of outputs of this kind is now expected to be another one.
        """
        if len(self._seconds) > _KINDS:
            self._seconds.clear()
            self._nbytes.clear()
            self._taken.clear()
        if seconds is not None:
            known, layer = self._seconds, layer_of(key)
            name = name_of(layer)
            before = known.get(layer, seconds)
            known[layer] = before + _LAST * (seconds - before)
            before = known.get(name, seconds)
            known[name] = before + _LAST * (seconds - before)
        batch = batch_of(key)
        if taken is not None:
            # Too much costs less than too little, by which a task has to be run again.
            self._taken[batch] = max(taken, self._taken.get(batch, 0) * 15 // 16)
        if nbytes is None:
            return False
        if batch not in self._nbytes and self.changes:
            # That a kind weighs nothing tells something where others do: it was guessed from them.
            self.changes += 1
        if not self._learn_size(batch, nbytes if nbytes >= SMALL else 0):
            return False
        self.changes += 1
        return True

    def _learn_size(self, batch: Any, nbytes: int) -> bool:
        known = self._nbytes.get(batch)
        if known == nbytes:
            return False
        # Blocks at the edge of an array are smaller: what counts is the usual one.
        new = self._nbytes[batch] = nbytes if known is None else max(nbytes, _sunk(known, nbytes))
        if not known:
            return bool(new)
        return new > known * _CHANGED or new * _CHANGED < known


def _sunk(high: int, low: int) -> int:
    """Let a large value be forgotten slowly."""
    return low + (high - low) * 7 // 8 if high > low else low


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


def batch_of(key: Key) -> Any:
    """Get what the tasks have in common whose outputs are of one size: layer, or name of a string.

    Two layers of one name mostly belong to arrays of different shapes. Dask numbers what it cuts from the
    margins of blocks a tenth below or above the block, so whole blocks and margins can be told apart.

    Examples
    --------
    >>> batch_of(("add-1f3a", 0, 2)), batch_of(("getitem-77", 2.9, 1, 0.1)), batch_of("load-77")
    ('add-1f3a', ('getitem-77', -1, 0, 1), ('load',))
    """
    if type(key) is tuple and key:
        if float in map(type, key):
            layer, *place = key
            if float in map(type, place):
                return layer, *[_side(number) for number in place]
        return key[0]
    return name_of(key) if type(key) is str else type(key)


def _side(number: Any) -> int:
    """Tell on which side of the nearest whole number one is."""
    if type(number) is not float or not isfinite(number):
        return 0
    nearest = round(number)
    return (number > nearest) - (number < nearest)


@lru_cache(maxsize=1024)
def name_of(layer: Any) -> Any:
    """Get what layers of the same function have in common: their name without its token.

    Tokens are one word, or a UUID, which `dask.delayed` gives each call; keys made by hand end in a number.

    Examples
    --------
    >>> name_of("getitem-1f3a"), name_of("sum-aggregate-77"), name_of("x")
    (('getitem',), ('sum-aggregate',), ('x',))
    >>> name_of("load-2c9d1b6e-58f4-4f0a-9c57-7f7d3a0c1e24")
    ('load',)
    >>> name_of("load17")
    ('load',)
    """
    if type(layer) is not str:
        return layer
    name, dash, token = layer.rpartition("-")
    if len(token) == _UUID_END and [layer[at : at + 1] for at in _UUID_DASHES] == _DASHES:
        name = layer[: _UUID_DASHES[0]]
    return (name if dash else layer.rstrip(_DIGITS),)
