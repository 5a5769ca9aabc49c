"""What an engine has once it has started: memory, workers and the books about them.

The only place where processes and memory are wired together.
"""

from __future__ import annotations

import contextlib
import logging
import os

from graphmill.engine.blocks import Blocks
from graphmill.engine.choices import Choices
from graphmill.engine.crew import GROUP, Crew
from graphmill.engine.limit import Limit
from graphmill.engine.packing import Packer
from graphmill.engine.requirements import (
    lacks_shared_memory,
    require_descriptors,
    tell_what_is_not_seen,
)
from graphmill.engine.stored import Keeper, Shelf
from graphmill.engine.turns import Turns
from graphmill.engine.views import Views
from graphmill.errors import SpillError
from graphmill.machine import physical_memory
from graphmill.memory.arena import fitting_size, shared_memory_room
from graphmill.memory.heap import Heap
from graphmill.memory.leftovers import OwnedFolder, own_name, remove_leftovers
from graphmill.memory.spill import SpillFile
from graphmill.workers.pool import Pool

logger = logging.getLogger("graphmill")


class Parts:
    """Starts the pool, and makes folders, arenas and books.

    Parameters
    ----------
    engine
        Whose they are.
    choices
        What its user wants.
    pool
        Its processes, which are not started yet.
    turns
        Whose turn it is.
    resources
        Where what must be let go of is noted, as soon as it is there.

    Raises
    ------
    OSError
        If the system does not give what it takes.
    PoolError
        If processes cannot be started.
    """

    def __init__(
        self,
        engine: Keeper,
        choices: Choices,
        pool: Pool,
        turns: Turns,
        resources: contextlib.ExitStack,
    ) -> None:
        self._choices = choices
        self._pool = pool
        workers = choices.num_workers
        require_descriptors(workers)
        # A program may be killed at any time, so first comes what removes what is made here.
        remove_leftovers(*{choices.folder, choices.spill_folder or choices.folder})
        pool.start()
        self.folder = self._make_folder()
        resources.callback(self.folder.close)
        in_files = self._lacks_shared_memory()
        tell_what_is_not_seen()
        self.blocks = Blocks(choices.warm_limit, self._forget_arena, self._open_spill)
        resources.callback(self.blocks.close)
        self.crew = Crew(
            pool,
            self.blocks,
            # Address space, not memory: in a container too, there may be more in files than in its memory.
            arena_size=fitting_size(physical_memory(), 3 * workers + 4 + workers // GROUP),
            folder=self.folder.path,
            in_files=in_files,
            warm_limit=choices.warm_limit // workers,
        )
        resources.callback(self.crew.close)
        self.limit = Limit(choices.memory_limit, self._pids, self.blocks, self.crew)
        turns.begin(pool, self.crew, self.limit)
        self.heap = self._make_heap(in_files=in_files)
        resources.callback(self.heap.close)
        self.views = Views(turns, self.crew.arenas, self.blocks)
        self.views.on_gone = self.crew.see_to_idle_pages
        resources.callback(self.views.close)
        self.shelf = self.views.shelf = Shelf(engine, self.blocks)
        self.packer = Packer(self.heap, self.blocks, self.shelf, engine, self.views.locate)

    def _make_folder(self) -> OwnedFolder:
        name = own_name()
        self._pool.guard(self._choices.folder / name)
        return OwnedFolder(self._choices.folder, name)

    def _make_heap(self, *, in_files: bool) -> Heap:
        """Make the memory in which this process puts values, which it alone allocates in."""
        own = self.crew.new_arena(in_file=False)
        overflow = None if in_files else self.crew.new_arena(in_file=True)
        heap = Heap(own, overflow, self.crew.commons_of(0))
        for arena in (own, overflow):
            if arena is not None:
                self.blocks.add_arena(arena, heap.give_back)
        return heap

    def _pids(self) -> list[int]:
        pids = [os.getpid(), self._pool.template_pid]
        pids += [self._pool.pid(worker) for worker in range(self._pool.num_workers)]
        return [pid for pid in pids if pid is not None]

    def _lacks_shared_memory(self) -> bool:
        free = shared_memory_room()
        if free is None or not lacks_shared_memory(self.folder.path):
            return False
        logger.warning(
            "There are only %d MB of shared memory here: blocks are kept in files in %s instead. "
            "In a container, more can be had with --shm-size.",
            free >> 20,
            self.folder.path,
        )
        return True

    def _open_spill(self) -> SpillFile:
        choices, folder = self._choices, self._choices.spill_folder
        if folder is None:
            raise SpillError(
                "blocks cannot be moved to disk: no temporary folder is on one; "
                "Engine(spill_folder=...) takes any folder"
            )
        name = own_name()
        self._pool.guard(folder.absolute() / name)  # before it is there
        file = SpillFile(folder, self.crew.new_number(), choices.spill_limit, name)
        self.crew.add_arena(file.arena)
        logger.info("memory is short: blocks move to disk, to %s", file.folder)
        return file

    def _forget_arena(self, number: int) -> None:
        self.crew.forget_arena(number)
