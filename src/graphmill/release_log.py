"""A log of releases, for those who wonder where their memory goes. Knows values only by their size."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphmill.types import Key


@dataclass(slots=True)
class ReleaseLog:
    """Tells of each release, and of the bytes then held."""

    #: Where it tells.
    logger: logging.Logger
    #: The values, or references to them; read, never changed.
    cache: Mapping[Key, Any]
    #: The bytes of each value, when it was last seen.
    sizes: dict[Key, int]
    #: Their sum.
    held: int

    @classmethod
    def if_wanted(cls, cache: Mapping[Key, Any], logger: logging.Logger) -> ReleaseLog | None:
        """Begin a log if debugging is on."""
        if not logger.isEnabledFor(logging.DEBUG):
            return None
        sizes = {key: _nbytes(value) for key, value in cache.items()}
        return cls(logger, cache, sizes, sum(sizes.values()))

    def add(self, key: Key, value: Any) -> None:
        """Count a value that has come."""
        nbytes = _nbytes(value)
        self.held += nbytes - self.sizes.get(key, 0)
        self.sizes[key] = nbytes

    def release(self, key: Key, by: Key) -> None:
        """Tell of a value that was let go, and by the end of which task."""
        if key not in self.cache:
            self.held -= self.sizes.pop(key, 0)
        self.logger.debug("released %r, by the end of %r; %d bytes held", key, by, self.held)


def _nbytes(value: Any) -> int:
    nbytes = getattr(value, "nbytes", None)
    return nbytes if isinstance(nbytes, int) else sys.getsizeof(value)
