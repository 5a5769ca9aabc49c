"""The arena that several processes allocate in."""

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from graphmill.errors import ArenaFull
from graphmill.memory import commons as module
from graphmill.memory.arena import Arena
from graphmill.memory.block import BlockId
from graphmill.memory.commons import UNIT, Commons, unit_of
from graphmill.memory.heap import Heap
from graphmill.memory.mapping import CAN_REVERT, HUGE_PAGE
from graphmill.memory.units import BLOCK, COLD, FIRST_WORKER, MAKER, WARM
from tests.memory.conftest import ENVIRONMENT

pytestmark = pytest.mark.skipif(not CAN_REVERT, reason="pages cannot be given back here")

UNITS = 256
MB = 1 << 20


@pytest.fixture
def arena():
    with Arena.create(1, UNITS * UNIT) as arena:
        yield arena


@pytest.fixture
def path(tmp_path):
    return tmp_path / "common"


@pytest.fixture
def made(arena, path):
    """Makes what processes see: the maker first, then any number of workers."""
    with ExitStack() as stack:

        def make(process=MAKER, warm_limit=UNITS * UNIT):
            if process == MAKER:
                commons = Commons.create(arena, path)
                commons.keep(warm_limit)
            else:
                commons = Commons(arena, path, process)
            stack.callback(commons.close)
            return commons

        yield make


def take(commons, units):
    """Take a stretch, and put its pages in place."""
    found = commons.allocate(units * UNIT)
    for offset, length in found.cold:
        commons.arena.reserve(offset, length)
    return found


def spoken(commons, units=UNITS):
    return commons._map[:units].tolist()


# ---- taking and freeing


def test_what_one_frees_another_takes(made):
    maker, worker = made(), made(FIRST_WORKER)
    found = take(maker, 20)
    assert found.clean
    assert spoken(maker, 21) == [MAKER] * 20 + [COLD]
    maker.free(found.offset, found.length)
    assert worker.warm_bytes == 20 * UNIT
    again = worker.allocate(20 * UNIT)
    assert (again.offset, again.warm) == (found.offset, True)
    assert spoken(maker, 20) == [FIRST_WORKER] * 20


def test_the_smallest_idle_stretch_that_is_long_enough(made):
    commons = made()
    stretches = [take(commons, units) for units in (40, 1, 20, 1, 30, 1)]
    for long in stretches[::2]:
        commons.free(long.offset, long.length)
    assert commons.allocate(17 * UNIT).offset == stretches[2].offset
    assert commons.allocate(30 * UNIT).offset == stretches[4].offset


def test_new_pages_start_where_a_huge_page_does(made):
    commons = made()
    take(commons, 17)
    assert commons.allocate(HUGE_PAGE).offset % HUGE_PAGE == 0
    assert commons.allocate(UNIT).offset == 17 * UNIT, "what is short goes in between"


def test_idle_pages_and_new_ones_together(made):
    commons = made()
    first, second, _ = take(commons, 20), take(commons, 10), take(commons, 1)
    commons.free(first.offset, first.length)
    commons.free(second.offset, second.length, warm=False)
    found = commons.allocate(24 * UNIT)
    assert (found.offset, found.cold) == (first.offset, ((20 * UNIT, 4 * UNIT),))
    commons.free(found.offset, found.length, warm=False)
    commons.free(commons.allocate(UNIT).offset, UNIT)
    assert commons.allocate(20 * UNIT).clean, "hardly any of it would be idle pages"


def test_to_the_last_unit(made):
    commons = made()
    first = take(commons, UNITS - 1)
    assert commons.allocate(UNIT).offset == first.length
    with pytest.raises(ArenaFull, match="no 65536 bytes left"):
        commons.allocate(UNIT)
    commons.free(first.offset, first.length)
    assert commons.allocate(first.length).warm


def test_only_who_has_a_stretch_can_free_it(made):
    maker, worker = made(), made(FIRST_WORKER)
    found = take(maker, 20)
    for offset, length in [
        (found.offset, found.length),
        (found.offset, 0),
        (found.offset + 1, UNIT),
        (found.offset, found.length + UNIT),
    ]:
        with pytest.raises(ValueError, match="not taken"):
            worker.free(offset, length)
    with pytest.raises(ValueError, match="not taken"):
        maker.free_block(BlockId(1, found.offset), found.length, warm=True)
    maker.free(found.offset, found.length)
    with pytest.raises(ValueError, match="not taken"):
        maker.free(found.offset, found.length)


def test_a_stretch_gets_shorter(made):
    commons = made()
    found = take(commons, 20)
    assert commons.shrink(found.offset, found.length, 5 * UNIT + 1) == 6 * UNIT
    assert commons.shrink(found.offset, 6 * UNIT, 6 * UNIT) == 6 * UNIT
    assert commons.warm_bytes == 14 * UNIT
    with pytest.raises(ValueError, match="more than"):
        commons.shrink(found.offset, 6 * UNIT, 7 * UNIT)


def test_units_are_longer_in_large_arenas():
    assert unit_of(64 << 30) == UNIT
    assert unit_of((64 << 30) + 1) == 2 * UNIT
    assert unit_of(1 << 40) == 1 << 20


