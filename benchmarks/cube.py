"""A cube of daily temperature maps in a Zarr array, to compute on.

Climate by latitude, a season, four slow waves that come and go, and noise, in kelvin and in steps of 1/128 K
as instruments give them: it compresses like real data, and has patterns to be found.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

Maps = NDArray[np.float32]

#: Days in one chunk, which holds whole maps.
CHUNK = 8
YEAR = 365.25
STEP = 1 / 128


@dataclass(frozen=True, slots=True)
class Cube:
    """What a cube is to be like."""

    days: int
    height: int
    width: int

    @classmethod
    def of(cls, gigabytes: float, height: int, width: int) -> Cube:
        """Give as many days as make up a size, in whole chunks, three at least."""
        chunk = CHUNK * height * width * np.dtype("f4").itemsize
        return cls(CHUNK * max(3, round(gigabytes * 1e9 / chunk)), height, width)

    @property
    def nbytes(self) -> int:
        """Its size without compression, in bytes."""
        return self.days * self.height * self.width * np.dtype("f4").itemsize

    @property
    def name(self) -> str:
        """What its store is called."""
        return f"cube-{self.days}x{self.height}x{self.width}.zarr"


class Weather:
    """Makes maps, the same for the same days."""

    def __init__(self, cube: Cube) -> None:
        latitude = np.linspace(np.pi / 2, -np.pi / 2, cube.height, dtype="f4")[:, None]
        longitude = np.linspace(0, 2 * np.pi, cube.width, endpoint=False, dtype="f4")
        self._climate = 288 - 40 * np.sin(latitude) ** 2 + 0 * longitude
        self._season = 12 * np.sin(latitude)
        self._waves = [
            np.cos(latitude) ** 2 * np.cos(number * longitude + latitude) for number in (1, 2, 3, 5)
        ]

    def maps(self, first: int, days: int) -> Maps:
        """Make the maps of some days in a row."""
        random = np.random.default_rng(first)
        maps = random.standard_normal((days, *self._climate.shape), dtype="f4")
        maps *= 1.5
        maps += self._climate
        for row, day in enumerate(range(first, first + days)):
            maps[row] += self._season * np.float32(np.cos(2 * np.pi * day / YEAR))
            for number, wave in enumerate(self._waves, 1):
                maps[row] += np.float32(4 / number * np.sin(day / (5 * number) + number)) * wave
        maps /= STEP
        np.rint(maps, out=maps)
        maps *= STEP
        return maps


def make_cube(folder: Path, cube: Cube, tell: Callable[[int], None] | None = None) -> Path:
    """Make a cube unless it is there already.

    Parameters
    ----------
    folder : Path
        Where; made where it does not exist.
    cube : Cube
        What it is to be like.
    tell : callable, optional
        Called with the bytes that have been made since the last call.

    Returns
    -------
    Path
        The store. What is cut short is not taken for one.
    """
    store = folder / cube.name
    if store.exists():
        return store
    unfinished = store.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shape = (cube.days, cube.height, cube.width)
    array: Any = zarr.create_array(
        str(unfinished),
        shape=shape,
        chunks=(CHUNK, *shape[1:]),
        dtype="f4",
        dimension_names=("time", "y", "x"),
    )
    weather = Weather(cube)
    for first in range(0, cube.days, CHUNK):
        array[first : first + CHUNK] = weather.maps(first, CHUNK)
        if tell is not None:
            tell(cube.nbytes * CHUNK // cube.days)
    unfinished.rename(store)
    return store
