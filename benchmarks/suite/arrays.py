"""Workloads of dask.array: on Zarr, and on random numbers that need no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import dask.array
import numpy as np
from scipy import ndimage

from benchmarks.suite.base import Compared, Kind, Suited
from benchmarks.suite.scales import Scale
from benchmarks.workload import DOUBLE, SINGLE, Array, differs, opened, result, stored_later
from benchmarks.workloads import Anomaly as AnomalyOfCube
from benchmarks.workloads import OnCube
from benchmarks.workloads import Rechunk as StoredRechunk
from benchmarks.workloads import ThreeMeans as ThreeMeansOfCube
from benchmarks.workloads import TransposeSum as TransposeSumOfSquare

da: Any = dask.array


class Anomaly(AnomalyOfCube):
    """As for the memory limit."""

    kind = Kind.ARRAY


class ThreeMeans(ThreeMeansOfCube):
    """As for the memory limit."""

    kind = Kind.ARRAY


class TransposeSum(TransposeSumOfSquare):
    """As for the memory limit."""

    kind = Kind.ARRAY


class Rechunk(StoredRechunk):
    """Bands of rows become bands of columns, but nothing is stored."""

    title = "x.rechunk((-1, n)).sum(axis=0), from rows"
    kind = Kind.ARRAY

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Sum up columns, each of which is in one chunk."""
        return [
            self.read().rechunk((-1, self.data.chunks[0])).map_blocks(summed, chunks=(1, self.data.chunks[0]))
        ]

    def mistake(self, output: Path) -> str | None:
        """Compare with sums of bands of rows, which are exact."""
        return differs("a sum", result(output, 0)[0], self.remembered("sums", self._sums), DOUBLE)

    def _sums(self) -> Array:
        total: Array = sum((rows.sum(axis=0) for rows in self.rows(self.data.chunks[0])), np.zeros(()))
        return total


def summed(block: Array) -> Array:
    """Sum up the columns of a block."""
    found: Array = block.sum(axis=0, keepdims=True)
    return found


class Store(OnCube):
    """Chunks are read, changed a little, and stored."""

    name = "store"
    title = "(2 * x - 1).to_zarr(...)"
    kind = Kind.ARRAY

    @property
    def _length(self) -> int:
        return self.sizes.days // 2

    def collections(self, output: Path) -> list[Any]:
        """Store half of the cube, changed."""
        return [stored_later(2 * self.read()[: self._length] - 1, output)]

    def mistake(self, output: Path) -> str | None:
        """Compare with how the data are made: all of it is exact in single precision."""
        stored, step = opened(output / "stored.zarr"), self.data.chunks[0]
        for first in range(0, self._length, step):
            where = (slice(first, min(first + step, self._length)), slice(None), slice(None))
            if not np.array_equal(stored[where[0]], 2 * self.data.elements(where) - 1):
                return f"maps {first} to {where[0].stop} are wrong"
        return None


class Climatology(OnCube):
    """Groups of maps, scattered over time, are averaged, and the averages taken from each map again."""

    name = "xarray-climatology"
    title = "x.groupby('time.month') - its mean, the spread of that (xarray)"
    kind = Kind.ARRAY
    imports = ("pandas", "xarray")

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Give the spread about the mean of each month."""
        x = labelled(self.read())
        months = x.groupby("time.month")
        return [(months - months.mean("time")).std()]

    def mistake(self, output: Path) -> str | None:
        """Compare with two passes in double precision."""
        return differs("the spread", result(output, 0), self.remembered("monthly", self._spread), SINGLE)

    def _spread(self) -> Array:
        months, stored = month_numbers(self.data.shape[0]), opened(self.data.store(self.folder))
        sums = np.zeros((12, *self.data.shape[1:]))
        for month, each in zip(months, stored, strict=True):
            sums[month] += each
        counts = np.maximum(np.bincount(months, minlength=12), 1)
        means = sums / counts[:, None, None]
        squares = sum(
            float(np.square(each - means[month]).sum()) for month, each in zip(months, stored, strict=True)
        )
        return np.array(np.sqrt(squares / np.prod(self.data.shape)))


class Resample(OnCube):
    """Stretches of time are averaged, which do not end where chunks do."""

    name = "xarray-resample"
    title = "x.resample(time='10D').mean().max('time') (xarray)"
    kind = Kind.ARRAY
    imports = ("pandas", "xarray")
    stretch: ClassVar[int] = 10

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Give the largest mean over ten days of each place."""
        return [labelled(self.read()).resample(time=f"{self.stretch}D").mean().max("time")]

    def mistake(self, output: Path) -> str | None:
        """Compare with means in double precision."""
        return differs("a mean", result(output, 0), self.remembered("ten-days", self._largest), SINGLE)

    def _largest(self) -> Array:
        means = (rows.mean(axis=0, dtype="f8") for rows in self.rows(self.stretch))
        largest: Array = np.maximum.reduce(list(means))
        return largest