# ---- how much may be idle


def test_idle_pages_go_back_for_new_ones(made):
    commons = made(warm_limit=UNIT)
    first, last = take(commons, 20), take(commons, 20)
    commons.free(first.offset, first.length)
    assert commons.arena.occupied() == 40 * UNIT, "as many as were in use at once"
    take(commons, 30)
    assert commons.arena.occupied() == 50 * UNIT
    assert commons.warm_bytes == 0
    commons.free(last.offset, last.length)
    assert commons.trim_excess() == 0
    commons.keep(0)
    assert commons.trim_excess() == 20 * UNIT
    assert commons.arena.occupied() == 30 * UNIT


def test_what_was_in_use_long_ago_does_not_count(made, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 0.05)
    commons = made(warm_limit=4 * UNIT)
    found = take(commons, 20)
    commons.free(found.offset, found.length)
    end = time.monotonic() + 10
    while commons.warm_bytes > 4 * UNIT:
        commons.trim_excess()
        assert time.monotonic() < end
    assert commons.warm_bytes == 4 * UNIT


def test_pages_go_back_where_nobody_has_taken_anything_for_some_time(made, monkeypatch):
    commons = made(warm_limit=4 * UNIT)
    found = take(commons, 20)
    assert commons.rest(8 * UNIT) is None, "nothing is idle"
    assert commons.keeps(found.length, 0)
    commons.free(found.offset, found.length)
    assert 1 < commons.rest(8 * UNIT) <= module.REST
    assert commons.warm_bytes == 20 * UNIT
    monkeypatch.setattr(module, "REST", 0.0)
    assert not commons.keeps(found.length, 0)
    assert commons.keeps(3 * UNIT, UNIT)
    assert commons.rest(8 * UNIT) == 0
    assert commons.warm_bytes == 12 * UNIT
    assert commons.rest(8 * UNIT) is None
    assert commons.warm_bytes == 4 * UNIT
    commons.keep(0)
    assert not commons.keeps(UNIT, 0)


def test_all_idle_pages_can_be_had(made):
    commons = made()
    first, second = take(commons, 20), take(commons, 3)
    commons.free(first.offset, first.length)
    [taken] = commons.trim(5 * UNIT)
    assert (taken.offset, taken.length) == (15 * UNIT, 5 * UNIT), "what is left starts where it did"
    commons.free(taken.offset, taken.length)
    commons.give_back_all()
    assert commons.warm_bytes == 0
    assert commons.arena.occupied() == second.length


# ---- processes that end, or stop


def test_what_a_dead_process_had_is_free_but_for_its_blocks(made):
    maker, worker = made(), made(FIRST_WORKER)
    other = take(made(FIRST_WORKER + 1), 5)
    live, block = take(worker, 20), take(worker, 20)
    maker.publish(block.offset, block.length)
    worker.arena.shared[block.offset] = 7
    maker.bury(FIRST_WORKER)
    assert maker.arena.occupied() == other.length + block.length
    assert maker.arena.shared[block.offset] == 7
    assert maker.allocate(live.length).clean
    maker.free_block(BlockId(1, block.offset), block.length, warm=True)
    assert maker.warm_bytes == block.length


HOLDER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_process_that_is_stopped_with_the_lock_keeps_nobody_waiting(made, path):
    commons = made()
    with Arena.create(2, 4 * MB) as own:
        heap = Heap(own, commons=commons)
        command = [sys.executable, "-c", HOLDER, str(path)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
        ) as holder:
            assert holder.stdout.readline() == b"locked\n"
            holder.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            address = heap.allocate(MB)
            assert own.address <= address < own.address + own.size, "it comes from the own arena"
            assert time.monotonic() - began < 5
            with pytest.raises(ArenaFull, match="in use"):
                commons.allocate(MB)
            assert commons.trim(MB) == []
            assert commons.rest(MB) is None, "nothing is idle"
            holder.kill()
        heap.release(address)
        commons._left_out = 0.0
        assert commons.allocate(MB).clean, "the lock has gone with its process"


def test_what_is_closed_takes_nothing(made):
    commons = made()
    found = take(commons, 20)
    commons.close()
    commons.close()
    with pytest.raises(ArenaFull, match="closed"):
        commons.allocate(UNIT)
    commons.free(found.offset, found.length)
    assert commons.warm_bytes == found.length


FORKING = """
import os, pathlib, sys
from graphmill.memory.arena import Arena
from graphmill.memory.commons import UNIT, Commons
from graphmill.memory.heap import Heap
with Arena.create(1, 64 * UNIT) as arena, Arena.create(2, 64 * UNIT) as own:
    commons = Commons.create(arena, pathlib.Path(sys.argv[1]))
    commons.keep(UNIT)
    heap = Heap(own, commons=commons)
    address = heap.allocate(20 * UNIT)
    assert commons._map[0] == commons.process
    child = os.fork()
    if not child:
        assert heap.allocate(20 * UNIT) == 0
        heap.release(address)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert commons._map[0] == commons.process, "the copy has freed what is not its own"
    heap.release(address)
    assert commons.warm_bytes == 20 * UNIT
    commons.close()
"""


