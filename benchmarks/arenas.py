"""What shared memory costs: arrays born in an arena, ranges, claims, leases.

Each number stands beside what it replaces, measured in turn, so that a busy machine slows both.

    python -m benchmarks.arenas
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphmill.memory.arena import Arena
from graphmill.memory.block import Extent
from graphmill.memory.heap import Heap
from graphmill.memory.lease import Reader
from graphmill.memory.numpy_handler import NumpyHandler
from graphmill.memory.ranges import Ranges

BLOCK = 32 << 20
Array = NDArray[np.float64]


def seconds(function: Callable[..., Any], *arguments: Any, times: int = 1) -> float:
    """Time a call, the mean of several in a row."""
    start = time.perf_counter()
    for _ in range(times):
        function(*arguments)
    return (time.perf_counter() - start) / times


def in_turn(*functions: Callable[[], float], repeats: int = 9) -> list[float]:
    """Take the shortest of several measurements of each, made in turn."""
    found = [[function() for function in functions] for _ in range(repeats)]
    return [min(each) for each in zip(*found, strict=True)]


def add_one(x: Array) -> None:
    """Make an array, and let go of it."""
    x + 1


def empty_like(x: Array) -> None:
    """Make an array as large as another one, and let go of it unused."""
    np.empty(x.size)


def fill(x: Array) -> None:
    """Make an array of zeros as large as another one, touch every page, and let go of it."""
    np.zeros(x.size)[::512] = 1


class Births:
    """Arrays of one block, made with and without the handler."""

    def __init__(self, handler: NumpyHandler) -> None:
        self.handler = handler
        self.x = np.ones(BLOCK // 8)
        self.out = np.ones(BLOCK // 8)

    def copy(self) -> float:
        """Copy into memory that was used before: the unit of measure."""
        return seconds(np.copyto, self.out, self.x)

    def add_default(self) -> float:
        """Let the system's allocator find room for the result."""
        return seconds(add_one, self.x)

    def add_handler(self) -> float:
        """Let the result be born in the arena."""
        with self.handler:
            return seconds(add_one, self.x)

    def zeros_default(self) -> float:
        """Make zeros, and touch them."""
        return seconds(fill, self.x)

    def zeros_handler(self) -> float:
        """Do the same in the arena, whose memory has to be cleared."""
        with self.handler:
            return seconds(fill, self.x)


def births(handler: NumpyHandler) -> None:
    """Compare arrays born in the arena with others."""
    each = Births(handler)
    copy, *others = in_turn(
        each.copy, each.add_default, each.add_handler, each.zeros_default, each.zeros_handler
    )
    names = ("x + 1, default", "x + 1, in the arena", "zeros, default", "zeros, in the arena")
    print(f"32 MB; copying it into used memory takes {copy * 1e3:.1f} ms")
    for name, found in zip(names, others, strict=True):
        print(f"  {name:<24}{found / copy:6.2f} x")


def calls(handler: NumpyHandler) -> None:
    """Compare what an array costs that hardly has any data."""
    for name, function in (("np.empty", empty_like), ("x + 1", add_one)):
        print(f"one {name}")
        for size in (10, 1000, 8000, 9000):
            x = np.ones(size)

            def default(function: Callable[[Array], None] = function, x: Array = x) -> float:
                return seconds(function, x, times=5_000)

            def switched_on(function: Callable[[Array], None] = function, x: Array = x) -> float:
                with handler:
                    return seconds(function, x, times=5_000)

            off, on = in_turn(default, switched_on)
            print(f"  {8 * size:>6} bytes{off * 1e6:9.2f} µs off{on * 1e6:7.2f} µs on{on / off:7.2f} x")


