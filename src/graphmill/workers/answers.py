"""A task of a Dask cluster, as one of the processes of a machine runs it."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What became of a task, as its Dask worker wants to know it."""

    result: Any
    #: The size of the result, by Dask's measure, in bytes.
    nbytes: int
    #: The class of the result; None for None.
    kind: type | None
    #: When it ran: seconds since the epoch.
    start: float
    stop: float


def run_task(task: Any, data: Mapping[Any, Any]) -> Answer:
    """Run a task on its inputs, each of which may be the answer of another task."""
    start = time.time()
    result = task({key: unwrap(value) for key, value in data.items()})
    stop = time.time()
    sizeof = importlib.import_module("dask.sizeof").sizeof
    return Answer(result, sizeof(result), None if result is None else type(result), start, stop)


def unwrap(value: Any) -> Any:
    """Get the result out of an answer; anything else is what it is."""
    return value.result if type(value) is Answer else value
