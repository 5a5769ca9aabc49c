"""What happened in a run, as far as memory goes: which task began when, what came of it, what was let go.

A trace is a list of events, in a file one JSON object a line. `Recorder` makes one of any run that calls
Dask's callbacks; an engine may as well write it itself.

A result lies in *blocks*. Two results may share one (views); then both name it, and it is there for as long
as either is. A block's name may come again once the block is gone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
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
        #: Results that are there.
        self._held: set[str] = set()

    def _start(self, dsk: Any) -> None:  # noqa: ARG002 - Dask's protocol
        self._begin = time.perf_counter()

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:  # noqa: ARG002 - Dask's protocol
        inputs = tuple(sorted(map(repr, state["dependencies"][key])))
        self.events.append(Started(repr(key), inputs, self._now()))

    def _posttask(self, key: Any, value: Any, dsk: Any, state: Any, worker: Any) -> None:  # noqa: ARG002
        now, cache = self._now(), state["cache"]
        name = repr(key)
        self.events.append(Finished(name, dict(blocks_of(cache.get(key, value))), now))
        self._held.add(name)
        gone = {repr(each) for each in (*state["dependencies"][key], key) if each not in cache}
        for name in sorted(gone & self._held):
            self.events.append(Released(name, now))
        self._held -= gone

    def _now(self) -> float:
        return time.perf_counter() - self._begin


def blocks_of(value: Any) -> Iterator[tuple[str, int]]:
    """Give the blocks in which a value lies, or a reference of graphmill's to it, and their sizes."""
    if isinstance(value, Encoded):
        for extent in value.extents:
            yield f"{extent.arena}:{extent.block}", extent.length
    elif isinstance(value, np.ndarray):
        owner = value
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        yield f"{owner.__array_interface__['data'][0]:x}", owner.nbytes
    elif isinstance(value, (list, tuple, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from blocks_of(each)
