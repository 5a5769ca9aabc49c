"""What it costs to take a value apart and to put it together, in microseconds, beside plain pickle.

Buffers are not copied anywhere: `place` answers at once, and plain pickle leaves buffers out as well. Plain
pickle cannot do all of it (functions of `__main__`), and copies what does not lie in C or Fortran order.

    python -m benchmarks.codec
"""

from __future__ import annotations

import argparse
import pickle
import sys
import timeit
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from graphmill.memory.codec import decode, encode
from graphmill.tracebacks import decode_exception, encode_exception


def values() -> dict[str, Any]:
    """Build what is measured."""
    block = np.zeros(4_000_000)
    small = {str(number): np.zeros(10) for number in range(10)}
    return {
        "an int": 3,
        "a 32 MB array": block,
        "every second element of it": block[::2],
        "it, as a transposed matrix": block.reshape(2000, 2000).T,
        "it, masked": np.ma.MaskedArray(block, mask=block > 0),
        "8 MB, all one element": np.broadcast_to(np.float64(1), (1000, 1000)),
        "a (100,) array": np.zeros(100),
        "a tuple of 2 arrays": (block, np.ones(2_000_000)),
        "a dict of 10 arrays, 800 kB each": {str(number): np.zeros(100_000) for number in range(10)},
        "a dict of 10 arrays, 80 B each": small,
        "100 small objects": [Fraction(number, 7) for number in range(100)],
    }


def no_place(memory: Any, owner: object) -> int:
    """Put a buffer nowhere."""
    return id(memory) + id(owner)


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """Time a function: microseconds, the shortest of several measurements."""
    timer = timeit.Timer(function)
    count = max(1, int(0.02 / max(timer.timeit(1), 1e-7)))
    return min(timer.repeat(repeats, count)) / count * 1e6


def plain_pickle(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Do what plain pickle offers."""
    buffers: list[pickle.PickleBuffer] = []
    return pickle.dumps(value, 5, buffer_callback=buffers.append), buffers


def report(name: str, value: Any) -> None:
    """Print one value's line."""
    kept: list[Any] = []
    payload, _ = encode(value, lambda memory, _: kept.append(bytearray(memory)))
    stream, buffers = plain_pickle(value)
    print(
        f"{name:<34}{best(lambda: encode(value, no_place)):8.1f}{best(lambda: decode(payload, kept)):8.1f}"
        f"{best(lambda: plain_pickle(value)):10.1f}"
        f"{best(lambda: pickle.loads(stream, buffers=buffers)):8.1f}{len(payload):10}",
        flush=True,
    )


def divide(x: int) -> float:
    """Fail."""
    return 1 / x


def report_exception() -> None:
    """Print the line of an exception with three frames."""
    try:
        divide(0)
    except ZeroDivisionError as error:
        kept = error
    payload = encode_exception(kept)
    print(
        f"{'an exception':<34}{best(lambda: encode_exception(kept)):8.1f}"
        f"{best(lambda: decode_exception(payload)):8.1f}{'':18}{len(payload):10}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__).parse_args(arguments)
    print(f"{'µs':<34}{'encode':>8}{'decode':>8}{'pickle':>10}{'loads':>8}{'payload':>10}")
    for name, value in values().items():
        report(name, value)
    report_exception()
    return 0


if __name__ == "__main__":
    sys.exit(main())
