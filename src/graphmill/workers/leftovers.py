"""What may be removed for a parent that died, and how.

To remove folders with all that is in them, unasked, is dangerous: a wrong path could be anything that
the user owns. So only what carries the dead parent's own mark is ever touched, and this is checked
twice: when a path is given, and again before it is removed.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from graphmill.memory import segments


def mark(parent: int) -> str:
    """Say how the names of all files and folders begin that a process makes."""
    return f"graphmill-{parent}-"


def is_own(path: str, parent: int) -> bool:
    """Whether a path can only mean something that a process has made for itself.

    Examples
    --------
    >>> is_own("/dev/shm/graphmill-42-1700000000-0", 42)
    True
    >>> is_own("graphmill-42-1700000000-0", 42)  # where is that?
    False
    >>> is_own("", 42), is_own("/home/me", 42), is_own("/tmp/graphmill-43-1700000000-0", 42)
    (False, False, False)
    """
    start = mark(parent)
    name = Path(path).name
    return Path(path).is_absolute() and name.startswith(start) and name != start


def remove(path: str, parent: int) -> bool:
    """Remove a file, or a folder with all that is in it; False if it is not that process's, or stays.

    A link is removed, and not what it leads to. What is not there is as good as removed.
    """
    if not is_own(path, parent):
        return False
    target = Path(path)
    # Nobody is left to be told of errors; the next engine looks for leftovers, too.
    with contextlib.suppress(OSError):
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
        elif target.parent == segments.SHARED_MEMORY:
            segments.unlink(target.name)
        else:
            target.unlink(missing_ok=True)
    return not target.exists() and not target.is_symlink()
