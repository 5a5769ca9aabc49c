"""Writes recordings as a trace, in the event format that Chrome and Perfetto read.

An engine is a process there, a worker a thread; memory is a set of counters. Times are microseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from graphmill.diagnostics.records import Recording, TaskRecord

#: The part of an event of what is not one thread's.
_GLOBAL = {"ph": "i", "s": "p"}


def write_trace(recordings: Sequence[Recording], path: str | os.PathLike[str]) -> None:
    """Write a trace, replacing what is there."""
    with Path(path).open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        first = True
        for event in trace_events(recordings):
            file.write(("" if first else ",\n") + json.dumps(event, separators=(",", ":")))
            first = False
        file.write("\n]}\n")


def trace_events(recordings: Iterable[Recording]) -> Iterator[dict[str, Any]]:
    """Make the events of a trace."""
    for number, recording in enumerate(recordings, 1):
        place = {"pid": number}
        yield place | {"ph": "M", "name": "process_name", "args": {"name": f"graphmill engine {number}"}}
        for worker in range(-1, recording.workers):
            name = f"worker {worker}" if worker >= 0 else "caller"
            yield place | {"ph": "M", "name": "thread_name", "tid": worker + 1, "args": {"name": name}}
        for task in recording.tasks:
            yield place | _task_event(task)
        for sample in recording.memory:
            parts = {"live": sample.live, "warm": sample.warm, "private": sample.private}
            when = {"ph": "C", "ts": _microseconds(sample.time)}
            yield place | when | {"name": "memory", "args": parts}
            yield place | when | {"name": "on disk", "args": {"bytes": sample.on_disk}}
        for spill in recording.spills:
            arguments = {"key": str(spill.key), "bytes": spill.nbytes}
            when = {"ts": _microseconds(spill.time), "name": "spill", "args": arguments}
            yield place | _GLOBAL | when
        for death in recording.deaths:
            arguments = {"key": str(death.key), "cause": death.cause}
            when = {"ts": _microseconds(death.time), "tid": death.worker + 1, "name": "worker died"}
            yield place | _GLOBAL | when | {"args": arguments}


def _task_event(task: TaskRecord) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": task.kind,
        "cat": task.outcome,
        "tid": task.worker + 1,
        "ts": _microseconds(task.start),
        "dur": _microseconds(task.seconds),
        "args": {
            "key": str(task.key),
            "run": task.run,
            "output_bytes": task.output_bytes,
            "input_bytes": task.input_bytes,
            "taken_bytes": task.taken_bytes,
            "copied_bytes": task.copied_bytes,
            "retry": task.retry,
        },
    }


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
