"""``graphmill info``: what this machine gives, what an engine takes of it, and why."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from graphmill import config
from graphmill.cli.disk import Speed, measure
from graphmill.cli.output import table, title
from graphmill.cli.settings import load_dask
from graphmill.config.files import machine_name
from graphmill.config.settings import AUTO
from graphmill.diagnostics.amounts import of_bytes
from graphmill.engine.choices import MEMORY_PER_WORKER
from graphmill.engine.core import Engine
from graphmill.engine.requirements import LEAST_SHARED_MEMORY, lacks_shared_memory
from graphmill.machine import (
    Bound,
    available_cpus,
    cpu_bounds,
    memory_bounds,
    parse_bytes,
    physical_memory,
    total_memory,
)
from graphmill.memory.arena import room, shared_memory_room
from graphmill.memory.numpy_handler import LIBRARY as HANDLER
from graphmill.memory.numpy_handler import find_interface, load_library
from graphmill.memory.segments import SHARED_MEMORY
from graphmill.memory.spill import file_system


@dataclass(frozen=True, slots=True)
class Cpus:
    """CPUs, and what bounds them."""

    #: Of the machine.
    machine: int
    #: For this process.
    usable: int
    #: What leaves it no more.
    bound: str


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes, and what bounds it."""

    machine: int
    usable: int
    bound: str
    #: Where segments are shared: how much there is, and how much is free; None where that is not known.
    shared: int | None
    shared_free: int | None


@dataclass(frozen=True, slots=True)
class Disk:
    """Where blocks go when memory is short."""

    folder: str
    kind: str
    #: In bytes.
    free: int
    speed: Speed | None


@dataclass(frozen=True, slots=True)
class Use:
    """What an engine that is made now would use, and why."""

    num_workers: int
    why_num_workers: str
    #: In bytes.
    memory_limit: int
    why_memory_limit: str
    #: Where blocks in memory lie.
    blocks: str
    why_blocks: str
    spill_folder: str | None
    why_spill_folder: str
    #: Whether results are born in shared memory, without a copy.
    born_in_place: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """All of it."""

    name: str
    system: str
    python: str
    cpus: Cpus
    memory: Memory
    disk: Disk | None
    will_use: Use


def run(arguments: argparse.Namespace) -> int:
    """Tell what there is."""
    load_dask()
    machine = look(disk_test=not arguments.no_disk_test)
    if arguments.json:
        print(json.dumps(asdict(machine), indent=2))
    else:
        show(machine)
    return 0


# ---- looking


def look(*, disk_test: bool) -> Machine:
    """Find out what there is, and what an engine would use.

    Raises
    ------
    ConfigError
        If the settings cannot be used.
    """
    engine = Engine()  # it starts nothing, and takes nothing, before it is used
    folder = engine.spill_folder
    disk = None
    if folder is not None:
        disk = Disk(str(folder), file_system(folder), room(folder), measure(folder) if disk_test else None)
    return Machine(
        name=machine_name(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=f"Python {platform.python_version()}, NumPy {np.__version__}",
        cpus=Cpus(os.cpu_count() or 1, available_cpus(), _tightest(cpu_bounds())),
        memory=_look_at_memory(),
        disk=disk,
        will_use=_look_at_use(engine),
    )


def _tightest(bounds: list[Bound]) -> str:
    """Name what leaves the least; of several, the first."""
    return min(bounds, key=lambda bound: bound.amount).source


def _look_at_memory() -> Memory:
    shared = None
    if SHARED_MEMORY.is_dir():
        status = os.statvfs(SHARED_MEMORY)
        shared = status.f_blocks * status.f_frsize
    return Memory(physical_memory(), total_memory(), _tightest(memory_bounds()), shared, shared_memory_room())


def _look_at_use(engine: Engine) -> Use:
    free = shared_memory_room()
    in_files = lacks_shared_memory(Path(tempfile.gettempdir()))
    return Use(
        num_workers=engine.num_workers,
        why_num_workers=_why("num_workers") or _why_so_many(engine),
        memory_limit=engine.memory_limit,
        why_memory_limit=_why("memory_limit") or "80% of what may be used",
        blocks="files" if in_files else "shared memory",
        why_blocks=(
            f"only {of_bytes(free or 0)} of shared memory are free, of {of_bytes(LEAST_SHARED_MEMORY)} wanted"
            if in_files
            else "there is enough of it"
        ),
        spill_folder=None if engine.spill_folder is None else str(engine.spill_folder),
        why_spill_folder=_why("spill_folder") or _why_there(engine.spill_folder),
        born_in_place=find_interface() is not None and load_library(HANDLER) is not None,
    )


def _why(name: str) -> str | None:
    """Say where a setting comes from; None if it is the default."""
    for source in config.sources(name):
        if source.value is not None and not source.elsewhere:
            return None if source.value == AUTO else f"{source.where} says {source.value}"
    return None


def _why_so_many(engine: Engine) -> str:
    if engine.num_workers == available_cpus():
        return "one per CPU"
    each = config.get("memory_per_worker")
    nbytes = MEMORY_PER_WORKER if each is None else parse_bytes(each)
    return f"{of_bytes(nbytes)} of memory for each (memory_per_worker), of {available_cpus()} CPUs"


def _why_there(folder: Path | None) -> str:
    if folder is None:
        return "no temporary folder is on a disk: spill_folder takes another folder"
    return "the fastest disk that a temporary folder is on"


# ---- showing


def show(machine: Machine) -> None:
    """Print it."""
    cpus, memory, disk, use = machine.cpus, machine.memory, machine.disk, machine.will_use
    title(f"{machine.name}: {machine.system}; {machine.python}")
    rows = [
        ("CPUs", *_part(cpus.usable, cpus.machine, str, cpus.bound)),
        ("memory", *_part(memory.usable, memory.machine, of_bytes, memory.bound)),
    ]
    if memory.shared is not None:
        free = of_bytes(memory.shared_free or 0)
        rows.append(("shared memory", f"{free} free of {of_bytes(memory.shared)}", str(SHARED_MEMORY)))
    if disk is None:
        rows.append(("disk for spilling", "none", ""))
    else:
        rows.append(
            ("disk for spilling", f"{of_bytes(disk.free)} free", f"{disk.folder} ({disk.kind or 'unknown'})")
        )
        if disk.speed is not None:
            speed = f"writes {of_bytes(disk.speed.write)}/s"
            if disk.speed.read is not None:
                speed += f", reads {of_bytes(disk.speed.read)}/s"
            rows.append(("", speed, f"measured with {of_bytes(disk.speed.nbytes)}"))
    table(rows)
    print()
    title("graphmill will use")
    table(
        [
            ("workers", str(use.num_workers), use.why_num_workers),
            ("memory limit", of_bytes(use.memory_limit), use.why_memory_limit),
            ("blocks", f"in {use.blocks}", use.why_blocks),
            ("spill folder", use.spill_folder or "none", use.why_spill_folder),
            (
                "results",
                "born in place" if use.born_in_place else "copied once",
                "the compiled handler works" if use.born_in_place else "there is no compiled handler here",
            ),
        ]
    )
    if sys.stdout.isatty():
        print()
        print("`graphmill config` shows all settings, and `graphmill config set` changes them.")


def _part(usable: int, machine: int, written: Callable[[int], str], bound: str) -> tuple[str, str]:
    if usable >= machine:
        return written(machine), "all that the machine has"
    return f"{written(usable)} of {written(machine)}", f"bounded by {bound}"
