"""Large arrays in Zarr whose every element is known: pseudo-random, the same each time, and quick to make.

An element is a hash of its row's and its column's number, in steps of 1/16 from 0 to 256, so it takes twelve
bits of information, and compression finds about as much in it as in measured data. All sums of less than a
million million elements are exact in double precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

Slices = tuple[slice, ...]

#: Of a hash of 32 bits, the upper twelve are used.
SHIFT, STEP = 20, 1 / 16


@dataclass(frozen=True)
class KnownArray:
    """What an array is to be like."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    seed: int = 0

    @property
    def nbytes(self) -> int:
        """Its size without compression, in bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    @cached_property
    def _factors(self) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        random = np.random.default_rng(self.seed)
        rows, columns = self.shape[0], prod(self.shape[1:])
        first, second = (
            random.integers(1 << 32, size=count, dtype=np.uint32) | np.uint32(1) for count in (rows, columns)
        )
        return first.reshape(-1, *(1 for _ in self.shape[1:])), second.reshape(1, *self.shape[1:])

    def elements(self, where: Slices) -> NDArray[Any]:
        """Make a part of it, as `numpy` would give it for these slices."""
        rows, columns = self._factors
        hashes = rows[where[0]] * columns[(slice(None), *where[1:])]
        hashes >>= SHIFT
        found = hashes.astype(self.dtype)
        found *= STEP
        return found

    def pieces(self) -> Iterator[Slices]:
        """Give the places of its chunks."""
        axes = [
            [slice(first, min(first + step, length)) for first in range(0, length, step)]
            for length, step in zip(self.shape, self.chunks, strict=True)
        ]
        return product(*axes)

    def store(self, folder: Path) -> Path:
        """Tell where it is in a folder; another name if anything about it is another."""
        of = ["x".join(map(str, numbers)) for numbers in (self.shape, self.chunks)]
        return folder / f"{self.name}-{'-by-'.join(of)}-{self.dtype}-{self.seed}.zarr"

    def make(self, folder: Path) -> Path:
        """Make it unless it is there already; what is cut short is not taken for it."""
        store = self.store(folder)
        if store.exists():
            return store
        unfinished = store.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        array: Any = zarr.create_array(
            str(unfinished), shape=self.shape, chunks=self.chunks, dtype=self.dtype
        )
        for where in self.pieces():
            array[where] = self.elements(where)
        unfinished.rename(store)
        return store
