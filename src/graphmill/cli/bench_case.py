"""One computation of ``graphmill bench``, in a process of its own: ``python -m graphmill.cli.bench_case``.

Prints the better time of two runs, and the result, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

GRAPHMILL: Final = "graphmill"
THREADS: Final = "threads"

#: Bytes of the data of one case; with --quick, a part of it.
NBYTES: Final = 768 << 20
QUICK_PART: Final = 16
#: Tasks of the case that is about their number.
TASKS: Final = 20_000
_RUNS: Final = 2
_ITEM: Final = 8


@dataclass(frozen=True, slots=True)
class Case:
    """A computation."""

    #: What it does, in a few words.
    what: str
    #: Makes a collection whose value is one number, from a size.
    make: Callable[[int], Any]
    #: That size.
    size: int


def _random(nbytes: int, *, rows: int = 0) -> Any:
    """Make random numbers: a square, or so many rows; 16 blocks of each."""
    import dask.array as da  # noqa: PLC0415 - the list of cases is needed without

    side = int((nbytes / _ITEM) ** 0.5) // 16 * 16
    shape = (rows, nbytes // _ITEM // rows) if rows else (side, side)
    chunks = (shape[0] // 4, max(1, shape[1] // 4))
    generator: Any = da.random.default_rng(1)  # type: ignore[no-untyped-call]
    return generator.random(shape, chunks=chunks)


def _anomaly(nbytes: int) -> Any:
    x = _random(nbytes)
    return (x - x.mean(axis=0)).std()


def _transpose(nbytes: int) -> Any:
    x = _random(nbytes)
    return (x + x.T).mean()


def _rechunk(nbytes: int) -> Any:
    x = _random(nbytes)
    rows = x.rechunk((x.shape[0] // 16, -1))
    return rows.cumsum(axis=1).rechunk((-1, x.shape[1] // 16)).max(axis=0).sum()


def _product(nbytes: int) -> Any:
    x = _random(nbytes // 4)
    return (x.T @ x).trace()


def _python(nbytes: int) -> Any:
    return _random(nbytes // 16).map_blocks(_slow).sum()


def _slow(block: Any) -> Any:
    """Do in Python what holds the GIL: a running maximum, one number at a time."""
    most, out = 0.0, []
    for number in block.ravel().tolist():
        most = max(number, most * 0.999)
        out.append(most)
    return block * 0 + sum(out) / len(out)


def _tiny(tasks: int) -> Any:
    import dask.array as da  # noqa: PLC0415 - see above

    return da.ones(tasks, chunks=1).map_blocks(abs).sum(split_every=16)


CASES: Final = {
    "anomaly": Case("(x - x.mean(0)).std()", _anomaly, NBYTES),
    "transpose": Case("(x + x.T).mean()", _transpose, NBYTES),
    "rechunk": Case("rows, cumsum, columns, max", _rechunk, NBYTES),
    "product": Case("x.T @ x", _product, NBYTES),
    "python": Case("a loop in Python for each block", _python, NBYTES),
    "tiny": Case("many tiny tasks", _tiny, TASKS),
}


def main(name: str, scheduler: str, *, quick: bool) -> None:
    """Run a case, and print what it took."""
    case = CASES[name]
    collection = case.make(case.size // QUICK_PART if quick else case.size)
    chosen: Any = THREADS
    if scheduler == GRAPHMILL:
        from graphmill.engine import get as chosen  # noqa: PLC0415 - not for threads, whose memory it would be
    best = float("inf")
    for _ in range(_RUNS):
        began = time.perf_counter()
        result = float(collection.compute(scheduler=chosen))
        best = min(best, time.perf_counter() - began)
    print(json.dumps({"seconds": best, "result": result}))


if __name__ == "__main__":
    main(*sys.argv[1:3], quick="--quick" in sys.argv[3:])
