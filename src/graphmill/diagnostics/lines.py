"""Progress as plain text: one line that says all, and the line for the end.

Pure.
"""

from __future__ import annotations

from graphmill.diagnostics.amounts import of_bytes, of_count, of_rate, of_seconds
from graphmill.diagnostics.tracker import Picture


def percent(picture: Picture) -> int:
    """Tell how much is done; 100 only when all is."""
    return 100 * picture.done // picture.total if picture.total else 0


def counts(picture: Picture) -> str:
    """Say how far it has come, how fast it goes, and how long it takes."""
    if picture.reading and not picture.total:
        return "reading the graph"
    parts = [f"{picture.done:,}/{picture.total:,} tasks", of_rate(picture.rate)]
    if picture.left is not None:
        parts.append(f"{of_seconds(picture.left)} left")
    return " · ".join(parts)


def use(picture: Picture) -> str:
    """Say what is used of memory, disk and workers."""
    parts = [f"{of_bytes(picture.memory)} of {of_bytes(picture.limit)}"]
    if picture.spilled:
        parts.append(f"spilled {of_bytes(picture.spilled)}")
    parts.append(f"{picture.busy}/{of_count(picture.workers, 'worker')} busy")
    if picture.deaths:
        parts.append(f"{picture.deaths} died")
    return " · ".join(parts)


def line(picture: Picture) -> str:
    """Say all in one line."""
    text = counts(picture)
    if picture.total:
        text = f"{percent(picture):3d}% · {text}"
    return f"graphmill: {text} · {use(picture)}" if picture.limit else f"graphmill: {text}"


def last_line(picture: Picture, *, failed: bool = False) -> str:
    """Say what it came to."""
    did = (
        f"failed after {of_count(picture.done, 'task')},"
        if failed
        else of_count(picture.done, "task") + " in"
    )
    parts = [f"{did} {of_seconds(picture.elapsed)}"]
    if picture.limit:
        parts.append(f"peak memory {of_bytes(picture.peak)} of {of_bytes(picture.limit)}")
    parts.append(f"spilled {of_bytes(picture.spilled)}")
    if picture.deaths:
        parts.append(of_count(picture.deaths, "worker") + " died")
    return " · ".join(parts)
