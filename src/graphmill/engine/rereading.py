"""Which values are better read again from where they lie than moved to disk and back.

Those are chunks of Zarr arrays on disk, as Dask reads them, of stores that no task of the graph writes to.
And it has to take less time than to move them, by what reading and moving took so far.

Zarr and Dask's functions are known by name, so that neither is imported for graphs without them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from graphmill.engine.blocks import Blocks
from graphmill.graph import Graph
from graphmill.scheduler.estimates import Estimates
from graphmill.types import Key

#: Functions that read a part of an array and do nothing else.
_GETTERS = frozenset({"getter", "getter_nofancy", "getter_inline"})
#: Stores of Zarr that are folders on a disk.
_FOLDERS = frozenset({"LocalStore", "DirectoryStore", "NestedDirectoryStore"})
#: A block that has moved is read again: that takes about as long as to write it.
_THERE_AND_BACK = 2


class Rereading:
    """Says of a task whether to run it again is better than to move its value to disk.

    Parameters
    ----------
    graph
        What is run.
    written
        What its tasks store to, as far as it is known.
    estimates
        How long tasks take.
    blocks
        How long it takes to move blocks.
    """

    def __init__(self, graph: Graph, written: Collection[Any], estimates: Estimates, blocks: Blocks) -> None:
        self._graph = graph
        self._estimates = estimates
        self._blocks = blocks
        folders = [_folder_of(target) for target in written]
        #: None where tasks write to nobody knows where.
        self._written = None if None in folders else set(folders)

    def __call__(self, key: Key) -> bool:
        """Say whether a task reads a chunk, and quicker than its value could move."""
        speed, nbytes = self._blocks.spill_speed, self._estimates.nbytes(key)
        if speed is None or nbytes is None or not self._reads_chunk(key):
            return False
        return self._estimates.seconds(key) < _THERE_AND_BACK * nbytes / speed

    def _reads_chunk(self, key: Key) -> bool:
        node = self._graph.tasks.get(key)
        function, arguments = getattr(node, "func", None), getattr(node, "args", ())
        module = getattr(function, "__module__", None) or ""
        if getattr(function, "__name__", "") not in _GETTERS or not module.startswith("dask.array."):
            return False
        source = arguments[0] if arguments else None
        source = self._graph.data.get(getattr(source, "key", None), getattr(source, "value", source))
        folder = _folder_of(source)
        return folder is not None and self._written is not None and folder not in self._written


def _folder_of(array: Any) -> Path | None:
    """Get the folder in which the store of a Zarr array lies; None for anything else."""
    if type(array).__module__.partition(".")[0] != "zarr":
        return None
    store = getattr(array, "store", None)
    if type(store).__name__ not in _FOLDERS and not _is_local(getattr(store, "fs", None)):
        return None
    folder = getattr(store, "root", None) or getattr(store, "path", None)
    return None if folder is None else Path(folder).resolve()


def _is_local(files: Any) -> bool:
    """Say whether a file system of fsspec is this machine's; it may be in one that makes it asynchronous."""
    protocol = getattr(getattr(files, "fs", files), "protocol", ())
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)
