"""What an engine is made with: arguments, settings and defaults, checked and in bytes.

Knows what may be chosen. Must not know engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from graphmill import config
from graphmill.config.settings import AUTO
from graphmill.engine.requirements import temporary_folder, usable_folder
from graphmill.engine.terms import RETRIES, checked_resources, checked_retries, checked_timeout
from graphmill.errors import ConfigError
from graphmill.machine import available_cpus, parse_bytes, parse_limit, total_memory
from graphmill.memory.spill import checked_folder, default_folder

#: Memory that there must be for each worker by default, in bytes: two of Dask's chunks.
MEMORY_PER_WORKER = 256 << 20
#: Bytes of idle pages that are kept per worker by default, so that blocks are quickly used again.
WARM_PER_WORKER = 64 << 20


@dataclass(frozen=True, slots=True)
class Choices:
    """The choices for one engine."""

    #: The most memory that all of it may take, in bytes.
    memory_limit: int
    #: How many workers there are at first.
    num_workers: int
    #: Whether there may be fewer while memory is short, as nobody has asked for so many.
    adapts: bool
    #: How many bytes of idle pages are kept at least.
    warm_limit: int
    #: Where files are that stand in for shared memory.
    folder: Path
    #: Where blocks go when memory is short; None if there is no place.
    spill_folder: Path | None
    #: How many bytes may be there; None for what the disk has room for.
    spill_limit: int | None
    #: How often a task is run again whose worker has died.
    retries: int
    #: What tasks may need of, and how much of it there is.
    resources: Mapping[str, float]
    #: How long a task may take, in seconds; None for any time.
    task_timeout: float | None

    @classmethod
    def of(
        cls,
        *,
        memory_limit: Any,
        num_workers: Any,
        warm_limit: Any,
        folder: Any,
        spill_folder: Any,
        spill_limit: Any,
        retries: Any,
        resources: Any,
        task_timeout: Any,
    ) -> Self:
        """Choose: what is None comes from settings, or is the default.

        Raises
        ------
        ConfigError
            If a value cannot be used.
        """
        limit = memory_limit_of(chosen("memory_limit", memory_limit))
        num_workers = None if num_workers == AUTO else chosen("num_workers", num_workers)
        workers = workers_for(limit) if num_workers is None else checked(num_workers)
        warm = bytes_of("warm_limit", chosen("warm_limit", warm_limit))
        spill = chosen("spill_folder", spill_folder)
        retries = chosen("retries", retries)
        return cls(
            memory_limit=limit,
            num_workers=workers,
            adapts=num_workers is None,
            warm_limit=WARM_PER_WORKER * workers if warm is None else warm,
            folder=usable_folder(temporary_folder() if folder is None else folder),
            spill_folder=default_folder() if spill is None else checked_folder(Path(spill)),
            spill_limit=bytes_of("spill_limit", chosen("spill_limit", spill_limit)),
            retries=RETRIES if retries is None else checked_retries(retries),
            resources=checked_resources(resources),
            task_timeout=checked_timeout(chosen("task_timeout", task_timeout)),
        )


def checked(num_workers: Any) -> int:
    """See that a number of workers is one."""
    if isinstance(num_workers, bool) or not isinstance(num_workers, int):
        raise TypeError(f"num_workers must be a whole number, got {num_workers!r}")
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    return num_workers


def workers_for(memory_limit: int) -> int:
    """Tell how many workers there are by default: one per CPU, as far as there is memory for each."""
    each = config.get("memory_per_worker")
    each = MEMORY_PER_WORKER if each is None else parse_bytes(each)
    return max(1, min(available_cpus(), memory_limit // each))


def chosen(name: str, argument: Any) -> Any:
    """Get a setting: the argument, or what was configured."""
    return config.get(name) if argument is None else argument


def memory_limit_of(value: Any) -> int:
    """See that a memory limit is one, and get it in bytes."""
    try:
        limit = parse_limit(value, total_memory())
    except ConfigError as error:
        raise ConfigError(f"memory_limit: {error}") from None
    if limit < config.LEAST_MEMORY:
        raise ConfigError(
            f"memory_limit must be at least {config.LEAST_MEMORY >> 20} MiB, which is what processes take "
            f"that do nothing; got {value!r}"
        )
    return limit


def bytes_of(name: str, value: Any) -> int | None:
    """See that an amount of memory is one, and get it in bytes; 0 may be meant."""
    if value is None or (type(value) is int and value == 0):
        return value
    try:
        return parse_bytes(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
