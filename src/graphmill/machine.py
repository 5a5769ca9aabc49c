"""What this process may use of the machine: memory and CPUs, and how users write amounts of memory.

A container's limits are its control groups' (cgroups), of version 1, 2 or both; /proc shows which they are,
and what it says of the whole machine is then not ours to use. What cannot be read, or makes no sense, is no
limit. Knows nothing of processes or of what is done with the memory.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path, PurePosixPath
from typing import Any, Final

from graphmill.errors import ConfigError

logger = logging.getLogger("graphmill")

PROC: Final = Path("/proc")

#: Hard limits; and, in version 2, one above which the system slows processes down until they stand still.
_MEMORY_FILES: Final = ("memory.max", "memory.high", "memory.limit_in_bytes")
#: Part of what is taken where no limit is given: the rest is for the system and for other programs.
_DEFAULT_PERCENT: Final = 80

_FORMS: Final = "a whole number of bytes, or a text such as '800MB', '4 GB', '1.5GiB' or '512k'"
_LIMIT_FORMS: Final = f"{_FORMS}, or a part of what there is such as '60%'"
_NUMBER: Final = r"(?P<number>\d{1,25}(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)"
_BYTES: Final = re.compile(rf"\s*{_NUMBER}\s*(?P<unit>(?:[kmgtp]i?)?b?)\s*", re.ASCII | re.IGNORECASE)
_PERCENT: Final = re.compile(rf"\s*{_NUMBER}\s*%\s*", re.ASCII | re.IGNORECASE)
_POWERS: Final = " kmgtp"

#: Fields of a line of mountinfo up to where it is mounted.
_MOUNT_FIELDS: Final = 5
#: How /proc writes characters that would end a field.
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


# ---- what there is


@dataclass(frozen=True, slots=True)
class Bound:
    """Something that says how much may be used."""

    #: How much: bytes, or CPUs.
    amount: float
    #: What says so, or the file that it stands in.
    source: str


def total_memory(*, proc: Path = PROC) -> int:
    """Tell how many bytes of memory this process and its children may use together.

    Parameters
    ----------
    proc : Path
        Where the system tells of itself.

    Returns
    -------
    int
        What the machine has, or the least limit of the control groups that this process lies in, if that
        is less. Memory on disk (swap) does not count.
    """
    return int(min(bound.amount for bound in memory_bounds(proc=proc)))


def memory_bounds(*, proc: Path = PROC) -> list[Bound]:
    """Find what bounds the memory of this process and its children, in bytes: the machine first."""
    bounds = [Bound(physical_memory(proc=proc), "the machine")]
    for folder in control_groups("memory", proc=proc):
        bounds += [Bound(_limit(_text(folder / name)), str(folder / name)) for name in _MEMORY_FILES]
        stat = folder / "memory.stat"
        bounds.append(Bound(_limit_of_all_above(_text(stat)), str(stat)))
    return [bound for bound in bounds if bound.amount < math.inf]


def physical_memory(*, proc: Path = PROC) -> int:
    """Tell how many bytes of memory the machine has."""
    found = re.search(r"^MemTotal:\s*(\d+) kB$", _text(proc / "meminfo"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    import psutil  # noqa: PLC0415 - not needed on Linux, and it takes longer to load than the rest together

    try:
        return int(psutil.virtual_memory().total)
    except OSError:  # Linux without /proc
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_cpus(*, proc: Path = PROC) -> int:
    """Count the CPUs that this process may use.

    Parameters
    ----------
    proc : Path
        Where the system tells of itself.

    Returns
    -------
    int
        How many CPUs its threads may run on or, if that is less, the time on them that its control groups
        are allowed: for one and a half CPUs 2.
    """
    return max(1, math.ceil(min(bound.amount for bound in cpu_bounds(proc=proc))))


def cpu_bounds(*, proc: Path = PROC) -> list[Bound]:
    """Find what bounds the CPUs of this process: those that it may run on first, then quotas."""
    if hasattr(os, "sched_getaffinity"):
        bounds = [Bound(len(os.sched_getaffinity(0)), "the CPUs that this process may run on")]
    else:
        bounds = [Bound(os.cpu_count() or 1, "the machine")]
    for folder in control_groups("cpu", proc=proc):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        bounds.append(Bound(_cpus(quota, period), str(folder / "cpu.max")))
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        bounds.append(Bound(_cpus(quota, period), str(folder / "cpu.cfs_quota_us")))
    return [bound for bound in bounds if bound.amount < math.inf]


def _cpus(quota: str, period: str) -> float:
    """Tell how many CPUs so many microseconds in each period are."""
    return math.inf if math.inf in (_limit(quota), _limit(period)) else _limit(quota) / _limit(period)


def _limit(text: str) -> float:
    """Read a limit; what is none ("max", -1, nothing at all) is infinite."""
    try:
        limit = int(text)
    except ValueError:
        return math.inf
    return limit if limit > 0 else math.inf


def _limit_of_all_above(stat: str) -> float:
    """Find what version 1 tells of limits above, those included that cannot be seen from a container."""
    found = re.search(r"^hierarchical_memory_limit (\d+)$", stat, re.MULTILINE)
    return _limit(found[1]) if found else math.inf


def _text(path: Path) -> str:
    """Read a small file of the system's; one that cannot be read says nothing."""
    try:
        return os.fsdecode(path.read_bytes())
    except (OSError, ValueError):  # ValueError: no name of a file
        return ""


# ---- control groups


