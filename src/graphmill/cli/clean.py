"""``graphmill clean``: removes what dead engines left in shared memory and on disk."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from graphmill import config
from graphmill.cli.output import complain, table
from graphmill.diagnostics.amounts import of_bytes
from graphmill.errors import CommandError
from graphmill.memory.leftovers import find_leftovers, remove_unlocked
from graphmill.memory.spill import default_folder

#: What the system counts blocks of files in, in bytes.
_BLOCK = 512


def run(arguments: argparse.Namespace) -> int:
    """Remove leftovers, or only name them."""
    found = find_leftovers(*_folders(arguments.folder))
    sizes = {path: _size(path) for path in found}
    if arguments.dry_run:
        gone, stayed = found, []
    else:
        gone = [path for path in found if remove_unlocked(path)]
        stayed = [path for path in found if path not in gone and path.exists()]
    table([(of_bytes(sizes[path]), str(path)) for path in gone], indent=0)
    total = of_bytes(sum(sizes[path] for path in gone))
    if not found:
        print("Nothing was left by dead engines")
    elif arguments.dry_run:
        print(f"{len(gone)} left by dead engines, {total}; nothing was removed")
    else:
        print(f"{len(gone)} removed, {total}")
    for path in stayed:
        complain(f"{path} could not be removed")
    return 1 if stayed else 0


def _folders(chosen: list[str]) -> list[Path]:
    """Tell where engines may have put something: where they do by default, and where settings say."""
    for folder in chosen:
        if not Path(folder).is_dir():
            raise CommandError(f"There is no folder {folder!r} to look in")
    spill = config.get("spill_folder")
    folders = [
        tempfile.gettempdir(),
        "/var/tmp",  # noqa: S108 - only read
        *([] if spill is None else [spill]),
        *filter(None, [default_folder()]),
        *chosen,
    ]
    return list(dict.fromkeys(Path(folder).resolve() for folder in folders))


def _size(path: Path) -> int:
    """Tell what a file or folder takes, in bytes: sparse files take less than they are long."""
    paths = [path]
    if path.is_dir() and not path.is_symlink():
        paths += [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    return sum(_blocks_of(each) for each in paths) * _BLOCK


def _blocks_of(path: Path) -> int:
    try:
        return path.lstat().st_blocks
    except FileNotFoundError:
        return 0  # an engine that starts was quicker
