"""What the template imports before it forks, and what it must rather not.

Decides only: what is told to it comes from the template, by way of the pool.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Final

from graphmill.workers.deferred import without_need

logger = logging.getLogger(__name__)

#: Libraries worth sharing between workers, those that others need first.
LIBRARIES: Final = (
    "numpy",
    "numpy.random",
    "numpy.linalg",
    "numpy.fft",
    "numpy.ma",
    "cloudpickle",
    "toolz",
    "fsspec",
    "scipy",
    "scipy.linalg",
    "scipy.ndimage",
    "scipy.sparse",
    "scipy.special",
    "scipy.interpolate",
    "scipy.signal",
    "scipy.optimize",
    "scipy.stats",
    "numcodecs",
    "zarr",
    "h5py",
    "netCDF4",
    "h5netcdf",
    "tifffile",
    "numexpr",
    "numba",
    "bottleneck",
    "sparse",
    "pandas",
    "pyarrow",
    "dask",
    "dask.array",
    "dask.bag",
    "dask.dataframe",
    "dask.delayed",
    "xarray",
    "flox",
    "skimage",
    "sklearn",
    "dask_image",
)

STARTS_THREAD: Final = "starts a thread, so that forking would not be safe"
ENDS_PROCESS: Final = "ends or blocks the process that imports it"

#: Libraries seen to start threads when imported: nobody in this process tries them again.
_start_threads: set[str] = set()


class Preloads:
    """The modules that templates of one pool import.

    Parameters
    ----------
    names : sequence of str, optional
        Those wanted, in the order of importing. By default those of LIBRARIES that are loaded here.

    Attributes
    ----------
    left_out : dict of str to str
        Those that are not imported, or could not be, and why.
    deferred : tuple of str
        Those that are loaded here, but are not to be loaded before they are used.
    """

    __slots__ = ("_importing", "_names", "_planned", "deferred", "left_out")

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._names = None if names is None else tuple(names)
        #: What the present template was asked to import.
        self._planned: tuple[str, ...] = ()
        #: What it imports now.
        self._importing: str | None = None
        self.left_out: dict[str, str] = {}
        self.deferred: tuple[str, ...] = ()

    def plan(self, loaded: Mapping[str, ModuleType], *, nothing: bool = False) -> tuple[str, ...]:
        """Choose what a new template should import.

        Parameters
        ----------
        loaded : mapping of str to module
            The modules that this process has loaded, by name.
        nothing : bool, optional
            Whether it should import none, since all else has failed.
        """
        if self._names is not None:
            wanted: Sequence[str] = self._names
        else:
            self.deferred = without_need(loaded)
            wanted = [name for name in LIBRARIES if name in loaded and name not in self.deferred]
        for name in _start_threads.intersection(wanted):
            self.left_out.setdefault(name, STARTS_THREAD)
        self._importing = None
        self._planned = () if nothing else tuple(name for name in wanted if name not in self.left_out)
        return self._planned

    def importing(self, module: str) -> None:
        """Note that a module's import begins."""
        self._importing = module

    def done(self, failed: Sequence[tuple[str, str]]) -> None:
        """Note that all are imported, save some, with the reasons."""
        self._importing = None
        self.left_out.update({name: f"cannot be imported: {reason}" for name, reason in failed})

    def started_threads(self, blamed: Sequence[str], innocent: Sequence[str], *, again: bool) -> None:
        """Note that modules started threads, and which were imported before.

        Parameters
        ----------
        blamed, innocent : sequence of str
            Those that did, and those imported before the first of them.
        again : bool
            Whether there has been trouble since the last template that got ready.
        """
        self._importing = None
        _start_threads.update(blamed)
        self._leave_out(blamed, innocent, STARTS_THREAD, again=again)

    def died(self, *, again: bool) -> None:
        """Note that the template ended before it was ready; `again` as in `started_threads`."""
        if self._importing is not None:
            before = self._planned[: self._planned.index(self._importing)]
            self._leave_out([self._importing], before, ENDS_PROCESS, again=again)
            self._importing = None

    def _leave_out(self, blamed: Sequence[str], innocent: Sequence[str], reason: str, *, again: bool) -> None:
        self.left_out.update(dict.fromkeys(blamed, reason))
        if again:
            # Those that are imported later may import a culprit too: only what came before is beyond doubt.
            doubtful = set(self._planned).difference(blamed, innocent)
            self.left_out.update(dict.fromkeys(doubtful, f"may import a module that {reason}"))
        logger.info("Not imported before forking: %s: %s", ", ".join(blamed), reason)
