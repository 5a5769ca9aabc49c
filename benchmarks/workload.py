"""A workload of the benchmarks: what Dask is to compute, on which data, and how its answer is checked."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import dask
import dask.array
import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks.known import KnownArray

da: Any = dask.array
dask_compute: Any = dask.compute  # type: ignore[attr-defined]
Array = NDArray[Any]

#: What results in single and in double precision may be off by, relative to the largest value.
SINGLE, DOUBLE = 1e-5, 1e-9


class Dimensions(Protocol):
    """How large data are."""

    @property
    def chunk(self) -> int:
        """Bytes of a chunk, about."""

    @property
    def days(self) -> int:
        """Maps in the cube."""

    @property
    def square(self) -> int:
        """Rows of a square matrix."""

    @property
    def banded(self) -> int:
        """Rows of a square matrix that is rechunked."""

    @property
    def tall(self) -> int:
        """Rows of a tall matrix."""


class Workload(ABC):
    """A computation, its data, and its answer.

    Parameters
    ----------
    sizes : Dimensions
        How large the data are.
    folder : Path
        Where they are, and what is remembered of right answers.
    """

    name: ClassVar[str]
    #: What is computed, in few words.
    title: ClassVar[str]
    #: Modules that a script with it imports at its top; others do without, as they take memory.
    imports: ClassVar[tuple[str, ...]] = ()

    def __init__(self, sizes: Dimensions, folder: Path) -> None:
        self.sizes = sizes
        self.folder = folder

    def make(self) -> Path | None:
        """Make the data unless they are there; give the store, if there is one."""
        return None

    @abstractmethod
    def collections(self, output: Path) -> list[Any]:
        """Give what Dask is to compute; what is to be stored goes into a folder."""

    @abstractmethod
    def mistake(self, output: Path) -> str | None:
        """Say what is wrong in a folder, where each result that was not stored is ``result-<number>.npy``."""

    @property
    def label(self) -> str:
        """What tells its data from those of other workloads and sizes, as part of a file's name."""
        numbers = (getattr(self.sizes, name) for name in ("chunk", "days", "square", "banded", "tall"))
        return f"{self.name}-{'-'.join(map(str, numbers))}"

    def remembered(self, what: str, work_out: Callable[[], Any]) -> Array:
        """Work out what is right only once for the same data."""
        path = self.folder / f"{self.label}-{what}.npy"
        if not path.exists():
            np.save(path, work_out())
        found: Array = np.load(path)
        return found


class Stored(Workload):
    """A workload whose data lie in Zarr."""

    @property
    @abstractmethod
    def data(self) -> KnownArray:
        """What it is computed from."""

    def make(self) -> Path:
        """Make the data unless they are there; give the store."""
        return self.data.make(self.folder)

    def read(self) -> Any:
        """Give the data as Dask reads them."""
        return da.from_zarr(str(self.data.store(self.folder)))

    @property
    def label(self) -> str:
        """What tells its data from others: the name of their store."""
        return self.data.store(self.folder).stem

    def rows(self, step: int) -> Iterator[Array]:
        """Read the stored data without Dask, so many rows at a time."""
        stored = opened(self.data.store(self.folder))
        for first in range(0, stored.shape[0], step):
            yield stored[first : first + step]


def opened(store: Path) -> Any:
    """Open a stored array to read it."""
    return zarr.open_array(str(store), mode="r")


def keep(results: Sequence[Any], output: Path) -> None:
    """Store what was given back for the check; for what tasks have stored, that is nothing."""
    for number, value in enumerate(results):
        if np.size(value):
            np.save(output / f"result-{number}.npy", value)


def result(output: Path, number: int) -> Array:
    """Read a result that was given back."""
    found: Array = np.load(output / f"result-{number}.npy")
    return found


def differs(what: str, found: Any, right: Any, tolerance: float) -> str | None:
    """Say by how much a result is wrong, unless it is little."""
    found, right = np.asarray(found, dtype="f8"), np.asarray(right, dtype="f8")
    if found.shape != right.shape:
        return f"{what} has shape {found.shape}, not {right.shape}"
    off, largest = float(np.abs(found - right).max()), float(np.abs(right).max())
    # NaN is not less than anything.
    return None if off <= tolerance * largest else f"{what} is off by {off:g} of {largest:g}"


def checksum(array: Array) -> int:
    """Sum up the bits of an array."""
    return zlib.crc32(np.ascontiguousarray(array).data)


def stored_later(x: Any, output: Path) -> Any:
    """Give what stores an array in a folder once it is computed."""
    return x.to_zarr(str(output / "stored.zarr"), compute=False)
