"""Workloads that are not about arrays: Python functions, tiny tasks, tables, bags."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import dask.array
import numpy as np

from benchmarks.families import capture
from benchmarks.suite.base import Call, Calls, Compared, Kind, Raw, Suited
from benchmarks.workload import DOUBLE, Array, differs, result

da: Any = dask.array

#: Tasks that are bound to Python.
BLOCKS = 64
#: Values in each of their blocks: 1 MB.
VALUES = 125_000
#: Rows in each tiny block.
TINY = 25


class PythonBlocks(Calls):
    """A loop in Python over part of each block, which holds the GIL."""

    name = "python-blocks"
    title = "a Python loop for each of 64 blocks"
    kind = Kind.PYTHON

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Run the loop on each block of an array."""
        x = da.arange(BLOCKS * VALUES, chunks=VALUES, dtype="f8")
        return [x.map_blocks(loop, self.sizes.turns, chunks=(1,), dtype="f8")]

    def calls(self) -> list[Call]:
        """Run the loop on blocks that the caller makes."""
        x = np.arange(BLOCKS * VALUES, dtype="f8").reshape(BLOCKS, VALUES)
        return [(loop_of, (block, self.sizes.turns)) for block in x]

    def answers(self) -> Array:
        """Run the loop here."""
        return np.array([function(*given) for function, given in self.calls()])


def loop(block: Array, turns: int) -> Array:
    """Do what no library has a function for."""
    total, values = 0.0, block[:1000].tolist()
    for turn in range(turns):
        total += values[turn % 1000] * (turn & 7)
    return np.array([total])


def loop_of(block: Array, turns: int) -> float:
    """Do the same for one number."""
    return float(loop(block, turns)[0])


class Independent(Raw):
    """The least that a task can be."""

    name = "tiny-raw"
    title = "20,000 independent tasks of a raw graph"
    kind = Kind.TINY

    @property
    def tasks(self) -> int:
        """How many there are."""
        return self.sizes.independent

    def calls(self) -> list[Call]:
        """Add one to each number."""
        return [(increased, (number,)) for number in range(self.sizes.independent)]

    def answers(self) -> Array:
        """Give the numbers that follow."""
        return np.arange(1, self.sizes.independent + 1)


def increased(number: int) -> int:
    """Do almost nothing."""
    return number + 1


class TinyBlocks(Suited):
    """Tens of thousands of blocks, far smaller than they should be, as users do have them."""

    name = "tiny-array"
    title = "(x + x.T).sum() on blocks of 25 x 25: 44,500 tasks"
    kind = Kind.TINY

    @property
    def tasks(self) -> int:
        """How many a scheduler gets."""
        dsk, _ = capture(self.collections(self.folder))
        return len(dsk)

    @property
    def _side(self) -> int:
        return TINY * self.sizes.side

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Add a matrix to its transpose."""
        x = da.ones((self._side, self._side), chunks=TINY)
        return [(x + x.T).sum()]

    def mistake(self, output: Path) -> str | None:
        """Compare with what that is."""
        return differs("the sum", result(output, 0), 2 * self._side**2, DOUBLE)


class GroupBy(Compared):
    """A table in partitions, grouped by a column of names."""

    name = "dataframe-groupby"
    title = "df.groupby('name')[['x', 'y']].mean(), 64 partitions"
    kind = Kind.TABLE
    imports = ("pandas", "dask.dataframe")

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Average columns over names."""
        import dask.dataframe  # noqa: PLC0415 - only one workload needs it, and imports take memory

        dd: Any = dask.dataframe
        rows = self.sizes.rows // BLOCKS
        table = dd.from_map(part_of_table, range(BLOCKS), rows=rows)
        return [table.groupby("name")[["x", "y"]].mean()]

    def mistake(self, output: Path) -> str | None:
        """Compare sorted values, since the order of groups is free."""
        found = np.load(output / "result-0.npy")
        right = self.remembered("right", lambda: self._right(output)).reshape(-1, 2)
        return differs("a mean", np.sort(found, axis=0), np.sort(right, axis=0), self.tolerance)


NAMES = np.array([f"name-{number:03}" for number in range(200)])


def part_of_table(number: int, rows: int) -> Any:
    """Make one partition."""
    import pandas as pd  # noqa: PLC0415

    random = np.random.default_rng(number)
    names = pd.Series(NAMES[random.integers(len(NAMES), size=rows)], dtype="object")
    return pd.DataFrame({"name": names, "x": random.random(rows), "y": random.random(rows)})


class Bag(Suited):
    """Python functions on Python objects."""

    name = "bag"
    title = "bag of records: map, filter, frequencies"
    kind = Kind.PYTHON

    @property
    def _count(self) -> int:
        return self.sizes.turns * 2

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Count the words of records."""
        import dask.bag  # noqa: PLC0415 - only one workload needs it

        bag: Any = dask.bag
        step = self._count // BLOCKS
        parts = bag.from_sequence(range(BLOCKS), npartitions=BLOCKS)
        records = parts.map_partitions(records_of, step)
        return [records.map(word_of).filter(bool).frequencies(sort=True)]

    def mistake(self, output: Path) -> str | None:
        """Compare with counts that are made here."""
        found = {word: int(count) for word, count in np.load(output / "result-0.npy").tolist()}
        return None if found == self._right() else "counts are wrong"

    def _right(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for record in records_of(range(BLOCKS), self._count // BLOCKS):
            if word := word_of(record):
                counts[word] = counts.get(word, 0) + 1
        return counts


def records_of(parts: Iterable[int], step: int) -> list[dict[str, Any]]:
    """Make the records of some parts."""
    return [
        {"id": number, "text": f"record {number} of {number % 97}"}
        for part in parts
        for number in range(part * step, (part + 1) * step)
    ]


def word_of(record: dict[str, Any]) -> str:
    """Take the last word out of a record, or nothing out of every third."""
    words = [word.strip().lower() for word in record["text"].split()]
    return "" if record["id"] % 3 == 0 else f"w{words[-1]}"