@dataclass(frozen=True, slots=True)
class Group:
    """A control group, and what its hierarchy is for."""

    #: What the hierarchy limits; None in version 2, where each group's files tell.
    controllers: frozenset[str] | None
    #: Its name: where it lies below the hierarchy's root.
    name: PurePosixPath

    @property
    def version(self) -> int:
        """Of the interface of control groups: 1 or 2."""
        return 2 if self.controllers is None else 1

    def is_in(self, other: Group) -> bool:
        """Tell by its name whether the group is another one or lies below it."""
        # What lies outside of a namespace is called "/..", whatever its name is.
        return self.name.is_relative_to(other.name) and ".." not in self.name.parts

    def limits(self, controller: str) -> bool:
        """Tell whether such limits may be found there."""
        return self.controllers is None or controller in self.controllers


def control_groups(controller: str, *, proc: Path = PROC) -> Iterator[Path]:
    """Find the groups that this process lies in, from its own up to the highest that can be seen.

    Parameters
    ----------
    controller : str
        What the groups are to limit: "memory" or "cpu".
    proc : Path
        Where the system tells of itself.

    Yields
    ------
    Path
        A folder with the group's files, which need not exist. In a container the group's name may be the
        one that it has outside: then the folder is the one that is mounted, which shows the container's own.
    """
    mounts = [(point, shown) for point, shown in _mounts(proc) if shown.limits(controller)]
    for own in _memberships(proc):
        if own.limits(controller):
            seen = [(point, shown) for point, shown in mounts if shown.version == own.version]
            # Other programs' groups may be mounted too, so where ours is found by its name, it is only there.
            by_name = [(point, own.name.relative_to(shown.name)) for point, shown in seen if own.is_in(shown)]
            for point, below in by_name or [(point, PurePosixPath()) for point, _ in seen]:
                yield from (point / part for part in (below, *below.parents))


def _memberships(proc: Path) -> Iterator[Group]:
    """Read which groups this process lies in, one of each hierarchy."""
    for line in _text(proc / "self" / "cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, name = rest.partition(":")
        if name.startswith("/"):
            # Version 2 alone has the number 0, and names no controllers.
            yield Group(frozenset(controllers.split(",")) if number != "0" else None, PurePosixPath(name))


def _mounts(proc: Path) -> Iterator[tuple[Path, Group]]:
    """Read where groups can be seen, and from which one down."""
    for line in _text(proc / "self" / "mountinfo").split("\n"):
        place, _, device = line.partition(" - ")
        fields, kind = place.split(" "), device.split(" ")
        if len(fields) < _MOUNT_FIELDS or kind[0] not in ("cgroup", "cgroup2"):
            continue
        root, point = (_ESCAPED.sub(lambda found: chr(int(found[1], 8)), each) for each in fields[3:5])
        # The options of a version 1 hierarchy name its controllers.
        controllers = frozenset(kind[-1].split(",")) if kind[0] == "cgroup" else None
        yield Path(point), Group(controllers, PurePosixPath(root))


# ---- how users write amounts


def parse_bytes(value: Any) -> int:
    """Read an amount of memory.

    Parameters
    ----------
    value : int, float or str
        A whole number, or a text: a number with a unit, in either case of letters. kB, MB, GB, TB and PB go
        by thousands, KiB, MiB, GiB, TiB and PiB by 1024; the B may be left out.

    Returns
    -------
    int
        Bytes; at least 1.

    Raises
    ------
    ConfigError
        If it is none.

    Examples
    --------
    >>> parse_bytes("1.5 GiB"), parse_bytes("800mb"), parse_bytes("512k")
    (1610612736, 800000000, 512000)
    """
    return _read_bytes(value, _FORMS)


def parse_limit(value: Any, total: int) -> int:
    """Read a limit on memory.

    Parameters
    ----------
    value : int, float, str or None
        As for `parse_bytes`; or a text such as "60%", a part of `total`; or None, which stands for "80%".
    total : int
        What there is, in bytes: see `total_memory`.

    Returns
    -------
    int
        Bytes; at least 1, and at most `total`: a warning is logged if more was asked for, as the system would
        end a process that takes it.

    Raises
    ------
    ConfigError
        If it is none.
    """
    if value is None:
        return total * _DEFAULT_PERCENT // 100
    percent = _PERCENT.fullmatch(value) if isinstance(value, str) else None
    if percent:
        limit = _whole(float(percent["number"]) * total / 100, value, _LIMIT_FORMS)
    else:
        limit = _read_bytes(value, _LIMIT_FORMS)
    if limit > total:
        logger.warning(
            "A memory limit of %s was asked for, but only %d bytes may be used here: that is the limit now",
            value if isinstance(value, str) else f"{value} bytes",
            total,
        )
    return min(limit, total)


def _read_bytes(value: Any, forms: str) -> int:
    found = _BYTES.fullmatch(value) if isinstance(value, str) else None
    if found:
        number, unit = found["number"], found["unit"].lower().removesuffix("b")
        if unit:
            return _whole(float(number) * _factor(unit), value, forms)
        amount: Any = int(number) if number.isdecimal() else float(number)
    else:
        amount = value
    # A fraction of a byte is a mistake: a part of the whole was meant, or a unit is missing.
    if isinstance(amount, bool) or not (isinstance(amount, Integral) or _is_whole(amount)):
        raise _not_bytes(value, forms)
    return _whole(amount, value, forms)


def _is_whole(amount: Any) -> bool:
    return isinstance(amount, Real) and float(amount).is_integer()


def _factor(unit: str) -> int:
    base = 1024 if unit.endswith("i") else 1000
    return int(base ** _POWERS.index(unit[0]))


def _whole(amount: Any, value: Any, forms: str) -> int:
    """Cut off what is less than a byte; `value` is what the user gave."""
    if not 1 <= amount < math.inf:
        raise _not_bytes(value, forms)
    return int(amount)


def _not_bytes(value: Any, forms: str) -> ConfigError:
    return ConfigError(f"An amount of memory must be {forms}, and more than 0; got {value!r}")
