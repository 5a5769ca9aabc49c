"""How large the suite's workloads are."""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6


@dataclass(frozen=True, slots=True)
class Scale:
    """One size of all workloads; what they are worked out from is `benchmarks.workload.Dimensions`."""

    name: str
    #: Bytes of a chunk, about.
    chunk: int
    #: Maps of a quarter of a degree in the cube: 4.1 MB each.
    days: int
    #: Rows of square matrices, and of one that is rechunked.
    square: int
    banded: int
    #: Rows of a matrix of a hundred columns.
    tall: int
    #: Bytes of random numbers.
    random: int
    #: Turns of the loop that each of 64 Python-bound tasks makes.
    turns: int
    #: Independent tiny tasks, and blocks along each side of a matrix of tiny ones.
    independent: int
    side: int
    #: Rows of a table.
    rows: int


SCALES = {
    scale.name: scale
    for scale in (
        Scale("full", 32 * MB, 480, 12_000, 12_000, 1_280_000, 2048 * MB, 500_000, 20_000, 138, 10_000_000),
        Scale("quick", 8 * MB, 64, 4_000, 4_000, 160_000, 256 * MB, 100_000, 20_000, 50, 1_000_000),
        Scale("tiny", 720 * 1440 * 4, 60, 1_000, 1_000, 8_000, 4 * MB, 100, 100, 5, 10_000),
    )
}
