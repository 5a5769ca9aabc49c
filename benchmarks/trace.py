"""What happened in a run, as far as memory goes: which task began when, what came of it, what was let go.

A trace is a list of events, in a file one JSON object a line. `Recorder` makes one of any run that calls
Dask's callbacks; an engine may as well write it itself.

A result lies in *blocks*. Two results may share one (views); then both name it, and it is there for as long
as either is. A block's name may come again once the block is gone. It keeps its name where it moves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import dask.callbacks
import numpy as np

from graphmill.memory.block import Encoded

DaskCallback: Any = dask.callbacks.Callback


@dataclass(frozen=True, slots=True)
class Started:
    """A task began."""

    key: str
    #: The tasks whose results it reads. Data of the graph itself may be named; it is in no block.
    inputs: tuple[str, ...] = ()
    #: Seconds since the run began.
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Finished:
    """A task ended with a result."""

    key: str
    #: The blocks in which the result lies, and their sizes in bytes.
    blocks: Mapping[str, int]
    #: Seconds since the run began.
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Released:
    """Nobody needs the result of a task any more."""

    key: str
    #: Seconds since the run began.
    at: float = 0.0


Event: TypeAlias = Started | Finished | Released
KINDS: dict[str, type[Event]] = {"started": Started, "finished": Finished, "released": Released}


def write(events: Iterable[Event], path: Path) -> None:
    """Write a trace into a file."""
    with path.open("w") as file:
        for event in events:
            record = {"event": type(event).__name__.lower(), **asdict(event)}
            print(json.dumps(record), file=file)


def read(path: Path) -> list[Event]:
    """Read a trace from a file."""
    with path.open() as file:
        return [_event(**json.loads(line)) for line in file]


def _event(event: str, **fields: Any) -> Event:
    if "inputs" in fields:
        fields["inputs"] = tuple(fields["inputs"])
    return KINDS[event](**fields)


class Recorder(DaskCallback):  # type: ignore[misc]  # Dask has no types
    """Makes a trace of the run that is computed while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._begin = 0.0
        #: Results that are there, with the names of their blocks where they are an engine's: those move, and
        #: others then lie where they were.
        self._held: dict[str, tuple[Encoded, list[str]] | None] = {}
        self._blocks = count()

    def _start(self, dsk: Any) -> None:  # noqa: ARG002 - Dask's protocol
        self._begin = time.perf_counter()

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:  # noqa: ARG002 - Dask's protocol
        inputs = tuple(sorted(map(repr, state["dependencies"][key])))
        self.events.append(Started(repr(key), inputs, self._now()))

    def _posttask(self, key: Any, value: Any, dsk: Any, state: Any, worker: Any) -> None:  # noqa: ARG002
        now, cache = self._now(), state["cache"]
        name = repr(key)
        found = cache.get(key, value)
        if isinstance(found, Encoded):
            names = self._names_of(found)
            blocks = {block: extent.length for block, extent in zip(names, found.extents, strict=True)}
            self._held[name] = found, names
        else:
            blocks = dict(blocks_of(found))
            self._held[name] = None
        self.events.append(Finished(name, blocks, now))
        gone = {repr(each) for each in (*state["dependencies"][key], key) if each not in cache}
        for name in sorted(gone & self._held.keys()):
            self.events.append(Released(name, now))
            del self._held[name]

    def _names_of(self, value: Encoded) -> list[str]:
        """Name the blocks of an engine's result: as others do that are there, or else by a new name."""
        known = {
            extent.id: name
            for held in self._held.values()
            if held is not None
            for extent, name in zip(held[0].extents, held[1], strict=True)
        }
        for extent in value.extents:
            if extent.id not in known:
                known[extent.id] = f"{next(self._blocks)}"
        return [known[extent.id] for extent in value.extents]

    def _now(self) -> float:
        return time.perf_counter() - self._begin


def blocks_of(value: Any) -> Iterator[tuple[str, int]]:
    """Give the blocks in which a value of this process lies, and their sizes."""
    if isinstance(value, np.ndarray):
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        yield f"{owner.__array_interface__['data'][0]:x}", owner.nbytes
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from blocks_of(each)