def test_a_forked_copy_frees_nothing(script, path):
    script(FORKING, path)


SEVERAL = """
import pathlib, random, sys, time
import numpy as np
from graphmill.errors import ArenaFull
from graphmill.memory.arena import Arena, ArenaHandle
from graphmill.memory.commons import UNIT, Commons
handle, path, process = eval(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
seconds = float(sys.argv[4])
arena = Arena.attach(handle)
commons, chance, held, taken = Commons(arena, path, process), random.Random(process), [], 0
end = time.monotonic() + seconds
print("begun", flush=True)
while time.monotonic() < end:
    if held and chance.random() < 0.5:
        found = held.pop(chance.randrange(len(held)))
        part = np.frombuffer(arena.shared, np.uint8, found.length, found.offset)
        assert (part == process).all(), "somebody else has written here"
        commons.free(found.offset, found.length)
        continue
    try:
        found = commons.allocate(chance.randrange(1, 40) * UNIT)
    except ArenaFull:
        continue
    for offset, length in found.cold:
        arena.reserve(offset, length)
    arena.shared[found.offset : found.offset + found.length] = bytes([process]) * found.length
    held.append(found)
    taken += 1
    if chance.random() < 0.1:
        commons.trim_excess()
print(taken)
"""


def test_several_processes_at_once_one_of_them_killed(made, arena, path):
    maker = made(warm_limit=40 * UNIT)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, repr(arena.handle), str(path), str(process), "1.5"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for process in range(FIRST_WORKER, FIRST_WORKER + 4)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "begun\n"
    workers[0].kill()
    workers[0].communicate(timeout=60)
    maker.bury(FIRST_WORKER)
    for worker in workers[1:]:
        out, err = worker.communicate(timeout=60)
        assert (worker.returncode, err) == (0, "")
        assert int(out) > 100
    for process in range(FIRST_WORKER + 1, FIRST_WORKER + 4):
        maker.bury(process)
    maker.give_back_all()
    assert set(spoken(maker)) == {COLD}
    assert arena.occupied() == 0


# ---- any order


class Machine(RuleBasedStateMachine):
    """Three processes that take, free and publish in any order."""

    @initialize()
    def begin(self):
        self.stack = ExitStack()
        self.arena = self.stack.enter_context(Arena.create(1, UNITS * UNIT))
        path = Path(os.environ["TMPDIR_OF_TEST"], f"common-{time.monotonic_ns()}")
        self.all = [Commons.create(self.arena, path)]
        self.all[0].keep(8 * UNIT)
        self.all += [Commons(self.arena, path, FIRST_WORKER + i) for i in range(2)]
        #: {where a stretch starts: its length, who has it or None for a block, what is written there}
        self.held = {}
        self.count = 0

    @rule(who=st.integers(0, 2), units=st.integers(1, 90))
    def take(self, who, units):
        try:
            found = take(self.all[who], units)
        except ArenaFull:
            return
        self.count += 1
        number = self.count % 251
        self.arena.shared[found.offset : found.offset + found.length] = bytes([number]) * found.length
        self.held[found.offset] = found.length, who, number

    @precondition(lambda self: self.held)
    @rule(data=st.data(), warm=st.booleans())
    def free(self, data, warm):
        offset = data.draw(st.sampled_from(sorted(self.held)))
        length, who, _ = self.held.pop(offset)
        if not warm:
            self.arena.punch(offset, length)
        if who is None:
            self.all[0].free_block(BlockId(1, offset), length, warm)
        else:
            self.all[who].free(offset, length, warm)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def publish(self, data):
        offset = data.draw(st.sampled_from(sorted(self.held)))
        length, who, number = self.held[offset]
        if who is not None:
            self.all[0].publish(offset, length)
            self.held[offset] = length, None, number

    @rule(who=st.integers(0, 2))
    def trim(self, who):
        self.all[who].trim_excess()

    @rule(who=st.integers(0, 1))
    def die(self, who):
        self.all[0].bury(FIRST_WORKER + who)
        self.held = {at: held for at, held in self.held.items() if held[1] != who + 1}

    @invariant()
    def nothing_is_lost(self):
        expected = [None] * UNITS
        for offset, (length, who, number) in self.held.items():
            seen = np.frombuffer(self.arena.shared, np.uint8, length, offset)
            assert (seen == number).all()
            for unit in range(offset // UNIT, (offset + length) // UNIT):
                assert expected[unit] is None, "two have it"
                expected[unit] = BLOCK if who is None else self.all[who].process
        found = spoken(self.all[0])
        assert all(
            there == wanted if wanted is not None else there in {COLD, WARM}
            for there, wanted in zip(found, expected, strict=True)
        )
        in_place = sum(there != COLD for there in found)
        assert self.arena.occupied() == in_place * UNIT

    def teardown(self):
        for each in self.all:
            each.close()
        self.stack.close()


def test_any_order(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR_OF_TEST", str(tmp_path))
    case = Machine.TestCase
    case.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
    case().runTest()