class Churn:
    """Frees a range and allocates one of another size, at random, with a given number of them live."""

    def __init__(self, count: int) -> None:
        draw = random.Random(0)
        self.ranges = Ranges(1 << 44)
        self.sizes = [draw.randrange(1 << 16, 1 << 26) for _ in range(4096)]
        self.live = [self.ranges.allocate(size) for size in draw.choices(self.sizes, k=count)]
        self.victims = draw.choices(range(count), k=20_000)
        self.news = draw.choices(self.sizes, k=20_000)
        for _ in range(max(1, count // 10_000)):
            self.run()

    def run(self) -> None:
        """Do it twenty thousand times."""
        ranges, live = self.ranges, self.live
        for victim, size in zip(self.victims, self.news, strict=True):
            ranges.free(live[victim].offset, live[victim].length)
            live[victim] = ranges.allocate(size)

    def time(self) -> float:
        """Time one pair."""
        return seconds(self.run) / len(self.news)


def churn() -> None:
    """Show how the cost of a range grows with the number of live ones."""
    counts = (100, 10_000, 100_000)
    found = in_turn(*(Churn(count).time for count in counts), repeats=3)
    print("free and allocate a range")
    for count, each in zip(counts, found, strict=True):
        print(f"  with {count:>7,} live{each * 1e6:9.2f} µs{each / found[0]:7.2f} x")


class Blocks:
    """Publishing and reading of one block."""

    def __init__(self, heap: Heap, reader: Reader, handler: NumpyHandler) -> None:
        self.heap, self.reader, self.handler = heap, reader, handler
        self.data = np.ones(BLOCK // 8)
        self.extent = heap.copy_in(self.data)

    def publish_copy(self) -> float:
        """Copy a result that lies elsewhere."""
        start = time.perf_counter()
        extent = self.heap.copy_in(self.data)
        return self.done(start, extent)

    def publish_in_place(self) -> float:
        """Publish a result that was born in the arena."""
        with self.handler:
            result = self.data + 1
        start = time.perf_counter()
        claim = self.heap.claim(result.__array_interface__["data"][0], result.nbytes)
        assert claim is not None
        del result
        return self.done(start, self.heap.settle(claim))

    def done(self, start: float, extent: Extent) -> float:
        """Stop the clock, and give the block back."""
        found = time.perf_counter() - start
        self.heap.give_back(extent.id, extent.length)
        return found

    def read(self) -> float:
        """Look at a block, and let go of it unread."""
        return seconds(self.reader.view, self.extent)

    def read_and_sum(self) -> float:
        """Look at a block and add it up."""
        return seconds(self.add_up)

    def add_up(self) -> None:
        """Add up one block, as a task does, and forget it."""
        self.reader.view(self.extent).view(np.float64).sum()
        self.reader.drop_dirty(self.extent.id)

    def sum_here(self) -> float:
        """Add up an array of this process's own."""
        return seconds(self.data.sum)

    def change(self) -> float:
        """Change one number in each page of a block, and have it all dropped again."""
        return seconds(self.change_all)

    def change_all(self) -> None:
        """Change a block as a task does, and forget it."""
        self.reader.view(self.extent)[::4096] = 2
        self.reader.drop_dirty(self.extent.id)


def blocks(heap: Heap, reader: Reader, handler: NumpyHandler) -> None:
    """Show what handing a block on costs."""
    each = Blocks(heap, reader, handler)
    calm = (each.publish_copy, each.publish_in_place, each.read, each.read_and_sum, each.sum_here)
    found = in_turn(*calm)
    found += in_turn(each.change)  # by itself: whoever reads next has to map the pages again
    print("a block of 32 MB")
    for function, value in zip((*calm, each.change), found, strict=True):
        print(f"  {function.__name__.replace('_', ' '):<24}{value * 1e3:8.3f} ms")
    small = heap.copy_in(bytes(1 << 16))

    def look() -> float:
        return seconds(reader.view, small, times=1000)

    print(f"a view of a block of 64 KB{in_turn(look)[0] * 1e6:7.1f} µs, with all that its end takes")


def main() -> int:
    """Run all of it."""
    with Arena.create(0, 1 << 40) as arena:
        heap, reader = Heap(arena), Reader({0: arena})
        handler = NumpyHandler.create(heap)
        if handler is None:
            print("this NumPy takes no handler, or graphmill was built without a compiler")
            return 1
        births(handler)
        calls(handler)
        churn()
        blocks(heap, reader, handler)
        handler.close()
        reader.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
