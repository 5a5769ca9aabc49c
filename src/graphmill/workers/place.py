"""Where the parent looks for modules and files, and how workers follow it there."""

from __future__ import annotations

import contextlib
import os
import sys

from graphmill.workers.launch import search_path
from graphmill.workers.messages import Place


class Surroundings:
    """Notices when `sys.path` or the working directory changes."""

    __slots__ = ("_place", "_seen")

    def __init__(self) -> None:
        #: What they were last seen to be.
        self._seen: tuple[tuple[str, ...], str | None] | None = None
        self._place = Place((), None)

    def here(self) -> Place:
        """Say where this process is; the same object as long as nothing changes."""
        try:
            folder = os.getcwd()  # noqa: PTH109 - called for each message, and this is faster
        except OSError:
            folder = None  # it was removed
        seen = (tuple(sys.path), folder)
        if seen != self._seen:
            self._seen = seen
            self._place = Place(tuple(search_path(sys.path)), folder)
        return self._place


def follow(place: Place) -> None:
    """Go where the parent is."""
    if sys.path != list(place.path):
        sys.path[:] = place.path
    if place.folder is not None:
        # A folder that is gone already is of no use to the parent either.
        with contextlib.suppress(OSError):
            os.chdir(place.folder)
