"""The files of stored arrays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def read_once(store: Path) -> None:
    """Read all files, so that whoever computes first does not wait for the disk alone."""
    buffer = bytearray(1 << 20)
    for path in files_of(store):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def files_of(store: Path) -> Iterator[Path]:
    """Give the files of a store."""
    return (path for path in sorted(store.rglob("*")) if path.is_file())
