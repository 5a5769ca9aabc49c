"""Computations of which what must be held, or what a careless order holds, exceeds a memory limit.

Each knows its data, what Dask is asked to compute on them, and how to tell whether the answer is right
without Dask: from how the data are made, or by NumPy chunk by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
from scipy import ndimage

from benchmarks.known import KnownArray
from benchmarks.workload import (
    DOUBLE,
    SINGLE,
    Array,
    Stored,
    checksum,
    differs,
    opened,
    result,
    stored_later,
)

da: Any = dask.array


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the data are."""

    #: Bytes of memory that there are to be, which what is rechunked exceeds four times.
    limit: int
    #: Whether all is an eighth, and chunks a quarter, of what they should be.
    small: bool = False
    #: Bytes of a chunk, about, where it is not the usual number.
    chunks: int | None = None

    @property
    def chunk(self) -> int:
        """Bytes of a chunk, about."""
        return self.chunks or (8_000_000 if self.small else 32_000_000)

    @property
    def days(self) -> int:
        """Maps in the cube: 4 GB."""
        return 120 if self.small else 960

    @property
    def square(self) -> int:
        """Rows of a square matrix: 2 GB."""
        return 6_000 if self.small else 16_000

    @property
    def banded(self) -> int:
        """Rows of a square matrix that is rechunked: four times the limit."""
        return int(round((4 * self.limit / 8) ** 0.5, -2))

    @property
    def tall(self) -> int:
        """Rows of a tall matrix: 2 GB."""
        return 320_000 if self.small else 2_560_000


class OnCube(Stored):
    """Something of a cube of maps."""

    @property
    def data(self) -> KnownArray:
        """Maps of a quarter of a degree, several in each chunk."""
        map_size = 720 * 1440 * 4
        days = max(1, round(self.sizes.chunk / map_size))
        return KnownArray("cube", (self.sizes.days, 720, 1440), (days, 720, 1440), "f4")


class Anomaly(OnCube):
    """Each chunk is needed twice: for the mean and for the difference."""

    name = "anomaly"
    title = "(x - x.mean(axis=0)).std()"

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Give the spread about the mean over time."""
        x = self.read()
        return [(x - x.mean(axis=0)).std()]

    def mistake(self, output: Path) -> str | None:
        """Compare with two passes in double precision."""
        return differs("the spread", result(output, 0), self.remembered("spread", self._spread), SINGLE)

    def _spread(self) -> Array:
        step = self.data.chunks[0]
        mean = sum(rows.sum(axis=0, dtype="f8") for rows in self.rows(step)) / self.data.shape[0]
        squares = sum(float(np.square(rows - mean).sum()) for rows in self.rows(step))
        return np.array(np.sqrt(squares / np.prod(self.data.shape)))


class ThreeMeans(OnCube):
    """The mean of a product, and the means of both factors, which an order may finish one by one."""

    name = "three-means"
    title = "u.mean(0), v.mean(0), (u * v).mean(0)"

    @property
    def _length(self) -> int:
        """Maps in each of u and v: 1.7 GB, in whole chunks."""
        step = self.data.chunks[0]
        return int(self.sizes.days * 0.425) // step * step

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Take the means of the cube's two halves."""
        x, length = self.read(), self._length
        u, v = x[:length], x[length : 2 * length]
        return [u.mean(axis=0), v.mean(axis=0), (u * v).mean(axis=0)]

    def mistake(self, output: Path) -> str | None:
        """Compare with sums in double precision."""
        right = self.remembered("means", self._means)
        names = ("the mean of u", "the mean of v", "the mean of u * v")
        found = (
            differs(name, result(output, number), right[number], SINGLE) for number, name in enumerate(names)
        )
        return next(filter(None, found), None)

    def _means(self) -> Array:
        stored, length, step = opened(self.data.store(self.folder)), self._length, self.data.chunks[0]
        sums = np.zeros((3, *self.data.shape[1:]))
        for first in range(0, length, step):
            u, v = (stored[start : start + step].astype("f8") for start in (first, first + length))
            sums += [values.sum(axis=0) for values in (u, v, u * v)]
        return sums / length