def labelled(x: Any) -> Any:
    """Give maps a calendar."""
    import pandas as pd  # noqa: PLC0415 - only two workloads need them, and imports take memory
    import xarray as xr  # noqa: PLC0415

    days = pd.date_range("2001-01-01", periods=x.shape[0], freq="D")
    return xr.DataArray(x, dims=("time", "y", "x"), coords={"time": days})


def month_numbers(days: int) -> Array:
    """Tell in which month each day is, from 0."""
    dates = np.datetime64("2001-01-01") + np.arange(days)
    months: Array = dates.astype("datetime64[M]").astype(int) % 12
    return months


# ---- random numbers


def square(sizes: Scale, share: int = 1, chunks: Any = None) -> Any:
    """Make a square matrix of random numbers, of so small a share of all bytes there may be."""
    side = int((sizes.random / share / 8) ** 0.5)
    step = int((sizes.chunk / 8) ** 0.5)
    return da.random.default_rng(0).random((side, side), chunks=chunks or step)


def tall(sizes: Scale) -> Any:
    """Make a matrix of a hundred columns in bands of rows."""
    return da.random.default_rng(1).random((sizes.tall, 100), chunks=(sizes.chunk // 800, 100))


class Elementwise(Compared):
    """Nothing is read and little is left."""

    name = "elementwise"
    title = "(sqrt(r) * 2 - r * r).mean(), r random"
    kind = Kind.ARRAY

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Combine random numbers with themselves."""
        r = square(self.sizes)
        return [(da.sqrt(r) * 2 - r * r).mean()]


class Gram(Compared):
    """All time goes into products of matrices."""

    name = "gram"
    title = "x.T @ x, x tall and random"
    kind = Kind.BLAS

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Multiply a tall matrix with itself."""
        x = tall(self.sizes)
        return [x.T @ x]


class Svd(Compared):
    """Most time goes into QR of each chunk."""

    name = "svd"
    title = "singular values and vectors of x, tall and random"
    kind = Kind.BLAS

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Ask for singular values; vectors are only told up to their signs, so their sizes are."""
        _, s, v = da.linalg.svd(tall(self.sizes))
        return [s, abs(v)]


class Stencil(Compared):
    """Chunks need the margins of their neighbours."""

    name = "stencil"
    title = "r.map_overlap(gaussian_filter).mean(), r random"
    kind = Kind.ARRAY

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Smooth an image."""
        image = square(self.sizes, 4, chunks=int((self.sizes.chunk / 8) ** 0.5))
        return [image.map_overlap(smoothed, depth=8, boundary="reflect").mean()]


def smoothed(block: Array) -> Array:
    """Weigh each value with its neighbours."""
    found: Array = ndimage.gaussian_filter(block, sigma=2)
    return found


class Fft(Compared):
    """Chunks are bands of rows, and results are twice as large."""

    name = "fft"
    title = "abs(fft(r, axis=1)).max(axis=0), r random"
    kind = Kind.ARRAY

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Give the largest amplitude of each frequency."""
        side = int((self.sizes.random / 2 / 8) ** 0.5)
        r = square(self.sizes, 2, chunks=(max(1, self.sizes.chunk // (8 * side)), -1))
        return [abs(da.fft.fft(r, axis=1)).max(axis=0)]


class Histogram(Compared):
    """Each chunk becomes a few numbers."""

    name = "histogram"
    title = "histogram(r, 100 bins), r random"
    kind = Kind.ARRAY

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Count numbers in a hundred bins."""
        counts, _ = da.histogram(square(self.sizes, 2), bins=100, range=(0, 1))
        return [counts]


class ChangedInPlace(Suited):
    """Two tasks change the same input, whichever comes first."""

    name = "in-place"
    title = "block *= 2 in one, block *= 3 in another task on the same blocks"
    kind = Kind.MUTATION

    @property
    def _side(self) -> int:
        return int((self.sizes.random / 2 / 8) ** 0.5)

    def collections(self, output: Path) -> list[Any]:  # noqa: ARG002 - nothing is stored
        """Sum up doubled blocks, and blocks times three."""
        side, step = self._side, int((self.sizes.chunk / 8) ** 0.5)
        # Chunks differ, and all sums are exact.
        x = da.arange(side, chunks=step, dtype="f8")[:, None] + da.ones((side, side), chunks=step)
        return [x.map_blocks(scaled, factor, dtype="f8").sum() for factor in FACTORS]

    def mistake(self, output: Path) -> str | None:
        """Compare with what both sums are by arithmetic."""
        right = self._side * (self._side * (self._side - 1) / 2 + self._side)
        found = (
            differs(f"the sum of blocks times {factor}", result(output, number), factor * right, DOUBLE)
            for number, factor in enumerate(FACTORS)
        )
        return next(filter(None, found), None)


FACTORS = (2, 3)


def scaled(block: Array, factor: int) -> Array:
    """Change a block, as a function may do that takes the block for its own."""
    block *= factor
    return block
