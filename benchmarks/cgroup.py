"""A group of processes that may take so much memory and no more, page cache included, by Linux's word.

Both kinds of memory control groups, v1 and v2. Needs the right to make one below the group that this process
is in, or beside it: root has it, and mostly nobody else.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
#: Seconds that killed processes may take to be gone.
GRACE = 10.0
NUMBERS = count()


@dataclass(frozen=True, slots=True)
class Version:
    """What the files are called."""

    limit: str
    #: Limits memory and swap together (v1), or swap alone (v2).
    swap: str
    #: Has the number of processes that were killed, as ``oom_kill``.
    events: str
    #: Has the most that was taken.
    peak: str


V1 = Version(
    "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control", "memory.max_usage_in_bytes"
)
V2 = Version("memory.max", "memory.swap.max", "memory.events", "memory.peak")


class NoGroup(Exception):
    """No group can be made here; says why."""


def own_group(groups: str, mounts: str) -> tuple[Version, Path]:
    """Tell in which memory control group this process is, and where.

    Parameters
    ----------
    groups, mounts : str
        What ``/proc/self/cgroup`` and ``/proc/self/mountinfo`` say.

    Raises
    ------
    NoGroup
        There is none, or it cannot be seen.
    """
    paths = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths[controllers] = path
    found: dict[Version, Path] = {}
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        root, point = fields.split()[3:5]
        kind, _, options = rest.split()[:3]
        if kind == "cgroup" and "memory" in options.split(","):
            own = [path for names, path in paths.items() if "memory" in names.split(",")]
            found |= _below(V1, own[0] if own else None, root, point)
        elif kind == "cgroup2":
            found |= _below(V2, paths.get(""), root, point)
    for version in (V1, V2):  # where there are both, memory is in the first
        if version in found:
            return version, found[version]
    raise NoGroup("no memory control group is mounted")


def _below(version: Version, path: str | None, root: str, point: str) -> dict[Version, Path]:
    if path is None or not Path(path).is_relative_to(root):
        return {}
    return {version: Path(point, Path(path).relative_to(root))}


class Group:
    """A group, until it is closed. Made by `create`."""

    def __init__(self, folder: Path, version: Version) -> None:
        self._folder = folder
        self._version = version

    @classmethod
    def create(cls, limit: int) -> Self:
        """Make a group that may take so many bytes, and no swap.

        Raises
        ------
        NoGroup
            It is not allowed here, or there are no such groups.
        """
        try:
            version, own = own_group(
                (PROC / "self" / "cgroup").read_text(), (PROC / "self" / "mountinfo").read_text()
            )
        except FileNotFoundError as error:
            raise NoGroup("there are no control groups on this system") from error
        reasons = []
        # With v2, a group with processes in it can have none below it that are limited; one beside it can be.
        for parent in (own,) if version is V1 else (own, own.parent):
            try:
                return cls(_made(parent, version, limit), version)
            except OSError as error:
                reasons.append(str(error))
        raise NoGroup("; ".join(reasons))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def command(self, command: Sequence[str]) -> list[str]:
        """Turn a command into one that runs in the group, with all that it starts."""
        join = 'echo $$ > "$0" && exec "$@"'
        return ["/bin/sh", "-c", join, str(self._folder / "cgroup.procs"), *command]

    @property
    def kills(self) -> int:
        """How many processes were killed as there was no memory."""
        lines = (self._folder / self._version.events).read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])

    @property
    def peak(self) -> int | None:
        """The most that was taken, page cache included, in bytes; None where the system does not tell."""
        with suppress(FileNotFoundError):
            return int((self._folder / self._version.peak).read_text())
        return None

    def close(self) -> None:
        """End what still runs in it, and remove it; may be called again."""
        deadline = time.monotonic() + GRACE
        while self._folder.exists():
            for pid in self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                self._folder.rmdir()
            except OSError:  # busy until the last process is reaped
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _processes(self) -> Iterator[int]:
        with suppress(FileNotFoundError):
            yield from map(int, (self._folder / "cgroup.procs").read_text().split())


def _made(parent: Path, version: Version, limit: int) -> Path:
    if version is V2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
        (parent / "cgroup.subtree_control").write_text("+memory")
    folder = parent / f"graphmill-benchmark-{os.getpid()}-{next(NUMBERS)}"
    folder.mkdir()
    try:
        (folder / version.limit).write_text(str(limit))
        if (folder / version.swap).exists():
            (folder / version.swap).write_text(str(limit) if version is V1 else "0")
    except OSError:
        folder.rmdir()
        raise
    return folder