class Smooth(OnCube):
    """Chunks need the margins of their neighbours, and the result is as large as the data."""

    name = "overlap"
    title = "map_overlap over a stack of images, stored"

    @property
    def _length(self) -> int:
        """Maps that are smoothed: 2 GB."""
        return self.sizes.days // 2

    def collections(self, output: Path) -> list[Any]:
        """Smooth half of the cube in time and space."""
        images = self.read()[: self._length]
        smooth = images.map_overlap(smoothed, depth=1, boundary="nearest")
        return [stored_later(smooth, output)]

    def mistake(self, output: Path) -> str | None:
        """Compare checksums of chunks: the same operations in the same order give the same bits."""
        found = self._checksums(opened(output / "stored.zarr"))
        wrong = np.flatnonzero(found != self.remembered("smooth", self._right))
        return f"{len(wrong)} of {len(found)} chunks are wrong" if len(wrong) else None

    def _checksums(self, array: Any) -> Array:
        step = self.data.chunks[0]
        return np.array(
            [checksum(array[first : first + step]) for first in range(0, self._length, step)], dtype="u4"
        )

    def _right(self) -> Array:
        stored, step, length = opened(self.data.store(self.folder)), self.data.chunks[0], self._length
        found = []
        for first in range(0, length, step):
            start, stop = max(0, first - 1), min(length, first + step + 1)
            smooth = smoothed(stored[start:stop])[first - start :][:step]
            found.append(checksum(smooth))
        return np.array(found, dtype="u4")


def smoothed(block: Array) -> Array:
    """Weigh each value with its neighbours along all axes."""
    found: Array = ndimage.gaussian_filter(block, sigma=1, radius=1, mode="nearest")
    return found


class TransposeSum(Stored):
    """Each chunk is needed with its mirror image, which is stored far away."""

    name = "transpose"
    title = "(x + x.T).mean()"

    @property
    def data(self) -> KnownArray:
        """A square matrix in square chunks."""
        side = self.sizes.square
        step = round((self.sizes.chunk / 8) ** 0.5)
        return KnownArray("square", (side, side), (step, step), "f8")

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Add the matrix to its transpose."""
        x = self.read()
        return [(x + x.T).mean()]

    def mistake(self, output: Path) -> str | None:
        """Compare with twice the mean."""
        return differs("the mean", result(output, 0), self.remembered("mean", self._mean), DOUBLE)

    def _mean(self) -> Array:
        total = sum(float(rows.sum()) for rows in self.rows(self.data.chunks[0]))
        return np.array(2 * total / self.sizes.square**2)


class Rechunk(Stored):
    """All of an array four times the limit must be read before the last column is complete."""

    name = "rechunk"
    title = "rechunk from rows to columns, stored"

    @property
    def data(self) -> KnownArray:
        """A square matrix in bands of rows."""
        side = self.sizes.banded
        return KnownArray("rows", (side, side), (max(1, self.sizes.chunk // (8 * side)), side), "f8")

    def collections(self, output: Path) -> list[Any]:
        """Turn bands of rows into bands of columns."""
        x = self.read()
        return [stored_later(x.rechunk((-1, self.data.chunks[0])), output)]

    def mistake(self, output: Path) -> str | None:
        """Compare with how the data are made."""
        stored = opened(output / "stored.zarr")
        step = stored.chunks[1]
        for first in range(0, self.data.shape[1], step):
            where = (slice(None), slice(first, first + step))
            if not np.array_equal(stored[where], self.data.elements(where)):
                return f"columns {first} to {first + step} are wrong"
        return None


class Svd(Stored):
    """The left factor of each chunk has to wait until those of all chunks are there."""

    name = "svd"
    title = "SVD of a tall matrix, u stored"

    @property
    def data(self) -> KnownArray:
        """A matrix of a hundred columns in bands of rows."""
        return KnownArray("tall", (self.sizes.tall, 100), (self.sizes.chunk // 800, 100), "f8")

    def collections(self, output: Path) -> list[Any]:
        """Ask for all three factors."""
        u, s, v = da.linalg.svd(self.read())
        return [stored_later(u, output), s, v]

    def mistake(self, output: Path) -> str | None:
        """Multiply the factors, and see whether those that should be orthogonal are."""
        s, v = result(output, 1), result(output, 2)
        left = opened(output / "stored.zarr")
        step = self.data.chunks[0]
        product = np.zeros((len(s), len(s)))
        for first in range(0, self.data.shape[0], step):
            u, rows = left[first : first + step], (slice(first, first + step), slice(None))
            product += u.T @ u
            if wrong := differs("u s v", u * s @ v, self.data.elements(rows), DOUBLE):
                return wrong
        one = np.eye(len(s))
        return differs("u.T u", product, one, DOUBLE) or differs("v v.T", v @ v.T, one, DOUBLE)


WORKLOADS: dict[str, type[Stored]] = {
    workload.name: workload for workload in (Anomaly, TransposeSum, ThreeMeans, Rechunk, Svd, Smooth)
}
